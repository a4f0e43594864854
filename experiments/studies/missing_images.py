"""Images that are missing in pre-training, in fine-tuning or at serving, per policy.

Everything is complete but where a row says. A larger share takes the images of the same items as
a smaller one, and of more.
"""

from __future__ import annotations

from torch import Tensor

from experiments.cells import Way, failures, mmm4rec, specs_of
from experiments.figures import draw_lines
from experiments.report import Figure, Row, Section, Table
from experiments.runs import Outcomes, Spec
from experiments.statistics import estimate
from experiments.studies.evaluating import served_folders
from experiments.studies.study import (
    SERVED,
    Study,
    figure_path,
    read_values,
    user_values,
    value_cell,
)
from experiments.workspace import Workspace

NAME = "missing-images"
IMAGE = "image"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
POLICIES = ("learned", "zero", "white")
PRETRAINING, FINETUNING, SERVING = "pre-training", "fine-tuning", "serving"
LEARNING_AND_SERVING = "fine-tuning and serving"
NOTES = [
    "The share of the items with an image that lose it, and where; everywhere else all images are "
    "there. What stands for a missing one is the policy model.missing_modality: a learned vector, "
    "zeros before the adapter, or the features of a white picture. To the encoder pixels, which "
    "the miniature Amazon uses, a white picture is zeros: there the last two are one.",
    "Validation, which chooses the epoch, sees what fine-tuning sees.",
]

Case = tuple[str, str, float]  # place, policy, share


def ways(workspace: Workspace, domain: str, seeds: int) -> dict[Case, Way]:
    """Return what is trained for each case of missing images."""
    pretrained = workspace.can_pretrain
    cases = [(FINETUNING, policy, share) for policy in POLICIES for share in SHARES]
    if pretrained:
        cases += [(PRETRAINING, policy, share) for policy in POLICIES for share in SHARES]

    def way(place: str, policy: str, share: float) -> Way:
        hidden = _hidden_setting(share)
        return mmm4rec(
            f"{policy}, {share:.0%} missing in {place}",
            workspace,
            domain,
            seeds,
            pretrained=pretrained,
            both=(f"model.missing_modality={policy}",),
            before=hidden if place == PRETRAINING else (),
            after=hidden if place == FINETUNING else (),
        )

    return {case: way(*case) for case in cases}


def specs(workspace: Workspace, seeds: int) -> list[Spec]:
    """Return the runs of all downstream domains."""
    return [
        spec
        for domain in workspace.downstream
        for spec in specs_of(ways(workspace, domain, seeds).values())
    ]


def sections(workspace: Workspace, seeds: int, outcomes: Outcomes) -> list[Section]:
    """Return a table and a picture for each prepared downstream domain."""
    return [
        _section(workspace, domain, seeds, outcomes)
        if _has_images(workspace, domain)
        else Section(domain, f"{domain} has no images that could be missing.", [], [])
        for domain in workspace.ready
    ]


def _section(workspace: Workspace, domain: str, seeds: int, outcomes: Outcomes) -> Section:
    made = ways(workspace, domain, seeds)
    values = _measure(workspace, domain, made, outcomes)
    places = [place for place in _PLACES if any(case[0] == place for case in values)]
    rows = [
        Row(
            f"{place}: {policy}",
            [value_cell(values.get((place, policy, share), [])) for share in SHARES],
        )
        for place in places
        for policy in POLICIES
    ]
    table = Table(
        f"{domain}: test NDCG@10 by share of missing images",
        [f"{share:.0%}" for share in SHARES],
        rows,
        [*NOTES, *failures(made.values(), outcomes)],
    )
    panels = {
        f"missing in {place}": {
            policy: [
                (100 * share, estimate(found))
                for share in SHARES
                if (found := values.get((place, policy, share)))
            ]
            for policy in POLICIES
        }
        for place in places
    }
    path = figure_path(workspace, NAME, domain)
    draw_lines(panels, x_label="% of the images missing", y_label="test NDCG@10", path=path)
    return Section(domain, "", [table], [Figure(f"{domain}: missing images", path, NOTES[0])])


_PLACES = (PRETRAINING, FINETUNING, LEARNING_AND_SERVING, SERVING)


def _measure(
    workspace: Workspace, domain: str, made: dict[Case, Way], outcomes: Outcomes
) -> dict[Case, list[Tensor]]:
    """Return each user's metric for every case with a run that succeeded."""
    folder = workspace.runs_dir / SERVED

    def serve(way: Way, share: float) -> list[Tensor]:
        hidden = {IMAGE: share} if share else {}
        return read_values(
            list(served_folders(way, outcomes, domain, folder, hidden_modalities=hidden).values())
        )

    values: dict[Case, list[Tensor]] = {}
    for (place, policy, share), way in made.items():
        if place == PRETRAINING:
            values[place, policy, share] = user_values(way, outcomes)
            continue
        values[FINETUNING, policy, share] = serve(way, 0.0)
        values[LEARNING_AND_SERVING, policy, share] = user_values(way, outcomes)
        values[SERVING, policy, share] = serve(made[FINETUNING, policy, 0.0], share)
    return {case: found for case, found in values.items() if found}


def _has_images(workspace: Workspace, domain: str) -> bool:
    manifest = workspace.manifest(domain)
    assert manifest is not None
    return any(one.modality == IMAGE and one.present for one in manifest.features)


def _hidden_setting(share: float) -> tuple[str, ...]:
    return (f"data.hidden_modalities={{{IMAGE}: {share}}}",) if share else ()


STUDY = Study("Missing images", specs, sections)
