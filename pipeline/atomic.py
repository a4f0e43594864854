"""Already processed sets in the atomic format of RecBole, UniSRec and MISSRec, to tables.

Whole sequences of numbers, filtered already (UniSRec, MISSRec):

    <D>.test.inter    user_id:token  item_id_list:token_seq  item_id:token   history and target
    <D>.valid.inter, <D>.train.inter   the same with earlier targets; they may be missing
    <D>.item2index, <D>.user2index     name, number from 0
    <D>.feat1CLS, <D>.feat3CLS         features of texts and images, see `foreign_features`

Single events with names, treated as raw (RecBole):

    <D>.inter         user_id:token  item_id:token  [rating:float]  [timestamp:float]
    <D>.train.inter, <D>.valid.inter, <D>.test.inter   instead: the events of its three splits

What the items are is said by `<D>.text` (item_id:token  text:token_seq) or by `<D>.item`
(item_id:token and any columns), see `atomic_table`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmm4rec.errors import DataError
from pipeline.atomic_table import read_index, read_items, read_table
from pipeline.rawfile import LATEST
from pipeline.tables import METADATA_SCHEMA, RAW_INTERACTION_SCHEMA

logger = logging.getLogger(__name__)

IntArray = np.ndarray[Any, np.dtype[np.int64]]

FEATURE_SUFFIXES = {"text": "feat1CLS", "image": "feat3CLS"}  # as MISSRec names them

_CHUNK_ROWS = 1 << 16  # events that are Python objects at one time
_EVENT_SCHEMA = {name: RAW_INTERACTION_SCHEMA[name] for name in ("user", "asin")} | {
    "rating": pl.Float64,
    "timestamp": pl.Int64,
}


@dataclass(frozen=True)
class AtomicFiles:
    """Files of an atomic set.

    Attributes:
        inter: whole sequences with both indexes, single events without.
        text: what the items are, `.text` or `.item`; None where only features say it.
        item_index: item names by number; None: `inter` has names.
        user_index: user names by number; None: `inter` has names.
        train: earlier targets of the sequences; or the events of the first split.
        valid: the last targets but one; or the events of the second split.
        text_features: features of the texts by item number.
        image_features: features of the images by item number.
    """

    inter: Path
    text: Path | None
    item_index: Path | None = None
    user_index: Path | None = None
    train: Path | None = None
    valid: Path | None = None
    text_features: Path | None = None
    image_features: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, for the manifest."""
        paths = (getattr(self, field.name) for field in fields(self))
        return tuple(path for path in paths if path is not None)

    @property
    def source_format(self) -> str:
        """What the manifest calls the format."""
        return "atomic"

    @property
    def features(self) -> dict[str, Path]:
        """Feature files by modality, row k of item number k."""
        found = {"text": self.text_features, "image": self.image_features}
        return {modality: path for modality, path in found.items() if path is not None}


@dataclass(frozen=True)
class AtomicTables:
    """A set that others have processed, as tables.

    Attributes:
        interactions: rows in RAW_INTERACTION_SCHEMA; timestamp null where the set has no times.
        metadata: rows in METADATA_SCHEMA, without images; none for items nothing is said of.
        items: names in the order of their numbers, None for a set that has no numbers and has not
            been filtered.
        users: as `items`.
        has_image: whether the set's authors had an image, per item; None where they do not say.
        cut_users: users whose sequence fills its line, the oldest events perhaps cut off.
    """

    interactions: pl.DataFrame
    metadata: pl.DataFrame
    items: list[str] | None
    users: list[str] | None
    has_image: list[bool] | None = None
    cut_users: int = 0


