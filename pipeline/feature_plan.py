"""Which inputs of a catalogue have no vector yet, and the way from vectors to shards.

    features/<modality>/<encoder key>/
      part-00000.parquet, encoder.json   of the last catalogue that was finished
      encoding/<digest>.parquet          on the way: vectors of new inputs, then the new shards

A shard is a slice of the catalogue, and one new item moves all that follow; a vector is found by
its input wherever it lies, and only copied. No old shard is touched before every new one is
written, so that whatever has been encoded once is there after a kill at any moment.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmm4rec.errors import DataError
from pipeline.encoding import Chunk
from pipeline.feature_store import (
    NEXT,
    EncoderRecord,
    holds,
    input_hash,
    read_inputs,
    read_shard,
    shard_paths,
    write_shard,
)
from pipeline.schema import ENCODER_FILE, write_json

UNFINISHED = "encoding"
SHARDS_IN_MEMORY = 8  # that vectors are copied from
# Where the vector of an input is: in which file, in which row.
VECTORS = {"hash": pl.Binary, "present": pl.Boolean, "file": pl.UInt32, "row": pl.UInt32}

ReadShard: TypeAlias = Callable[[int], tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.float16]]]


@dataclass(frozen=True)
class FeaturePlan:
    """The features a catalogue will have, and what must be encoded first; can be pickled.

    Attributes:
        folder: `features/<modality>/<encoder key>`.
        record: what `encoder.json` will say.
        shards: of the catalogue, in order.
        chunks: what must be encoded; they can be in any order, by any process.
    """

    folder: Path
    record: EncoderRecord
    shards: list[PlannedShard]
    chunks: list[Chunk]

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return self.record.num_items

    @property
    def num_new(self) -> int:
        """Inputs to be encoded."""
        return sum(len(chunk.inputs) for chunk in self.chunks)


@dataclass(frozen=True)
class PlannedShard:
    """A slice of the catalogue.

    Attributes:
        path: where it will be.
        item_ids: items.
        inputs: hash of each item's input; None: it lacks the modality.
        digest: hash of all this and of the encoder.
    """

    path: Path
    item_ids: list[int]
    inputs: list[bytes | None]
    digest: str

    @property
    def unfinished(self) -> Path:
        """Where it is until all shards are written; named by content, it hides no other one."""
        return self.path.parent / UNFINISHED / f"{self.digest}.parquet"

    def is_made(self) -> bool:
        """Whether it is in its place or about to be."""
        return holds(self.path, self.digest) or holds(self.unfinished, self.digest)


def plan_features(
    folder: Path,
    record: EncoderRecord,
    items: pl.DataFrame,
    shard_size: int,
    *,
    image_folder: Path | None = None,
    num_processes: int = 1,
) -> FeaturePlan:
    """Find out what has to be encoded.

    Args:
        folder: gets the shards.
        record: of the encoder and the catalogue.
        items: item_id, input (a text or an image file; null: none).
        shard_size: items per shard, and at most inputs per chunk.
        image_folder: where image files are; None for texts.
        num_processes: that will encode; each gets a chunk where there is enough to do.
    """
    shards = [
        _plan_shard(folder, number, part, record.key)
        for number, part in enumerate(items.iter_slices(shard_size))
        if len(part)
    ]
    missing = [shard for shard in shards if not shard.is_made()]
    if not missing:
        return FeaturePlan(folder, record, shards, [])
    _, known = _find_vectors(folder, record.key)
    new = (
        items.join(_inputs_of(missing), on="item_id", how="inner", maintain_order="left")
        .filter(pl.col("hash").is_not_null())
        .unique("hash", keep="first", maintain_order=True)
        .join(known.filter("present"), on="hash", how="anti", maintain_order="left")
    )
    size = max(1, min(shard_size, -(-len(new) // num_processes)))
    chunks = [
        _plan_chunk(folder, part, record.key, image_folder)
        for part in new.iter_slices(size)
        if len(part)
    ]
    return FeaturePlan(folder, record, shards, chunks)


def finish_features(plan: FeaturePlan) -> None:
    """Put the shards together once all chunks are encoded, and write the record last.

    Raises:
        DataError: the vector of an input is nowhere.
    """
    missing = [shard for shard in plan.shards if not shard.is_made()]
    if missing:
        _write_shards(missing, plan)
    moved = [shard for shard in plan.shards if not holds(shard.path, shard.digest)]
    wanted = {shard.path for shard in plan.shards}
    surplus = [path for path in shard_paths(plan.folder) if path not in wanted]
    if moved or surplus:
        (plan.folder / ENCODER_FILE).unlink(missing_ok=True)  # not whole until the end
    for shard in moved:
        shard.unfinished.replace(shard.path)
    for path in surplus:  # of another shard size, or of a larger catalogue
        path.unlink()
    write_json(plan.record.model_dump(), plan.folder / ENCODER_FILE)
    shutil.rmtree(plan.folder / UNFINISHED, ignore_errors=True)


def _plan_shard(folder: Path, number: int, part: pl.DataFrame, key: str) -> PlannedShard:
    ids = part["item_id"].to_list()
    hashes = [None if value is None else input_hash(value) for value in part["input"]]
    digest = _digest(key, ids, hashes)
    return PlannedShard(folder / f"part-{number:05}.parquet", ids, hashes, digest)


def _plan_chunk(folder: Path, part: pl.DataFrame, key: str, image_folder: Path | None) -> Chunk:
    ids, inputs = part["item_id"].to_list(), part["input"].to_list()
    path = folder / UNFINISHED / f"{_digest(key, ids, part['hash'].to_list())}.parquet"
    return Chunk(path, ids, inputs, image_folder)


def _digest(key: str, item_ids: list[int], inputs: list[bytes | None]) -> str:
    parts = [key, item_ids, [None if one is None else one.hex() for one in inputs]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _inputs_of(shards: list[PlannedShard]) -> pl.DataFrame:
    """Return item_id and hash (null: none)."""
    return pl.DataFrame(
        {
            "item_id": [item_id for shard in shards for item_id in shard.item_ids],
            "hash": [one for shard in shards for one in shard.inputs],
        },
        schema={"item_id": pl.UInt32, "hash": pl.Binary},
    )


def _find_vectors(folder: Path, key: str) -> tuple[list[Path], pl.DataFrame]:
    """List the files with vectors, and where in them the vector of each input is.

    Returns:
        The files; hash, present (false: the input could not be read), file and row, one row per
        input.
    """
    found: list[Path] = []
    tables = [pl.DataFrame(schema=VECTORS)]
    for path in [*shard_paths(folder), *sorted((folder / UNFINISHED).glob("*.parquet"))]:
        inputs = read_inputs(path, key)
        if inputs is None:
            continue
        table = pl.DataFrame(inputs).rename({"input": "hash"}).with_row_index("row")
        table = table.with_columns(pl.lit(len(found), pl.UInt32).alias("file"))
        tables.append(table.select(*VECTORS).drop_nulls("hash"))
        found.append(path)
    rows = pl.concat(tables)
    present_first = pl.concat([rows.filter("present"), rows.filter(~pl.col("present"))])
    return found, present_first.unique("hash", keep="first", maintain_order=True)


def _write_shards(missing: list[PlannedShard], plan: FeaturePlan) -> None:
    files, known = _find_vectors(plan.folder, plan.record.key)
    places = _inputs_of(missing).join(known, on="hash", how="left", maintain_order="left")
    lost = places.filter(pl.col("hash").is_not_null() & pl.col("file").is_null())
    if len(lost):
        raise DataError(
            f"{plan.folder}: {len(lost)} inputs have no vector, the first that of item "
            f"{lost['item_id'][0]}; its file has been deleted meanwhile. {NEXT}"
        )
    width = plan.record.width
    read = lru_cache(SHARDS_IN_MEMORY)(lambda number: read_shard(files[number], width))
    start = 0
    for shard in missing:
        part = places[start : start + len(shard.item_ids)]
        start += len(part)
        present_N, values_NF = _copy_vectors(part, read, width)
        write_shard(
            shard.unfinished,
            shard.item_ids,
            present_N,
            values_NF,
            shard.digest,
            inputs_N=shard.inputs,
            key=plan.record.key,
        )


def _copy_vectors(
    places: pl.DataFrame, read: ReadShard, width: int
) -> tuple[NDArray[np.bool_], NDArray[np.float16]]:
    """Gather vectors from the files they are in, one file after the other."""
    present_N = np.zeros(len(places), np.bool_)
    values_NF = np.zeros((len(places), width), np.float16)
    files_N = places["file"].cast(pl.Int64).fill_null(-1).to_numpy()
    for number in places["file"].drop_nulls().unique().sort():
        here_N = np.flatnonzero(files_N == number)
        rows_N = places["row"].gather(here_N).to_numpy()
        _, known_N, vectors_NF = read(number)
        present_N[here_N], values_NF[here_N] = known_N[rows_N], vectors_NF[rows_N]
    return present_N, values_NF
