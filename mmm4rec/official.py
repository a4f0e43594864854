"""The authors' names for settings and weights, and ours.

Names only: nothing is read from a file here. Two traps live in their state dict: the shared block
is stored twice, and the two filters in front of the fusion carry each other's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from mmm4rec.config import OFFICIAL, ModelConfig
from mmm4rec.errors import CheckpointError, ConfigError

# Their setting -> ours. `item_num`, `user_num`, `chunk_size` and `is_kai_ming_init` say nothing
# about the model that its catalogue does not, or have no effect.
SETTINGS = {
    "hidden_size": "d_model",
    "inner_size": "d_feed_forward",
    "num_layers": "num_layers",
    "embedding_drop_prob": "item_dropout",
    "dropout_prob": "dropout",
    "time_dropout_prob": "time_dropout",
    "d_state": "d_state",
    "n_groups": "num_groups",
    "d_conv": "d_conv",
    "expand": "expand",
    "head_dim": "head_dim",
    "norm_eps": "norm_eps",
    "is_ffn": "use_feed_forward",
    "is_time": "use_time",
    "p2p_residual": "per_position_time_gate",
    "is_modality_bias": "use_item_bias",
    "temperature": "temperature",
    "max_len": "max_len",
}

# Their feature tables travel with the weights; ours belong to the catalogue.
FEATURE_TABLES = frozenset({"text_embedding", "vision_embedding"})
# A constant 1 under static fusion, the only kind there are published results of.
FUSION_FACTOR = "fusion_factor"

_TIME_SCALE = {
    "mlp4time_scale.1": "time_scale.fc1",
    "mlp4time_scale.3": "time_scale.fc2",
    "conv1d4time_1": "time_scale.conv1",
    "conv1d4time_2": "time_scale.conv2",
}
_TIME_GATE = {"time_gate_residual.1": "time_gate.fc", "time_layer_norm": "time_gate.norm"}
_FEED_FORWARD = {"fc1": "fc1", "fc2": "fc2", "layer_norm": "norm"}
# Crossed on purpose: their `text` filter acts on the asking (vision) stream's time signal.
_FILTERS = {
    "text_complex_weight": "query_map",
    "vision_complex_weight": "source_map",
    "co_complex_weight": "output_map",
}


def official_model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """Return the architecture that the authors' settings describe, quirks included.

    Args:
        settings: at least the keys of `SETTINGS`; settings of training are not looked at.

    Raises:
        ConfigError: a setting is missing, not allowed, or asks for a fusion without results.
    """
    missing = sorted(SETTINGS.keys() - settings.keys())
    if missing:
        raise ConfigError(
            f"the official settings lack {', '.join(missing)}. Next: add them to the file, with "
            "the values that the weights were trained with"
        )
    fusion = settings.get("item_mm_fusion", "static")
    if fusion != "static":
        raise ConfigError(f"item_mm_fusion is {fusion!r} (allowed: static, the paper's)")
    values = {ours: settings[theirs] for theirs, ours in SETTINGS.items()}
    try:
        return ModelConfig.model_validate({**OFFICIAL["model"], **values})
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        where = next((theirs for theirs, ours in SETTINGS.items() if ours == name), "sizes")
        raise ConfigError(f"official settings: {where}: {problem['msg']}") from None


def from_official(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename the authors' weights.

    Args:
        state: their state dict; feature tables in it are left out.
        config: the architecture, from `official_model_config`.

    Returns:
        A state dict for an `MMM4Rec` with the modalities `text` and `image`, the same tensors.

    Raises:
        CheckpointError: a weight has no place in this architecture or is missing, the two copies
            of a shared block differ, or the modalities are weighted unequally.
    """
    names = dict(_names(config))
    unknown = sorted(state.keys() - names.keys() - FEATURE_TABLES - {FUSION_FACTOR})
    missing = sorted(names.keys() - state.keys())
    if unknown or missing:
        raise CheckpointError(
            f"the official weights do not fit num_layers={config.num_layers}, "
            f"is_time={config.use_time}, is_modality_bias={config.use_item_bias}, "
            f"is_ffn={config.use_feed_forward}. Without a place here: {_listed(unknown)}. "
            f"Missing: {_listed(missing)}. Next: give the settings that they were trained with"
        )
    factor = state.get(FUSION_FACTOR)
    if factor is not None and (factor.ndim or factor.item() != 1):
        raise CheckpointError(
            f"{FUSION_FACTOR} is {tuple(factor.shape)}, not the constant 1 of static fusion: this "
            "model has no learned modality weights"
        )
    renamed: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        if ours in renamed and not torch.equal(renamed[ours], state[theirs]):
            raise CheckpointError(
                f"{theirs} differs from its copy under encoder_ssd_layers: the block is shared, "
                "so the file is damaged or was changed by hand"
            )
        renamed[ours] = state[theirs]
    return renamed


