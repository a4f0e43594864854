"""What became of every image URL: kept on disk while the fetching runs, summed up per item.

    <folder>/outcomes.parquet        after a run: one row per item and URL that was tried
    <folder>/outcomes/part-*.parquet during a run: what has become known since its beginning

Whatever moment a run is killed at, the next one carries on from what these files say.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import polars as pl

from mmm4rec.errors import DataError
from pipeline.hosts import HOST_UNREACHABLE
from pipeline.image_urls import size_variants
from pipeline.tables import write_parquet

OUTCOMES = "outcomes.parquet"
PARTS = "outcomes"

_Row = tuple[Any, ...]  # of OUTCOME_SCHEMA
Status = Literal["ok", "permanent", "temporary", "skipped"]

OUTCOME_SCHEMA = {
    "item_id": pl.UInt32,  # null: of an item that is not in the present set
    "asin": pl.String,
    "url": pl.String,
    "status": pl.String,  # ok, permanent, temporary; skipped: images are switched off
    "http_code": pl.UInt16,
    "attempts": pl.UInt8,
    "error": pl.String,  # error class; null where ok
    "sha256": pl.String,
    "bytes": pl.UInt32,
    "width": pl.UInt32,  # pixels
    "height": pl.UInt32,
    "final_url": pl.String,
    "seconds": pl.Float32,
    "fetched_at": pl.Int64,  # Unix seconds; null where it was not asked
    "file": pl.String,  # relative to the folder
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one URL; the columns of `OUTCOME_SCHEMA` without the item's, in order."""

    url: str
    status: Status
    http_code: int | None = None
    attempts: int = 0
    error: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    final_url: str | None = None
    seconds: float = 0.0
    fetched_at: int | None = None
    file: str | None = None


_COLUMNS = [field.name for field in fields(Outcome)]
_values = attrgetter(*_COLUMNS)
# Which URLs meet a host before it is left alone depends on the threads' timing: an item says only
# that its host was out of reach, the same in every run.
OUT_OF_REACH = ["connection", "dns", "timeout", "tls"]
PLACEHOLDER = "placeholder"  # image status of an item whose picture many items share
SKIPPED = "disabled"  # error class of a URL that was not asked because images are switched off


class OutcomeLog:
    """The outcomes known so far, on disk as well.

    Attributes:
        known: outcome per URL, the latest where there were several.
    """

    def __init__(self, folder: Path) -> None:
        """Read what earlier runs left.

        Raises:
            DataError: a file is not a table of outcomes.
        """
        self._folder = folder
        self._unwritten: list[Outcome] = []
        parts = sorted((folder / PARTS).glob("part-*.parquet"))
        self._num_parts = 1 + int(parts[-1].stem.removeprefix("part-")) if parts else 0
        self.known: dict[str, Outcome] = {}
        for path in [folder / OUTCOMES, *parts]:
            if path.is_file():
                self.known.update((outcome.url, outcome) for outcome in _read(path))

    @property
    def num_unwritten(self) -> int:
        """Number of outcomes that would be lost if the process died now."""
        return len(self._unwritten)

    def add(self, outcome: Outcome) -> None:
        """Remember an outcome until `flush` writes it, if it is worth it."""
        self.known[outcome.url] = outcome
        if outcome.error != HOST_UNREACHABLE:  # it was not asked, and any later run will ask it
            self._unwritten.append(outcome)

    def flush(self) -> None:
        """Write what was added since the last time as one part."""
        if self._unwritten:
            path = self._folder / PARTS / f"part-{self._num_parts:06}.parquet"
            write_parquet(_table([_row(outcome) for outcome in self._unwritten]), path)
            self._num_parts += 1
            self._unwritten = []

    def finish(self, items: pl.DataFrame, with_variants: bool) -> pl.DataFrame:
        """Write the table of a complete run, which takes the parts' place.

        Outcomes of URLs that no item has any longer stay, with null in place of the item.

        Returns:
            The rows of `items`, as `item_outcomes`.
        """
        table = item_outcomes(items, self.known, with_variants)
        current = set(table["url"])
        others = [_row(o) for url, o in sorted(self.known.items()) if url not in current]
        write_parquet(pl.concat([table, _table(others)]), self._folder / OUTCOMES)
        shutil.rmtree(self._folder / PARTS, ignore_errors=True)
        self._unwritten, self._num_parts = [], 0
        return table


