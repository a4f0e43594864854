"""The published numbers of expected.yaml, and whether a measurement agrees with them.

The tolerance of a recall or NDCG is what two runs may differ by because of the sample of test users
alone: two standard errors of the difference of two runs, `2 * sqrt(2) * sqrt(m (1 - m) / users)`.
For recall with one target per user that is the binomial standard error; for NDCG, which lies
between 0 and 1, no distribution with the mean m has a greater one. The runs are taken as
independent; those on the same test users differ less, so the tolerance is not too small.
A number that depends on the machine or on one run's luck (epochs, seconds) has none.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from experiments.statistics import Estimate

FILE = Path(__file__).with_name("expected.yaml")
REPRODUCED, NOT_REPRODUCED, CANNOT_BE_TOLD = "reproduced", "not reproduced", "cannot be told"
TOO_WIDE = 2  # times the width of what is tolerated: agreement would say nothing
_METRIC = re.compile(r"(validation )?(recall|ndcg)@\d+")


@dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
        value: as it was published; rates in 0..1, cover and gains in percent.
        tolerance: how far another run may be from it and still agree; None: not known.
        source: who published it where, and what is doubtful about it.
        version: of the publication.
    """

    value: float
    tolerance: float | None
    source: str
    version: str


class _Block(BaseModel):
    """Numbers that stand in the same rows and columns and come from the same source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: dict[str, str] = Field(description="name of the row in each table that shows it")
    columns: list[str]
    source: str = Field(min_length=1)
    version: str = Field(min_length=1)
    tolerance: Literal["sampling", "exact", "none"] | float
    values: dict[str, list[float | None]] = Field(description="by domain, one per column")


def find_published(table: str, domain: str, row: str, column: str) -> Published | None:
    """Return a published number, None where nothing is known.

    Args:
        table: a key of expected.yaml, such as `table5`.
        domain: such as `Scientific`.
        row: of that table.
        column: of that table.
    """
    return published_rows(table, domain).get(row, {}).get(column)


def published_rows(table: str, domain: str) -> dict[str, dict[str, Published]]:
    """Return all published numbers of a table and domain, by row and column."""
    return _read().get((table, domain), {})


def verdict(measured: Estimate, published: Published | None) -> str:
    """Judge whether a measurement agrees with a published number.

    What is tolerated is the range of the published value plus and minus its tolerance, ends
    included. In this order:

    - nothing has been published: the empty string;
    - the number has no tolerance: cannot be told;
    - the measured interval and the range have nothing in common: not reproduced;
    - the interval is more than twice as wide as the range, or only the interval and not the
      measured value itself is within the range: cannot be told;
    - otherwise, the value being within the range: reproduced.

    >>> verdict(Estimate(0.13, 0.12, 0.14, 5), Published(0.135, 0.01, "a table", "v4"))
    'reproduced'
    """
    if published is None:
        return ""
    if published.tolerance is None:
        return CANNOT_BE_TOLD
    low, high = published.value - published.tolerance, published.value + published.tolerance
    if measured.high < low or measured.low > high:
        return NOT_REPRODUCED
    if measured.high - measured.low > TOO_WIDE * (high - low) or not low <= measured.value <= high:
        return CANNOT_BE_TOLD
    return REPRODUCED


@lru_cache(maxsize=1)
def _read() -> dict[tuple[str, str], dict[str, dict[str, Published]]]:
    with FILE.open(encoding="utf-8") as file:
        loaded = yaml.safe_load(file)
    blocks = [_Block.model_validate(block) for block in loaded["published"]]
    users = _test_users(blocks)
    found: dict[tuple[str, str], dict[str, dict[str, Published]]] = {}
    for block in blocks:
        for domain, numbers in block.values.items():
            for table, row in block.rows.items():
                cells = found.setdefault((table, domain), {}).setdefault(row, {})
                for column, number in zip(block.columns, numbers, strict=True):
                    if number is not None:
                        assert column not in cells, f"{table}, {domain}, {row}, {column}: twice"
                        cells[column] = _published(block, column, number, users.get(domain))
    return found


def _test_users(blocks: list[_Block]) -> dict[str, int]:
    """Every user of a domain is tested: the 5-core leaves none with fewer than five items."""
    counts = next(block for block in blocks if block.rows.get("datasets") == "counts")
    at = counts.columns.index("users")
    return {domain: int(numbers[at] or 0) for domain, numbers in counts.values.items()}


def _published(block: _Block, column: str, value: float, users: int | None) -> Published:
    return Published(value, _tolerance(block, column, value, users), block.source, block.version)


def _tolerance(block: _Block, column: str, value: float, users: int | None) -> float | None:
    if isinstance(block.tolerance, float):
        return block.tolerance
    if block.tolerance == "exact":
        return 0.0
    if block.tolerance == "none" or not _METRIC.fullmatch(column):
        return None
    assert users, f"{block.rows}, {column}: the tolerance needs the domain's test users"
    return 2 * math.sqrt(2 * value * (1 - value) / users)
