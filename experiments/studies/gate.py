"""A learned mean of the two time signals in place of the filter, and their plain mean."""

from __future__ import annotations

from functools import partial

from experiments.cells import Way, failures, metric_rows, mmm4rec, specs_of_domains
from experiments.report import Section, Table
from experiments.runs import Outcomes
from experiments.studies.study import COLUMNS, Study, curves_figure, figure_path
from experiments.workspace import Workspace

NAME = "gate"
FILTERS = {"filter": "full", "gate": "gate", "mean": "none"}
SHARED, APART = "one TiSSD", "a TiSSD for each modality"
REFERENCE = f"filter, {SHARED}"


def ways(workspace: Workspace, domain: str, seeds: int) -> list[Way]:
    """Return the rows of one domain."""

    def way(name: str, *settings: str) -> Way:
        start = workspace.can_pretrain
        return mmm4rec(name, workspace, domain, seeds, pretrained=start, both=settings)

    # A default is not set: the reference is then the same run as in the tables.
    return [
        way(
            f"{name}, {blocks}",
            *((f"model.time_filter={value}",) if value != "full" else ()),
            *(("model.share_ti_ssd=false",) if blocks == APART else ()),
        )
        for blocks in (SHARED, APART)
        for name, value in FILTERS.items()
    ] + [way("without time", "model.use_time=false")]


def sections(workspace: Workspace, seeds: int, outcomes: Outcomes) -> list[Section]:
    """Return a table and a picture for each prepared downstream domain."""
    return [_section(workspace, domain, seeds, outcomes) for domain in workspace.ready]


def _section(workspace: Workspace, domain: str, seeds: int, outcomes: Outcomes) -> Section:
    rows = ways(workspace, domain, seeds)
    table = Table(
        f"{domain}: how the time signals of two streams become one",
        list(COLUMNS),
        metric_rows(
            rows, outcomes, COLUMNS, reference=REFERENCE, published=lambda way, metric: None
        ),
        [
            "Behind one TiSSD both streams carry the same time signal (unless it has dropout): a "
            "mean, learned or not, then has nothing to choose from.",
            f"Paired tests against: {REFERENCE}; Holm's correction over the rows of a column.",
            *failures(rows, outcomes),
        ],
    )
    path = figure_path(workspace, NAME, domain)
    return Section(domain, "", [table], curves_figure(path, domain, rows, outcomes))


STUDY = Study("Gating in place of the filter", partial(specs_of_domains, ways), sections)
