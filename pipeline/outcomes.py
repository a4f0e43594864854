"""What became of every image URL: kept on disk while the fetching runs, summed up per item.

    <folder>/outcomes.parquet        after a run: one row per item and URL that was tried
    <folder>/outcomes/part-*.parquet during a run: what has become known since its beginning

Whatever moment a run is killed at, the next one carries on from what these files say.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import polars as pl

from mmm4rec.errors import DataError
from pipeline.tables import write_parquet

OUTCOMES = "outcomes.parquet"
PARTS = "outcomes"

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
    "file": pl.String,  # relative to the folder
}


@dataclass(frozen=True)
class Outcome:
    """What became of one URL; the columns of `OUTCOME_SCHEMA` without the item's."""

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
    file: str | None = None


_COLUMNS = [field.name for field in fields(Outcome)]
# Which URLs meet a host before it is left alone depends on the threads' timing: an item says only
# that its host was out of reach, the same in every run.
OUT_OF_REACH = ["connection", "dns", "timeout", "tls"]
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
        """Remember an outcome until `flush` writes it."""
        self.known[outcome.url] = outcome
        self._unwritten.append(outcome)

    def flush(self) -> None:
        """Write what was added since the last time as one part."""
        if self._unwritten:
            path = self._folder / PARTS / f"part-{self._num_parts:06}.parquet"
            write_parquet(_table([asdict(outcome) for outcome in self._unwritten]), path)
            self._num_parts += 1
            self._unwritten = []

    def finish(self, items: pl.DataFrame) -> pl.DataFrame:
        """Write the table of a complete run, which takes the parts' place.

        Outcomes of URLs that no item has any longer stay, with null in place of the item.

        Returns:
            The rows of `items`, as `item_outcomes`.
        """
        table = item_outcomes(items, self.known)
        current = set(table["url"])
        others = [asdict(o) for url, o in sorted(self.known.items()) if url not in current]
        write_parquet(pl.concat([table, _table(others)]), self._folder / OUTCOMES)
        shutil.rmtree(self._folder / PARTS, ignore_errors=True)
        self._unwritten, self._num_parts = [], 0
        return table


def item_outcomes(items: pl.DataFrame, known: dict[str, Outcome]) -> pl.DataFrame:
    """Return the outcomes of each item's URLs, in their order, up to the first that is ok.

    Args:
        items: item_id, asin, image_urls.
        known: outcome per URL; a URL that is not in it was not asked: `skipped`.

    Returns:
        `OUTCOME_SCHEMA`; an item without URLs has no row.
    """
    rows: list[dict[str, Any]] = []
    for item_id, asin, urls in items.select("item_id", "asin", "image_urls").iter_rows():
        tried = until_ok(known.get(url) or _skipped(url) for url in candidates(urls))
        rows.extend({"item_id": item_id, "asin": asin, **asdict(outcome)} for outcome in tried)
    return _table(rows)


def candidates(urls: list[str] | None) -> list[str]:
    """Return an item's URLs in the order in which they are tried, each once."""
    return list(dict.fromkeys(url for url in urls or () if url))


def until_ok(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Yield outcomes up to the first that is ok, that one included."""
    for outcome in outcomes:
        yield outcome
        if outcome.status == "ok":
            return


def image_status(items: pl.DataFrame, outcomes: pl.DataFrame) -> pl.DataFrame:
    """Sum up the outcomes per item.

    Args:
        items: item_id.
        outcomes: as `fetch_images` returns them.

    Returns:
        item_id, image_status (`ok`; `missing`: no URL; else the error class of the last URL
        tried, all of `OUT_OF_REACH` as `host_unreachable`) and file (null unless ok), in the
        order of `items`.
    """
    last = outcomes.group_by("item_id", maintain_order=True).last()
    error = pl.when(pl.col("error").is_in(OUT_OF_REACH)).then(pl.lit("host_unreachable"))
    status = pl.coalesce(error.otherwise("error"), pl.col("status"), pl.lit("missing"))
    joined = items.select("item_id").join(last, on="item_id", how="left", maintain_order="left")
    return joined.select("item_id", status.alias("image_status"), "file")


def _skipped(url: str) -> Outcome:
    return Outcome(url, "skipped", error=SKIPPED)


def _table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=OUTCOME_SCHEMA)


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
