"""Transfer efficiency: how soon a pre-trained model is as good as it gets (the paper's Table V)."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from experiments.cells import ABSENT, Way, failures, metric_rows, mmm4rec, quoted_rows
from experiments.expected import find_published, verdict
from experiments.figures import draw_curves, read_curve
from experiments.report import Cell, Figure, Row, Section, Table
from experiments.runs import Outcomes
from experiments.statistics import Estimate
from experiments.workspace import Workspace
from mmm4rec.runner import Run

NAME = "table5"
TITLE = "Transfer efficiency (Table V)"
WITH_BIAS, WITHOUT_BIAS = "with item bias", "without item bias"
PRETRAINED, SCRATCH = "pre-trained", "from scratch"
METRICS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20", "recall@50", "ndcg@50")

# Column to what results.json says of it.
CONVERGENCE: dict[str, Callable[[dict[str, Any]], float]] = {
    "epochs": lambda results: results["best_epoch"],
    "steps": lambda results: results["best_step"],
    "epochs to 95 %": lambda results: results["convergence"]["95%"]["epoch"],
    "steps to 95 %": lambda results: results["convergence"]["95%"]["step"],
    "epochs to 99 %": lambda results: results["convergence"]["99%"]["epoch"],
    "steps to 99 %": lambda results: results["convergence"]["99%"]["step"],
    "seconds per epoch": lambda results: results["seconds_per_epoch"],
    "seconds to best": lambda results: results["seconds_to_best"],
}


def ways(workspace: Workspace, domain: str, seeds: int) -> list[Way]:
    """Return the rows of one domain: pre-trained or not, with item bias or without."""
    return [
        mmm4rec(
            f"{start}, {WITH_BIAS if item_bias else WITHOUT_BIAS}",
            workspace,
            domain,
            seeds,
            item_bias=item_bias,
            pretrained=start == PRETRAINED,
        )
        for start in ([PRETRAINED] if workspace.can_pretrain else []) + [SCRATCH]
        for item_bias in (True, False)
    ]


def sections(workspace: Workspace, seeds: int, outcomes: Outcomes) -> list[Section]:
    """Return a picture of all domains, then two tables for each."""
    by_domain = {domain: ways(workspace, domain, seeds) for domain in workspace.ready}
    parts = [_curves(by_domain, workspace, outcomes)] if by_domain else []
    return parts + [_section(domain, rows, outcomes) for domain, rows in by_domain.items()]


def _section(domain: str, rows: list[Way], outcomes: Outcomes) -> Section:
    efficiency = Table(
        title=f"{domain}: epochs, optimizer steps and seconds",
        columns=list(CONVERGENCE),
        rows=[_convergence_row(way, outcomes, domain) for way in rows]
        + quoted_rows(NAME, domain, tuple(CONVERGENCE), besides=(way.name for way in rows)),
        notes=[
            "Epochs, steps and seconds to the best validation NDCG@10 and to 95 and 99 % of it. "
            "Mean over the seeds, in brackets each of them. Seconds are those of this machine, "
            "with validation.",
            *failures(rows, outcomes),
        ],
    )
    reference = rows[0].name
    accuracy = Table(
        title=f"{domain}: test metrics",
        columns=list(METRICS),
        rows=metric_rows(
            rows,
            outcomes,
            METRICS,
            reference=reference,
            published=lambda way, metric: find_published(NAME, domain, way, metric),
        ),
        notes=[f"Paired tests against: {reference}; Holm's correction over the rows of a column."],
    )
    return Section(domain, "", [efficiency, accuracy], [])


def _convergence_row(way: Way, outcomes: Outcomes, domain: str) -> Row:
    runs = list(way.runs(outcomes).values())
    return Row(
        way.name,
        [_convergence_cell(runs, column, way.name, domain) for column in CONVERGENCE],
    )


def _convergence_cell(runs: list[Run], column: str, way: str, domain: str) -> Cell:
    published = find_published(NAME, domain, way, column)
    values = [CONVERGENCE[column](run.results) for run in runs]
    if not values:
        return Cell(ABSENT, published=published)
    found = Estimate(fmean(values), min(values), max(values), len(values))
    return Cell(_mean_of(values), published=published, verdict=verdict(found, published))


def _mean_of(values: list[float]) -> str:
    mean, *each = (f"{round(value, 2):g}" for value in (fmean(values), *values))
    return mean if len(values) == 1 else f"{mean} ({', '.join(each)})"


def _curves(by_domain: dict[str, list[Way]], workspace: Workspace, outcomes: Outcomes) -> Section:
    panels = {
        domain: {
            way.name: [read_curve(run.folder, "val/ndcg@10") for run in runs.values()]
            for way in rows
            if (runs := way.runs(outcomes))
        }
        for domain, rows in by_domain.items()
    }
    path = workspace.reports_dir / NAME / "convergence.png"
    drawn = {domain: curves for domain, curves in panels.items() if curves}
    if not drawn:
        return Section("Convergence", "No run succeeded.", [], [])
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_curves(drawn, "val/ndcg@10", path)
    note = "Validation NDCG@10 by epoch, one line per seed, the best epoch marked."
    return Section("Convergence", "", [], [Figure("Convergence", path, note)])
