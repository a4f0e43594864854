"""`mmm4rec demo`: a miniature Amazon through the code of the real commands."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.figures import draw_curves, read_curve
from experiments.runs import Spec, execute, pretraining
from experiments.statistics import estimate, user_metrics
from experiments.workspace import Workspace, miniature, prepare_miniature
from mmm4rec.run_folder import RESULTS, Echo, atomic_file, environment, write_json
from mmm4rec.runner import Run

SCRATCH, PRETRAINED, POPULARITY = "from scratch", "pre-trained", "popularity"
METRICS = ("recall@10", "ndcg@10")
REPORT, PICTURE = "report.md", "convergence.png"

Runs = dict[str, dict[str, list[Run]]]  # by downstream domain and way of training, one per seed


@dataclass(frozen=True)
class DemoReport:
    """What the demo found.

    Attributes:
        results: plain data.
        text: the same as Markdown.
    """

    results: dict[str, Any]
    text: str


def run_demo(folder: Path, *, seeds: int, echo: Echo) -> DemoReport:
    """Build the miniature, prepare, pre-train, fine-tune, evaluate, and write the report.

    Everything is written under `folder`; what is already there is not made again.
    """
    started = time.perf_counter()
    workspace = miniature(folder)
    prepare_miniature(folder, echo)
    specs = _choose_runs(workspace, seeds)
    distinct = (spec for ways in specs.values() for chosen in ways.values() for spec in chosen)
    outcomes = execute(distinct, workspace, echo=echo)
    runs = {
        domain: {way: [outcomes[spec].finished() for spec in ways[way]] for way in ways}
        for domain, ways in specs.items()
    }
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"mmm4rec demo --seeds {seeds}",
        "seconds": round(time.perf_counter() - started, 1),
        "environment": environment(),
        "domains": {
            domain: {way: _row(way_runs) for way, way_runs in ways.items()}
            for domain, ways in runs.items()
        },
    }
    report = DemoReport(results, _format(results, seeds))
    _write(report, runs, folder)
    echo(f"written: {folder / REPORT}, {folder / PICTURE}")
    return report


def _choose_runs(workspace: Workspace, seeds: int) -> dict[str, dict[str, list[Spec]]]:
    def finetune(domain: str, seed: int, source: Spec | None) -> Spec:
        way = PRETRAINED if source else SCRATCH
        return Spec(way, "finetune", (domain,), seed=seed, source=source)

    sources = [pretraining(workspace, "pre-training", seed) for seed in range(seeds)]
    return {
        domain: {
            POPULARITY: [Spec(POPULARITY, "evaluate", (domain,), untrained="popularity")],
            SCRATCH: [finetune(domain, seed, None) for seed in range(seeds)],
            PRETRAINED: [finetune(domain, seed, source) for seed, source in enumerate(sources)],
        }
        for domain in workspace.downstream
    }


def _write(report: DemoReport, runs: Runs, folder: Path) -> None:
    curves = {
        domain: {
            way: [read_curve(run.folder, "val/ndcg@10") for run in ways[way]]
            for way in (SCRATCH, PRETRAINED)
        }
        for domain, ways in runs.items()
    }
    draw_curves(curves, "val/ndcg@10", folder / PICTURE)
    write_json(folder / RESULTS, report.results)
    with atomic_file(folder / REPORT) as temporary:
        picture = f"![validation NDCG@10 by epoch]({PICTURE})"
        temporary.write_text(f"{report.text}\n\n{picture}\n", encoding="utf-8")


def _row(runs: list[Run]) -> dict[str, Any]:
    per_seed = [user_metrics(run.folder, (10,)) for run in runs]
    estimates = {name: estimate([seed[name] for seed in per_seed]) for name in METRICS}
    trained = [run.results for run in runs if "best_epoch" in run.results]
    return {
        "metrics": {
            name: {"value": found.value, "interval": [found.low, found.high]}
            for name, found in estimates.items()
        },
        "ndcg@10_by_seed": [float(seed["ndcg@10"].mean()) for seed in per_seed],
        "best_epoch_by_seed": [result["best_epoch"] for result in trained],
        "seconds_to_best_by_seed": [result["seconds_to_best"] for result in trained],
    }


def _format(results: dict[str, Any], seeds: int) -> str:
    lines = [
        "# A miniature Amazon, from raw files to a fine-tuned recommender",
        "",
        f"`{results['command']}`, {results['date']}, {results['environment']['cpus']} CPU cores, "
        f"{results['seconds']:.0f} s, seeds 0 to {seeds - 1}. Full ranking of the test users' last "
        "item; in brackets 95 % intervals (bootstrap over users and seeds).",
    ]
    for domain, rows in results["domains"].items():
        lines += [
            "",
            f"## {domain}",
            "",
            "| model | recall@10 | NDCG@10 | epochs to best | seconds to best |",
            "|---|---|---|---|---|",
            *(_table_row(way, row) for way, row in rows.items()),
            "",
            _verdict(rows),
        ]
    return "\n".join(lines)


def _table_row(way: str, row: dict[str, Any]) -> str:
    cells = [
        f"{m['value']:.4f} [{m['interval'][0]:.4f}, {m['interval'][1]:.4f}]"
        for m in row["metrics"].values()
    ]
    epochs = ", ".join(str(epoch) for epoch in row["best_epoch_by_seed"]) or "-"
    seconds = ", ".join(f"{value:.1f}" for value in row["seconds_to_best_by_seed"]) or "-"
    return f"| {way} | {' | '.join(cells)} | {epochs} | {seconds} |"


def _verdict(rows: dict[str, Any]) -> str:
    scratch, pretrained = rows[SCRATCH], rows[PRETRAINED]
    seeds = len(scratch["ndcg@10_by_seed"])
    better = _wins(pretrained["ndcg@10_by_seed"], scratch["ndcg@10_by_seed"])
    faster = _wins(scratch["best_epoch_by_seed"], pretrained["best_epoch_by_seed"])
    return (
        f"Pre-training gives the higher NDCG@10 in {better} of {seeds} seeds and reaches its best "
        f"epoch sooner in {faster} of {seeds}."
    )


def _wins(higher: list[float], lower: list[float]) -> int:
    return sum(a > b for a, b in zip(higher, lower, strict=True))
