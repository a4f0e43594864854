"""What is watched while a model trains."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping


class PatientStopping(EarlyStopping):
    """Early stopping that stays stopped when a run is carried on after its last epoch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not begin another epoch where patience had already run out."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class EpochHistory(Callback):
    """Keeps one row per epoch, across interruptions, and writes them to a CSV file.

    Columns: epoch (from 1), step, seconds of the epoch with its validation, train/loss and every
    validation metric.
    """

    def __init__(self, path: Path, monitor: str, echo: Callable[[str], None] | None) -> None:
        """Write to `path`; say a line per epoch through `echo` where one is given."""
        self.rows: list[dict[str, float]] = []
        self._path = path
        self._monitor = monitor
        self._echo = echo
        self._started = 0.0

    @property
    def best(self) -> dict[str, float] | None:
        """The first row with the highest monitored value."""
        return max(self.rows, key=lambda row: row[self._monitor], default=None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of the epoch."""
        measured = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name == "train/loss" or name.startswith("val/")
        }
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": round(time.perf_counter() - self._started, 4),
            **measured,
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()
            self._say(row)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, for the Lightning checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of an interrupted run."""
        self.rows = list(state_dict["rows"])

    def _write(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self._path)

    def _say(self, row: dict[str, float]) -> None:
        if self._echo is not None:
            best = self.best
            assert best is not None
            self._echo(
                f"epoch {row['epoch']:.0f}  loss {row['train/loss']:.4f}  "
                f"{self._monitor} {row[self._monitor]:.4f}  "
                f"(best {best[self._monitor]:.4f} at {best['epoch']:.0f})  {row['seconds']:.1f} s"
            )
