"""Already processed sets in the atomic format of RecBole and UniSRec, to the tables of raw files.

    <D>.test.inter   user_id:token  item_id_list:token_seq  item_id:token   history and target
    <D>.inter        user_id:token  item_id:token  [rating:float]  [timestamp:float]
    <D>.text         item_id:token  text:token_seq
    <D>.item2index   name  number from 0
    <D>.user2index   name  number from 0

The first and the last two go together: whole sequences of numbers, filtered already. A set with
`<D>.inter` instead has names and is treated as raw.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmm4rec.errors import DataError
from pipeline.rawfile import LATEST, read_blocks, split_lines
from pipeline.tables import METADATA_SCHEMA, RAW_INTERACTION_SCHEMA
from pipeline.text import cut

IntArray = np.ndarray[Any, np.dtype[np.int64]]

MAX_TITLE_CHARS = 120
_MIN_TITLE_CHARS = 15  # a full stop before is an abbreviation's, as in "No. 5"


@dataclass(frozen=True)
class AtomicFiles:
    """Files of an atomic set.

    Attributes:
        inter: interactions: sequences with both indexes, single events without.
        text: item texts.
        item_index: item names by number; None: `inter` has names.
        user_index: user names by number; None: `inter` has names.
    """

    inter: Path
    text: Path
    item_index: Path | None = None
    user_index: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, for the manifest."""
        paths = (self.inter, self.text, self.item_index, self.user_index)
        return tuple(path for path in paths if path is not None)


@dataclass(frozen=True)
class AtomicTables:
    """An atomic set as tables.

    Attributes:
        interactions: rows in RAW_INTERACTION_SCHEMA; timestamp null where the set has no times.
        metadata: rows in METADATA_SCHEMA, without images.
        items: names in the order of their numbers, None for a set that has no numbers and has not
            been filtered.
        users: as `items`.
    """

    interactions: pl.DataFrame
    metadata: pl.DataFrame
    items: list[str] | None
    users: list[str] | None


def find_atomic(folder: Path, name: str) -> AtomicFiles | None:
    """Return the files of the atomic set `name` in a folder, None where they are not all there."""
    sequences, events, text, items, users = (folder / file for file in atomic_names(name))
    if all(path.is_file() for path in (sequences, text, items, users)):
        return AtomicFiles(sequences, text, items, users)
    return AtomicFiles(events, text) if events.is_file() and text.is_file() else None


def atomic_names(name: str) -> tuple[str, str, str, str, str]:
    """Return the file names of an atomic set: sequences, single events, text, both indexes."""
    return (
        f"{name}.test.inter",
        f"{name}.inter",
        f"{name}.text",
        f"{name}.item2index",
        f"{name}.user2index",
    )


def read_atomic(files: AtomicFiles) -> AtomicTables:
    """Read an atomic set.

    Raises:
        DataError: a file is missing, damaged or something else; a header or a line is not of the
            format; a number is not in its index or stands there twice; a user has two sequences.
    """
    metadata = _read_texts(files.text)
    if files.item_index is None or files.user_index is None:
        return AtomicTables(_read_events(files.inter), metadata, None, None)
    items, users = _read_index(files.item_index), _read_index(files.user_index)
    return AtomicTables(_read_sequences(files.inter, items, users), metadata, items, users)


def _read_sequences(path: Path, items: list[str], users: list[str]) -> pl.DataFrame:
    owners: list[int] = []
    sequences: list[IntArray] = []
    for line, row in _read_table(path, ("user_id", "item_id_list", "item_id")):
        where = f"{path}:{line}"
        owners += _numbers([row["user_id"]], len(users), f"{where}: user_id").tolist()
        tokens = [*row["item_id_list"].split(), row["item_id"]]
        sequences.append(_numbers(tokens, len(items), f"{where}: item"))
    if len(set(owners)) < len(owners):
        raise DataError(f"{path}: a user has two lines; expected one whole sequence per user")
    lengths = [len(sequence) for sequence in sequences]
    columns = {
        "user": _take(users, np.repeat(np.array(owners, np.int64), lengths)),
        "asin": _take(items, np.concatenate([np.empty(0, np.int64), *sequences])),
    }
    return _as_interactions(columns)


