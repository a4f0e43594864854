"""What is left out, and why: pure functions from interactions to interactions.

All keep the order of the rows. Tables have the columns of `schema.RAW_INTERACTION_SCHEMA`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import polars as pl

Duplicates = Literal["exact", "keep", "pair"]


def drop_duplicates(interactions: pl.DataFrame, policy: Duplicates) -> pl.DataFrame:
    """Drop repeated events by one of the policies; all rows of a user must be there.

    Args:
        interactions: rows in the order of the file, user and asin as UInt32 codes.
        policy: `exact`: the first of rows that are equal in user, item, rating and time stays, and
            repeat purchases at another time; not for a set without times, where every repeat
            purchase would look like a duplicate. `pair`: a user's first event with an item, in
            the total order. `keep`: nothing is dropped.

    >>> codes = {"user": [0, 0], "asin": [7, 7], "position": [0, 1]}
    >>> rows = pl.DataFrame(codes, dict.fromkeys(codes, pl.UInt32))
    >>> rows = rows.with_columns(rating=pl.Series([5, 5]), timestamp=pl.Series([2, 1]))
    >>> [drop_duplicates(rows, policy)["timestamp"].to_list() for policy in ("exact", "pair")]
    [[2, 1], [1]]
    """
    if policy == "keep":
        return interactions
    pair = pl.col("user").cast(pl.UInt64) * 2**32 + pl.col("asin")
    is_repeated = interactions.select(pair).to_series().is_duplicated()
    repeated = interactions.filter(is_repeated)  # few: the rest need not be compared
    if policy == "exact":
        columns = ["user", "asin", "rating", "timestamp"]
        first = repeated.unique(subset=columns, keep="first", maintain_order=True)
    else:
        ordered = repeated.sort("timestamp", "position", nulls_last=True)
        first = ordered.unique(subset=["user", "asin"], keep="first", maintain_order=True)
    return pl.concat([interactions.filter(~is_repeated), first]).sort("position")


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
    users, items = encode(interactions["user"])[0], encode(interactions["asin"])[0]
    rows = np.arange(len(users))
    while len(rows):
        keep = (np.bincount(users)[users] >= k) & (np.bincount(items)[items] >= k)
        if keep.all():
            break
        users, items, rows = users[keep], items[keep], rows[keep]
    return interactions[rows]


def encode(names: pl.Series) -> tuple[np.ndarray[Any, np.dtype[np.uint32]], pl.Series]:
    """Number the distinct values in order of appearance.

    Returns:
        Code of each value, and the value of each code.
    """
    encoded = names.to_arrow().dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.uint32)
    return codes, pl.Series(names.name, encoded.dictionary)
