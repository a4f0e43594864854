"""Convergence curves as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

Curve = list[tuple[float, float]]


def read_curve(run_folder: Path, metric: str) -> Curve:
    """Return (epoch, value) of a run's metrics.csv."""
    with (run_folder / "metrics.csv").open(encoding="utf-8") as file:
        return [(float(row["epoch"]), float(row[metric])) for row in csv.DictReader(file)]


def draw_curves(panels: dict[str, dict[str, list[Curve]]], metric: str, path: Path) -> None:
    """Draw one panel per domain: every run thin, its best epoch marked.

    Args:
        panels: per domain, for each of two ways of training, the curves of its seeds.
        metric: what the values are, for the axis.
        path: the PNG to write.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4), sharey=True, squeeze=False
    )
    for axis, (domain, ways) in zip(axes[0], panels.items(), strict=True):
        for colour, (way, curves) in zip(("tab:gray", "tab:blue"), ways.items(), strict=True):
            for index, curve in enumerate(curves):
                epochs, values = zip(*curve, strict=True)
                best = max(curve, key=lambda point: point[1])
                axis.plot(epochs, values, color=colour, alpha=0.7, label=None if index else way)
                axis.plot(*best, "o", color=colour)
        axis.set_title(domain)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(title="one line per seed, dot: best epoch", loc="lower right")
    # All panels share the axis: fixed earlier it would cut off what a later one draws.
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].set_ylabel(f"validation {metric.removeprefix('val/')}")
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
    temporary.replace(path)