def _numbers(tokens: list[str], count: int, where: str) -> IntArray:
    try:
        numbers = np.array(tokens, dtype=np.str_).astype(np.int64)
    except (ValueError, OverflowError):
        raise DataError(f"{where}: {' '.join(tokens)[:80]!r} is not made of integers") from None
    outside = numbers[(numbers < 0) | (numbers >= count)]
    if len(outside):
        raise DataError(
            f"{where}: {outside[0]} is not in the index, which has 0..{count - 1}. "
            f"Next: check that the files belong to one set"
        )
    return numbers


def _take(names: list[str], numbers: IntArray) -> pl.Series:
    return pl.Series(names, dtype=pl.String)[numbers]


def _read_events(path: Path) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {"user": [], "asin": [], "rating": [], "timestamp": []}
    for line, row in _read_table(path, ("user_id", "item_id")):
        columns["user"].append(row["user_id"])
        columns["asin"].append(row["item_id"])
        columns["rating"].append(_float(row.get("rating"), f"{path}:{line}: rating"))
        seconds = _float(row.get("timestamp"), f"{path}:{line}: timestamp")
        if seconds is not None and not 0 <= seconds <= LATEST:
            raise DataError(
                f"{path}:{line}: timestamp {row['timestamp']} is not in 0..{LATEST} (Unix seconds)"
            )
        columns["timestamp"].append(None if seconds is None else int(seconds))
    return _as_interactions(columns)


def _float(token: str | None, where: str) -> float | None:
    if token is None:  # the set has no such column
        return None
    try:
        value = float(token)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where} {token[:80]!r} is not a finite number")
    return value


def _as_interactions(columns: dict[str, Any]) -> pl.DataFrame:
    """Complete the columns to RAW_INTERACTION_SCHEMA."""
    table = pl.DataFrame(columns).with_row_index("position")
    return table.select(
        (pl.col(name) if name in table.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in RAW_INTERACTION_SCHEMA.items()
    )


def _read_texts(path: Path) -> pl.DataFrame:
    rows: dict[str, tuple[Any, ...]] = {}
    for _, row in _read_table(path, ("item_id", "text")):
        asin = row["item_id"]
        text = row["text"].strip() or asin
        rows[asin] = (asin, _title(text), "", text, [])
    table = pl.DataFrame(list(rows.values()), schema=METADATA_SCHEMA, orient="row")
    return table.sort("asin")


def _title(text: str) -> str:
    """Return the first sentence: the texts are made of title, category and brand."""
    end = text.find(". ", _MIN_TITLE_CHARS)
    return cut(text if end < 0 else text[:end], MAX_TITLE_CHARS)


def _read_index(path: Path) -> list[str]:
    rows = []
    for line, fields in _read_lines(path):
        if len(fields) != 2 or not fields[0] or not re.fullmatch(r"[0-9]{1,9}", fields[1]):
            raise DataError(
                f"{path}:{line}: found {fields!r:.80}, expected a name, a tab and a number"
            )
        rows.append((int(fields[1]), fields[0]))
    rows.sort()
    names = [name for _, name in rows]
    if [number for number, _ in rows] != list(range(len(rows))) or len(set(names)) < len(rows):
        raise DataError(
            f"{path}: expected {len(rows)} names with the numbers 0..{len(rows) - 1}, each name "
            f"and number once"
        )
    return names


def _read_table(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line numbers and rows by column name; the header says `name:type`."""
    lines = _read_lines(path)
    header = [field.partition(":")[0] for field in next(lines)[1]]
    if not set(needed) <= set(header):
        raise DataError(
            f"{path}:1: the header has the columns {', '.join(header)[:200]}; expected "
            f"{', '.join(needed)}"
        )
    for line, fields in lines:
        if len(fields) != len(header):
            raise DataError(f"{path}:{line}: {len(fields)} fields, the header has {len(header)}")
        yield line, dict(zip(header, fields, strict=True))


def _read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    number = 0
    for block in read_blocks(path, "tab-separated lines"):
        for line in split_lines(block):
            number += 1
            if not line.strip():
                continue
            try:
                yield number, line.decode().split("\t")
            except UnicodeDecodeError:
                raise DataError(f"{path}:{number}: not UTF-8 text") from None