def to_official(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename our weights; the inverse of `from_official` without the feature tables.

    Raises:
        CheckpointError: a weight has no place in the official model (further modalities, learned
            missing vectors) or is missing.
    """
    names = dict(_names(config))
    unknown = sorted(state.keys() - set(names.values()))
    missing = sorted(set(names.values()) - state.keys())
    if unknown or missing:
        raise CheckpointError(
            f"the official model has exactly a text and an image stream and no learned missing "
            f"vector. Without a place there: {_listed(unknown)}. Missing: {_listed(missing)}"
        )
    return {theirs: state[ours] for theirs, ours in names.items()} | {
        FUSION_FACTOR: torch.tensor(1.0)
    }


def _listed(keys: list[str]) -> str:
    shown = ", ".join(keys[:8]) or "nothing"
    return f"{shown} and {len(keys) - 8} more" if len(keys) > 8 else shown


def _names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield (their name, ours) of every weight; a shared weight comes under both their names."""
    for theirs, ours in (("text", "text"), ("vision", "image")):
        modality = f"item_encoder.modalities.{ours}"
        yield from _affine(f"{theirs}_adapter.0", f"{modality}.adapter")
        yield from _affine(f"{theirs}_in_layer_norm", f"item_encoder.norms.{ours}")
        if config.use_item_bias:
            yield f"{theirs}_item_embedding_bias", f"item_encoder.item_bias.{ours}"
    if config.use_time:
        yield from _affine("layer_norm_time", "time_encoder.norm")
    for index in range(config.num_layers):
        yield from _layer_names(config, index)


def _layer_names(config: ModelConfig, index: int) -> Iterator[tuple[str, str]]:
    encoder, decoder = f"encoder_ssd_layers.{index}", f"decoder_ssd_layers.{index}"
    layer = f"layers.{index}"
    fusion = f"{layer}.fusions.image"
    for side in (encoder, decoder):
        yield from _block_names(f"{side}.ssd", f"{layer}.ti_ssd")
        shared = {"in_proj": "in_proj", "conv1d_1": "conv"}
        if config.use_time:
            shared |= _TIME_SCALE | _TIME_GATE
        yield from _affine_all(f"{side}.ssd", f"{layer}.ti_ssd", shared)
    yield from _affine(f"{encoder}.layer_norm", f"{layer}.norms.text")
    yield from _affine(f"{decoder}.layer_norm", f"{layer}.norms.image")
    yield from _affine(f"{decoder}.co_layer_norm", f"{fusion}.norm")
    yield from _block_names(f"{decoder}.co_ssd", f"{fusion}.co_ssd")
    own = {
        "u_in_proj": "source_proj",
        "q_in_proj": "query_proj",
        "z_in_proj": "gate_proj",
        "u_conv1d": "source_conv",
        "q_conv1d": "query_conv",
    }
    if config.use_time:
        own |= _TIME_SCALE
        for theirs, ours in _FILTERS.items():
            parts = {"real": "real", "imag": "imag"}
            yield from _affine_all(f"{decoder}.{theirs}.0", f"{fusion}.filter.{ours}", parts)
    yield from _affine_all(f"{decoder}.co_ssd", f"{fusion}.co_ssd", own)
    if config.use_feed_forward:
        yield from _affine_all(f"{encoder}.ffn", f"{layer}.feed_forward", _FEED_FORWARD)
        yield from _affine_all(f"{decoder}.ffn", f"{fusion}.feed_forward", _FEED_FORWARD)


def _block_names(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for name in ("A_log", "D", "dt_bias", "norm.weight"):
        yield f"{theirs}.{name}", f"{ours}.ssd.{name}"
    yield from _affine(f"{theirs}.out_proj", f"{ours}.ssd.out_proj")


def _affine(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for name in ("weight", "bias"):
        yield f"{theirs}.{name}", f"{ours}.{name}"


def _affine_all(theirs: str, ours: str, parts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for their_part, our_part in parts.items():
        yield from _affine(f"{theirs}.{their_part}", f"{ours}.{our_part}")
