"""Pictures of a report: curves, lines with bands, labelled points."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.statistics import Estimate
from mmm4rec.errors import DataError
from mmm4rec.run_folder import atomic_file

Curve = list[tuple[float, float]]  # epoch, value
Look = dict[str, Any]  # matplotlib's arguments
Line = list[tuple[float, Estimate]]  # x, y with its interval

# Okabe and Ito's colours, which colour-blind people tell apart, without the yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":")  # the second seven names are dashed, the third dotted
MARKERS = ("o", "s", "^")
PANELS_PER_ROW = 3
PANEL_WIDTH, LEGEND_ROW = 5.0, 0.22  # inches


def read_curve(run_folder: Path, metric: str) -> Curve:
    """Return (epoch, value) of a run's metrics.csv.

    Raises:
        DataError: the run has not recorded that metric.
    """
    path = run_folder / "metrics.csv"
    with path.open(encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if metric not in (rows.fieldnames or []):
            raise DataError(
                f"{path} has no {metric!r}, only {', '.join(rows.fieldnames or [])}. "
                "Next: ask for one of these"
            )
        return [(float(row["epoch"]), float(row[metric])) for row in rows]


def draw_curves(panels: dict[str, dict[str, list[Curve]]], metric: str, path: Path) -> None:
    """Draw one panel per domain: a thin line per run, its best epoch marked.

    Args:
        panels: per domain, for each way of training, the curves of its seeds.
        metric: what the values are, for the axis.
        path: the PNG to write.
    """
    looks = _looks([way for ways in panels.values() for way in ways])
    y_label = f"validation {metric.removeprefix('val/')}"
    with _picture(path, list(panels), "epoch", y_label) as (figure, axes):
        for axis, ways in zip(axes, panels.values(), strict=True):
            for way, curves in ways.items():
                for curve in curves:
                    _draw_curve(axis, curve, looks[way])
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        # All panels share the axis: fixed earlier it would cut off what a later one draws.
        axes[0].set_ylim(bottom=0)
        _add_legend(figure, looks, "one line per seed, mark: best epoch")


def draw_lines(
    panels: dict[str, dict[str, Line]], *, x_label: str, y_label: str, path: Path
) -> None:
    """Draw one panel per domain: values against a number, with bands for their intervals.

    Args:
        panels: per domain and name of a line its points, by ascending x.
        x_label: what the number is.
        y_label: what the values are.
        path: the PNG to write.
    """
    looks = _looks([name for lines in panels.values() for name in lines])
    with _picture(path, list(panels), x_label, y_label) as (figure, axes):
        for axis, lines in zip(axes, panels.values(), strict=True):
            for name, line in lines.items():
                _draw_band(axis, line, looks[name])
        _add_legend(figure, looks, "band: 95 % interval")


def draw_points(
    points: list[tuple[str, float, Estimate]],
    *,
    x_label: str,
    y_label: str,
    path: Path,
    line: Line | None = None,
) -> None:
    """Draw labelled points with error bars, and a fitted line with its band.

    Args:
        points: label, x, and y with its interval.
        x_label: what x is.
        y_label: what y is.
        path: the PNG to write.
        line: the fitted values by ascending x; None: no line.
    """
    looks = _looks([label for label, _, _ in points])
    with _picture(path, [""], x_label, y_label) as (figure, axes):
        for label, x, y in points:
            _draw_error_bar(axes[0], x, y, looks[label])
        axes[0].axhline(0, color="gray", linewidth=0.8, zorder=0)
        # The band of a line through few points may be far wider than all of them.
        bottom, top = axes[0].get_ylim()
        if line:
            _draw_band(axes[0], line, {"color": "gray", "linestyle": "-", "marker": ""})
        axes[0].set_ylim(bottom, top)
        _add_legend(figure, looks, "bar: 95 % interval")


def _looks(names: list[str]) -> dict[str, Look]:
    """Return colour, dash and marker of each distinct name."""
    looks: list[Look] = [
        {"color": colour, "linestyle": dash, "marker": marker}
        for dash, marker in zip(DASHES, MARKERS, strict=True)
        for colour in COLOURS
    ]
    return dict(zip(dict.fromkeys(names), cycle(looks), strict=False))


@contextmanager
def _picture(
    path: Path, titles: list[str], x_label: str, y_label: str
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure with one panel per title; write it at the end."""
    columns = min(len(titles), PANELS_PER_ROW)
    rows = -(-len(titles) // columns)
    # Names come from folders: a dollar sign must not begin a formula.
    with mpl.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(PANEL_WIDTH * columns, 3.6 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        axes = list(grid.flat)
        for axis, title in zip(axes, titles, strict=False):
            axis.set(title=title, xlabel=x_label)
            axis.grid(alpha=0.3)
        for axis in grid[:, 0]:
            axis.set_ylabel(y_label)
        for axis in axes[len(titles) :]:
            axis.remove()
        yield figure, axes[: len(titles)]
        with atomic_file(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")


def _draw_curve(axis: Axes, curve: Curve, look: Look) -> None:
    epochs, values = zip(*curve, strict=True)
    best = max(curve, key=lambda point: point[1])
    axis.plot(epochs, values, linewidth=1, alpha=0.75, **(look | {"marker": ""}))
    axis.plot(*best, **look)


def _draw_band(axis: Axes, line: Line, look: Look) -> None:
    xs = [x for x, _ in line]
    axis.plot(xs, [y.value for _, y in line], markersize=4, **look)
    lows, highs = [y.low for _, y in line], [y.high for _, y in line]
    axis.fill_between(xs, lows, highs, color=look["color"], alpha=0.15, linewidth=0)


def _draw_error_bar(axis: Axes, x: float, y: Estimate, look: Look) -> None:
    # Drawn as a line: an interval of a bootstrap need not hold its value, as error bars must.
    axis.plot([x, x], [y.low, y.high], color=look["color"], linewidth=1)
    axis.plot(x, y.value, color=look["color"], marker=look["marker"])


def _add_legend(figure: Figure, looks: dict[str, Look], title: str) -> None:
    """Put the legend below all panels, where it hides nothing; the figure grows by its rows."""
    handles: list[Artist] = [Line2D([], [], **look) for look in looks.values()]
    most = 3 if figure.get_figwidth() > PANEL_WIDTH else 2
    for columns in range(most, 0, -1):
        legend = figure.legend(
            handles, list(looks), title=title, loc="outside lower center", ncols=columns
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * -(-len(looks) // columns))
