"""The main table: the model beside those that it is compared with, all on the same batches."""

from __future__ import annotations

from experiments.cells import Way, failures, metric_rows, mmm4rec, quoted_rows, specs_of
from experiments.expected import find_published
from experiments.report import Section, Table
from experiments.runs import Outcomes, Spec, Untrained
from experiments.table5 import PRETRAINED, SCRATCH, WITH_BIAS, WITHOUT_BIAS
from experiments.workspace import Workspace

NAME = "main"
TITLE = "Main table"
METRICS = ("recall@10", "ndcg@10", "recall@50", "ndcg@50")
UNTRAINED: dict[str, Untrained] = {
    "popularity": "popularity",
    "content nearest neighbour": "content",
}
BASELINES = {  # row to preset
    "SASRec": "sasrec",
    "GRU4Rec": "gru4rec",
    "BSARec": "bsarec",
    "Mamba4Rec": "mamba4rec",
    "TiM4Rec": "tim4rec",
}
ITEM_INPUTS = ("ids", "features", "both")


def ways(workspace: Workspace, domain: str, seeds: int) -> list[Way]:
    """Return the rows of one domain."""
    return [
        *(_untrained(name, domain, seeds) for name in UNTRAINED),
        *(_baseline(name, domain, seeds, known) for name in BASELINES for known in ITEM_INPUTS),
        *(
            mmm4rec(
                _own_name(start, item_bias),
                workspace,
                domain,
                seeds,
                item_bias=item_bias,
                pretrained=start == PRETRAINED,
            )
            for start in [SCRATCH] + ([PRETRAINED] if workspace.can_pretrain else [])
            for item_bias in (False, True)
        ),
    ]


def specs(workspace: Workspace, seeds: int) -> list[Spec]:
    """Return the runs of all downstream domains."""
    return [s for domain in workspace.downstream for s in specs_of(ways(workspace, domain, seeds))]


def sections(workspace: Workspace, seeds: int, outcomes: Outcomes) -> list[Section]:
    """Return a table for each prepared downstream domain."""
    return [_section(workspace, domain, seeds, outcomes) for domain in workspace.ready]


def _untrained(name: str, domain: str, seeds: int) -> Way:
    spec = Spec(name, "evaluate", (domain,), untrained=UNTRAINED[name])
    return Way(name, (spec,) * seeds)


def _baseline(name: str, domain: str, seeds: int, known: str) -> Way:
    row = f"{name}, {known}"
    settings = (f"model.item_inputs={known}",)
    return Way(
        row,
        tuple(
            Spec(row, "finetune", (domain,), (BASELINES[name],), settings, seed)
            for seed in range(seeds)
        ),
    )


def _own_name(start: str, item_bias: bool) -> str:
    return f"MMM4Rec, {start}, {WITH_BIAS if item_bias else WITHOUT_BIAS}"


def _section(workspace: Workspace, domain: str, seeds: int, outcomes: Outcomes) -> Section:
    rows = ways(workspace, domain, seeds)
    reference = _own_name(PRETRAINED if workspace.can_pretrain else SCRATCH, item_bias=True)
    table = Table(
        title=f"{domain}: test metrics",
        columns=list(METRICS),
        rows=metric_rows(
            rows,
            outcomes,
            METRICS,
            reference=reference,
            published=lambda way, metric: find_published(NAME, domain, way, metric),
        )
        + quoted_rows(NAME, domain, METRICS, besides=(way.name for way in rows)),
        notes=[
            f"Paired tests against: {reference}; Holm's correction over the rows of a column.",
            "ids, features, both: what a model knows of an item; features are those of the frozen "
            "encoders. Published rows have other encoders, lengths of history and patience.",
            *failures(rows, outcomes),
        ],
    )
    return Section(domain, "", [table], [])
