"""How fast a model trains and how much memory that takes."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from mmm4rec.callbacks.history import EpochClock

MIB = 2**20  # bytes


class Throughput(Callback):
    """Logs per epoch, validation left out.

    `watch/samples_per_second` and `watch/train_seconds` of all processes together,
    `watch/peak_memory_mib` of the one that took most: of the epoch on a GPU, of the process since
    its start elsewhere.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._clock = EpochClock()
        self._samples = 0
        self._seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with an epoch that was interrupted."""
        self._clock.go_on()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count."""
        self._clock.start()
        self._samples = 0
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the samples, and stop the clock after the last batch."""
        self._samples += len(batch)
        if batch_idx + 1 == trainer.num_training_batches:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self._seconds = self._clock.seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        rate = self._samples * trainer.world_size / self._seconds
        pl_module.log("watch/samples_per_second", rate, sync_dist=True)
        pl_module.log("watch/train_seconds", self._seconds, sync_dist=True)
        peak = peak_memory(pl_module.device) / MIB
        pl_module.log("watch/peak_memory_mib", peak, reduce_fx="max", sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted so far."""
        return {"samples": self._samples, "seconds": self._clock.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what was counted before an interruption."""
        self._samples = state_dict["samples"]
        self._clock = EpochClock(state_dict["seconds"])


def peak_memory(device: torch.device) -> int:
    """Return the highest number of bytes in use: on a GPU, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    kilobytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes_or_bytes * (1 if sys.platform == "darwin" else 1024)
