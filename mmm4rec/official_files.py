"""Checkpoint files of the authors' code, in and out; nothing in them is executed.

    {model, optimizer, epoch, best_val_score}   full: the best and the last epoch
    {model}                                     light: every few epochs of pre-training

Their item tables have a row per item of the data set that they were trained on, but no item names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.checkpoint import MODEL_FILE, Checkpoint, read_checkpoint, save_checkpoint
from mmm4rec.config import Config
from mmm4rec.errors import CheckpointError, ConfigError
from mmm4rec.official import FEATURE_TABLES, ITEM_TABLES, from_official, listed, to_official
from mmm4rec.official_settings import (
    MODALITIES,
    official_config,
    official_settings,
    read_settings,
    unknown_settings,
)
from mmm4rec.run_folder import AtomicCheckpointIO, atomic_file
from mmm4rec.torch_archive import ArchiveError, load_archive

UNKNOWN_ITEMS = "unknown"  # fingerprint of an item set without names
MAX_ENTRIES = 1 << 15  # of an archive; one layer and its optimizer have about 450
MAX_PICKLE_BYTES = 1 << 23  # of an entry that holds no tensor; one layer's has about 60,000

Layout = Literal["full", "light"]


@dataclass(frozen=True)
class OfficialFile:
    """What a file of theirs holds.

    Attributes:
        state: their state dict: float32, contiguous, finite.
        epoch: counted from 1; None where the file does not say.
        best_val_score: likewise.
        left_out: names of what else is in it: the optimizer, a schedule.
    """

    state: dict[str, Tensor]
    epoch: int | None
    best_val_score: float | None
    left_out: list[str]


@dataclass(frozen=True)
class OfficialReport:
    """What was written, for people.

    Attributes:
        path: the file.
        weights: number of weights in it.
        notes: what was left out or decided, a sentence each.
    """

    path: Path
    weights: int
    notes: list[str]

    def __str__(self) -> str:
        """Return it in a few lines."""
        return "\n".join([f"wrote {self.weights} weights to {self.path}", *self.notes])


def read_official(path: Path) -> OfficialFile:
    """Read a checkpoint of the authors' code, or a state dict alone.

    Raises:
        CheckpointError: it is no such file, is damaged, wants objects built that can run code, or
            a weight is not a finite float32 tensor.
    """
    content = _load(path)
    whole = content if isinstance(content, dict) else {}
    is_bare = bool(whole) and all(isinstance(value, Tensor) for value in whole.values())
    state = whole if is_bare else whole.get("model")
    if not isinstance(state, dict) or not state:
        found = listed([str(key)[:60] for key in whole], 5) if whole else type(content).__name__
        raise CheckpointError(
            f"{path}: no weights under 'model'; found {found}. Next: give a checkpoint that the "
            "authors' code saved"
        )
    others = {} if is_bare else {key: value for key, value in whole.items() if key != "model"}
    _check_plain(state, str(path))
    epoch = others.get("epoch")
    return OfficialFile(
        {name: weight.detach() for name, weight in state.items()},
        epoch if isinstance(epoch, int) and 0 <= epoch < 1 << 31 else None,
        _score(others.get("best_val_score")),
        sorted(str(key)[:60] for key in others if key not in ("epoch", "best_val_score")),
    )


def import_official(
    file: Path,
    config_file: Path,
    out: Path,
    *,
    catalogue: ItemCatalogue | None = None,
    domain: str | None = None,
) -> OfficialReport:
    """Write a checkpoint of the authors' code as one of ours.

    Args:
        file: their checkpoint.
        config_file: their configuration file of it, YAML or JSON.
        out: the file to write; a folder gets it where a run folder has it. Feature tables in
            `file` are kept beside it, for `export_official`.
        catalogue: the items that its tables belong to, in the same order; None: not known, so that
            fine-tuning starts the tables anew and nothing else can use them.
        domain: name of the catalogue.

    Raises:
        CheckpointError: see `read_official` and `from_official`, or the number of items or the
            widths of features differ from the catalogue's.
        ConfigError: see `official_config`.
    """
    target = out / MODEL_FILE if out.is_dir() else out
    _check_target(target, file, config_file)
    settings = read_settings(config_file)
    content = read_official(file)
    config, notes = _configure(content, settings)
    weights = from_official(content.state, config.model)
    _check_items(content.state, settings, catalogue)
    if config.model.use_item_bias and catalogue is None:
        notes.append(
            "its item tables name no items: fine-tuning starts them anew. To evaluate with them, "
            "import it with the domain that they belong to"
        )
    training = {
        "stage": "official",
        "domains": [domain or Path(str(settings.get("dataset_path", UNKNOWN_ITEMS))).name],
        "epoch": content.epoch,
        "seed": config.trainer.seed,
        "best_val_score": content.best_val_score,
        "source": {"file": file.name, "sha256": _sha256(file)},
    }
    # Copies: safetensors refuses tensors that share memory.
    copies = {name: weight.clone() for name, weight in weights.items()}
    save_checkpoint(target, copies, config, catalogue or _nameless(config), training)
    return OfficialReport(target, len(weights), notes + _keep_tables(content.state, target))


def export_official(
    checkpoint: Path | Checkpoint, out: Path, *, layout: Layout = "full"
) -> OfficialReport:
    """Write a checkpoint of ours as the authors' code saves and reads it, and its settings beside.

    Args:
        checkpoint: a model file or run folder, of `fidelity: official`.
        out: the file to write; `out` + `.yaml` gets their settings.
        layout: `light`: the weights; `full`: with a fresh optimizer and the epoch, which their
            test and resume ask for.

    Raises:
        CheckpointError: their code computes something else than this model (the message names the
            fields), or a weight has no place there.
    """
    ours = checkpoint if isinstance(checkpoint, Checkpoint) else read_checkpoint(checkpoint)
    settings_file = out.with_name(f"{out.name}.yaml")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder. Next: name a file with -o")
    for path in (out, settings_file):
        _check_target(path, ours.path, features_file(ours.path))
    config = ours.config
    settings = official_settings(config)
    state = to_official(ours.weights, config.model)
    tables = features_file(ours.path)
    if tables.is_file():
        state |= load_file(tables)
    _check_plain(state, str(ours.path))
    from_official(state, config.model)  # what is written can be read
    content: dict[str, Any] = {"model": state}
    if layout == "full":
        content |= {
            "optimizer": _fresh_optimizer(config, len(ours.weights)),
            "epoch": ours.training.get("epoch") or 0,
        }
        if (score := ours.training.get("best_val_score")) is not None:
            content["best_val_score"] = torch.tensor(score)
    AtomicCheckpointIO().save_checkpoint(content, out)
    with atomic_file(settings_file) as temporary:
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return OfficialReport(out, len(state), [f"its settings are in {settings_file}"])


def features_file(model_file: Path) -> Path:
    """Return where their feature tables lie, if an imported checkpoint had them."""
    return model_file.with_suffix(".features.safetensors")


def _load(path: Path) -> Any:
    try:
        return load_archive(path, max_entries=MAX_ENTRIES, max_entry_bytes=MAX_PICKLE_BYTES)
    except ArchiveError as error:
        raise CheckpointError(
            f"{path}: {error}. Next: fetch it again, or save its weights alone where you trust "
            "it: torch.save({'model': model.state_dict()}, ...)"
        ) from None


def _check_plain(state: Mapping[Any, Any], where: str) -> None:
    """Refuse what is not a finite, contiguous float32 tensor in memory, under a plain name."""
    problems = [
        f"{str(name)[:100]} ({problem})"
        for name, weight in state.items()
        if (problem := _what_is_wrong(name, weight))
    ]
    if problems:
        raise CheckpointError(
            f"{where}: expected finite float32 tensors by name. Refused: {listed(problems)}. Next: "
            "fetch it again, or give another epoch's"
        )


def _what_is_wrong(name: Any, weight: Any) -> str | None:
    if not isinstance(name, str) or not isinstance(weight, Tensor):
        return f"{type(name).__name__}: {type(weight).__name__}"
    if weight.layout != torch.strided or weight.device.type != "cpu":
        return f"{weight.layout} on {weight.device.type}"
    if weight.dtype != torch.float32:
        return str(weight.dtype).removeprefix("torch.")
    if not weight.is_contiguous():  # one number could claim to be a table of any size
        return "not contiguous"
    return None if bool(torch.isfinite(weight).all()) else "not finite"


def _score(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type == "cpu":
        value = value.item()
    return value if isinstance(value, float) and math.isfinite(value) else None


def _check_target(target: Path, *sources: Path) -> None:
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise ConfigError(f"{target} is what is read. Next: write to another file with -o")


def _configure(content: OfficialFile, settings: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """Return the configuration of a file, and what to tell of it."""
    config = official_config(settings)
    notes = []
    if content.left_out:
        notes.append(f"left out: {listed(content.left_out)}")
    if unknown := unknown_settings(settings):
        notes.append(f"settings that were not carried over: {listed(unknown)}")
    if config.model.use_item_bias and not content.state.keys() & ITEM_TABLES.keys():
        model = config.model.model_copy(update={"use_item_bias": False})
        config = config.model_copy(update={"model": model})
        notes.append("it has no item tables: model.use_item_bias is off")
    return config, notes


def _check_items(
    state: Mapping[str, Tensor], settings: Mapping[str, Any], catalogue: ItemCatalogue | None
) -> None:
    rows = {name: len(state[name]) for name in (*ITEM_TABLES, *FEATURE_TABLES) if name in state}
    expected = {"the settings' item_num": settings.get("item_num")}
    if catalogue is not None:
        expected["the domain"] = catalogue.num_items
    for name, count in rows.items():
        for where, items in expected.items():
            if items is not None and count - 1 != items:
                raise CheckpointError(
                    f"{name} is of {count - 1} items, {where} has {items}. Next: give the settings "
                    "and the domain that it was trained with, or no domain"
                )
    for theirs, ours in MODALITIES.items():
        found = state[f"{theirs}_adapter.0.weight"].shape[1]
        width = catalogue.features[ours].width if catalogue and ours in catalogue.features else 0
        if width and width != found:
            raise CheckpointError(
                f"the weights read {ours} features of width {found}, the domain has {width}. "
                f"Next: mmm4rec prepare it with the encoder that they were trained with"
            )


def _nameless(config: Config) -> ItemCatalogue:
    """Return a catalogue of which nothing is known but its modalities."""
    nothing = ModalityFeatures(torch.zeros(1, 0), torch.zeros(1, dtype=torch.bool))
    features = dict.fromkeys(MODALITIES.values(), nothing)
    return ItemCatalogue(features, UNKNOWN_ITEMS, has_time=config.model.use_time)


def _keep_tables(state: Mapping[str, Tensor], target: Path) -> list[str]:
    path = features_file(target)
    tables = {name: state[name].clone() for name in FEATURE_TABLES if name in state}
    if not tables:
        path.unlink(missing_ok=True)  # of an earlier import
        return []
    with atomic_file(path) as temporary:
        save_file(tables, temporary)
    return [f"its feature tables are kept in {path}, for the way back"]


def _fresh_optimizer(config: Config, num_weights: int) -> dict[str, Any]:
    """Return the state of their optimizer before its first step."""
    settings = config.optimizer
    return torch.optim.NAdam(
        [nn.Parameter(torch.zeros(0)) for _ in range(num_weights)],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        momentum_decay=settings.momentum_decay,
    ).state_dict()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
