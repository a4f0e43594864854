"""A picture of effects: one row per change, the interval of each as a bar across 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.figures import COLOURS, MARKERS
from experiments.statistics import Comparison
from mmm4rec.run_folder import atomic_file

ROW_HEIGHT = 0.45  # inches
NUDGE = 0.16  # between the series of one row, in rows


def draw_effects(series: dict[str, dict[str, Comparison]], x_label: str, path: Path) -> None:
    """Draw differences with their intervals, the rows from the top in the order given.

    Args:
        series: by name of a series and of a row; a row may lack some series. At most three series.
        x_label: what the differences are of.
        path: the PNG to write.
    """
    rows = list(dict.fromkeys(row for effects in series.values() for row in effects))
    with mpl.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(8, 1.2 + ROW_HEIGHT * len(rows)), layout="constrained")
        axis = figure.subplots()
        for place, (name, effects) in enumerate(series.items()):
            look: dict[str, Any] = {"color": COLOURS[place], "marker": MARKERS[place]}
            for row, effect in effects.items():
                y = rows.index(row) + NUDGE * (place - (len(series) - 1) / 2)
                axis.plot([effect.low, effect.high], [y, y], color=look["color"], linewidth=1.5)
                axis.plot(effect.difference, y, linestyle="", **look)
            axis.plot([], [], linestyle="", label=name, **look)
        axis.axvline(0, color="gray", linewidth=0.8, zorder=0)
        axis.set_yticks(range(len(rows)), rows)
        axis.invert_yaxis()
        axis.set_xlabel(x_label)
        axis.grid(axis="x", alpha=0.3)
        figure.legend(title="bar: 95 % interval", loc="outside lower center", ncols=len(series))
        with atomic_file(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
