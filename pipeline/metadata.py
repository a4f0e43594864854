"""Item metadata, one JSON object per line, to a table of the items wanted."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.domains import Release
from pipeline.jsonlines import (
    NAME,
    describe_problem,
    parse_name,
    parse_object,
    parse_sample,
    read_parts,
)
from pipeline.rawfile import Quarantine, RawTable, read_blocks, split_lines, work_ahead
from pipeline.releases import METADATA, MetadataFields, check_records
from pipeline.tables import METADATA_SCHEMA
from pipeline.text import Template, describe_item, encodable

MAX_URLS = 64  # of one item
MAX_URL_CHARS = 2048


@dataclass(frozen=True)
class MetadataTable(RawTable):
    """What was read from a metadata file.

    Attributes:
        asins: names of all items in the file, sorted, also of those that were not kept.
    """

    asins: pl.Series


def read_metadata(
    path: Path,
    *,
    release: Release = "2018",
    keep: Iterable[str] | None = None,
    template: Template = "clean",
    max_bad_lines: int = 0,
) -> MetadataTable:
    """Read item metadata, one JSON object per line; plain or gzipped.

    Every line is checked, but only kept items are parsed in full and held. Of several lines about
    one item the last one holds, as in the released code.

    Args:
        path: the file.
        release: of which release.
        keep: names of the items wanted; None for all.
        template: how `text` is put together (see `pipeline.text.item_text`).
        max_bad_lines: malformed lines that are set aside before it is an error.

    Returns:
        Rows in METADATA_SCHEMA, sorted by asin, one per item: title and brand cleaned, possibly
        empty; text never empty; image_urls all there are, the largest first.

    Raises:
        DataError: the file is missing, truncated or something else, or more than `max_bad_lines`
            lines are not a JSON object with the item's name.
    """
    fields = METADATA[release]
    quarantine = Quarantine(path, f"a JSON object with {fields.asin}", max_bad_lines)
    reader = _Reader(fields, keep, template, quarantine)
    for part, asins in work_ahead(_divide(path, fields, release, is_all=keep is None)):
        reader.read_part(part, asins)
    rows = pl.DataFrame(list(reader.rows.values()), schema=METADATA_SCHEMA, orient="row")
    asins = pl.concat(reader.asins).unique().sort()
    return MetadataTable(rows.sort("asin"), reader.lines, quarantine.table(), asins)


def _divide(
    path: Path, fields: MetadataFields, release: Release, *, is_all: bool
) -> Generator[tuple[bytes, pl.Series | None]]:
    """Divide a file into parts with the name in each line, or None where that needs care."""
    is_name = pl.col(fields.asin).str.contains(f"^(?:{NAME})$")
    is_head = True
    for block in read_blocks(path, "JSON lines"):
        if is_head:
            check_records(path, parse_sample(block), "metadata", release)
            is_head = False
        if is_all:
            yield block, None
            continue
        for part, table in read_parts(block, {fields.asin: pl.String}, is_name):
            yield part, None if table is None else table[fields.asin].alias("asin")


class _Reader:
    def __init__(
        self,
        fields: MetadataFields,
        keep: Iterable[str] | None,
        template: Template,
        quarantine: Quarantine,
    ) -> None:
        self.fields = fields
        self.wanted = None if keep is None else frozenset(keep)
        self.template = template
        self.quarantine = quarantine
        self.rows: dict[str, tuple[Any, ...]] = {}
        self.asins: list[pl.Series] = []
        self.lines = 0

    def read_part(self, part: bytes, asins: pl.Series | None) -> None:
        """Read whole lines; `asins`: the name in each, None where that needs care."""
        if asins is None:
            lines = split_lines(part)
            asins = self._read_lines(enumerate(lines, self.lines + 1))
            self.lines += len(lines)
        else:
            self._read_wanted(part, asins)
            self.lines += len(asins)
        self.asins.append(asins)

    def _read_wanted(self, part: bytes, asins: pl.Series) -> None:
        assert self.wanted is not None
        places = [place for place, asin in enumerate(asins.to_list()) if asin in self.wanted]
        if places:
            lines = split_lines(part)
            self._read_lines((self.lines + 1 + place, lines[place]) for place in places)

    def _read_lines(self, numbered: Iterable[tuple[int, bytes]]) -> pl.Series:
        """Read lines with care; return the names in those that are well-formed."""
        asins = []
        for number, line in numbered:
            if not line.strip():
                continue
            try:
                record = parse_object(line)
                asin = parse_name(record, self.fields.asin)
                if self.wanted is None or asin in self.wanted:
                    self.rows[asin] = self._row(asin, record)
            except (ValueError, RecursionError) as error:
                self.quarantine.add(number, describe_problem(error), line)
            else:
                asins.append(asin)
        return pl.Series("asin", asins, dtype=pl.String)

    def _row(self, asin: str, record: dict[str, Any]) -> tuple[Any, ...]:
        texts = {name: record.get(key) for name, key in self.fields.text.items()}
        described = describe_item(asin, texts, self.template)
        return asin, *described, _image_urls(record, self.fields)


def _image_urls(record: Mapping[str, Any], fields: MetadataFields) -> list[str]:
    pictures = _pictures(record.get(fields.pictures), fields.sizes)
    found = [record.get(key) for key in fields.url_lists]
    found += [[picture.get(size) for picture in pictures] for size in fields.sizes]
    urls: list[str] = []
    for value in found:
        values = value if isinstance(value, list) else [value]
        urls += [encodable(url.strip()) for url in values if isinstance(url, str)]
    return [url for url in dict.fromkeys(urls) if 0 < len(url) <= MAX_URL_CHARS][:MAX_URLS]


def _pictures(value: Any, sizes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return images as objects, also where each of their fields is one list; the main one first."""
    if isinstance(value, dict):
        columns = {k: value[k] for k in (*sizes, "variant") if isinstance(value.get(k), list)}
        rows = zip_longest(*columns.values())
        value = [dict(zip(columns, row, strict=True)) for row in rows]
    objects = value if isinstance(value, list) else []
    pictures = [picture for picture in objects if isinstance(picture, dict)]
    return sorted(pictures, key=lambda picture: picture.get("variant") != "MAIN")
