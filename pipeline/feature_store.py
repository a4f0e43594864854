"""Feature shards on disk: Parquet files that say which items, encoder and inputs they hold.

    features/<modality>/<encoder key>/
      part-00000.parquet   item_id, present, input, values (fixed-size list of float16)
      encoder.json         the encoder and what it says of a blank input; written last

`input` is a hash of what was encoded, null where the item lacks the modality: by it a vector is
found again when the catalogue has changed and the item has another id.

Reading needs NumPy and pyarrow only: a machine that trains has none of the encoders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from mmm4rec.errors import DataError
from pipeline.schema import ENCODER_FILE, Plain, atomic_path

# Parquet metadata of a shard.
INPUTS_KEY = b"mmm4rec.inputs"  # hash of everything that it came from
ENCODER_KEY = b"mmm4rec.encoder"  # key of the encoder
INPUT_BYTES = 16
NEXT = "Next: run mmm4rec prepare again"


class EncoderRecord(Plain):
    """Which encoder wrote the shards beside it, and for which items."""

    encoder: str
    revision: str | None = Field(description="commit of the hub repository, where it is one")
    preprocessing: dict[str, Any]
    key: str
    width: int = Field(ge=1)
    blank: list[float] = Field(description="output for an empty text or a white picture")
    fingerprint: str = Field(description="item fingerprint")
    num_items: int = Field(ge=0)


@dataclass(frozen=True)
class StoredFeatures:
    """Features of one modality for a whole catalogue (shape letters: I items with padding).

    Attributes:
        values: (I, F) float16, encoder outputs by item id; row 0 and missing items are 0.
        present: (I,) bool, whether the item has the modality; false at 0.
        blank: (F,) float32, the encoder's output for a blank input.
        key: encoder key.
    """

    values: NDArray[np.float16]
    present: NDArray[np.bool_]
    blank: NDArray[np.float32]
    key: str


def read_features(folder: Path, num_items: int, fingerprint: str) -> StoredFeatures:
    """Read all shards of one encoder.

    Args:
        folder: `features/<modality>/<encoder key>`.
        num_items: number of items, whose ids are 1..num_items.
        fingerprint: item fingerprint of the domain.

    Raises:
        DataError: a file is missing or malformed, the features are of another item set, or an
            item has none or several rows.
    """
    record = read_record(folder)
    if (record.fingerprint, record.num_items) != (fingerprint, num_items):
        raise DataError(
            f"{folder} holds features of {record.num_items} items with fingerprint "
            f"{record.fingerprint}, the domain has {num_items} with {fingerprint}. {NEXT}"
        )
    values = np.zeros((num_items + 1, record.width), np.float16)
    present = np.zeros(num_items + 1, np.bool_)
    counts = np.zeros(num_items + 1, np.int64)
    for path in shard_paths(folder):
        ids_N, present_N, values_NF = read_shard(path, record.width)
        outside_N = (ids_N < 1) | (ids_N > num_items)
        if outside_N.any():
            raise DataError(f"{path}: item id {ids_N[outside_N][0]} is not in 1..{num_items}")
        np.add.at(counts, ids_N, 1)
        values[ids_N], present[ids_N] = values_NF, present_N
    if (wrong := np.flatnonzero(counts[1:] != 1)).size:
        item_id = int(wrong[0]) + 1
        raise DataError(
            f"{folder}: {wrong.size} of {num_items} items do not have exactly one row; item "
            f"{item_id} has {counts[item_id]}. {NEXT}"
        )
    return StoredFeatures(values, present, np.array(record.blank, np.float32), record.key)


def read_record(folder: Path) -> EncoderRecord:
    """Read the encoder's record.

    Raises:
        DataError: it is missing (the encoding did not finish) or malformed.
    """
    path = folder / ENCODER_FILE
    try:
        record = EncoderRecord.model_validate_json(path.read_bytes())
    except OSError:
        raise DataError(f"{folder} holds no finished features: no {ENCODER_FILE}. {NEXT}") from None
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise DataError(f"{path} is not a record of an encoder: {problem}. {NEXT}") from None
    if len(record.blank) != record.width:
        raise DataError(f"{path}: blank has {len(record.blank)} values, width is {record.width}")
    return record


def shard_paths(folder: Path) -> list[Path]:
    """Return the shards in order."""
    return sorted(folder.glob("part-*.parquet"))


def input_hash(value: str) -> bytes:
    """Hash an input: a text, or the name of an image file, which names its content.

    >>> len(input_hash("red chair")) == INPUT_BYTES
    True
    """
    return hashlib.blake2b(value.encode(), digest_size=INPUT_BYTES).digest()


def write_shard(
    path: Path,
    ids_N: Sequence[int],
    present_N: NDArray[np.bool_],
    values_NF: NDArray[np.floating[Any]],
    digest: str,
    *,
    inputs_N: Sequence[bytes | None] | None = None,
    key: str = "",
) -> None:
    """Write one shard atomically.

    Args:
        path: the file.
        ids_N: item ids.
        present_N: whether the item has the modality.
        values_NF: encoder outputs; kept as float16.
        digest: hash of everything that the values depend on, for `holds`.
        inputs_N: `input_hash` of each input, None where there was none; None: not known.
        key: of the encoder, for `read_inputs`.

    Raises:
        DataError: a value is not finite in float16.
    """
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        halves_NF = values_NF.astype(np.float16)
    if not np.isfinite(halves_NF).all():
        row = int(np.flatnonzero(~np.isfinite(halves_NF).all(axis=1))[0])
        raise DataError(
            f"{path.parent.name}: the encoder's output for item {ids_N[row]} is not finite in "
            f"float16 (limit {np.finfo(np.float16).max}). Next: choose another encoder"
        )
    inputs_N = [None] * len(ids_N) if inputs_N is None else inputs_N
    table = pa.table(
        {
            "item_id": pa.array(ids_N, pa.uint32()),
            "present": pa.array(present_N),
            "input": pa.array(inputs_N, pa.binary(INPUT_BYTES)),
            "values": pa.FixedSizeListArray.from_arrays(
                pa.array(halves_NF.ravel()), halves_NF.shape[1]
            ),
        }
    ).replace_schema_metadata({INPUTS_KEY: digest.encode(), ENCODER_KEY: key.encode()})
    with atomic_path(path) as temporary:
        pq.write_table(
            table, temporary, compression="zstd", use_dictionary=False, write_statistics=False
        )


def holds(path: Path, digest: str) -> bool:
    """Whether a shard is there, whole, and came from these inputs."""
    return _metadata(path).get(INPUTS_KEY) == digest.encode()


def read_inputs(path: Path, key: str) -> pa.Table | None:
    """Read which inputs a shard holds vectors of.

    Returns:
        input (null: the item has none), present (false: there is no vector); None where the file
        is damaged, of another encoder, or does not tell.
    """
    if _metadata(path).get(ENCODER_KEY) != key.encode():
        return None
    try:
        return pq.read_table(path, columns=["input", "present"])
    except (OSError, pa.ArrowException):
        return None


def _metadata(path: Path) -> dict[bytes, bytes]:
    try:
        return pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}


def count_present(folder: Path) -> int:
    """Return the number of items that have the modality."""
    tables = (pq.read_table(path, columns=["present"]) for path in shard_paths(folder))
    return sum(int(np.count_nonzero(table["present"].to_numpy())) for table in tables)


def read_shard(
    path: Path, width: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float16]]:
    """Read item ids (N,), present (N,) and values (N, F).

    Raises:
        DataError: the file is not a shard of that width.
    """
    expected = {
        "item_id": pa.uint32(),
        "present": pa.bool_(),
        "values": pa.list_(pa.float16(), width),
    }
    try:
        table = pq.read_table(path, columns=list(expected))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} does not read as Parquet: {reason}. {NEXT}") from None
    found = dict(zip(table.schema.names, table.schema.types, strict=True))
    nulls = sum(column.null_count for column in table.columns)
    values = table["values"].combine_chunks() if found == expected else None
    if values is None or nulls or values.flatten().null_count:
        raise DataError(
            f"{path}: expected {expected} without nulls, found {found} with {nulls} nulls. {NEXT}"
        )
    flat = values.flatten().to_numpy(zero_copy_only=False)
    return (
        table["item_id"].to_numpy().astype(np.int64),
        table["present"].to_numpy(),
        flat.reshape(-1, width),
    )
