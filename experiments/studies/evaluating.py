"""Trained models under other data settings: missing images at serving, shorter histories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.cells import Way
from experiments.runs import Outcomes
from mmm4rec.checkpoint import Checkpoint, read_checkpoint
from mmm4rec.config import Config, config_hash
from mmm4rec.run_folder import RESULTS
from mmm4rec.runner import Run, evaluate, load_model
from mmm4rec.settings import load_config
from pipeline.datamodule import SequenceDataModule


def evaluate_cached(config: Config, checkpoint: Checkpoint, domain: str, folder: Path) -> Run:
    """Rank every test user's target, or return what an equal evaluation found before.

    Args:
        config: settings of the data and the evaluation; the model's are the checkpoint's.
        checkpoint: a fine-tuned model.
        domain: prepared, the one that the model was trained on.
        folder: gets `<domain>/<hash>`; the hash names settings, data and weights.

    Raises:
        CheckpointError: the model is of other items or encoders.
        DataError: the domain is not prepared.
    """
    data = SequenceDataModule.from_config(config, [domain], "finetune")
    lock = json.dumps(data.lock())
    digest = config_hash(config, "evaluate", lock, checkpoint.sha256)
    target = folder / data.domains[0] / digest
    if (target / RESULTS).is_file():
        return Run(target, json.loads((target / RESULTS).read_text(encoding="utf-8")))
    return evaluate(
        config,
        load_model(checkpoint, data.catalogue),
        data,
        target,
        described={
            "checkpoint": str(checkpoint.path),
            "trained": checkpoint.training,
            "fidelity": config.fidelity,
        },
    )


def with_settings(config: Config, **data: Any) -> Config:
    """Return a configuration with other settings of the section `data`.

    Raises:
        ConfigError: a value is not allowed.
    """
    values = config.as_dict()
    return load_config(base={**values, "data": {**values["data"], **data}})


def served_folders(
    way: Way, outcomes: Outcomes, domain: str, folder: Path, **data: Any
) -> dict[int, Path]:
    """Evaluate a row's models under other data settings.

    Args:
        way: fine-tuned models of a domain.
        outcomes: of their runs.
        domain: of the models.
        folder: see `evaluate_cached`.
        data: settings of the section `data`.

    Returns:
        The folders with the ranks, by place of the run among the seeds.
    """
    folders = {}
    for at, run in way.runs(outcomes).items():
        checkpoint = read_checkpoint(run.folder)
        config = with_settings(checkpoint.config, **data)
        if config == checkpoint.config:
            folders[at] = run.folder
        else:
            folders[at] = evaluate_cached(config, checkpoint, domain, folder).folder
    return folders
