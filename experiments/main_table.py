"""The main table: the model beside those that it is compared with, all on the same batches."""

from __future__ import annotations

from experiments.cells import (
    COMPARED,
    UNTRAINED,
    Way,
    compared,
    failures,
    metric_rows,
    mmm4rec,
    quoted_rows,
    untrained,
)
from experiments.expected import find_published
from experiments.report import Section, Table
from experiments.runs import Outcomes
from experiments.table5 import PRETRAINED, SCRATCH, WITH_BIAS, WITHOUT_BIAS
from experiments.workspace import Workspace

NAME = "main"
TITLE = "Main table"
METRICS = ("recall@10", "ndcg@10", "recall@50", "ndcg@50")
ITEM_INPUTS = ("ids", "features", "both")


def ways(workspace: Workspace, domain: str, seeds: int) -> list[Way]:
    """Return the rows of one domain."""
    return [
        *(untrained(kind, domain, seeds) for kind in UNTRAINED),
        *(compared(model, known, domain, seeds) for model in COMPARED for known in ITEM_INPUTS),
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


def sections(workspace: Workspace, seeds: int, outcomes: Outcomes) -> list[Section]:
    """Return a table for each prepared downstream domain."""
    return [_section(workspace, domain, seeds, outcomes) for domain in workspace.ready]


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
