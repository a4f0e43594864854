"""`mmm4rec truncation`: what is kept of a metric when a model reads the last k items only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.figures import Line, draw_lines
from experiments.statistics import Estimate, user_metrics
from experiments.studies.evaluating import evaluate_cached, with_settings
from experiments.studies.shares import kept_shares
from mmm4rec.checkpoint import Checkpoint
from mmm4rec.config import Config
from mmm4rec.errors import ConfigError
from mmm4rec.run_folder import RESULTS, Echo, write_json

PICTURE = "truncation.png"
X_LABEL = "last k items read"


@dataclass(frozen=True)
class Truncation:
    """What one model keeps.

    Attributes:
        results: plain data: `lengths` holds, by k, each metric, the share kept and its interval.
        text: the same for a terminal.
        picture: a PNG.
    """

    results: dict[str, Any]
    text: str
    picture: Path


def truncation_curve(
    config: Config,
    checkpoint: Checkpoint,
    domain: str,
    ks: Sequence[int],
    folder: Path,
    echo: Echo,
) -> Truncation:
    """Rank the test users with the last k items of their histories, for several k.

    Args:
        config: settings of the data and the evaluation; the model's are the checkpoint's.
        checkpoint: a fine-tuned model.
        domain: prepared, the one that the model was trained on.
        ks: how many items, each 1 to `model.max_len`.
        folder: gets results.json, truncation.png and one folder per evaluation; what is there is
            not evaluated again.
        echo: told a line per k.

    Raises:
        ConfigError: a k is not allowed, or none is given.
        CheckpointError: the model is of other items or encoders.
        DataError: the domain is not prepared, or the model finds nothing.
    """
    longest = checkpoint.config.model.max_len
    lengths = _check_lengths(ks, longest)
    cutoff = config.evaluation.cutoffs[0]

    def measure(k: int | None) -> dict[str, Tensor]:
        shorter = with_settings(config, last_items=k)
        run = evaluate_cached(shorter, checkpoint, domain, folder / "evaluations")
        return user_metrics(run.folder, (cutoff,))

    whole = measure(None)
    measured: list[dict[str, Tensor]] = []
    for k in lengths:
        measured.append(whole if k == longest else measure(k))
        found = ", ".join(f"{name} {values.mean():.4f}" for name, values in measured[-1].items())
        echo(f"last {k} items: {found}")
    kept = {
        name: kept_shares([values[name] for values in measured], whole_U)
        for name, whole_U in whole.items()
    }
    results = {
        "checkpoint": str(checkpoint.path),
        "domain": domain,
        "max_len": longest,
        "users": len(next(iter(whole.values()))),
        "whole": {name: float(values.mean()) for name, values in whole.items()},
        "lengths": {str(k): _point(at, measured[at], kept) for at, k in enumerate(lengths)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, Line] = {
        name: [(float(k), share) for k, share in zip(lengths, shares, strict=True)]
        for name, shares in kept.items()
    }
    draw_lines(
        {domain: lines},
        x_label=X_LABEL,
        y_label="share of the metric kept",
        path=folder / PICTURE,
    )
    write_json(folder / RESULTS, results)
    return Truncation(results, _format(results), folder / PICTURE)


def _point(
    at: int, values: dict[str, Tensor], kept: dict[str, list[Estimate]]
) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "value": float(values[name].mean()),
            "kept": shares[at].value,
            "interval": [shares[at].low, shares[at].high],
        }
        for name, shares in kept.items()
    }


def _check_lengths(ks: Sequence[int], longest: int) -> list[int]:
    wrong = [k for k in ks if not 1 <= k <= longest]
    if wrong or not ks:
        raise ConfigError(
            f"the numbers of items {list(ks)}: allowed are 1 to {longest} (model.max_len of the "
            f"checkpoint), at least one of them. Next: leave out {wrong or 'nothing'}"
        )
    return sorted(set(ks))


def _format(results: dict[str, Any]) -> str:
    names = list(results["whole"])
    whole = ", ".join(f"{name} {value:.4f}" for name, value in results["whole"].items())
    lines = [
        f"{results['domain']}, {results['users']:,} users, whole histories of at most "
        f"{results['max_len']} items: {whole}",
        "   k  " + "  ".join(f"{name + ' kept [95 %]':<26}" for name in names),
    ]
    for k, row in results["lengths"].items():
        cells = [
            f"{row[name]['kept']:7.1%} [{row[name]['interval'][0]:.1%}, "
            f"{row[name]['interval'][1]:.1%}]"
            for name in names
        ]
        lines.append(f"{k:>4}  " + "  ".join(f"{cell:<26}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)
