"""Runs: a folder, a Trainer, and what is written at the end.

runs/<stage>/<domain>/<UTC>-<hash>/
  config.yaml  env.json  data.lock.json   what went in
  metrics.csv  tensorboard/  log.txt      what happened
  results.json  ranks.parquet  checkpoints/best.safetensors   what came out
"""

from __future__ import annotations

import json
import logging
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn

from mmm4rec.architectures import Model, build_model
from mmm4rec.batch import ItemCatalogue
from mmm4rec.callbacks.chosen import BEST_CHECKPOINT, LAST_CHECKPOINT, choose_callbacks
from mmm4rec.callbacks.history import EpochHistory, summarise_epochs
from mmm4rec.checkpoint import (
    MODEL_FILE,
    Checkpoint,
    TransferReport,
    load_weights,
    save_checkpoint,
    transfer_weights,
)
from mmm4rec.config import Config, config_hash
from mmm4rec.errors import DataError
from mmm4rec.lit_module import LitRecommender
from mmm4rec.metrics import RankingMetrics, TargetRank, bootstrap_intervals, per_user_metrics
from mmm4rec.run_folder import (
    RESULTS,
    AtomicCheckpointIO,
    Echo,
    atomic_file,
    environment,
    find_run,
    is_main_process,
    logged,
    open_run,
    whole_folder,
    write_json,
)

RANKS = "ranks.parquet"