def item_outcomes(
    items: pl.DataFrame, known: dict[str, Outcome], with_variants: bool
) -> pl.DataFrame:
    """Return the outcomes of each item's URLs, in their order, up to the first that is ok.

    Args:
        items: item_id, asin, image_urls.
        known: outcome per URL; a URL of an item that is not in it was not asked: `skipped`.
        with_variants: also what is known of the size variants, after the item's URLs.

    Returns:
        `OUTCOME_SCHEMA`; an item without URLs has no row.
    """
    rows: list[_Row] = []
    for item_id, asin, urls in items.select("item_id", "asin", "image_urls").iter_rows():
        own = len(listed(urls))
        outcomes = (
            known.get(url) or (_skipped(url) if place < own else None)
            for place, url in enumerate(candidates(urls, with_variants))
        )
        tried = until_ok(outcome for outcome in outcomes if outcome is not None)
        rows.extend(_row(outcome, item_id, asin) for outcome in tried)
    return _table(rows)


def listed(urls: list[str] | None) -> list[str]:
    """Return an item's own URLs in their order, each once."""
    return list(dict.fromkeys(url for url in urls or () if url))


def candidates(urls: list[str] | None, with_variants: bool) -> Iterator[str]:
    """Yield the URLs in the order in which an item tries them: its own, then the size variants."""
    own = listed(urls)
    yield from own
    if with_variants:
        yield from size_variants(own)


def until_ok(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Yield outcomes up to the first that is ok, that one included."""
    for outcome in outcomes:
        yield outcome
        if outcome.status == "ok":
            return


def image_status(
    items: pl.DataFrame, outcomes: pl.DataFrame, placeholder_items: int
) -> pl.DataFrame:
    """Sum up the outcomes per item.

    A picture that many items share says "no image available" or shows a logo: it is a placeholder,
    and its items have no image. It was their first picture to be found, so their further URLs have
    not been tried; the outcomes stay `ok`, and another threshold needs no request.

    Args:
        items: item_id, image_urls.
        outcomes: as `fetch_images` returns them.
        placeholder_items: a picture (by its sha256) that at least so many items share is a
            placeholder; 0: none is.

    Returns:
        item_id, image_status (`ok`; `placeholder`; `missing`: no URL; else the error class of the
        last of the item's own URLs, all of `OUT_OF_REACH` as `host_unreachable`) and file (null
        unless ok), in the order of `items`.
    """
    own = items.select("item_id", pl.col("image_urls").alias("url")).explode("url").unique()
    named = outcomes.join(
        own.with_columns(is_own=True), on=["item_id", "url"], how="left", maintain_order="left"
    )
    last = (
        named.filter((pl.col("status") == "ok") | pl.col("is_own"))
        .group_by("item_id", maintain_order=True)
        .last()
        .with_columns(is_placeholder=_is_placeholder(placeholder_items))
    )
    status = (
        pl.when("is_placeholder")
        .then(pl.lit(PLACEHOLDER))
        .when(pl.col("error").is_in(OUT_OF_REACH))
        .then(pl.lit(HOST_UNREACHABLE))
        .otherwise(pl.coalesce("error", "status", pl.lit("missing")))
    )
    joined = items.select("item_id").join(last, on="item_id", how="left", maintain_order="left")
    return joined.select(
        "item_id",
        status.alias("image_status"),
        pl.when(pl.col("is_placeholder").not_()).then("file").alias("file"),
    )


def _is_placeholder(placeholder_items: int) -> pl.Expr:
    if not placeholder_items:
        return pl.lit(False)
    return (pl.col("status") == "ok") & (pl.len().over("sha256") >= placeholder_items)


def _skipped(url: str) -> Outcome:
    return Outcome(url, "skipped", error=SKIPPED)


def _row(outcome: Outcome, item_id: int | None = None, asin: str | None = None) -> _Row:
    return (item_id, asin, *_values(outcome))


def _table(rows: list[_Row]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=OUTCOME_SCHEMA, orient="row")


def _read(path: Path) -> list[Outcome]:
    try:
        table = pl.read_parquet(path, columns=_COLUMNS)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path} is not a table of image outcomes: {str(error).splitlines()[0]}. "
            "Next: delete it; its URLs are asked again"
        ) from None
    asked = table.filter(pl.col("status") != "skipped")
    return [Outcome(**row) for row in asked.iter_rows(named=True)]
