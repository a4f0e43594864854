"""Ablations: what each part of the model is worth (the paper's Table VI, and its appendix)."""

from __future__ import annotations

from experiments.cells import Way, failures, metric_rows, mmm4rec
from experiments.expected import find_published
from experiments.report import Section, Table
from experiments.runs import Outcomes
from experiments.workspace import Workspace

NAME = "table6"
TITLE = "Ablations (Table VI)"
FULL = "full"
WITHOUT_PRETRAINING = "without pre-training"
WITHOUT_ITEM_BIAS = "without item bias"
METRICS = ("recall@10", "ndcg@10", "recall@50", "ndcg@50")

# Row to its preset, in pre-training and in fine-tuning.
VARIANTS = {
    "without time": "without-time",
    "without shared weights": "without-shared-weights",
    "without learnable filter": "without-learnable-filter",
    "without adaptive filter": "without-adaptive-filter",
    "two layers": "two-layers",
    "attention instead of SSD": "attention",
}


def ways(workspace: Workspace, domain: str, seeds: int) -> list[Way]:
    """Return the rows of one domain.

    Where the domains to pre-train on are not prepared, every row is from scratch.
    """
    pretrained = workspace.can_pretrain

    def way(name: str, presets: tuple[str, ...] = (), *, bias: bool = True, start: bool) -> Way:
        return mmm4rec(
            name, workspace, domain, seeds, item_bias=bias, pretrained=start, presets=presets
        )

    return [
        way(FULL, start=pretrained),
        *([way(WITHOUT_PRETRAINING, start=False)] if pretrained else []),
        *(way(name, (preset,), start=pretrained) for name, preset in VARIANTS.items()),
        way(WITHOUT_ITEM_BIAS, bias=False, start=pretrained),
    ]


def sections(workspace: Workspace, seeds: int, outcomes: Outcomes) -> list[Section]:
    """Return a table for each prepared downstream domain."""
    return [_section(workspace, domain, seeds, outcomes) for domain in workspace.ready]


def _section(workspace: Workspace, domain: str, seeds: int, outcomes: Outcomes) -> Section:
    rows = ways(workspace, domain, seeds)
    # What has been published are variants of the pre-trained model.
    table = Table(
        title=f"{domain}: test metrics",
        columns=list(METRICS),
        rows=metric_rows(
            rows,
            outcomes,
            METRICS,
            reference=FULL,
            published=lambda way, metric: (
                find_published(NAME, domain, way, metric) if workspace.can_pretrain else None
            ),
        ),
        notes=[*_notes(workspace, domain), *failures(rows, outcomes)],
    )
    return Section(domain, "", [table], [])


def _notes(workspace: Workspace, domain: str) -> list[str]:
    notes = [
        f"Paired tests against: {FULL}; Holm's correction over the rows of a column. Every variant "
        + ("was pre-trained as that variant." if workspace.can_pretrain else "is from scratch.")
    ]
    manifest = workspace.manifest(domain)
    if manifest and not manifest.has_time:
        notes.append(
            f"{domain} has no timestamps: without time there is no filter, and the rows on time "
            f"and filter are the same model as: {FULL}."
        )
    return notes
