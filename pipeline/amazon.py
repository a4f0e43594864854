"""Amazon's interactions, from ratings or reviews of either release, a block at a time.

Literal parsing only: nothing that was downloaded is ever evaluated.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol

import polars as pl

from pipeline.domains import Release
from pipeline.ratings import Ratings
from pipeline.rawfile import Content, Quarantine, RawTable, read_blocks, work_ahead
from pipeline.reviews import Reviews
from pipeline.tables import RAW_INTERACTION_SCHEMA


class _Parser(Protocol):
    @property
    def content(self) -> Content:
        """What the file should hold."""

    @property
    def expected(self) -> str:
        """What a line should be, for messages."""

    def check(self, path: Path, block: bytes) -> None:
        """Refuse the file that begins with `block` if it is plainly another."""

    def parse(self, block: bytes, before: int, quarantine: Quarantine) -> tuple[pl.DataFrame, int]:
        """Return the rows in RAW_INTERACTION_SCHEMA and the number of lines."""


class InteractionScan:
    """Interactions of a file, read anew by every iteration: reviews where its name says JSON.

    Attributes:
        path: the file.
        lines: after an iteration: lines in the file, blank and malformed ones included.
    """

    def __init__(self, path: Path, *, release: Release = "2018", max_bad_lines: int = 0) -> None:
        """Remember what to read.

        Args:
            path: ratings, item,user,rating,time without a header (2018) or with the columns
                user_id,parent_asin,rating,timestamp (2023); or reviews, one JSON object per line.
                Plain or gzipped.
            release: of which release.
            max_bad_lines: malformed lines that are set aside before it is an error.
        """
        is_json = not {".json", ".jsonl"}.isdisjoint(path.suffixes)
        self.path = path
        self.lines = 0
        self._max_bad_lines = max_bad_lines
        self._parser: _Parser = Reviews(release) if is_json else Ratings(release)
        self._quarantine = self._new_quarantine()

    @property
    def bad_lines(self) -> pl.DataFrame:
        """Malformed lines that the iteration has set aside (BAD_LINE_SCHEMA)."""
        return self._quarantine.table()

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Yield rows in RAW_INTERACTION_SCHEMA, in the order of the file, one table per block.

        Blank lines and the header are no rows, but count in `position`. A table may be empty.

        Raises:
            DataError: the file is missing, truncated or something else, or more than
                `max_bad_lines` lines have not the four fields, an empty name, a rating that is not
                a finite number, or a time that is not an integer from 1970 to 2100.
        """
        yield from work_ahead(self._parse_all())

    def _parse_all(self) -> Generator[pl.DataFrame]:
        self.lines, self._quarantine = 0, self._new_quarantine()
        for block in read_blocks(self.path, self._parser.content):
            if self.lines == 0:
                self._parser.check(self.path, block)
            table, lines = self._parser.parse(block, self.lines, self._quarantine)
            self.lines += lines
            yield table

    def _new_quarantine(self) -> Quarantine:
        return Quarantine(self.path, self._parser.expected, self._max_bad_lines)


def read_interactions(path: Path, *, release: Release = "2018", max_bad_lines: int = 0) -> RawTable:
    """Read all interactions of a file; for files that memory holds.

    Args and errors are those of `InteractionScan`.
    """
    scan = InteractionScan(path, release=release, max_bad_lines=max_bad_lines)
    rows = pl.concat([pl.DataFrame(schema=RAW_INTERACTION_SCHEMA), *scan])
    return RawTable(rows, scan.lines, scan.bad_lines)
