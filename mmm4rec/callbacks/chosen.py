"""Which callbacks a run has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

from mmm4rec.callbacks.alignment import Alignment
from mmm4rec.callbacks.history import EpochHistory
from mmm4rec.callbacks.non_finite import NonFiniteGuard
from mmm4rec.callbacks.resuming import PatientStopping, ResumePoint
from mmm4rec.callbacks.throughput import Throughput
from mmm4rec.callbacks.vitality import Vitality
from mmm4rec.config import TrainerConfig, WatchConfig

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"  # inside a run folder: what is carried on
BEST_CHECKPOINT = Path("checkpoints") / "best.ckpt"


def choose_callbacks(
    trainer: TrainerConfig,
    watch: WatchConfig,
    history: EpochHistory,
    folder: Path,
    say: Callable[[str], None],
    *,
    progress: bool,
) -> list[Callback]:
    """Return the callbacks of a run, in the order in which they belong.

    Args:
        trainer: patience, monitor and checkpoints.
        watch: what is watched.
        history: comes after whatever measures, to write it down.
        folder: of the run.
        say: told what a person should know.
        progress: with a progress bar.
    """
    return [
        *([NonFiniteGuard(folder)] if watch.non_finite else []),
        *([Throughput()] if watch.throughput else []),
        *([Alignment()] if watch.alignment else []),
        *([Vitality(say)] if watch.dying_parameters else []),
        history,
        PatientStopping(trainer.monitor, mode="max", patience=trainer.early_stopping_patience),
        _keep_best(folder, trainer.monitor),
        # The last one: it saves the state of all others.
        ResumePoint(folder / LAST_CHECKPOINT, trainer.checkpoint_minutes, say),
        *([RichProgressBar()] if progress else []),
    ]


def _keep_best(folder: Path, monitor: str) -> ModelCheckpoint:
    return ModelCheckpoint(
        (folder / BEST_CHECKPOINT).parent,
        filename=BEST_CHECKPOINT.stem,
        monitor=monitor,
        mode="max",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
