"""The authors' names for weights, and ours.

Names and shapes only: nothing is read from a file here (see `official_files`). Two traps live in
their state dict: the shared block is stored twice, and the two filters in front of the fusion carry
each other's names.

Shape letters: D d_model, E d_inner, F feed-forward width, G groups, H heads, K width of the
convolutions, L max_len, N state, S = G * N.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmm4rec.config import ModelConfig
from mmm4rec.errors import CheckpointError
from mmm4rec.official_settings import MODALITIES

# Their feature tables travel with the weights; ours belong to the catalogue.
FEATURE_TABLES = {f"{theirs}_embedding": theirs for theirs in MODALITIES}
# One learned vector per item, bound to their data set.
ITEM_TABLES = {f"{theirs}_item_embedding_bias": theirs for theirs in MODALITIES}
# A constant 1 under static fusion, the only kind there are published results of.
FUSION_FACTOR = "fusion_factor"

# Crossed on purpose: their `text` filter acts on the asking (vision) stream's time signal.
_FILTERS = {
    "text_complex_weight": "query_map",
    "vision_complex_weight": "source_map",
    "co_complex_weight": "output_map",
}
_LAYER = re.compile(r"(?:en|de)coder_ssd_layers\.(\d{1,6})\.")
_SHOWN = 20  # names in one message

Shape = tuple[int | None, ...]  # None: the settings do not say


class _Weight(NamedTuple):
    theirs: str
    ours: str
    shape: Shape


def from_official(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename the authors' weights.

    Args:
        state: their state dict; feature tables in it are checked and left out.
        config: the architecture, from `official_model_config`.

    Returns:
        A state dict for an `MMM4Rec` with the modalities `text` and `image`, the same tensors.

    Raises:
        CheckpointError: a weight has no place in this architecture, is missing or of another
            shape, the two copies of a shared block differ, or the modalities are weighted
            unequally.
    """
    _check_fusion(state)
    _check_layers(state, config)
    weights = list(_weights(config))
    names = {weight.theirs for weight in weights}
    renamed: dict[str, Tensor] = {}
    for weight in weights:
        if weight.theirs in state:
            renamed.setdefault(weight.ours, state[weight.theirs])
    _refuse(
        config,
        {
            "Without a place here": sorted(
                state.keys() - names - FEATURE_TABLES.keys() - {FUSION_FACTOR}
            ),
            "Missing": sorted(names - state.keys()),
            "Of another shape": _misshapen(state, weights),
            # The authors' code would take the second copy.
            "Unlike its copy under encoder_ssd_layers, though the block is shared": [
                w.theirs
                for w in weights
                if w.theirs in state and not torch.equal(state[w.theirs], renamed[w.ours])
            ],
        },
    )
    return renamed


