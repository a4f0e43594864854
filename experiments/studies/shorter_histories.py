"""How much of the history is needed: the last k items, read by a model that was trained on all.

Whether one that is fine-tuned on such histories does better is a study of its own,
`truncation-retrained`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from experiments.cells import ABSENT, Way, failures, mmm4rec, specs_of
from experiments.figures import draw_lines
from experiments.report import Cell, Figure, Row, Section, Table
from experiments.runs import Outcomes, Spec, settings_of
from experiments.statistics import Estimate
from experiments.studies.evaluating import served_folders
from experiments.studies.shares import kept_shares
from experiments.studies.study import (
    SERVED,
    Study,
    figure_path,
    read_values,
    user_values,
)
from experiments.studies.truncation import X_LABEL
from experiments.workspace import Workspace

NAME, RETRAINED_NAME = "truncation", "truncation-retrained"
RETRAINED_LENGTHS = (1, 2, 5, 10, 20)
WHOLE, RETRAINED = "trained on whole histories", "fine-tuned on the last k items"
NOTE = (
    "NDCG@10 with the last k items of each test history, as a share of that with all that the "
    "model reads; 95 % intervals from a bootstrap over users."
)


def specs(workspace: Workspace, seeds: int, *, retrain: bool) -> list[Spec]:
    """Return the runs of all downstream domains."""
    return [
        spec
        for domain in workspace.downstream
        for spec in specs_of(_ways(workspace, domain, seeds, retrain=retrain).values())
    ]


def sections(
    workspace: Workspace, seeds: int, outcomes: Outcomes, *, retrain: bool
) -> list[Section]:
    """Return a table and a picture for each prepared downstream domain."""
    return [
        _section(workspace, domain, seeds, outcomes, retrain=retrain) for domain in workspace.ready
    ]


def _ways(workspace: Workspace, domain: str, seeds: int, *, retrain: bool) -> dict[int | None, Way]:
    """Return what is trained: by the number of items read, None first: all."""

    def way(name: str, *after: str) -> Way:
        start = workspace.can_pretrain
        return mmm4rec(name, workspace, domain, seeds, pretrained=start, after=after)

    whole = way("whole histories")
    if not retrain:
        return {None: whole}
    longest = settings_of(whole.specs[0], workspace).model.max_len
    shorter = [k for k in RETRAINED_LENGTHS if k < longest]
    return {None: whole, **{k: way(f"last {k} items", f"data.last_items={k}") for k in shorter}}


def _section(
    workspace: Workspace, domain: str, seeds: int, outcomes: Outcomes, *, retrain: bool
) -> Section:
    ways = _ways(workspace, domain, seeds, retrain=retrain)
    notes = [NOTE, *failures(ways.values(), outcomes)]
    whole = user_values(ways[None], outcomes)
    if not whole:
        return Section(domain, "\n\n".join(notes), [], [])
    measured = {WHOLE: _serve(workspace, domain, ways[None], outcomes)}
    if retrain:
        again = {k: user_values(way, outcomes) for k, way in ways.items() if k}
        measured[RETRAINED] = {k: values for k, values in again.items() if values}
    kept = {
        name: dict(zip(by_k, _kept(list(by_k.values()), whole), strict=True))
        for name, by_k in measured.items()
    }
    rows = [Row(str(k), [_cell(by_k.get(k)) for by_k in kept.values()]) for k in measured[WHOLE]]
    name = RETRAINED_NAME if retrain else NAME
    path = figure_path(workspace, name, domain)
    lines = {name: [(float(k), share) for k, share in by_k.items()] for name, by_k in kept.items()}
    draw_lines({domain: lines}, x_label=X_LABEL, y_label="share of test NDCG@10 kept", path=path)
    table = Table(f"{domain}: share of test NDCG@10 kept, by k", list(kept), rows, notes)
    return Section(domain, "", [table], [Figure(f"{domain}: truncation", path, NOTE)])


def _serve(
    workspace: Workspace, domain: str, way: Way, outcomes: Outcomes
) -> dict[int, list[Tensor]]:
    longest = settings_of(way.specs[0], workspace).model.max_len
    serve = partial(served_folders, way, outcomes, domain, workspace.runs_dir / SERVED)
    return {
        k: read_values(list(serve(last_items=k if k < longest else None).values()))
        for k in range(1, longest + 1)
    }


def _kept(values: list[list[Tensor]], whole: list[Tensor]) -> list[Estimate]:
    """Average each user's metric over the seeds, then compare with whole histories."""
    means = [torch.stack(per_seed).mean(0) for per_seed in values]
    return kept_shares(means, torch.stack(whole).mean(0), seeds=len(whole))


def _cell(share: Estimate | None) -> Cell:
    if share is None:
        return Cell(ABSENT)
    return Cell(f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]", estimate=share)


STUDY = Study(
    "Truncation of histories",
    partial(specs, retrain=False),
    partial(sections, retrain=False),
)
RETRAINED_STUDY = Study(
    "Truncation of histories, fine-tuned again",
    partial(specs, retrain=True),
    partial(sections, retrain=True),
)
