"""What a reproduction would do, before it does anything."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from experiments.runs import Spec, data_of, find_finished, in_order, settings_of
from experiments.workspace import Workspace
from mmm4rec.architectures import build_model
from mmm4rec.checkpoint import Checkpoint, read_checkpoint
from mmm4rec.config import Config
from mmm4rec.errors import Mmm4RecError
from mmm4rec.lit_module import LitRecommender
from mmm4rec.run_folder import Echo
from mmm4rec.runner import Run, quiet_lightning
from pipeline.datamodule import SequenceDataModule

WARM_UP, MEASURED = 1, 3  # batches: not counted, counted
TO_DO, CACHED = "to do", "done"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan.

    Attributes:
        label: what it is.
        state: `done`, `to do`, or the reason why it cannot begin.
        samples: training samples if no early stopping ends it sooner.
        hours: that these take, 0 where nothing is to do, None where it cannot begin.
    """

    label: str
    state: str
    samples: int
    hours: float | None


def plan_runs(
    specs: Iterable[Spec], workspace: Workspace, echo: Echo = lambda line: None
) -> list[PlannedRun]:
    """Say of every distinct run and its sources whether it is done, and how long it would take.

    A few training steps are made of each architecture on each domain; nothing is written.

    Args:
        specs: the runs.
        workspace: where they would be done.
        echo: told of each measurement before it begins.
    """
    planner = _Planner(workspace, echo)
    return [planner.plan(spec) for spec in in_order(specs)]


def format_plan(runs: list[PlannedRun], gaps: list[str]) -> str:
    """Return a plan as text: a line per run, then the sums.

    Args:
        runs: of `plan_runs`.
        gaps: of the workspace.
    """
    width = max((len(run.label) for run in runs), default=0)
    lines = [f"{'run':<{width}}  {'samples':>13}  {'time':>8}  state"]
    for run in runs:
        time_ = "-" if run.hours is None else format_hours(run.hours)
        lines.append(f"{run.label:<{width}}  {run.samples:>13,}  {time_:>8}  {run.state}")
    done = sum(run.state == CACHED for run in runs)
    begin = [run for run in runs if run.state == TO_DO]
    total = sum(run.hours or 0.0 for run in begin)
    blocked = len(runs) - done - len(begin)
    lines.append(
        f"{len(runs)} runs: {done} done, {len(begin)} to do, {blocked} cannot begin. To do: "
        f"{sum(run.samples for run in begin):,} samples, {format_hours(total)} on one device "
        "of this machine if every run takes all its epochs. Early stopping ends most of them "
        "sooner; validation comes on top"
    )
    return "\n".join([*lines, *gaps])


def format_hours(hours: float) -> str:
    """Write a time in a unit that suits it.

    >>> [format_hours(hours) for hours in (0.01, 0.5, 30.0)]
    ['36 s', '30 min', '30.0 h']
    """
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h"


@dataclass
class _Planner:
    workspace: Workspace
    echo: Echo
    rates: dict[str, float] = field(default_factory=dict)  # samples per second by what decides it
    data: tuple[str, SequenceDataModule] | None = None  # the last one: it may be large

    def plan(self, spec: Spec) -> PlannedRun:
        """Plan one run; its failures are states."""
        try:
            source = self._finished(spec.source) if spec.source else None
            checkpoint = read_checkpoint(source.folder) if source else None
            config = settings_of(spec, self.workspace, checkpoint)
            samples = count_samples(spec, config)
            if (spec.source is None or source) and self._finished(spec, checkpoint):
                return PlannedRun(spec.label, CACHED, samples, 0.0)
            hours = samples / self._rate(spec, config) / 3600 if samples else 0.0
            return PlannedRun(spec.label, TO_DO, samples, hours)
        except Mmm4RecError as error:
            return PlannedRun(spec.label, str(error), 0, None)

    def _finished(self, spec: Spec, checkpoint: Checkpoint | None = None) -> Run | None:
        config = settings_of(spec, self.workspace, checkpoint)
        return find_finished(spec, config, self.workspace, checkpoint)

    def _rate(self, spec: Spec, config: Config) -> float:
        key = repr((spec.domains, spec.stage, config.data, config.model, config.loss))
        if key not in self.rates:
            self.echo(f"measuring a few steps of {spec.label} ...")
            self.rates[key] = measure_rate(config, self._data(spec, config))
        return self.rates[key]

    def _data(self, spec: Spec, config: Config) -> SequenceDataModule:
        key = repr((spec.domains, spec.stage, config.data, config.model.max_len))
        if self.data is None or self.data[0] != key:
            self.data = key, data_of(spec, config)
        return self.data[1]


def count_samples(spec: Spec, config: Config) -> int:
    """Return the training samples of all epochs that a run is allowed, from its domains' counts.

    Of users with at least 3 interactions; of a pre-training the expected number.

    Raises:
        DataError: a domain is not prepared.
    """
    counts = data_of(spec, config).lock().values()
    if spec.stage == "evaluate":
        return 0
    interactions = sum(int(count["interactions"]) for count in counts)
    users = sum(int(count["users"]) for count in counts)
    per_user = 3.0 if spec.stage == "finetune" else 1 + config.data.validation_share
    return max(0, round(interactions - per_user * users)) * config.trainer.max_epochs


def measure_rate(config: Config, data: SequenceDataModule) -> float:
    """Return training samples per second over a few steps; nothing is written.

    Raises:
        DataError: there is nothing to train on.
        ConfigError: the features do not allow what `config` asks for.
    """
    clock = _StepClock()
    lit = LitRecommender(config, build_model(config.model, data.catalogue))
    with quiet_lightning():
        trainer = Trainer(
            accelerator=config.trainer.accelerator,
            devices=1,
            precision=config.trainer.precision,
            max_steps=WARM_UP + MEASURED,
            limit_val_batches=0,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(lit, datamodule=data)
    return clock.samples / clock.seconds


class _StepClock(Callback):
    """Counts samples and seconds of the batches behind the first few."""

    def __init__(self) -> None:
        self.samples = 0
        self.seconds = 0.0
        self._batches = 0
        self._started = 0.0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._batches += 1
        if self._batches == WARM_UP:
            self._started = time.perf_counter()
        elif self._batches > WARM_UP:
            self.samples += len(batch)
            self.seconds = time.perf_counter() - self._started
