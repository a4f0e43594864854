"""Interactions from reviews, one JSON object per line."""

from __future__ import annotations

from dataclasses import dataclass
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
from pipeline.rawfile import Content, Quarantine, split_lines
from pipeline.releases import INTERACTIONS, InteractionFields, check_records
from pipeline.tables import RAW_INTERACTION_SCHEMA
from pipeline.text import encodable

_MAX_RATING = 3.4e38  # what 32 bits hold


@dataclass(frozen=True)
class Reviews:
    """Parser of the reviews of a release."""

    release: Release
    content: Content = "JSON lines"

    @property
    def fields(self) -> InteractionFields:
        """Keys and unit of time."""
        return INTERACTIONS[self.release]

    @property
    def expected(self) -> str:
        """What a line should be, for messages."""
        fields = self.fields
        names = f"{fields.user}, {fields.asin}, {fields.rating} and {fields.timestamp}"
        return f"a JSON object with {names}"

    def check(self, path: Path, block: bytes) -> None:
        """Refuse the file that begins with `block` if it is plainly another.

        Raises:
            DataError: as `check_records`.
        """
        check_records(path, parse_sample(block), "reviews", self.release)

    def parse(self, block: bytes, before: int, quarantine: Quarantine) -> tuple[pl.DataFrame, int]:
        """Parse whole lines.

        Args:
            block: the lines.
            before: lines of the file before these.
            quarantine: where malformed lines go.

        Returns:
            The rows in RAW_INTERACTION_SCHEMA and the number of lines.

        Raises:
            DataError: there are more malformed lines than are allowed.
        """
        tables, lines = [], 0
        for part, table in read_parts(block, self._types(), self._is_good()):
            if table is None:
                part_lines = split_lines(part)
                tables.append(self._parse_with_care(part_lines, before + lines, quarantine))
                lines += len(part_lines)
            else:
                tables.append(self._finished(table, before + lines))
                lines += len(table)
        return pl.concat(tables), lines

    def _types(self) -> dict[str, type[pl.DataType]]:
        fields = self.fields
        return {
            fields.user: pl.String,
            fields.asin: pl.String,
            fields.rating: pl.Float64,
            fields.timestamp: pl.Int64,
        }

    def _is_good(self) -> pl.Expr:
        fields = self.fields
        return pl.all_horizontal(
            pl.col(fields.user) != "",
            pl.col(fields.asin).str.contains(f"^(?:{NAME})$"),
            pl.col(fields.rating).is_between(-_MAX_RATING, _MAX_RATING),
            pl.col(fields.timestamp).is_between(0, fields.latest),
        )

    def _finished(self, table: pl.DataFrame, before: int) -> pl.DataFrame:
        fields = self.fields
        return table.select(
            pl.col(fields.user).alias("user"),
            pl.col(fields.asin).alias("asin"),
            pl.col(fields.rating).cast(pl.Float32).alias("rating"),
            (pl.col(fields.timestamp) // fields.per_second).alias("timestamp"),
            pl.int_range(before, before + pl.len(), dtype=pl.UInt32).alias("position"),
        )

    def _parse_with_care(
        self, lines: list[bytes], before: int, quarantine: Quarantine
    ) -> pl.DataFrame:
        rows = []
        for position, line in enumerate(lines, before):
            if not line.strip():
                continue
            try:
                rows.append((*self._row(parse_object(line)), position))
            except (ValueError, RecursionError) as error:
                quarantine.add(position + 1, describe_problem(error), line)
        return pl.DataFrame(rows, schema=RAW_INTERACTION_SCHEMA, orient="row")

    def _row(self, record: dict[str, Any]) -> tuple[str, str, float, int]:
        fields = self.fields
        user: Any = record.get(fields.user)
        rating: Any = record.get(fields.rating)
        timestamp: Any = record.get(fields.timestamp)
        if not isinstance(user, str) or not user or encodable(user) != user:
            raise ValueError(f"{fields.user} {user!r:.80} is not a name")
        asin = parse_name(record, fields.asin)
        is_number = isinstance(rating, int | float) and not isinstance(rating, bool)
        if not is_number or not -_MAX_RATING <= rating <= _MAX_RATING:
            raise ValueError(f"{fields.rating} {rating!r:.80} is not a finite number")
        if type(timestamp) is not int:
            raise ValueError(fields.describe_time(None, timestamp))
        if not 0 <= timestamp <= fields.latest:
            raise ValueError(fields.describe_time(timestamp, timestamp))
        return user, asin, float(rating), timestamp // fields.per_second
