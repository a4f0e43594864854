"""`mmm4rec demo`: a miniature Amazon through the code of the real commands."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from experiments.curves import draw_curves, read_curve
from experiments.presets import find_preset
from mmm4rec.baselines.popularity import Popularity
from mmm4rec.checkpoint import read_checkpoint
from mmm4rec.config import Config, architecture
from mmm4rec.metrics import TargetRank, bootstrap_intervals, per_user_metrics
from mmm4rec.run_folder import RESULTS, environment, write_json
from mmm4rec.runner import RANKS, Run, evaluate, fit
from mmm4rec.settings import load_config, merge_settings, read_preset
from pipeline.build import prepare_domain
from pipeline.datamodule import SequenceDataModule, Stage
from pipeline.schema import atomic_path
from pipeline.synthetic import World, build_world, serve

Echo = Callable[[str], None]
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
    world = build_world(folder / "world", seed=0)
    _prepare(world, folder, echo)
    runs: Runs = {
        domain: {POPULARITY: [_popularity(folder, domain)], SCRATCH: [], PRETRAINED: []}
        for domain in world.downstream
    }
    for seed in range(seeds):
        _train(world.pretraining, runs, folder, seed, echo)
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


def _prepare(world: World, folder: Path, echo: Echo) -> None:
    settings = _settings("prepare", folder)
    with serve(world) as base_url:
        echo(f"a miniature Amazon in {world.folder}, its pictures at {base_url}")
        for domain in world.domains:
            source = str(world.source(domain))
            manifest = prepare_domain(domain, settings, source=source, echo=lambda line: None)
            final, images = manifest.counts[-1], manifest.card["images"]
            failed = ", ".join(f"{n} {error}" for error, n in images["urls"].items())
            echo(
                f"prepared {domain}: {final.users} users, {final.items} items, "
                f"{final.interactions} interactions; URLs: {failed}"
            )


def _train(pretraining: list[str], runs: Runs, folder: Path, seed: int, echo: Echo) -> None:
    echo(f"seed {seed}: pre-training on {', '.join(pretraining)} ...")
    pretrained = _fit(folder, pretraining, "pretrain", seed, None)
    for domain, ways in runs.items():
        ways[SCRATCH].append(_fit(folder, [domain], "finetune", seed, None))
        ways[PRETRAINED].append(_fit(folder, [domain], "finetune", seed, pretrained.folder))
        latest = {way: ways[way][-1].results for way in (SCRATCH, PRETRAINED)}
        measured = ", ".join(
            f"{result['test']['ndcg@10']['value']:.4f} {way} (best epoch {result['best_epoch']})"
            for way, result in latest.items()
        )
        echo(f"seed {seed}: {domain}, test NDCG@10 {measured}")


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
    with atomic_path(folder / REPORT) as temporary:
        picture = f"![validation NDCG@10 by epoch]({PICTURE})"
        temporary.write_text(f"{report.text}\n\n{picture}\n", encoding="utf-8")


def _settings(verb: str, folder: Path, seed: int = 0, base: dict[str, Any] | None = None) -> Config:
    values = merge_settings(read_preset(find_preset(verb)), base or {})
    overrides = [f"data.data_dir={folder / 'data'}", f"trainer.seed={seed}"]
    preset = "demo" if verb == "prepare" else f"demo-{verb}"
    return load_config(find_preset(preset), overrides, base=values)


def _fit(folder: Path, domains: list[str], stage: Stage, seed: int, pretrained: Path | None) -> Run:
    checkpoint = read_checkpoint(pretrained) if pretrained else None
    base = architecture(checkpoint.config) if checkpoint else None
    settings = _settings(stage, folder, seed, base)
    return fit(
        settings,
        SequenceDataModule.from_config(settings, domains, stage),
        stage=stage,
        runs_dir=folder / "runs",
        checkpoint=checkpoint,
        reuse=True,
        echo=lambda line: None,
    )


def _popularity(folder: Path, domain: str) -> Run:
    settings = _settings("finetune", folder)
    data = SequenceDataModule.from_config(settings, [domain], "finetune")
    model = Popularity(data.train_items(), data.catalogue.num_items)
    target = folder / "runs" / "popularity" / domain
    return evaluate(settings, model, data, target, described={"model": POPULARITY})


def _row(runs: list[Run]) -> dict[str, Any]:
    """Average each user's metrics over the seeds, then resample the users."""
    per_seed = [_user_metrics(run.folder) for run in runs]
    means = {name: torch.stack([seed[name] for seed in per_seed]).mean(0) for name in METRICS}
    intervals = bootstrap_intervals(means, samples=1000)
    trained = [run.results for run in runs if "best_epoch" in run.results]
    return {
        "metrics": {
            name: {"value": float(values.mean()), "interval": list(intervals[name])}
            for name, values in means.items()
        },
        "ndcg@10_by_seed": [float(seed["ndcg@10"].mean()) for seed in per_seed],
        "best_epoch_by_seed": [result["best_epoch"] for result in trained],
        "seconds_to_best_by_seed": [result["seconds_to_best"] for result in trained],
    }


def _user_metrics(folder: Path) -> dict[str, torch.Tensor]:
    table = pq.read_table(folder / RANKS)
    better, tied = (torch.tensor(table[name].to_pylist()) for name in ("better", "tied"))
    return per_user_metrics(TargetRank(better, tied), (10,))


def _format(results: dict[str, Any], seeds: int) -> str:
    lines = [
        "# A miniature Amazon, from raw files to a fine-tuned recommender",
        "",
        f"`{results['command']}`, {results['date']}, {results['environment']['cpus']} CPU cores, "
        f"{results['seconds']:.0f} s, seeds 0 to {seeds - 1}. Full ranking of the test users' last "
        "item; in brackets 95 % intervals (bootstrap over users, metrics averaged over seeds).",
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
