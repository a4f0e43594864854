"""What is left out, and why: pure functions from interactions to interactions.

All keep the order of the rows. Tables have the columns of `schema.RAW_INTERACTION_SCHEMA`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl


def drop_exact_duplicates(interactions: pl.DataFrame) -> pl.DataFrame:
    """Keep the first of rows that are equal in user, item, rating and time.

    Repeat purchases at another time stay. Not for a set without times, where every repeat
    purchase would look like a duplicate.
    """
    columns = ["user", "asin", "rating", "timestamp"]
    return interactions.unique(subset=columns, keep="first", maintain_order=True)


def keep_items(interactions: pl.DataFrame, asins: Iterable[str]) -> pl.DataFrame:
    """Keep the interactions with the named items."""
    names = asins if isinstance(asins, pl.Series) else pl.Series("asin", list(asins), pl.String)
    return interactions.join(
        names.rename("asin").to_frame(), on="asin", how="semi", maintain_order="left"
    )


def k_core(interactions: pl.DataFrame, k: int) -> pl.DataFrame:
    """Keep the largest set of interactions in which every user and item has at least `k`.

    Users and items with fewer are removed at once, again and again until none is left;
    the result does not depend on the order of removal. It may be empty.

    Args:
        interactions: any rows; several between one user and one item all count.
        k: at least 1.

    >>> table = pl.DataFrame({"user": ["u", "u", "v"], "asin": ["A", "A", "A"]})
    >>> k_core(table, 2).height
    2
    """
    users, items = _codes(interactions["user"]), _codes(interactions["asin"])
    rows = np.arange(len(users))
    while len(rows):
        keep = (np.bincount(users)[users] >= k) & (np.bincount(items)[items] >= k)
        if keep.all():
            break
        users, items, rows = users[keep], items[keep], rows[keep]
    return interactions[rows]


def _codes(names: pl.Series) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Number the distinct names in order of appearance."""
    codes: np.ndarray[Any, np.dtype[np.int32]] = (
        names.to_arrow().dictionary_encode().indices.to_numpy()
    )
    return codes
