"""`mmm4rec probe-time`: does a trained model use time, and is it worth it?

The test users are ranked again with other times than the true ones; everything else stays. What
time is worth is what is lost when every gap is drawn from the histories of all users: such gaps
are as common as the true ones, so that a model has seen their like, but tell nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from experiments.changed_gaps import CHANGES, Change, ChangedGaps
from experiments.statistics import compare, holm, user_metrics
from mmm4rec.checkpoint import Checkpoint
from mmm4rec.config import Config
from mmm4rec.errors import ConfigError, DataError
from mmm4rec.run_folder import RESULTS, atomic_file, write_json
from mmm4rec.runner import evaluate, load_model
from pipeline.datamodule import SequenceDataModule

Echo = Callable[[str], None]
REPORT = "report.txt"
TELLING: Change = "others"  # the change whose loss is the worth of time


@dataclass(frozen=True)
class TimeProbe:
    """What the probe found.

    Attributes:
        results: plain data; `changes` holds one entry per kind of gaps, the true ones first.
        text: the same for a terminal.
    """

    results: dict[str, Any]
    text: str

    @property
    def verdict(self) -> str:
        """One sentence: does the model use time, and is it worth it?"""
        return str(self.results["verdict"])


def probe_time(
    checkpoint: Checkpoint, config: Config, domain: str, folder: Path, seed: int, echo: Echo
) -> TimeProbe:
    """Rank the test users of a domain with true and with other times.

    Args:
        checkpoint: of a model that was trained on the domain.
        config: its settings.
        domain: a prepared domain.
        folder: where to write; one folder per kind of gaps, results.json and report.txt.
        seed: of what is drawn.
        echo: told a line now and then.

    Raises:
        ConfigError: the model was made without time.
        DataError: the domain is not there or has no timestamps.
        CheckpointError: the checkpoint is of other items or encoders.
    """
    data = SequenceDataModule.from_config(config, [domain], "finetune")
    _check_time(config, data)
    model = load_model(checkpoint, data.catalogue)
    described = {"checkpoint": str(checkpoint.path), "trained": checkpoint.training}
    return probe_model(config, model, data, folder, seed=seed, echo=echo, described=described)


def probe_model(
    config: Config,
    model: nn.Module,
    data: SequenceDataModule,
    folder: Path,
    *,
    seed: int,
    echo: Echo,
    described: dict[str, Any],
) -> TimeProbe:
    """Rank the test users with true and with other times.

    Args:
        config: all settings; one device is used, whatever they say.
        model: a Recommender (see `lit_module`).
        data: of stage `finetune`.
        folder: see `probe_time`.
        seed: of what is drawn.
        echo: told a line now and then.
        described: added to the results: what was probed.

    Raises:
        ConfigError: the settings turn time off.
        DataError: the domain has no timestamps.
    """
    _check_time(config, data)
    # The vectors' movements are summed up in one process.
    trainer = config.trainer.model_copy(update={"devices": 1})
    config = config.model_copy(update={"trainer": trainer})
    users: dict[Change, dict[str, Tensor]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for change in _asked(config):
        changed = ChangedGaps(model, data.sequences, change, seed=seed)
        run = evaluate(config, changed, data, folder / change, described={"gaps": change})
        users[change] = user_metrics(run.folder, config.evaluation.cutoffs)
        rows[change] = {"gaps": CHANGES[change], "test": run.results["test"]}
        if change != "none":
            rows[change]["sensitivity"] = changed.sensitivity.means()
        echo(f"ranked with gaps: {CHANGES[change]}")
    _compare(rows, users)
    results = {
        **described,
        "domain": data.domains[0],
        "seed": seed,
        "query_time": config.data.query_time,
        "users": len(next(iter(users["none"].values()))),
        "metric": _main_metric(config),
        "changes": rows,
    }
    results["verdict"] = judge(results)
    text = format_probe(results)
    write_json(folder / RESULTS, results)
    with atomic_file(folder / REPORT) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return TimeProbe(results, text)


def judge(results: dict[str, Any]) -> str:
    """Say in one sentence whether a model uses time, and whether that is worth it.

    Args:
        results: of `probe_model`, the verdict not needed.
    """
    changed = [row for name, row in results["changes"].items() if name != "none"]
    if not any(row["sensitivity"]["moved_times_share"] for row in changed):
        return "cannot be told: no history has a gap that could be changed"
    if not any(row["sensitivity"]["moved_vectors_share"] for row in changed):
        return "does not use time: whatever the gaps, the users' vectors are the same to the bit"
    metric = results["metric"]
    told = results["changes"][TELLING]["loss"][metric]
    low, high = told["interval"]
    interval = f"{told['value']:+.4f} {metric} [{low:+.4f}, {high:+.4f}]"
    if low > 0:
        return f"uses time, worth {interval}"
    if high < 0:
        return f"uses time, to its harm: {interval}"
    return f"uses time, not worth it: {interval} includes 0"


def format_probe(results: dict[str, Any]) -> str:
    """Return the results as lines for a terminal."""
    metric, rows = results["metric"], results["changes"]
    true = rows["none"]["test"]
    width = max(len(row["gaps"]) for row in rows.values())
    lines = [
        f"{results['domain']}, {results['users']:,} users, query time {results['query_time']}",
        "",
        f"{'gaps':<{width}} {metric:>9}   {'lost [95 %]':<26} {'p (Holm)':>9} {'other times':>12} "
        f"{'other vector':>13} {'change':>9} {'cosine':>9}",
        f"{CHANGES['none']:<{width}} {true[metric]['value']:>9.4f}",
        *(_line(row, metric, width) for name, row in rows.items() if name != "none"),
        "",
        "all metrics, true gaps: "
        + ", ".join(f"{name} {m['value']:.4f}" for name, m in true.items()),
        "other times, other vector: share of users; change of the vector as a share of its "
        "length; cosine: 1 - cosine",
        f"what time is worth: the loss where gaps are {CHANGES[TELLING]}; removed or stretched "
        "ones may only be strange to the model",
        "what a model without time reaches is another run: --set model.use_time=false",
        "",
        f"verdict: {results['verdict']}",
    ]
    return "\n".join(lines)


def _check_time(config: Config, data: SequenceDataModule) -> None:
    if not data.catalogue.has_time:
        raise DataError(
            f"{data.domains[0]} has no timestamps, so that no model of it can use time. "
            "Next: probe a model of a domain that has some"
        )
    if not config.model.use_time:
        raise ConfigError(
            "the model was made without time (model.use_time is false): there is nothing to probe. "
            "Next: mmm4rec finetune with --set model.use_time=true"
        )


def _asked(config: Config) -> list[Change]:
    return [change for change in CHANGES if change != "query" or config.data.query_time == "now"]


def _main_metric(config: Config) -> str:
    return f"ndcg@{config.evaluation.cutoffs[0]}"


def _compare(rows: dict[str, dict[str, Any]], users: dict[Change, dict[str, Tensor]]) -> None:
    """Add to every row of other gaps what is lost against the true ones, user by user.

    Holm's correction is over the kinds of gaps, for each metric by itself.
    """
    true, *others = users
    for metric, true_U in users[true].items():
        found = {change: compare([users[change][metric]], [true_U]) for change in others}
        corrected = holm([comparison.p for comparison in found.values()])
        for (change, comparison), holm_p in zip(found.items(), corrected, strict=True):
            rows[change].setdefault("loss", {})[metric] = {
                "value": comparison.difference,
                "interval": [comparison.low, comparison.high],
                "p": comparison.p,
                "holm_p": holm_p,
            }


def _line(row: dict[str, Any], metric: str, width: int) -> str:
    loss, moved = row["loss"][metric], row["sensitivity"]
    low, high = loss["interval"]
    lost = f"{loss['value']:+.4f} [{low:+.4f}, {high:+.4f}]"
    return (
        f"{row['gaps']:<{width}} {row['test'][metric]['value']:>9.4f}   {lost:<26} "
        f"{loss['holm_p']:>9.2g} {moved['moved_times_share']:>12.1%} "
        f"{moved['moved_vectors_share']:>13.1%} {moved['relative_change']:>9.3f} "
        f"{moved['cosine_distance']:>9.3f}"
    )
