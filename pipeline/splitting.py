"""From named rows to sequences with ids: the total order, and who is who. Pure functions.

Nothing here depends on a hash, a thread or the order of the rows given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from mmm4rec.errors import DataError
from pipeline.tables import INTERACTION_SCHEMA, ITEM_SCHEMA, USER_SCHEMA


@dataclass(frozen=True)
class NumberedTables:
    """Tables with ids instead of names.

    Attributes:
        interactions: INTERACTION_SCHEMA, by user id and then the total order; timestamp 0
            throughout where the set has no times.
        users: USER_SCHEMA, ids from 0.
        items: ITEM_SCHEMA without `image_status`, ids from 1.
    """

    interactions: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame


def ambiguous_order_share(interactions: pl.DataFrame) -> float:
    """Return the share of users, 0..1, whose last item depends on how ties are broken.

    These are the users with several different items at their last timestamp. A set without
    times has no ties: its order is the file's.

    >>> ambiguous_order_share(
    ...     pl.DataFrame({"user": ["u", "u", "v"], "asin": ["A", "B", "A"], "timestamp": [1, 1, 1]})
    ... )
    0.5
    """
    last = pl.col("timestamp") == pl.col("timestamp").max()
    items = interactions.group_by("user").agg(pl.col("asin").filter(last).n_unique())["asin"]
    return float((items > 1).sum() / max(1, len(items)))


def assign_ids(
    interactions: pl.DataFrame,
    metadata: pl.DataFrame,
    *,
    items: Sequence[str] | None = None,
    users: Sequence[str] | None = None,
) -> NumberedTables:
    """Number items and users, and put the interactions in the total order.

    The total order is timestamp, then position in the source file. Amazon's times are whole days:
    for many users the position decides which item is the last.

    Args:
        interactions: rows in RAW_INTERACTION_SCHEMA that survived the filters.
        metadata: rows in METADATA_SCHEMA, one per item; those of other items are left out, and an
            item without a row is described by its asin.
        items: names in the order of their ids, for a set that brings its own numbers; None: the
            items of the interactions sorted by name.
        users: as `items`.

    Raises:
        DataError: an interaction is with an item or a user that the given order does not have.
    """
    item_ids = _number(interactions["asin"], items, "item", first=1)
    user_ids = _number(interactions["user"], users, "user", first=0)
    numbered = (
        interactions.join(item_ids, on="asin", maintain_order="left")
        .join(user_ids, on="user", maintain_order="left")
        .with_columns(pl.col("timestamp").fill_null(0))
        .sort("user_id", "timestamp", "position")
        .select(*INTERACTION_SCHEMA)
    )
    return NumberedTables(
        numbered, user_ids.select(*USER_SCHEMA), _describe_items(item_ids, metadata)
    )


def _number(names: pl.Series, order: Sequence[str] | None, kind: str, first: int) -> pl.DataFrame:
    present = names.unique().sort()
    known = present if order is None else pl.Series(names.name, order, dtype=pl.String)
    unknown = set(present) - set(known)
    if unknown:
        raise DataError(
            f"{len(unknown)} {kind}s of the interactions have no number in the {kind} index, "
            f"{min(unknown)!r} among them. Next: check that the files belong to one set"
        )
    return known.to_frame().with_row_index(f"{kind}_id", offset=first)


def _describe_items(item_ids: pl.DataFrame, metadata: pl.DataFrame) -> pl.DataFrame:
    columns = [name for name in ITEM_SCHEMA if name != "image_status"]
    return (
        item_ids.join(metadata, on="asin", how="left", validate="m:1", maintain_order="left")
        .with_columns(
            pl.col("title", "brand").fill_null(""),
            pl.col("text").fill_null(pl.col("asin")),
            pl.col("image_urls").fill_null([]),
        )
        .select(columns)
    )
