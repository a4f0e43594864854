"""Tables of an atomic set: tab-separated, typed headers; name indexes; what the items are.

The three kinds of files:

    <D>.item2index    name, number from 0; no header
    <D>.text          item_id:token  text:token_seq
    <D>.item          item_id:token  and any columns: title:token_seq, brand:token, price:float ...
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from mmm4rec.errors import DataError
from pipeline.rawfile import read_blocks, split_lines
from pipeline.tables import METADATA_SCHEMA
from pipeline.text import clean_brand, clean_title, cut, item_text

MAX_TITLE_CHARS = 120

_MIN_TITLE_CHARS = 15  # a full stop before is an abbreviation's, as in "No. 5"
_TITLE = re.compile(r"(?:(?:item|product|movie|book|game|app|track|news|video)_)?(?:title|name)")
_BRANDS = ("brand", "brand_name", "store")
_NO_TEXT = re.compile(r"(?:.*_)?(?:id|asin)|.*(?:url|image|picture).*")  # names of columns
_WORD = re.compile(r"[^\W\d_]{2}")


def read_table(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line numbers and rows by column name.

    Args:
        path: a file whose header says `name:type`; plain or gzipped.
        needed: columns that it must have.

    Raises:
        DataError: the file is missing, damaged or something else; its header lacks a needed column
            or has one twice; a line has another number of fields or is not UTF-8.
    """
    header = read_header(path)
    if not set(needed) <= set(header):
        raise DataError(
            f"{path}:1: the header has the columns {_shown(header)}; expected {', '.join(needed)}"
        )
    for line, fields in islice(_read_lines(path), 1, None):
        if len(fields) != len(header):
            raise DataError(f"{path}:{line}: {len(fields)} fields, the header has {len(header)}")
        yield line, dict(zip(header, fields, strict=True))


def read_header(path: Path) -> dict[str, str]:
    """Return the type of each column by its name, as the header says: `name:type`.

    Raises:
        DataError: as `read_table`.
    """
    split = [field.partition(":") for field in next(_read_lines(path))[1]]
    header = {name: kind for name, _, kind in split}
    if len(header) < len(split):
        raise DataError(f"{path}:1: the header names a column twice: {_shown(header)}")
    return header


def read_index(path: Path) -> list[str]:
    """Return names in the order of their numbers, which are 0, 1, 2 ... in any order.

    Raises:
        DataError: a line is not a name, a tab and a number; a name or a number stands there twice,
            or a number is missing.
    """
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


def read_items(path: Path) -> pl.DataFrame:
    """Read what the items are; of several lines about one item the last one holds.

    The texts of a `.text` file stay as they are. Those of an `.item` file are put together from
    its columns of words: the title, the brand, then the others in their order; columns of numbers,
    of identifiers and of addresses are no text.

    Returns:
        Rows in METADATA_SCHEMA, sorted by asin, one per item; text never empty.

    Raises:
        DataError: as `read_table`; or no column has texts.
    """
    described = _read_texts(path) if path.suffix == ".text" else _read_columns(path)
    rows = {row[0]: row for row in described}
    table = pl.DataFrame(list(rows.values()), schema=METADATA_SCHEMA, orient="row")
    return table.sort("asin")


def _read_texts(path: Path) -> Iterator[tuple[Any, ...]]:
    for _, row in read_table(path, ("item_id", "text")):
        asin = row["item_id"]
        text = row["text"].strip() or asin
        yield asin, _first_sentence(text), "", text, []


def _first_sentence(text: str) -> str:
    """Return the title: the texts are made of title, category and brand."""
    end = text.find(". ", _MIN_TITLE_CHARS)
    return cut(text if end < 0 else text[:end], MAX_TITLE_CHARS)


def _read_columns(path: Path) -> Iterator[tuple[Any, ...]]:
    textual = _textual_columns(path)
    title = next((name for name in textual if _TITLE.fullmatch(name)), "")
    brand = next((name for name in _BRANDS if name in textual), "")
    others = [name for name in textual if name not in (title, brand)]
    for _, row in read_table(path, ("item_id",)):
        words = [row[name] for name in others if _WORD.search(row[name])]
        record = {
            "title": row.get(title, ""),
            "brand": row.get(brand, ""),
            "description": ". ".join(words),
        }
        text = item_text(row["item_id"], record, "clean")
        yield row["item_id"], clean_title(record["title"]), clean_brand(record["brand"]), text, []


def _textual_columns(path: Path) -> list[str]:
    header = read_header(path)
    textual = [
        name
        for name, kind in header.items()
        if kind in ("token", "token_seq") and not _NO_TEXT.fullmatch(name)
    ]
    if not textual:
        raise DataError(
            f"{path}:1: no column has texts, found {_shown(header)}; expected columns of the type "
            f"token or token_seq besides item_id, such as title, brand or categories"
        )
    return textual


def _shown(header: Mapping[str, str]) -> str:
    return ", ".join(header)[:200]


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
