"""The history of a run, one row per epoch, and how fast it came near its best."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

Row = dict[str, float]
MEASURED = ("train/", "val/", "watch/")  # the order of the columns
NEAR_BEST = (90, 95, 99)  # percent


class EpochHistory(Callback):
    """Keeps one row per epoch, across interruptions, and writes them to a CSV file.

    Columns: epoch (from 1), step, seconds of the epoch with its validation, then train/loss, every
    validation metric and whatever is watched.
    """

    def __init__(self, path: Path, monitor: str, echo: Callable[[str], None] | None) -> None:
        """Write to `path`; say a line per epoch through `echo` where one is given."""
        self.rows: list[Row] = []
        self._path = path
        self._monitor = monitor
        self._echo = echo
        self._clock = EpochClock()

    @property
    def best(self) -> Row | None:
        """The first row with the highest monitored value."""
        return max(self.rows, key=lambda row: row[self._monitor], default=None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the clock of an epoch that was interrupted."""
        self._clock.go_on()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clock.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of the epoch."""
        measured = {
            name: float(value)
            for part in MEASURED
            for name, value in trainer.callback_metrics.items()
            if name.startswith(part)
        }
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": round(self._clock.seconds, 4),
            **measured,
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()
            self._say(row)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows and the clock, for the Lightning checkpoint."""
        return {"rows": self.rows, "seconds": self._clock.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of an interrupted run."""
        self.rows = list(state_dict["rows"])
        self._clock = EpochClock(state_dict["seconds"])

    def _write(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            # Not every epoch has a value for everything that is watched.
            columns = dict.fromkeys(name for row in self.rows for name in row)
            writer = csv.DictWriter(file, fieldnames=list(columns))
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self._path)

    def _say(self, row: Row) -> None:
        if self._echo is not None:
            best = self.best
            assert best is not None
            self._echo(
                f"epoch {row['epoch']:.0f}  loss {row['train/loss']:.4f}  "
                f"{self._monitor} {row[self._monitor]:.4f}  "
                f"(best {best[self._monitor]:.4f} at {best['epoch']:.0f})  {row['seconds']:.1f} s"
            )


class EpochClock:
    """Seconds of an epoch, the time between an interruption and its continuation left out."""

    def __init__(self, before: float = 0.0) -> None:
        """Begin with the seconds that a part `before` an interruption took."""
        self._before = before
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.perf_counter() - self._since

    def start(self) -> None:
        """Begin an epoch."""
        self._before = 0.0
        self.go_on()

    def go_on(self) -> None:
        """Count from now on, what was before included."""
        self._since = time.perf_counter()


def summarise_epochs(rows: list[Row], monitor: str) -> dict[str, Any]:
    """Return where the best epoch was and how long it took, for results.json.

    Args:
        rows: those of an EpochHistory, at least one.
        monitor: the column that decides; higher is better.
    """
    best = max(rows, key=lambda row: row[monitor])
    seconds = [row["seconds"] for row in rows]
    return {
        "monitor": monitor,
        "best_validation": best[monitor],
        "best_epoch": int(best["epoch"]),
        "best_step": int(best["step"]),
        "epochs": len(rows),
        "convergence": {f"{percent}%": reach(rows, monitor, percent) for percent in NEAR_BEST},
        "seconds_to_best": round(sum(seconds[: int(best["epoch"])]), 2),
        "seconds_per_epoch": round(sum(seconds) / len(seconds), 3),
    }


def reach(rows: list[Row], monitor: str, percent: float) -> dict[str, float]:
    """Return the epoch, the step and the seconds at which a share of the best was reached.

    Args:
        rows: those of an EpochHistory, at least one.
        monitor: the column that decides; higher is better, never negative.
        percent: of the highest value, 0..100.

    >>> rows = [{"epoch": e, "step": 7 * e, "seconds": 2.0, "x": x} for e, x in ((1, 5), (2, 10))]
    >>> reach(rows, "x", 90)
    {'epoch': 2, 'step': 14, 'seconds': 4.0}
    """
    enough = max(row[monitor] for row in rows) * percent / 100
    index = next(index for index, row in enumerate(rows) if row[monitor] >= enough)
    return {
        "epoch": int(rows[index]["epoch"]),
        "step": int(rows[index]["step"]),
        "seconds": round(sum(row["seconds"] for row in rows[: index + 1]), 2),
    }
