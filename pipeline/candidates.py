"""From interactions of any number to those that can survive: memory holds only the latter.

Blocks are spilled to disk in parts by user, so that a user's events lie together: duplicates and
users are then counted part by part, exactly. What stays in memory are the events of users who have
at least `k` of them, as numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.filtering import Duplicates, drop_duplicates, encode
from pipeline.schema import Count
from pipeline.tables import RAW_INTERACTION_SCHEMA

ROWS_IN_MEMORY = 1 << 19  # of the blocks, before they are spilled
NUM_PARTS = 64  # files that the users are spread over
THREADS = 2  # parts in memory at once

_SPILLED = {**RAW_INTERACTION_SCHEMA, "asin": pl.UInt32}
_CODED: dict[str, Any] = {
    "user": pl.UInt32,
    "asin": pl.UInt32,
    "timestamp": pl.Int64,
    "position": pl.UInt32,
}


@dataclass(frozen=True)
class Candidates:
    """The events of all users who have at least `k`, and what was counted on the way.

    Attributes:
        rows: user and asin (UInt32, places in `users` and `items`), timestamp, position; in the
            order of the file.
        users: names of the users in `rows`.
        items: names of all items of the file.
        read: all rows of the file.
        distinct: rows without duplicates.
        pairs: files with the (user, item) codes of all distinct rows, users part by part.
    """

    rows: pl.DataFrame
    users: pl.Series
    items: pl.Series
    read: Count
    distinct: Count
    pairs: list[Path]

    def count_items(self, step: str, names: pl.Series) -> Count:
        """Count the distinct rows whose item is among `names`, one part at a time."""
        is_kept_I = self.items.is_in(names.implode()).to_numpy()
        has_rows_I = np.zeros(len(is_kept_I), np.bool_)
        users = interactions = 0
        for path in self.pairs:
            users_N, items_N = np.load(path)
            kept_N = is_kept_I[items_N]
            interactions += int(kept_N.sum())
            users += int(np.count_nonzero(np.bincount(users_N[kept_N])))
            has_rows_I[items_N[kept_N]] = True
        items = int(has_rows_I.sum())
        return Count(step=step, users=users, items=items, interactions=interactions)

    def name(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Put names in place of the codes of user and asin."""
        return rows.with_columns(self.users[rows["user"]], self.items[rows["asin"]])


def collect_candidates(
    blocks: Iterable[pl.DataFrame], folder: Path, *, duplicates: Duplicates, k: int
) -> Candidates:
    """Read all blocks and keep the events of users who have at least `k` after the duplicates.

    Args:
        blocks: rows in RAW_INTERACTION_SCHEMA, in the order of the file.
        folder: an empty folder for what is spilled; its owner removes it.
        duplicates: policy of `drop_duplicates`.
        k: at least 1.
    """
    # A numbering of our own: the default one is shared by the whole process and never shrinks.
    numbering = pl.Categorical(pl.Categories.random())
    items = pl.Series("asin", [], numbering)  # polars keeps the numbering while a series has it
    coded = (block.with_columns(block["asin"].cast(numbering).to_physical()) for block in blocks)
    _spill_all(coded, folder)
    read = partial(_read_part, folder, duplicates, k)
    with ThreadPoolExecutor(THREADS) as executor:
        parts = list(executor.map(read, range(NUM_PARTS)))
    names = numbering.categories.to_series().alias(items.name)
    counted = {"users": sum(part.num_users for part in parts), "items": len(names)}
    return Candidates(
        rows=_join(parts),
        users=pl.concat([part.users for part in parts]),
        items=names,
        read=Count(step="read", interactions=sum(part.num_read for part in parts), **counted),
        distinct=Count(
            step="duplicates", interactions=sum(part.num_distinct for part in parts), **counted
        ),
        pairs=[part.pairs for part in parts],
    )


@dataclass(frozen=True)
class _Part:
    """What one part comes down to: its users are numbered apart from those of other parts."""

    num_read: int
    num_distinct: int
    num_users: int
    users: pl.Series  # those with at least k rows
    rows: pl.DataFrame  # theirs, _CODED
    pairs: Path


def _read_part(folder: Path, duplicates: Duplicates, k: int, number: int) -> _Part:
    files = sorted(folder.glob(f"part-{number:03}-*.arrow"))
    read = pl.concat([pl.DataFrame(schema=_SPILLED), *map(pl.read_ipc, files)])
    for file in files:
        file.unlink()
    codes_N, users_U = encode(read["user"])
    distinct = drop_duplicates(read.with_columns(pl.Series("user", codes_N)), duplicates)
    users_N = distinct["user"].to_numpy()
    pairs = folder / f"pairs-{number:03}.npy"
    np.save(pairs, np.stack([users_N, distinct["asin"].to_numpy()]))
    enough_U = np.bincount(users_N, minlength=len(users_U)) >= k
    number_U = (np.cumsum(enough_U) - 1).astype(np.uint32)
    kept_N = enough_U[users_N]
    rows = distinct.filter(kept_N).with_columns(pl.Series("user", number_U[users_N[kept_N]]))
    return _Part(
        num_read=len(read),
        num_distinct=len(distinct),
        num_users=len(users_U),
        users=_compact(users_U.filter(enough_U)),
        rows=rows.select(*_CODED),
        pairs=pairs,
    )


def _compact(names: pl.Series) -> pl.Series:
    """Copy the names: filtered ones would keep the memory of all that they were taken from."""
    return pl.Series(names.name, names.to_arrow())


def _join(parts: list[_Part]) -> pl.DataFrame:
    """Number the users of all parts together; put the rows into the order of the file."""
    first = np.cumsum([0, *(len(part.users) for part in parts)]).astype(np.uint32)
    moved = [
        part.rows.with_columns(pl.col("user") + start)
        for part, start in zip(parts, first[:-1], strict=True)
    ]
    return pl.concat(moved).sort("position")


def _spill_all(blocks: Iterable[pl.DataFrame], folder: Path) -> None:
    """Write all rows, those of one user into one part, each part in the order of the file."""
    held: list[pl.DataFrame] = []
    num_rows = num_spills = 0
    for block in blocks:
        held.append(block)
        num_rows += len(block)
        if num_rows >= ROWS_IN_MEMORY:
            _spill(held, folder, num_spills)
            held, num_rows, num_spills = [], 0, num_spills + 1
    _spill(held, folder, num_spills)


def _spill(blocks: list[pl.DataFrame], folder: Path, number: int) -> None:
    # Which part a user is in changes nothing in the result: the hash may change from run to run.
    part = (pl.col("user").hash() % NUM_PARTS).cast(pl.UInt8).alias("part")
    rows = pl.concat([pl.DataFrame(schema=_SPILLED), *blocks]).with_columns(part)
    parts = rows.partition_by("part", include_key=False, maintain_order=True, as_dict=True)
    for (key,), table in parts.items():
        table.write_ipc(folder / f"part-{key:03}-{number:06}.arrow")