def find_atomic(folder: Path, name: str) -> AtomicFiles | None:
    """Return the files of the atomic set `name` in a folder, None where it has no such set.

    Raises:
        DataError: the interactions are there, but nothing says what the items are.
    """

    def find(*endings: str) -> Path | None:
        paths = (folder / f"{name}.{ending}" for ending in endings)
        return next((path for path in paths if path.is_file()), None)

    text, events, train = find("text", "item"), find("inter"), find("train.inter")
    last, valid = find("test.inter"), find("valid.inter")
    indexes = find("item2index"), find("user2index")
    if last and all(indexes):
        features = {f"{key}_features": find(end) for key, end in FEATURE_SUFFIXES.items()}
        files = AtomicFiles(last, text, *indexes, train=train, valid=valid, **features)
    elif events:
        files = AtomicFiles(events, text)
    elif last and train:
        files = AtomicFiles(last, text, train=train, valid=valid)
    else:
        return None
    if text is None and files.text_features is None:
        raise DataError(
            f"{files.inter}: nothing says what its items are. Next: put {name}.text or "
            f"{name}.item beside it (item_id and the items' texts)"
        )
    return files


def atomic_names(name: str) -> tuple[str, str, str, str, str]:
    """Return the file names of an atomic set: sequences, single events, text, both indexes."""
    return (
        f"{name}.test.inter",
        f"{name}.inter",
        f"{name}.text",
        f"{name}.item2index",
        f"{name}.user2index",
    )


def read_atomic(files: AtomicFiles) -> AtomicTables:
    """Read an atomic set.

    UniSRec keeps 50 items before a target. Where the training file is there, what was cut from a
    user's last sequence is taken from the earlier ones; all must agree. The splits of a set of
    single events are put together again.

    Raises:
        DataError: a file is missing, damaged or something else; a header or a line is not of the
            format; a number is not in its index or stands there twice; a user has two last
            sequences, or an earlier one that contradicts it; an item file has no texts.
    """
    metadata = read_items(files.text) if files.text else pl.DataFrame(schema=METADATA_SCHEMA)
    if files.item_index is None or files.user_index is None:
        splits = [path for path in (files.train, files.valid, files.inter) if path]
        return AtomicTables(_read_events(splits), metadata, None, None)
    items, users = read_index(files.item_index), read_index(files.user_index)
    histories, cut_users = _read_histories(files, items, users)
    interactions = histories_to_interactions(histories, items, users)
    if cut_users:
        logger.warning(
            "%s: the lines of %d users are as long as the longest there is: older events may "
            "be missing",
            files.inter,
            cut_users,
        )
    return AtomicTables(interactions, metadata, items, users, cut_users=cut_users)


def histories_to_interactions(
    histories: Mapping[int, IntArray],
    items: list[str],
    users: list[str],
    times: Mapping[int, IntArray] | None = None,
) -> pl.DataFrame:
    """Return numbered sequences as interactions with names, in RAW_INTERACTION_SCHEMA.

    Args:
        histories: by user number, from 0: item numbers from 0, oldest first.
        items: names by number.
        users: names by number.
        times: Unix seconds of the same events; None where the set has no times.
    """
    owners = np.fromiter(histories, np.int64, len(histories))
    lengths = [len(history) for history in histories.values()]
    columns = {
        "user": _take(users, np.repeat(owners, lengths)),
        "asin": _take(items, _concatenate(histories)),
    }
    if times is not None:
        columns["timestamp"] = pl.Series(_concatenate(times))
    return _as_interactions(pl.DataFrame(columns))


def _concatenate(arrays: Mapping[int, IntArray]) -> IntArray:
    return np.concatenate([np.empty(0, np.int64), *arrays.values()])


def _take(names: list[str], numbers: IntArray) -> pl.Series:
    return pl.Series(names, dtype=pl.String)[numbers]


def _read_histories(
    files: AtomicFiles, items: list[str], users: list[str]
) -> tuple[dict[int, IntArray], int]:
    """Read each user's whole sequence; count the users who may lack their oldest events."""
    histories: dict[int, IntArray] = {}
    for where, user, window in _read_windows(files.inter, len(items), len(users)):
        if user in histories:
            raise DataError(
                f"{where}: a user has two lines, {users[user]!r}; expected one whole sequence per "
                f"user"
            )
        histories[user] = window
    longest = max((len(window) for window in histories.values()), default=0)
    cut_users = {user for user, window in histories.items() if len(window) == longest}
    for path, events_back in ((files.valid, 1), (files.train, 2)):
        seen: Counter[int] = Counter()
        for where, user, window in _read_windows(path, len(items), len(users)) if path else ():
            known = histories.get(user, window[:0])
            if len(window) < longest:
                whole = _match_beginning(known, window)
                cut_users.discard(user)
            else:
                whole = _match_window(known, window, events_back + seen[user], longest)
            if whole is None:
                raise DataError(
                    f"{where}: the items of user {users[user]!r} are not those that its line in "
                    f"{files.inter} has there; expected lines of one set, a user's latest target "
                    f"first. Next: check that the files belong together, or remove {path}"
                )
            histories[user] = whole
            seen[user] += 1
    return histories, len(cut_users)


