"""Readers of Amazon's raw files: ratings, reviews and item metadata to tables.

Literal parsing only: nothing that was downloaded is ever evaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.rawfile import LATEST, Content, Quarantine, RawTable, read_blocks, split_lines
from pipeline.tables import METADATA_SCHEMA, RAW_INTERACTION_SCHEMA
from pipeline.text import Template, clean_brand, clean_title, encodable, item_text

MAX_URLS = 64  # of one item
MAX_URL_CHARS = 2048
URL_FIELDS = ("imageURLHighRes", "imageURL", "image")  # `image` in older files

_RATING = "item,user,rating,Unix seconds"
_REVIEW = "a JSON object with reviewerID, asin, overall and unixReviewTime"
_METADATA = "a JSON object with an asin"
_NAME = re.compile(r"[0-9A-Za-z][\w.-]{0,63}", re.ASCII)  # also safe as a file name
_ASIN = re.compile(rb'"asin"\s*:\s*"([0-9A-Za-z][\w.-]{0,63})"')
_FIELDS = ["asin", "user", "rating", "timestamp", "extra"]
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # stands where a line was not UTF-8

_ParseBlock = Callable[[bytes, int, Quarantine], tuple[pl.DataFrame, int]]


@dataclass(frozen=True)
class MetadataTable(RawTable):
    """What was read from a metadata file.

    Attributes:
        asins: names of all items in the file, sorted, also of those that were not kept.
    """

    asins: pl.Series


def read_interactions(path: Path, max_bad_lines: int = 0) -> RawTable:
    """Read interactions, from reviews where the file's name says JSON, else from ratings.

    Raises:
        DataError: as `read_ratings` and `read_reviews`.
    """
    is_json = ".json" in path.suffixes
    return (read_reviews if is_json else read_ratings)(path, max_bad_lines)


def read_ratings(path: Path, max_bad_lines: int = 0) -> RawTable:
    """Read a "ratings only" file: item,user,rating,Unix seconds; no header; plain or gzipped.

    Args:
        path: the file.
        max_bad_lines: malformed lines that are set aside before it is an error.

    Returns:
        Rows in RAW_INTERACTION_SCHEMA. Blank lines are no rows, but count in `position`.

    Raises:
        DataError: the file is missing, truncated or something else, or more than `max_bad_lines`
            lines have not four fields, an empty name, a rating that is not a finite number, or a
            timestamp that is not an integer in 0..LATEST.
    """
    return _read_interactions(path, "CSV", Quarantine(path, _RATING, max_bad_lines), _parse_ratings)


def read_reviews(path: Path, max_bad_lines: int = 0) -> RawTable:
    """Read interactions from a file of reviews, one JSON object per line; plain or gzipped.

    Args, returns and errors are those of `read_ratings`.
    """
    quarantine = Quarantine(path, _REVIEW, max_bad_lines)
    return _read_interactions(path, "JSON lines", quarantine, _parse_reviews)


def read_metadata(
    path: Path,
    *,
    keep: Iterable[str] | None = None,
    template: Template = "clean",
    max_bad_lines: int = 0,
) -> MetadataTable:
    """Read item metadata, one JSON object per line; plain or gzipped.

    Only kept items are parsed in full and held; of other lines the frame and the name are read.
    Of several lines about one item the last one holds, as in the released code.

    Args:
        path: the file.
        keep: names of the items wanted; None for all.
        template: how `text` is put together (see `pipeline.text.item_text`).
        max_bad_lines: malformed lines that are set aside before it is an error.

    Returns:
        Rows in METADATA_SCHEMA, sorted by asin, one per item: title and brand cleaned, possibly
        empty; text never empty; image_urls all there are, high resolution first.

    Raises:
        DataError: the file is missing, truncated or something else, or more than `max_bad_lines`
            lines are not a JSON object with an asin.
    """
    reader = _MetadataReader(keep, template, Quarantine(path, _METADATA, max_bad_lines))
    lines = 0
    for block in read_blocks(path, "JSON lines"):
        for line in split_lines(block):
            lines += 1
            reader.read_line(lines, line)
    rows = pl.DataFrame(list(reader.rows.values()), schema=METADATA_SCHEMA, orient="row")
    asins = pl.Series("asin", sorted(reader.asins), dtype=pl.String)
    return MetadataTable(rows.sort("asin"), lines, reader.quarantine.table(), asins)


class _MetadataReader:
    def __init__(
        self, keep: Iterable[str] | None, template: Template, quarantine: Quarantine
    ) -> None:
        self.wanted = None if keep is None else frozenset(keep)
        self.template = template
        self.quarantine = quarantine
        self.rows: dict[str, tuple[Any, ...]] = {}
        self.asins: set[str] = set()

    def read_line(self, number: int, line: bytes) -> None:
        if not line.strip():
            return
        asin = self._unwanted(line)
        if asin is None:
            try:
                record = _parse_object(line)
                asin = _name(record, "asin")
                if self.wanted is None or asin in self.wanted:
                    self.rows[asin] = _item_row(asin, record, self.template)
            except (ValueError, RecursionError) as error:
                self.quarantine.add(number, _problem(error), line)
                return
        self.asins.add(asin)

    def _unwanted(self, line: bytes) -> str | None:
        """Return the name in a line that is whole and not of a wanted item, without parsing it."""
        whole = line.startswith(b"{") and line.rstrip().endswith(b"}")
        if self.wanted is None or not whole or line.count(b'"asin"') != 1:
            return None
        found = _ASIN.search(line)
        name = found[1].decode() if found else None
        return None if name in self.wanted else name


def _item_row(asin: str, record: dict[str, Any], template: Template) -> tuple[Any, ...]:
    return (
        asin,
        clean_title(record.get("title")),
        clean_brand(record.get("brand")),
        item_text(asin, record, template),
        _image_urls(record),
    )


def _image_urls(record: dict[str, Any]) -> list[str]:
    urls: list[str] = []
    for field in URL_FIELDS:
        value = record.get(field)
        values = value if isinstance(value, list) else [value]
        urls += [encodable(url.strip()) for url in values if isinstance(url, str)]
    return [url for url in dict.fromkeys(urls) if 0 < len(url) <= MAX_URL_CHARS][:MAX_URLS]


def _read_interactions(
    path: Path, content: Content, quarantine: Quarantine, parse: _ParseBlock
) -> RawTable:
    tables = [pl.DataFrame(schema=RAW_INTERACTION_SCHEMA)]
    lines = 0
    for block in read_blocks(path, content):
        table, count = parse(block, lines, quarantine)
        tables.append(table)
        lines += count
    return RawTable(pl.concat(tables), lines, quarantine.table())


def _parse_ratings(block: bytes, before: int, quarantine: Quarantine) -> tuple[pl.DataFrame, int]:
    line = pl.col("line").str.strip_suffix("\r")
    lines = pl.read_lines(_as_utf8(block), row_index_name="position", row_index_offset=before)
    table = (
        lines.filter(pl.col("line").str.strip_chars() != "")
        .with_columns(line.str.split_exact(",", 4).struct.rename_fields(_FIELDS).alias("fields"))
        .unnest("fields")
        .with_columns(
            pl.col("rating").cast(pl.Float32, strict=False),
            pl.col("timestamp").cast(pl.Int64, strict=False),
        )
    )
    good = table.select(_is_good_rating().fill_null(value=False)).to_series()
    for row in table.filter(~good).iter_rows(named=True):
        quarantine.add(row["position"] + 1, _rating_problem(row), row["line"].encode())
    rows = table.filter(good).select(*RAW_INTERACTION_SCHEMA).cast({"position": pl.UInt32})
    return rows, len(lines)


def _is_good_rating() -> pl.Expr:
    names = [
        (pl.col(name) != "") & ~pl.col(name).str.contains(_REPLACEMENT, literal=True)
        for name in ("asin", "user")
    ]
    numbers = [pl.col("rating").is_finite(), pl.col("timestamp").is_between(0, LATEST)]
    return pl.all_horizontal(*names, *numbers, pl.col("extra").is_null())


def _rating_problem(row: dict[str, Any]) -> str:
    """Say what is wrong with a malformed line, given its fields as parsed (None: not a number)."""
    fields = row["line"].rstrip("\r").split(",")
    if len(fields) != 4:
        return f"{len(fields)} fields instead of 4"
    if _REPLACEMENT in row["asin"] + row["user"]:
        return "not UTF-8 text"
    if not row["asin"] or not row["user"]:
        return "the item or the user is empty"
    if row["rating"] is None or not math.isfinite(row["rating"]):
        return f"rating {fields[2]!r} is not a finite number"
    return _timestamp_problem(row["timestamp"], fields[3])


def _timestamp_problem(timestamp: int | None, found: Any) -> str:
    if timestamp is None:
        return f"timestamp {found!r} is not an integer"
    return f"timestamp {timestamp} is not in 0..{LATEST} (Unix seconds until 2100)"


def _as_utf8(block: bytes) -> bytes:
    try:
        block.decode()
    except UnicodeDecodeError:
        return block.decode(errors="replace").encode()
    return block


def _parse_reviews(block: bytes, before: int, quarantine: Quarantine) -> tuple[pl.DataFrame, int]:
    lines = split_lines(block)
    rows = []
    for position, line in enumerate(lines, before):
        if not line.strip():
            continue
        try:
            rows.append((*_review_fields(_parse_object(line)), position))
        except (ValueError, RecursionError) as error:
            quarantine.add(position + 1, _problem(error), line)
    return pl.DataFrame(rows, schema=RAW_INTERACTION_SCHEMA, orient="row"), len(lines)


def _review_fields(record: dict[str, Any]) -> tuple[str, str, float, int]:
    user, rating, timestamp = (
        record.get(name) for name in ("reviewerID", "overall", "unixReviewTime")
    )
    if not isinstance(user, str) or not user or encodable(user) != user:
        raise ValueError(f"reviewerID {user!r:.80} is not a name")
    if not isinstance(rating, int | float) or not math.isfinite(rating):
        raise ValueError(f"overall {rating!r:.80} is not a finite number")
    if type(timestamp) is not int:
        raise ValueError(_timestamp_problem(None, timestamp))
    if not 0 <= timestamp <= LATEST:
        raise ValueError(_timestamp_problem(timestamp, timestamp))
    return user, _name(record, "asin"), float(rating), timestamp


def _parse_object(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"JSON, but a {type(record).__name__}")
    return record


def _name(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{key} {value!r:.80} is not 1 to 64 letters, digits, or _ . -")
    return value


def _problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