class RunData(Protocol):
    """What a run needs to know of its data, beside the LightningDataModule's own methods."""

    domains: list[str]

    @property
    def catalogue(self) -> ItemCatalogue:
        """All items."""

    def lock(self) -> dict[str, Any]:
        """Return what identifies the data, as plain data."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    results: dict[str, Any]


def fit(
    config: Config,
    datamodule: LightningDataModule,
    *,
    stage: str,
    runs_dir: Path,
    checkpoint: Checkpoint | None = None,
    reuse: bool = False,
    echo: Echo = print,
    progress: bool = False,
) -> Run:
    """Train a model, keep its best epoch, and test it where the stage has a test split.

    An interrupted run of the same configuration, data and checkpoint is carried on from its last
    checkpoint, and ends as if nothing had interrupted it.

    Args:
        config: all settings.
        datamodule: a LightningDataModule that is also a RunData.
        stage: `pretrain` (validated only) or `finetune` (validated and tested).
        runs_dir: the folder that holds all runs.
        checkpoint: weights to start from; None starts from scratch.
        reuse: return an equal finished run instead of training again.
        echo: told a line now and then.
        progress: draw a progress bar instead of saying a line per epoch.

    Raises:
        CheckpointError: the checkpoint does not fit.
        DataError: there is nothing to train on.
        DivergenceError: a loss or gradient is not finite.
        ConfigError: another process than the main one does not see the run folder.
    """
    data = _as_run_data(datamodule)
    lock = data.lock()
    digest = run_digest(config, stage, lock, checkpoint.sha256 if checkpoint else "")
    parent = runs_dir / stage / "+".join(data.domains)
    if reuse and (done := find_run(parent, digest, finished=True)):
        return Run(done, json.loads((done / RESULTS).read_text(encoding="utf-8")))
    seed_everything(config.trainer.seed, verbose=False)
    torch.set_float32_matmul_precision(config.trainer.matmul_precision)
    use_time = config.model.use_time and data.catalogue.has_time
    timeless = config.model.use_time and not use_time
    model_config = config.model.model_copy(update={"use_time": use_time})
    config = config.model_copy(update={"model": model_config})
    model = _build_model(config, data.catalogue)
    report = transfer_weights(model, checkpoint, data.catalogue) if checkpoint else None
    folder, unfinished = open_run(parent, digest)
    with logged(folder, echo) as say, quiet_lightning():
        if timeless:
            names = ", ".join(data.domains)
            say(f"{names} has no timestamps: time is off (model.use_time=false)")
        if report:
            say(str(report))
        _write_inputs(folder, config, lock, checkpoint)
        say(f"{'carrying on' if unfinished else 'run'} {folder}")
        job = _Job(config, datamodule, data, stage, folder, checkpoint, report)
        return _train(job, LitRecommender(config, model), say, progress)


def evaluate(
    config: Config,
    model: nn.Module,
    datamodule: LightningDataModule,
    folder: Path,
    *,
    described: dict[str, Any],
) -> Run:
    """Rank the test target of every user and write results.json and ranks.parquet.

    Args:
        config: all settings.
        model: a Recommender (see `lit_module`).
        datamodule: a LightningDataModule that is also a RunData.
        folder: where to write; made, if needed, with the results in it.
        described: added to the results: what was evaluated.
    """
    with quiet_lightning():
        lit = LitRecommender(config, model)
        trainer = Trainer(**_trainer_arguments(config), logger=False)
        with _interruptible(trainer):
            trainer.test(lit, datamodule=datamodule, verbose=False)
    with whole_folder(folder) as unfinished:
        tested = _test_results(config, lit.test_metrics, unfinished, datamodule)
        results = {**described, **tested}
        write_json(unfinished / RESULTS, results)
    return Run(folder, results)


def run_digest(config: Config, stage: str, lock: dict[str, Any], start: str) -> str:
    """Return the hash that names a run: settings, stage, data, and what it starts from.

    Args:
        config: as given, before the data decides whether there is time.
        stage: of the run.
        lock: what identifies the data.
        start: sha256 of the checkpoint; empty: none.
    """
    return config_hash(config, stage, json.dumps(lock), start)


def load_model(checkpoint: Checkpoint, catalogue: ItemCatalogue) -> Model:
    """Build the model of a checkpoint for the catalogue that it was trained on.

    Raises:
        CheckpointError: the checkpoint is of another item set or other encoders.
    """
    model = _build_model(checkpoint.config, catalogue)
    load_weights(model, checkpoint, catalogue)
    return model.eval()


def _build_model(config: Config, catalogue: ItemCatalogue) -> Model:
    model = build_model(config.model, catalogue)
    # Lightning converts after it has loaded a checkpoint: that would round the weights.
    return model.double() if config.trainer.precision == "64-true" else model


@dataclass(frozen=True)
class _Job:
    config: Config
    datamodule: LightningDataModule
    data: RunData
    stage: str
    folder: Path
    checkpoint: Checkpoint | None
    report: TransferReport | None


def _train(job: _Job, lit: LitRecommender, say: Echo, progress: bool) -> Run:
    config, folder = job.config, job.folder
    history = EpochHistory(
        folder / "metrics.csv", config.trainer.monitor, None if progress else say
    )
    trainer = Trainer(
        **{**_trainer_arguments(config), "enable_progress_bar": progress},
        max_epochs=config.trainer.max_epochs,
        accumulate_grad_batches=config.trainer.accumulate_grad_batches,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        callbacks=choose_callbacks(
            config.trainer, config.watch, history, folder, say, progress=progress
        ),
        default_root_dir=folder,
    )
    last = folder / LAST_CHECKPOINT
    started = time.perf_counter()
    with _interruptible(trainer):
        resumed = last if last.is_file() else None
        trainer.fit(lit, datamodule=job.datamodule, ckpt_path=resumed, weights_only=True)
    seconds = time.perf_counter() - started
    best = torch.load(folder / BEST_CHECKPOINT, map_location="cpu", weights_only=True)
    lit.load_state_dict(best["state_dict"])
    epochs = summarise_epochs(history.rows, config.trainer.monitor)
    training = {
        "stage": job.stage,
        "domains": job.data.domains,
        "seed": config.trainer.seed,
        "epoch": epochs["best_epoch"],
    }
    if is_main_process():
        save_checkpoint(
            folder / MODEL_FILE, lit.model.state_dict(), config, job.data.catalogue, training
        )
    results = {
        **training,
        "fidelity": config.fidelity,
        "from_checkpoint": str(job.checkpoint.path) if job.checkpoint else None,
        "transfer": vars(job.report) if job.report else None,
        **epochs,
        "seconds_total": round(seconds, 2),
    }
    if job.stage == "finetune":
        with _interruptible(trainer):
            trainer.test(lit, datamodule=job.datamodule, verbose=False)
        results |= _test_results(config, lit.test_metrics, folder, job.datamodule)
    write_json(folder / RESULTS, results)
    return Run(folder, results)


def _test_results(
    config: Config, metrics: RankingMetrics, folder: Path, datamodule: LightningDataModule
) -> dict[str, Any]:
    with metrics.sync_context():
        users, rank = metrics.ranks()
    if len(users) == 0:
        raise DataError("no user has a test target: users need at least 2 interactions")
    if is_main_process():
        _write_ranks(folder / RANKS, users, rank)
    values = per_user_metrics(rank, config.evaluation.cutoffs)
    intervals = bootstrap_intervals(values, config.evaluation.bootstrap_samples)
    return {
        "protocol": {
            "split": "leave-one-out, last interaction",
            "candidates": "all items"
            + (", padding" if config.loss.padding_candidate == "scored" else ""),
            "history_masked": False,
            "query_time": config.data.query_time,
            "ties": "expectation over their orders",
            "users": len(users),
            "items": _as_run_data(datamodule).catalogue.num_items,
            "interval": f"95 %, bootstrap over users, {config.evaluation.bootstrap_samples}",
        },
        "test": {
            name: {"value": float(column.mean()), "interval": list(intervals[name])}
            for name, column in values.items()
        },
    }


def _write_ranks(path: Path, users: Tensor, rank: TargetRank) -> None:
    table = pa.table(
        {
            "user_id": pa.array(users.numpy(), pa.uint32()),
            "better": pa.array(rank.better_B.numpy(), pa.uint32()),
            "tied": pa.array(rank.tied_B.numpy(), pa.uint32()),
        }
    )
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def _trainer_arguments(config: Config) -> dict[str, Any]:
    settings = config.trainer
    double = settings.precision == "64-true"
    return {
        "accelerator": settings.accelerator,
        "devices": settings.devices,
        "precision": None if double else settings.precision,
        "plugins": [AtomicCheckpointIO(), *([_DoublePrecision()] if double else [])],
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }


class _DoublePrecision(DoublePrecision):
    """Lightning's, which cannot convert a frozen batch; ours holds whole numbers only."""

    def convert_input(self, data: Any) -> Any:
        return data


def _as_run_data(datamodule: Any) -> RunData:
    return datamodule


def _write_inputs(
    folder: Path, config: Config, lock: dict[str, Any], checkpoint: Checkpoint | None
) -> None:
    if not is_main_process():
        return
    (folder / "config.yaml").write_text(
        yaml.safe_dump(config.as_dict(), sort_keys=False), encoding="utf-8"
    )
    checkpoint_lock = (
        {"path": str(checkpoint.path), "sha256": checkpoint.sha256} if checkpoint else None
    )
    write_json(folder / "data.lock.json", {"domains": lock, "checkpoint": checkpoint_lock})
    write_json(folder / "env.json", environment())


@contextmanager
def _interruptible(trainer: Trainer) -> Iterator[None]:
    """Hand Ctrl-C on as what it is: Lightning turns it into an exit and goes deaf to the next."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if trainer.state.status == TrainerStatus.INTERRUPTED:
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's hints about hardware and workers off the screen; its warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