def _match_beginning(known: IntArray, window: IntArray) -> IntArray | None:
    """Return the sequence if it begins with a window that was not cut, else None."""
    return known if np.array_equal(known[: len(window)], window) else None


def _match_window(
    known: IntArray, window: IntArray, events_back: int, longest: int
) -> IntArray | None:
    """Return the sequence with the older events that a full window adds; None: they disagree.

    Args:
        known: the sequence so far, its oldest events perhaps missing.
        window: events in a row.
        events_back: events of the sequence after the window.
        longest: events of a window that may have been cut.
    """
    end = len(known) - events_back
    missing = max(0, len(window) - end)
    overlap = window[missing:]
    agrees = np.array_equal(known[max(0, end - len(window)) : max(0, end)], overlap)
    if not agrees or not len(overlap) or (missing and len(known) < longest):
        return None
    return np.concatenate([window[:missing], known])


def _read_windows(
    path: Path, num_items: int, num_users: int
) -> Iterator[tuple[str, int, IntArray]]:
    """Yield where a line is, its user and its items with the target last, as numbers."""
    for line, row in read_table(path, ("user_id", "item_id_list", "item_id")):
        where = f"{path}:{line}"
        user = int(_numbers([row["user_id"]], num_users, f"{where}: user_id")[0])
        tokens = [*row["item_id_list"].split(), row["item_id"]]
        yield where, user, _numbers(tokens, num_items, f"{where}: item")


def _numbers(tokens: list[str], count: int, where: str) -> IntArray:
    try:
        numbers = np.array(tokens, dtype=np.str_).astype(np.int64)
    except (ValueError, OverflowError):
        raise DataError(f"{where}: {' '.join(tokens)[:80]!r} is not made of integers") from None
    outside = numbers[(numbers < 0) | (numbers >= count)]
    if len(outside):
        raise DataError(
            f"{where}: {outside[0]} is not in the index, which has 0..{count - 1}. "
            f"Next: check that the files belong to one set"
        )
    return numbers


def _read_events(paths: list[Path]) -> pl.DataFrame:
    chunks = [pl.DataFrame(schema=_EVENT_SCHEMA)]
    for path in paths:
        events = _parse_events(path)
        while rows := list(islice(events, _CHUNK_ROWS)):
            chunks.append(pl.DataFrame(rows, schema=_EVENT_SCHEMA, orient="row"))
    return _as_interactions(pl.concat(chunks))


def _parse_events(path: Path) -> Iterator[tuple[str, str, float | None, int | None]]:
    for line, row in read_table(path, ("user_id", "item_id")):
        where = f"{path}:{line}"
        if "item_id_list" in row:
            raise DataError(
                f"{where}: sequences of numbers, but the names are not there. Next: put the "
                f"files .item2index and .user2index of the set beside it"
            )
        rating = _float(row.get("rating"), f"{where}: rating")
        seconds = _float(row.get("timestamp"), f"{where}: timestamp")
        if seconds is not None and not 0 <= seconds <= LATEST:
            raise DataError(
                f"{where}: timestamp {row['timestamp']} is not in 0..{LATEST} (Unix seconds)"
            )
        yield row["user_id"], row["item_id"], rating, None if seconds is None else int(seconds)


def _float(token: str | None, where: str) -> float | None:
    if token is None:  # the set has no such column
        return None
    try:
        value = float(token)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where} {token[:80]!r} is not a finite number")
    return value


def _as_interactions(events: pl.DataFrame) -> pl.DataFrame:
    """Complete the columns to RAW_INTERACTION_SCHEMA."""
    table = events.with_row_index("position")
    return table.select(
        (pl.col(name) if name in table.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in RAW_INTERACTION_SCHEMA.items()
    )
