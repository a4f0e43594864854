"""Other people's features to our shards: nothing is encoded, nothing can be encoded again.

Shape letters: I items, F raw feature, B rows of a block.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmm4rec.errors import DataError
from pipeline.feature_files import Rows, check_shape, open_features
from pipeline.feature_store import EncoderRecord, shard_paths, write_shard
from pipeline.schema import ENCODER_FILE, FeatureSet, write_json

logger = logging.getLogger(__name__)

SHARD_SIZE = 2048

_BLOCK_VALUES = 1 << 22  # converted at one time
_HALF_MAX = float(np.finfo(np.float16).max)
_NAME = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")


def import_features(
    source: Rows | Path,
    folder: Path,
    modality: str,
    fingerprint: str,
    num_items: int,
    name: str,
    *,
    present: Sequence[bool] | None = None,
    shared_by: int = 0,
    is_one_encoder: bool = False,
    shard_size: int = SHARD_SIZE,
) -> FeatureSet:
    """Write a feature matrix as shards, with a key that names its origin.

    Models and domains go together where their keys are equal. Unless the caller knows better, no
    other matrix is taken to be of the same encoder: the key also names the content.

    An item is without the modality where its row is all 0, where `present` says so, or where its
    row is the one that most items share: an encoder sees the same stand-in for every missing
    picture. Its values become 0; the shared row is kept as the output for a blank input.

    Args:
        source: (I, F) floats, row k of the item with id k + 1; or a file of them.
        folder: `features/<modality>`; gets a folder named by the key.
        modality: text or image.
        fingerprint: item fingerprint.
        num_items: I.
        name: origin, the key's first part: small letters, digits, `-` and `.`.
        present: whether each item has the modality, where that is known.
        shared_by: where `present` is not known: a row that at least so many items (and at least
            two) share is such a stand-in; 0: none is.
        is_one_encoder: whether all matrices of this name and width are known to come from one
            encoder. The key is then these two, and a model can move between their domains.
        shard_size: items per shard.

    Raises:
        DataError: the file is not such a matrix, or a value is not finite in float16.
    """
    assert _NAME.fullmatch(name), name
    assert present is None or len(present) == num_items
    rows = open_features(source, num_items) if isinstance(source, Path) else source
    where = str(source) if isinstance(source, Path) else name
    check_shape(rows, num_items, where)
    survey = _survey_rows(rows, where)
    is_present_I = _find_present(survey, present, shared_by, where)
    blank_F = _find_blank(rows, survey, is_present_I)
    width = len(blank_F)
    identity = str(width) if is_one_encoder else _content_hash(survey, is_present_I)[:10]
    key = f"{name}-{identity}"
    target = folder / key
    target.mkdir(parents=True, exist_ok=True)
    (target / ENCODER_FILE).unlink(missing_ok=True)  # not whole until the end
    _write_shards(target, rows, is_present_I, shard_size)
    record = EncoderRecord(
        encoder=name,
        revision=None,
        preprocessing={"imported": True, "sha256": survey.sha256},
        key=key,
        width=width,
        blank=blank_F.tolist(),
        fingerprint=fingerprint,
        num_items=num_items,
    )
    write_json(record.model_dump(), target / ENCODER_FILE)
    return FeatureSet(
        modality=modality,
        key=key,
        encoder=name,
        width=width,
        present=int(np.count_nonzero(is_present_I)),
    )


def _write_shards(
    target: Path, rows: Rows, is_present_I: NDArray[np.bool_], shard_size: int
) -> None:
    for path in shard_paths(target):
        path.unlink()
    for number, start in enumerate(range(0, len(rows), shard_size)):
        part = slice(start, min(start + shard_size, len(rows)))
        present_B = is_present_I[part]
        values_BF = np.where(present_B[:, None], _as_float32(rows[part]), np.float32(0))
        ids = range(part.start + 1, part.stop + 1)
        path = target / f"part-{number:05}.parquet"
        write_shard(path, ids, present_B, values_BF, target.name)


@dataclass(frozen=True)
class _Survey:
    """What one pass over the rows tells.

    Attributes:
        digests: (I,) uint64, equal where rows are.
        is_zero: (I,) bool.
        sha256: of all rows as float32.
    """

    digests: NDArray[np.uint64]
    is_zero: NDArray[np.bool_]
    sha256: str


def _survey_rows(rows: Rows, where: str) -> _Survey:
    content = hashlib.sha256()
    digests = np.zeros(len(rows), np.uint64)
    is_zero = np.zeros(len(rows), np.bool_)
    for start, block_BF in _blocks(rows):
        fits_B = (np.abs(block_BF) <= _HALF_MAX).all(axis=1)  # false for NaN, too
        if not fits_B.all():
            raise DataError(
                f"{where}: the row of item {start + int(np.flatnonzero(~fits_B)[0]) + 1} has a "
                f"value that is not finite in float16 (limit {_HALF_MAX:g}). Next: fetch the file "
                f"again, or encode the texts and images here"
            )
        part = slice(start, start + len(block_BF))
        is_zero[part] = ~block_BF.any(axis=1)
        hashes = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in block_BF]
        digests[part] = np.frombuffer(b"".join(hashes), np.uint64)
        content.update(block_BF.tobytes())
    return _Survey(digests, is_zero, content.hexdigest())


def _blocks(rows: Rows) -> Iterator[tuple[int, NDArray[np.float32]]]:
    step = max(1, _BLOCK_VALUES // rows.shape[1])
    for start in range(0, len(rows), step):
        yield start, _as_float32(rows[start : start + step])


def _as_float32(rows: Rows) -> NDArray[np.float32]:
    block = rows.float().numpy() if isinstance(rows, Tensor) else rows
    with np.errstate(over="ignore"):  # becomes infinite, which the survey refuses
        return np.ascontiguousarray(block, dtype="<f4")


def _find_present(
    survey: _Survey, known: Sequence[bool] | None, shared_by: int, where: str
) -> NDArray[np.bool_]:
    if known is not None:
        return np.asarray(known, np.bool_) & ~survey.is_zero
    if not shared_by:
        return ~survey.is_zero
    digest, count = _most_frequent(survey.digests[~survey.is_zero])
    if count < max(2, shared_by):
        return ~survey.is_zero
    logger.warning("%s: %d items share one row, they count as missing", where, count)
    return ~survey.is_zero & (survey.digests != digest)


def _find_blank(
    rows: Rows, survey: _Survey, is_present_I: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the row that stands for a missing input, zeros where none does."""
    stand_ins = np.flatnonzero(~is_present_I & ~survey.is_zero)
    if not len(stand_ins):
        return np.zeros(rows.shape[1], np.float32)
    digest, _ = _most_frequent(survey.digests[stand_ins])
    first = int(stand_ins[survey.digests[stand_ins] == digest][0])
    return _as_float32(rows[first : first + 1])[0]


def _most_frequent(digests: NDArray[np.uint64]) -> tuple[int, int]:
    """Return the value that is there most often, and how often; the smallest of several."""
    values, counts = np.unique(digests, return_counts=True)
    best = int(counts.argmax()) if len(counts) else 0
    return (int(values[best]), int(counts[best])) if len(counts) else (0, 0)


def _content_hash(survey: _Survey, is_present_I: NDArray[np.bool_]) -> str:
    parts = survey.sha256.encode() + np.packbits(is_present_I).tobytes()
    return hashlib.sha256(parts).hexdigest()