def to_official(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename our weights; the inverse of `from_official` without the feature tables.

    Raises:
        CheckpointError: a weight has no place in the official model (further modalities, learned
            missing vectors) or is missing.
    """
    weights = list(_weights(config))
    ours = {weight.ours for weight in weights}
    unknown, missing = sorted(state.keys() - ours), sorted(ours - state.keys())
    if unknown or missing:
        raise CheckpointError(
            f"the official model has exactly a text and an image stream and no learned missing "
            f"vector. Without a place there: {listed(unknown)}. Missing: {listed(missing)}"
        )
    return {weight.theirs: state[weight.ours] for weight in weights} | {
        FUSION_FACTOR: torch.tensor(1.0)
    }


def listed(names: list[str], limit: int = _SHOWN) -> str:
    """Return names in one line, the first `limit` of them.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    shown = ", ".join(names[:limit]) or "nothing"
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def _check_fusion(state: Mapping[str, Tensor]) -> None:
    factor = state.get(FUSION_FACTOR)
    if factor is not None and (factor.ndim or factor.item() != 1):
        raise CheckpointError(
            f"{FUSION_FACTOR} is {tuple(factor.shape)}, not the constant 1 of static fusion: this "
            "model has no learned modality weights"
        )


def _check_layers(state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Compare the number of layers, whose mismatch would otherwise be a hundred names."""
    found = {int(match[1]) for name in state if (match := _LAYER.match(name))}
    if len(found) != config.num_layers:
        raise CheckpointError(
            f"the official weights have {len(found)} layers, num_layers is {config.num_layers}. "
            f"Next: give the settings that they were trained with (num_layers: {len(found)})"
        )


def _refuse(config: ModelConfig, found: dict[str, list[str]]) -> None:
    problems = {what: names for what, names in found.items() if names}
    if not problems:
        return
    limit = _SHOWN // len(problems)
    raise CheckpointError(
        f"the official weights do not fit num_layers={config.num_layers}, "
        f"is_time={config.use_time}, is_modality_bias={config.use_item_bias}, "
        f"is_ffn={config.use_feed_forward}. "
        + "".join(f"{what}: {listed(names, limit)}. " for what, names in problems.items())
        + "Next: give the settings that they were trained with, or fetch the file again"
    )


def _misshapen(state: Mapping[str, Tensor], weights: list[_Weight]) -> list[str]:
    """Describe what has another shape; tables of one file have the same items and widths."""
    shapes = {weight.theirs: weight.shape for weight in weights}
    tables = [state[name] for name in (*ITEM_TABLES, *FEATURE_TABLES) if name in state]
    rows = len(tables[0]) if tables and tables[0].ndim else None
    for name, theirs in FEATURE_TABLES.items():
        adapter = state.get(f"{theirs}_adapter.0.weight")
        shapes[name] = (rows, adapter.shape[-1] if adapter is not None and adapter.ndim else None)
    for name in ITEM_TABLES.keys() & shapes.keys():
        shapes[name] = (rows, *shapes[name][1:])
    return [
        f"{name} {list(state[name].shape)}, expected {_spelled(shape)}"
        for name, shape in shapes.items()
        if name in state and not _fits(state[name].shape, shape)
    ]


def _fits(found: tuple[int, ...], expected: Shape) -> bool:
    return len(found) == len(expected) and all(
        size == wanted if wanted is not None else size > 0
        for size, wanted in zip(found, expected, strict=True)
    )


def _spelled(shape: Shape) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def _weights(config: ModelConfig) -> Iterator[_Weight]:
    """Yield every weight; a shared one comes under both their names."""
    D = config.d_model
    for theirs, ours in MODALITIES.items():
        yield from _affine(
            f"{theirs}_adapter.0", f"item_encoder.modalities.{ours}.adapter", D, None
        )
        yield from _affine(f"{theirs}_in_layer_norm", f"item_encoder.norms.{ours}", D)
        if config.use_item_bias:
            table = f"item_encoder.item_bias.{ours}"
            yield _Weight(f"{theirs}_item_embedding_bias", table, (None, D))
    if config.use_time:
        yield from _affine("layer_norm_time", "time_encoder.norm", config.max_len)
    for index in range(config.num_layers):
        layer, encoder = f"layers.{index}", f"encoder_ssd_layers.{index}"
        decoder, fusion = f"decoder_ssd_layers.{index}", f"layers.{index}.fusions.image"
        for side in (encoder, decoder):
            yield from _shared_block(f"{side}.ssd", f"{layer}.ti_ssd", config)
        yield from _affine(f"{encoder}.layer_norm", f"{layer}.norms.text", D)
        yield from _affine(f"{decoder}.layer_norm", f"{layer}.norms.image", D)
        yield from _affine(f"{decoder}.co_layer_norm", f"{fusion}.norm", D)
        yield from _co_block(f"{decoder}.co_ssd", f"{fusion}.co_ssd", config)
        if config.use_time:
            yield from _filters(decoder, f"{fusion}.filter", config)
        if config.use_feed_forward:
            yield from _feed_forward(f"{encoder}.ffn", f"{layer}.feed_forward", config)
            yield from _feed_forward(f"{decoder}.ffn", f"{fusion}.feed_forward", config)


def _shared_block(theirs: str, ours: str, config: ModelConfig) -> Iterator[_Weight]:
    D, E, H, K, L = _sizes(config)
    S = config.num_groups * config.d_state
    yield from _state_space(theirs, ours, config)
    yield from _affine(f"{theirs}.in_proj", f"{ours}.in_proj", 2 * E + 2 * S + H, D)
    yield from _affine(f"{theirs}.conv1d_1", f"{ours}.conv", E + 2 * S, 1, K)
    if config.use_time:
        gates = L if config.per_position_time_gate else 1
        yield from _affine(f"{theirs}.time_gate_residual.1", f"{ours}.time_gate.fc", gates, L)
        yield from _affine(f"{theirs}.time_layer_norm", f"{ours}.time_gate.norm", L)


def _co_block(theirs: str, ours: str, config: ModelConfig) -> Iterator[_Weight]:
    D, E, H, K, _ = _sizes(config)
    S = config.num_groups * config.d_state
    yield from _state_space(theirs, ours, config)
    yield from _affine(f"{theirs}.u_in_proj", f"{ours}.source_proj", E + S + H, D)
    yield from _affine(f"{theirs}.q_in_proj", f"{ours}.query_proj", S, D)
    yield from _affine(f"{theirs}.z_in_proj", f"{ours}.gate_proj", E, D)
    yield from _affine(f"{theirs}.u_conv1d", f"{ours}.source_conv", E + S, 1, K)
    yield from _affine(f"{theirs}.q_conv1d", f"{ours}.query_conv", S, 1, K)


def _state_space(theirs: str, ours: str, config: ModelConfig) -> Iterator[_Weight]:
    """Yield what both blocks have."""
    D, E, H, K, L = _sizes(config)
    for name in ("A_log", "D", "dt_bias"):
        yield _Weight(f"{theirs}.{name}", f"{ours}.ssd.{name}", (H,))
    yield _Weight(f"{theirs}.norm.weight", f"{ours}.ssd.norm.weight", (E,))
    yield from _affine(f"{theirs}.out_proj", f"{ours}.ssd.out_proj", D, E)
    if config.use_time:
        yield from _affine(f"{theirs}.mlp4time_scale.1", f"{ours}.time_scale.fc1", L, L)
        yield from _affine(f"{theirs}.mlp4time_scale.3", f"{ours}.time_scale.fc2", L, L)
        yield from _affine(f"{theirs}.conv1d4time_1", f"{ours}.time_scale.conv1", H, 1, K)
        yield from _affine(f"{theirs}.conv1d4time_2", f"{ours}.time_scale.conv2", H, 1, K)


def _filters(theirs: str, ours: str, config: ModelConfig) -> Iterator[_Weight]:
    bins = config.max_len // 2 + 1
    for their_map, our_map in _FILTERS.items():
        for part in ("real", "imag"):
            yield from _affine(
                f"{theirs}.{their_map}.0.{part}", f"{ours}.{our_map}.{part}", bins, bins
            )


def _feed_forward(theirs: str, ours: str, config: ModelConfig) -> Iterator[_Weight]:
    D, F = config.d_model, config.d_feed_forward
    yield from _affine(f"{theirs}.fc1", f"{ours}.fc1", F, D)
    yield from _affine(f"{theirs}.fc2", f"{ours}.fc2", D, F)
    yield from _affine(f"{theirs}.layer_norm", f"{ours}.norm", D)


def _affine(theirs: str, ours: str, *shape: int | None) -> Iterator[_Weight]:
    """Yield a weight of this shape, and a bias as long as its first axis."""
    yield _Weight(f"{theirs}.weight", f"{ours}.weight", shape)
    yield _Weight(f"{theirs}.bias", f"{ours}.bias", shape[:1])


def _sizes(config: ModelConfig) -> tuple[int, int, int, int, int]:
    """Return D, E, H, K and L."""
    return config.d_model, config.d_inner, config.num_heads, config.d_conv, config.max_len
