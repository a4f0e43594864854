"""Lines of "ratings only" files: item,user,rating,time, or the columns of the release's header."""

from __future__ import annotations

import codecs
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.domains import Release
from pipeline.rawfile import Content, Quarantine, first_lines
from pipeline.releases import INTERACTIONS, InteractionFields, check_rows
from pipeline.tables import RAW_INTERACTION_SCHEMA

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # stands where a line was not UTF-8
_BLANK = " \t\r\x0b\x0c"
_SAMPLE_BYTES = 1 << 14  # of the beginning of a file, from which its kind is told
_TYPES: dict[str, Any] = {"rating": pl.Float32, "timestamp": pl.Int64}


@dataclass(frozen=True)
class Ratings:
    """Parser of the ratings of a release."""

    release: Release
    content: Content = "CSV"

    @property
    def fields(self) -> InteractionFields:
        """Columns and unit of time."""
        return INTERACTIONS[self.release]

    @property
    def expected(self) -> str:
        """What a line should be, for messages."""
        names = ",".join(self.fields.columns[:-1]).replace("asin", "item")
        return f"{names},Unix {self.fields.unit}"

    def check(self, path: Path, block: bytes) -> None:
        """Refuse the file that begins with `block` if it is plainly another.

        Raises:
            DataError: as `check_rows`.
        """
        lines = first_lines(block, _SAMPLE_BYTES)
        check_rows(path, [line.decode("utf-8", "replace") for line in lines], self.release)

    def parse(self, block: bytes, before: int, quarantine: Quarantine) -> tuple[pl.DataFrame, int]:
        """Parse whole lines.

        Args:
            block: the lines; the first block begins with the header if there is one.
            before: lines of the file before these.
            quarantine: where malformed lines go.

        Returns:
            The rows in RAW_INTERACTION_SCHEMA and the number of lines.

        Raises:
            DataError: there are more malformed lines than are allowed.
        """
        header = int(before == 0 and self.fields.header != "")
        if header:
            block = block.partition(b"\n")[2]
        if not block:
            return pl.DataFrame(schema=RAW_INTERACTION_SCHEMA), header
        table = self._parse_at_once(block, before + header)
        if table is not None:
            return table, header + len(table)
        table, lines = self._parse_with_care(block, before + header, quarantine)
        return table, header + lines

    def _parse_at_once(self, block: bytes, before: int) -> pl.DataFrame | None:
        """Parse lines that are all as they should be; None where that is in doubt."""
        if not _is_plain(block):
            return None
        try:
            table = pl.read_csv(
                block,
                has_header=False,
                schema={name: _TYPES.get(name, pl.String) for name in self.fields.columns},
                quote_char=None,
                row_index_name="position",
                row_index_offset=before,
            )
        except pl.exceptions.PolarsError:
            return None
        lines = block.count(b"\n") + (not block.endswith(b"\n"))
        is_good = table.select(self._is_good().all(ignore_nulls=False)).item()
        return self._finished(table) if is_good and len(table) == lines else None

    def _parse_with_care(
        self, block: bytes, before: int, quarantine: Quarantine
    ) -> tuple[pl.DataFrame, int]:
        lines = pl.read_lines(_as_utf8(block), row_index_name="position", row_index_offset=before)
        names = [*self.fields.columns, "extra"]
        fields = pl.col("line").str.split_exact(",", 4).struct.rename_fields(names)
        table = (
            lines.filter(pl.col("line").str.strip_chars(_BLANK) != "")
            .with_columns(fields.alias("fields"))
            .unnest("fields")
            .with_columns(
                *(pl.col(name).cast(dtype, strict=False) for name, dtype in _TYPES.items())
            )
        )
        are_utf8 = [
            ~pl.col(name).str.contains(_REPLACEMENT, literal=True) for name in ("asin", "user")
        ]
        has_four = pl.col("extra").is_null()
        is_good = pl.all_horizontal(self._is_good(), has_four, *are_utf8).fill_null(value=False)
        good = table.select(is_good).to_series()
        for row in table.filter(~good).iter_rows(named=True):
            quarantine.add(row["position"] + 1, self._problem(row), row["line"].encode())
        return self._finished(table.filter(good)), len(lines)

    def _finished(self, rows: pl.DataFrame) -> pl.DataFrame:
        seconds = pl.col("timestamp") // self.fields.per_second
        return (
            rows.with_columns(seconds).select(*RAW_INTERACTION_SCHEMA).cast({"position": pl.UInt32})
        )

    def _is_good(self) -> pl.Expr:
        return pl.all_horizontal(
            pl.col("asin") != "",
            pl.col("user") != "",
            pl.col("rating").is_finite(),
            pl.col("timestamp").is_between(0, self.fields.latest),
        )

    def _problem(self, row: dict[str, Any]) -> str:
        """Say what is wrong with a malformed line, given its fields (None: not a number)."""
        found = row["line"].split(",")
        if len(found) != 4:
            return f"{len(found)} fields instead of 4"
        if _REPLACEMENT in row["asin"] + row["user"]:
            return "not UTF-8 text"
        if not row["asin"] or not row["user"]:
            return "the item or the user is empty"
        if row["rating"] is None or not math.isfinite(row["rating"]):
            return f"rating {found[2]!r:.80} is not a finite number"
        return self.fields.describe_time(row["timestamp"], found[3])


def _is_plain(block: bytes) -> bool:
    """Whether the parser of CSV has nothing to pass over: no space, mark or end inside a line."""
    if block.startswith(codecs.BOM_UTF8) or _REPLACEMENT.encode() in block:
        return False
    has_space = b" " in block or b"\t" in block
    has_return = b"\r" in block and block.count(b"\r") != block.count(b"\r\n")
    return not has_space and not has_return


def _as_utf8(block: bytes) -> bytes:
    try:
        block.decode()
    except UnicodeDecodeError:
        return block.decode(errors="replace").encode()
    return block
