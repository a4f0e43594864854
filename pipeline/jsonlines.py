"""JSON lines that nobody vouches for: each with care, or many at once where that is the same.

Python's parser is the reference. That of polars is many times faster and accepts less, but reads a
few lines differently: it takes the first of two equal keys and makes text of any value. Lines on
which the two could differ are told from their raw text, and left to the reference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import polars as pl

from pipeline.rawfile import first_lines

NAME = r"[0-9A-Za-z][0-9A-Za-z_.-]{0,63}"  # of an item; also safe as a file name

SAMPLE_BYTES = 1 << 18  # of the beginning of a file, from which its kind is told
_SMALL = 1 << 14  # bytes of a part that is not worth dividing further
_MAX_OPENING = 200  # brackets; where there are fewer, nothing is nested too deeply
_OPENING = r"[\[{]"
_ESCAPED_LETTER = r"\\u00[4-7]"  # a key may be written with them


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse a line.

    Raises:
        ValueError: it is not JSON, or not an object.
        RecursionError: it is nested too deeply.
    """
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"JSON, but a {type(record).__name__}")
    return record


def parse_name(record: Mapping[str, Any], key: str) -> str:
    """Return an item's name.

    Raises:
        ValueError: it is not NAME.
    """
    value = record.get(key)
    if not isinstance(value, str) or not re.fullmatch(NAME, value):
        raise ValueError(f"{key} {value!r:.80} is not 1 to 64 letters, digits, or _ . -")
    return value


def parse_sample(block: bytes) -> list[dict[str, Any]]:
    """Parse the lines at the beginning of a file, leaving out malformed ones."""
    records = []
    for line in first_lines(block, SAMPLE_BYTES):
        with suppress(ValueError, RecursionError):
            records.append(parse_object(line))
    return records


def describe_problem(error: Exception) -> str:
    """Say what is wrong with a line, given the error that it raised."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def read_parts(
    block: bytes, fields: Mapping[str, type[pl.DataType]], good: pl.Expr
) -> Iterator[tuple[bytes, pl.DataFrame | None]]:
    """Divide a block into parts that can be read at once and parts that need care.

    Args:
        block: whole lines.
        fields: keys of the objects: pl.String, pl.Int64 or pl.Float64 (which an integer also is).
        good: of the fields, whether a row is one that the caller accepts.

    Yields:
        Whole lines, in order, with one row for each line; or with None where any of them could be
        something else than an object that has every field once, of its type, and is `good`.
    """
    table = _read_at_once(block, fields, good)
    middle = block.find(b"\n", len(block) // 2) + 1
    if table is not None or len(block) <= _SMALL or middle in (0, len(block)):
        yield block, table
    else:
        yield from read_parts(block[:middle], fields, good)
        yield from read_parts(block[middle:], fields, good)


def _read_at_once(
    block: bytes, fields: Mapping[str, type[pl.DataType]], good: pl.Expr
) -> pl.DataFrame | None:
    try:
        lines = pl.read_lines(block)
        if not lines.select(_is_plain(fields).all()).item():
            return None
        table = pl.read_ndjson(block, schema=dict(fields))
    except pl.exceptions.PolarsError:
        return None
    # Half a surrogate pair comes out as a NUL.
    is_whole = ~pl.col(pl.String).str.contains("\0", literal=True)
    checks = pl.all_horizontal(pl.all().is_not_null(), is_whole, good)
    is_good = table.select(checks.all(ignore_nulls=False)).item()
    return table if is_good and len(table) == len(lines) else None


def _is_plain(fields: Mapping[str, type[pl.DataType]]) -> pl.Expr:
    """Whether a line names each field no more than once, and texts are texts."""
    keys = [re.escape(name) for name in fields]
    texts = [re.escape(name) for name, dtype in fields.items() if dtype == pl.String]
    line = pl.col("line").str
    return pl.all_horizontal(
        line.count_matches(f'"(?:{"|".join(keys)})"') == len(keys),
        line.count_matches(f'"(?:{"|".join(texts)})"[ \\t]*:[ \\t]*"') == len(texts),
        line.count_matches(_OPENING) < _MAX_OPENING,
        ~line.contains(_ESCAPED_LETTER),
    )
