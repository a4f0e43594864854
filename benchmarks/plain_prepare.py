"""The stages of `prepare` in plain Python: what the pipeline is measured against.

The formulation that the scripts around such data share: a loop that parses each line, sets and
dicts of all rows and all items. It has none of their dangers (results do not depend on the hash
seed) and the pipeline's cleaning of texts, so that both sides do the same work.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.text import item_text

Result = TypeVar("Result")
Record = dict[str, Any]


class Event(NamedTuple):
    """A row of the ratings file."""

    user: str
    item: str
    rating: float
    timestamp: int


class Counted(NamedTuple):
    """What is left after a step."""

    users: int
    items: int
    interactions: int


@dataclass(frozen=True)
class Sequences:
    """Interactions with ids, by user and then time and place in the file; names by id."""

    rows: list[tuple[int, int, int]]  # user id from 0, item id from 1, timestamp
    users: list[str]
    items: list[str]


class Measure(Protocol):
    """Calls a stage, and may measure it."""

    def __call__(self, stage: str, work: Callable[[], Result], /) -> Result: ...


def _evaluate(line: str) -> Any:
    # As the scripts around the released code parse their downloads; here only to measure it, on
    # the lines of `benchmarks.raw_dump`. Anything downloaded could run code this way.
    names: dict[str, Any] = {"__builtins__": {}, "null": None, "true": True, "false": False}
    return eval(line, names)  # noqa: S307 - a baseline, on lines that this project generated


PARSERS: dict[str, Callable[[str], Any]] = {"json": json.loads, "eval": _evaluate}


def plain_prepare(
    ratings: Path,
    metadata: Path,
    folder: Path,
    *,
    parser: Literal["json", "eval"] = "json",
    k: int = 5,
    measure: Measure = lambda stage, work: work(),
) -> dict[str, Counted]:
    """Prepare the tables of a domain: exact duplicates, join with metadata, k-core, ids, texts.

    Args:
        ratings: lines item,user,rating,timestamp.
        metadata: gzipped JSON lines. With `eval` only a file of `benchmarks.raw_dump`.
        folder: where interactions.parquet and items.parquet go.
        parser: of the metadata lines.
        k: least number of interactions of every user and item.
        measure: calls each stage.

    Returns:
        What was left after each step, by the pipeline's names of the steps.
    """
    counts: dict[str, Counted] = {}
    events = measure("read ratings", lambda: read_ratings(ratings, counts))
    records = measure("read metadata", lambda: read_metadata(metadata, PARSERS[parser]))
    events = measure("join and k-core", lambda: join_and_filter(events, records, k, counts))
    sequences = measure("order and ids", lambda: order_and_number(events))
    texts = measure("texts", lambda: make_texts(sequences.items, records))
    measure("write", lambda: write_tables(sequences, texts, folder))
    return counts


def read_ratings(path: Path, counts: dict[str, Counted]) -> list[Event]:
    """Return the distinct rows in the order of the file."""
    seen, events, lines = set(), [], 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            item, user, rating, timestamp = line.rstrip("\n").split(",")
            event = Event(user, item, float(rating), int(timestamp))
            lines += 1
            if event not in seen:
                seen.add(event)
                events.append(event)
    distinct = _count(events)
    counts["read"] = distinct._replace(interactions=lines)
    counts["exact duplicates removed"] = distinct
    return events


def read_metadata(path: Path, parse: Callable[[str], Any]) -> dict[str, Record]:
    """Return the record of every item; of two lines about one item the last counts."""
    records = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            record = parse(line)
            records[record["asin"]] = record
    return records


def join_and_filter(
    events: list[Event], records: dict[str, Record], k: int, counts: dict[str, Counted]
) -> list[Event]:
    """Keep items with metadata, then users and items with at least k rows, again and again."""
    kept = [event for event in events if event.item in records]
    counts["with metadata"] = _count(kept)
    left = 0
    while len(kept) != left:
        left = len(kept)
        users = Counter(event.user for event in kept)
        items = Counter(event.item for event in kept)
        kept = [event for event in kept if users[event.user] >= k and items[event.item] >= k]
    counts[f"{k}-core"] = _count(kept)
    return kept


def order_and_number(events: list[Event]) -> Sequences:
    """Number users and items by name; sort each user's rows by time, ties stay as in the file."""
    users = sorted({event.user for event in events})
    items = sorted({event.item for event in events})
    user_ids = {user: number for number, user in enumerate(users)}
    item_ids = {item: number for number, item in enumerate(items, 1)}
    rows = [(user_ids[event.user], item_ids[event.item], event.timestamp) for event in events]
    rows.sort(key=lambda row: (row[0], row[2]))
    return Sequences(rows, users, items)


def make_texts(items: list[str], records: dict[str, Record]) -> list[str]:
    """Return the text of each item."""
    return [item_text(item, records[item], "clean") for item in items]


def write_tables(sequences: Sequences, texts: list[str], folder: Path) -> None:
    """Write interactions.parquet and items.parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    users, items, timestamps = zip(*sequences.rows, strict=True)
    interactions = {
        "user_id": pa.array(users, pa.uint32()),
        "item_id": pa.array(items, pa.uint32()),
        "timestamp": pa.array(timestamps, pa.int64()),
    }
    numbers = pa.array(range(1, len(sequences.items) + 1), pa.uint32())
    described = {"item_id": numbers, "asin": sequences.items, "text": texts}
    pq.write_table(pa.table(interactions), folder / "interactions.parquet", compression="zstd")
    pq.write_table(pa.table(described), folder / "items.parquet", compression="zstd")


def _count(events: list[Event]) -> Counted:
    users = {event.user for event in events}
    items = {event.item for event in events}
    return Counted(len(users), len(items), len(events))
