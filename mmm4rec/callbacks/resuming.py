"""Points from which an interrupted run is carried on, and Ctrl-C, which waits for one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping


class PatientStopping(EarlyStopping):
    """Early stopping that stays stopped when a run is carried on after its last epoch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not begin another epoch where patience had already run out."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class ResumePoint(Checkpoint):
    """Writes the one checkpoint that a run is carried on from.

    It stands after an optimizer step, so that no gradient is half accumulated, and never after the
    last one of an epoch, which still has its validation ahead; the end of the epoch follows.
    Whatever came after it is done again, and comes out the same: batches and dropout are functions
    of seed, epoch and batch.
    """

    def __init__(self, path: Path, minutes: float, say: Callable[[str], None]) -> None:
        """Write to `path` at the end of each epoch and every so many minutes inside it.

        Args:
            path: replaced each time; whole at any moment where the trainer's checkpoint
                plugin writes whole files.
            minutes: at least so long between two of them inside an epoch; 0: every step.
            say: told what a Ctrl-C leads to.
        """
        self._path = path
        self._seconds = minutes * 60
        self._say = say
        self._saved_at = time.monotonic()
        self._ctrl_c = CtrlC()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and listen to Ctrl-C."""
        self._saved_at = time.monotonic()
        self._ctrl_c.listen()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save where it is time to, or where the run is to stop.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed before.
        """
        self._acknowledge()
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches or done == trainer.num_training_batches:
            return
        due = time.monotonic() - self._saved_at >= self._seconds
        if self._any_process(trainer, due or self._is_asked(trainer)):
            self._save_and_stop_if_asked(trainer)

    def on_validation_batch_end(self, *_: Any) -> None:
        """Answer to Ctrl-C."""
        self._acknowledge()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed before.
        """
        self._save_and_stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give Ctrl-C back."""
        self._ctrl_c.give_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give Ctrl-C back."""
        self._ctrl_c.give_back()

    def _acknowledge(self) -> None:
        if self._ctrl_c.is_news():
            self._say("Ctrl-C: stopping at the next checkpoint; once more: at once")

    def _is_asked(self, trainer: Trainer) -> bool:
        return self._ctrl_c.pressed or trainer.received_sigterm

    def _any_process(self, trainer: Trainer, decision: bool) -> bool:
        # Clocks differ, and one process may be told a moment before the others: all act at one
        # step.
        return trainer.strategy.reduce_boolean_decision(decision, all=False)

    def _save_and_stop_if_asked(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self._path)
        self._saved_at = time.monotonic()
        if self._any_process(trainer, self._is_asked(trainer)):
            raise KeyboardInterrupt


class CtrlC:
    """Ctrl-C that is noted the first time and interrupts at once the second time."""

    def __init__(self) -> None:
        """Listen to nothing yet."""
        self.pressed = False
        self._told = False
        self._before: Any = None

    def listen(self) -> None:
        """Take the signal over, where Python allows it: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._take)

    def give_back(self) -> None:
        """Restore what was done about the signal before."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def is_news(self) -> bool:
        """Return whether it was pressed; only once, so that it is answered once."""
        # Not in the handler: it may interrupt a write to the very file that is written to.
        news = self.pressed and not self._told
        self._told = self.pressed
        return news

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
