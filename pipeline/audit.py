"""An audit of stored features: a random sample is encoded again and compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmm4rec.errors import DataError
from pipeline.encoding import AnyEncoder, encode_inputs
from pipeline.feature_store import StoredFeatures, read_features
from pipeline.features import image_inputs, text_inputs

SHOWN_ITEMS = 3


@dataclass(frozen=True)
class Tolerance:
    """How far two encodings of one input may be apart, for vectors of unit length.

    Attributes:
        cosine: at least.
        difference: of a value, at most.
    """

    cosine: float
    difference: float


# float16 keeps 11 bits: half a unit in the last place is at most 2**-12 of a value below 1. Another
# machine's float32 adds as little. bfloat16 keeps 8 bits in every layer.
FLOAT32 = Tolerance(cosine=0.9999, difference=0.001)
BFLOAT16 = Tolerance(cosine=0.995, difference=0.02)


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        items: items encoded again.
        missing: items without the modality, all of them looked at.
        worst_cosine: between an item's two vectors; 1 without items.
        worst_difference: between two values; 0 without items.
    """

    items: int
    missing: int
    worst_cosine: float
    worst_difference: float


def audit_features(
    items: pl.DataFrame,
    folder: Path,
    encoder: AnyEncoder,
    fingerprint: str,
    *,
    image_folder: Path | None = None,
    sample_size: int = 64,
    seed: int = 0,
) -> Audit:
    """Compare stored features with what the encoder says now.

    Args:
        items: item_id (1, 2, ...), text, or file relative to `image_folder`.
        folder: `features/<modality>/<encoder key>`.
        encoder: that the features are said to be of.
        fingerprint: item fingerprint.
        image_folder: where image files are; None for texts.
        sample_size: items that are encoded again, at most.
        seed: of the sample.

    Raises:
        DataError: the features are of another encoder or item set, an item without the modality
            has values, or an item's vector is not what the encoder says.
    """
    stored = read_features(folder, len(items), fingerprint)
    if stored.key != encoder.key:
        raise DataError(
            f"{folder} holds features of {stored.key}, the encoder is {encoder.key}. Next: name "
            f"the encoder that wrote them, with the same precision and pooling"
        )
    inputs = (image_inputs if image_folder else text_inputs)(items).sort("item_id")["input"]
    _check_missing(folder, stored, inputs)
    present = np.flatnonzero(stored.present)
    size = min(sample_size, len(present))
    chosen = np.sort(np.random.default_rng(seed).choice(present, size, replace=False))
    found_NF = stored.values[chosen].astype(np.float32)
    wanted = [str(inputs[int(item_id) - 1]) for item_id in chosen]
    _, expected_NF = encode_inputs(wanted, encoder, image_folder)
    cosines_N, differences_N = _compare(found_NF, expected_NF)
    is_half = encoder.preprocessing.get("precision") == "bf16-true"
    tolerance = BFLOAT16 if is_half else FLOAT32
    _check(folder, chosen, cosines_N, differences_N, tolerance)
    return Audit(
        items=size,
        missing=len(items) - len(present),
        worst_cosine=float(cosines_N.min(initial=1.0)),
        worst_difference=float(differences_N.max(initial=0.0)),
    )


def _check_missing(folder: Path, stored: StoredFeatures, inputs: pl.Series) -> None:
    """Refuse features of items that have nothing to encode: a stand-in is not a feature."""
    is_present_I = stored.present[1:]
    invented = np.flatnonzero(is_present_I & inputs.is_null().to_numpy())
    if len(invented):
        raise DataError(
            f"{folder}: item {invented[0] + 1} has nothing to encode, found present=true, expected "
            f"false; so it is with {len(invented)} items. {_again(folder)}"
        )
    filled = np.flatnonzero(~is_present_I & stored.values[1:].any(axis=1))
    if len(filled):
        raise DataError(
            f"{folder}: item {filled[0] + 1} is not present, found values other than 0; so it is "
            f"with {len(filled)} items. {_again(folder)}"
        )


def _compare(
    found_NF: NDArray[np.float32], expected_NF: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the cosine (two zero vectors are alike) and the largest difference of each row."""
    found_NF, expected_NF = found_NF.astype(np.float64), expected_NF.astype(np.float64)
    lengths_N = np.linalg.norm(found_NF, axis=1) * np.linalg.norm(expected_NF, axis=1)
    differences_N = np.abs(found_NF - expected_NF).max(axis=1, initial=0.0)
    products_N = (found_NF * expected_NF).sum(axis=1)
    cosines_N = np.divide(products_N, lengths_N, out=np.zeros_like(products_N), where=lengths_N > 0)
    return np.where(differences_N == 0, 1.0, cosines_N), differences_N


def _check(
    folder: Path,
    chosen: NDArray[np.int64],
    cosines_N: NDArray[np.float64],
    differences_N: NDArray[np.float64],
    tolerance: Tolerance,
) -> None:
    is_off_N = (cosines_N < tolerance.cosine) | (differences_N > tolerance.difference)
    if not is_off_N.any():
        return
    rows = np.flatnonzero(is_off_N)
    named = ", ".join(
        f"item {chosen[row]} (cosine {cosines_N[row]:.4f}, difference {differences_N[row]:.4f})"
        for row in rows[:SHOWN_ITEMS]
    )
    raise DataError(
        f"{folder}: {len(rows)} of {len(chosen)} items are not what the encoder says now: {named}; "
        f"expected a cosine of at least {tolerance.cosine} and a difference of at most "
        f"{tolerance.difference}. {_again(folder)}"
    )


def _again(folder: Path) -> str:
    return f"Next: delete {folder} and run mmm4rec prepare again"
