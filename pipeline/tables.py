"""Column types of every table on the way to a prepared folder, and how a table is written.

Apart from `schema`, because only a machine that prepares domains has polars.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from pipeline.schema import atomic_path

INTERACTION_SCHEMA = {"user_id": pl.UInt32, "item_id": pl.UInt32, "timestamp": pl.Int64}
USER_SCHEMA = {"user_id": pl.UInt32, "user": pl.String}
ITEM_SCHEMA: dict[str, Any] = {
    "item_id": pl.UInt32,
    "asin": pl.String,
    "title": pl.String,
    "brand": pl.String,
    "text": pl.String,
    "image_urls": pl.List(pl.String),
    # ok, placeholder, missing (no URL), or the error class of the item's last own URL
    "image_status": pl.String,
}

# What the readers of raw formats hand to the filters: one row per line of the ratings file ...
RAW_INTERACTION_SCHEMA: dict[str, Any] = {
    "user": pl.String,
    "asin": pl.String,
    "rating": pl.Float32,
    "timestamp": pl.Int64,  # Unix seconds; null throughout where a set has no times
    "position": pl.UInt32,  # line in the source file, from 0
}
# ... and one row per item that has metadata, already cleaned.
METADATA_SCHEMA: dict[str, Any] = {
    "asin": pl.String,
    "title": pl.String,
    "brand": pl.String,
    "text": pl.String,
    "image_urls": pl.List(pl.String),
}


RAW_ITEMS = "items_without_images.parquet"  # of the tables stage: ITEM_SCHEMA, no image_status


def write_parquet(table: pl.DataFrame, path: Path) -> None:
    """Write a table atomically, the same bytes for the same rows."""
    with atomic_path(path) as temporary:
        table.write_parquet(temporary, compression="zstd", statistics=False)
