"""Model files: what is in them, and what moves from one item set to another.

A model file is safetensors; its metadata is one JSON text of plain data. Weights that
`is_domain_bound` names belong to the items of one catalogue, all others move.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmm4rec.batch import ItemCatalogue
from mmm4rec.config import Config
from mmm4rec.errors import CheckpointError
from mmm4rec.model import is_domain_bound
from mmm4rec.settings import build_config

MODEL_FILE = Path("checkpoints") / "best.safetensors"  # inside a run folder
_METADATA_KEY = "mmm4rec"


@dataclass(frozen=True)
class Checkpoint:
    """A model file that was read.

    Attributes:
        path: where it was read from.
        weights: by parameter name.
        config: the resolved configuration that it was trained with.
        fingerprint: of the item set that it was trained on.
        encoder_keys: per modality, None where no item had it.
        has_time: whether its data had timestamps.
        training: stage, domains, epoch and seed, for people.
    """

    path: Path
    weights: dict[str, Tensor]
    config: Config
    fingerprint: str
    encoder_keys: dict[str, str | None]
    has_time: bool
    training: dict[str, Any]

    @property
    def domain_bound(self) -> list[str]:
        """Names of the weights that belong to the item set."""
        return [name for name in self.weights if is_domain_bound(name)]

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class TransferReport:
    """What happened to each weight when a checkpoint met a new item set.

    Attributes:
        moved: taken from the checkpoint.
        reset: start anew: bound to the items, or something that the checkpoint never had.
        refused: in the checkpoint, without a place in the new model.
    """

    moved: list[str]
    reset: list[str]
    refused: list[str]

    def __str__(self) -> str:
        """Return it in one to three lines."""
        lines = [f"moved {len(self.moved)} weights from the checkpoint"]
        for verb, names in (("reset", self.reset), ("refused", self.refused)):
            if names:
                lines.append(f"{verb} {len(names)}: {', '.join(names)}")
        return "\n".join(lines)


def save_checkpoint(
    path: Path,
    weights: Mapping[str, Tensor],
    config: Config,
    catalogue: ItemCatalogue,
    training: dict[str, Any],
) -> None:
    """Write a model file atomically."""
    metadata = {
        "config": config.as_dict(),
        "fingerprint": catalogue.fingerprint,
        "encoder_keys": catalogue.encoder_keys,
        "has_time": catalogue.has_time,
        "training": training,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(
            {name: weight.detach().cpu().contiguous() for name, weight in weights.items()},
            temporary,
            metadata={_METADATA_KEY: json.dumps(metadata)},
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a model file, or that of a run folder.

    Raises:
        CheckpointError: there is none, it is not a model file, or it is of another format.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}: expected a .safetensors file or the folder of a finished "
            "run. Next: mmm4rec pretrain --domain ... prints where it wrote its own"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = json.loads((opened.metadata() or {})[_METADATA_KEY])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return Checkpoint(
            path=file,
            weights=weights,
            config=build_config(metadata["config"], str(file)),
            fingerprint=metadata["fingerprint"],
            encoder_keys=metadata["encoder_keys"],
            has_time=metadata["has_time"],
            training=metadata["training"],
        )
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{file} is not a model file of this project ({type(error).__name__}: {error}); "
            "expected the .safetensors that pretrain or finetune wrote"
        ) from None


def transfer_weights(
    model: nn.Module, checkpoint: Checkpoint, catalogue: ItemCatalogue
) -> TransferReport:
    """Move what is not bound to the items from a checkpoint into a model for another item set.

    Raises:
        CheckpointError: features come from other encoders, or weights differ in shape or name
            for another reason than that one side has no timestamps or lacks a modality.
    """
    _check_encoders(checkpoint, catalogue)
    own = model.state_dict()
    movable = {n: w for n, w in checkpoint.weights.items() if n not in set(checkpoint.domain_bound)}
    expected = {name for name in own if not is_domain_bound(name)}
    moved = sorted(expected & set(movable))
    _check_shapes(checkpoint, {n: own[n] for n in moved}, {n: movable[n] for n in moved})
    unmatched = sorted(expected ^ set(movable))
    if unmatched and not _explained(checkpoint, catalogue):
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model: {_some(unmatched)} only on one side. "
            "Next: drop the --set model.* that differ from the checkpoint's configuration"
        )
    model.load_state_dict({**own, **{name: movable[name] for name in moved}})
    return TransferReport(
        moved=moved,
        reset=sorted(set(own) - set(moved)),
        refused=sorted(set(movable) - set(moved)),
    )


def load_weights(model: nn.Module, checkpoint: Checkpoint, catalogue: ItemCatalogue) -> None:
    """Load a checkpoint whole.

    Raises:
        CheckpointError: it has weights of another item set, features come from other encoders,
            or a name or shape differs.
    """
    if checkpoint.domain_bound and checkpoint.fingerprint != catalogue.fingerprint:
        raise CheckpointError(
            f"{checkpoint.path} was trained on the item set {checkpoint.fingerprint} "
            f"({', '.join(checkpoint.training['domains'])}), this one is {catalogue.fingerprint}. "
            "Next: mmm4rec finetune --ckpt on this domain, or evaluate on the other"
        )
    _check_encoders(checkpoint, catalogue)
    own = model.state_dict()
    unmatched = sorted(set(own) ^ set(checkpoint.weights))
    if unmatched:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model: {_some(unmatched)} only on one side"
        )
    _check_shapes(checkpoint, own, checkpoint.weights)
    model.load_state_dict(checkpoint.weights)


def _check_encoders(checkpoint: Checkpoint, catalogue: ItemCatalogue) -> None:
    for modality, key in catalogue.encoder_keys.items():
        trained = checkpoint.encoder_keys.get(modality)
        if key and trained and key != trained:
            raise CheckpointError(
                f"{checkpoint.path} reads {modality} features of {trained}, this domain has those "
                f"of {key}. Next: mmm4rec prepare it with the same --{modality}-encoder"
            )


def _check_shapes(
    checkpoint: Checkpoint, own: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> None:
    differing = [
        f"{name} {list(other[name].shape)} in the checkpoint, {list(own[name].shape)} in the model"
        for name in own
        if own[name].shape != other[name].shape
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model: {_some(differing)}. "
            "Next: drop the --set model.* that differ from the checkpoint's configuration"
        )


def _explained(checkpoint: Checkpoint, catalogue: ItemCatalogue) -> bool:
    ours, theirs = catalogue.encoder_keys, checkpoint.encoder_keys
    same_streams = {m for m, key in ours.items() if key} == {m for m, key in theirs.items() if key}
    return checkpoint.has_time != catalogue.has_time or not same_streams


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
