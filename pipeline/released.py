"""The folder of processed data that the authors of MMM4Rec released, to tables.

test_seq.jsonl    [user, [[item, time], ...]]   a user's whole sequence, one line each
eval_seq.jsonl    the same without the last event; valid_seq.jsonl is read, too
train_seq.jsonl   shorter prefixes; of a merged set the only file, the longest being whole
item2id.jsonl     [name, id], ids from 1
user2id.jsonl     [name, id], ids from 0
item.jsonl        one JSON object by item id (or one per line): paths of the text and the image
texts/<name>.txt, or text/<name>.txt
text_feat.pth, image_feat.pth   row k is the item with id k + 1, see `foreign_features`
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmm4rec.errors import DataError
from pipeline.atomic import AtomicTables, IntArray, histories_to_interactions
from pipeline.rawfile import LATEST, MAX_LINE_BYTES
from pipeline.tables import METADATA_SCHEMA
from pipeline.text import MAX_OFFICIAL_CHARS, clean_brand, clean_title, encodable

logger = logging.getLogger(__name__)

MAX_ITEM_BYTES = 1 << 12  # of an item in item.jsonl, which has two paths of it

_NAME = re.compile(r"[0-9A-Za-z][\w.-]{0,127}", re.ASCII)  # also safe as a file name
_FIELDS = re.compile(r"Title: (.*?) ; (?:Brand: (.*?) ; )?(?:Description: |\Z)", re.DOTALL)
_MAX_FIELD_CHARS = 2048
_NEXT = "Next: fetch the folder again"


@dataclass(frozen=True)
class ReleasedFiles:
    """Files of a released folder.

    Attributes:
        sequences: files of sequences; every user's whole one is in the first.
        item_ids: item names and ids.
        user_ids: user names and ids.
        items: which items have an image; None: not known.
        texts: folder of the items' texts; None: there is none.
        text_features: features of the texts, None where there are none.
        image_features: features of the images, None where there are none.
    """

    sequences: tuple[Path, ...]
    item_ids: Path
    user_ids: Path
    items: Path | None = None
    texts: Path | None = None
    text_features: Path | None = None
    image_features: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files but the single texts, for the manifest."""
        others = (self.items, self.text_features, self.image_features)
        found = tuple(path for path in others if path is not None)
        return (*self.sequences, self.item_ids, self.user_ids, *found)

    @property
    def source_format(self) -> str:
        """What the manifest calls the format."""
        return "released"

    @property
    def features(self) -> dict[str, Path]:
        """Feature files by modality, row k of the item with id k + 1."""
        found = {"text": self.text_features, "image": self.image_features}
        return {modality: path for modality, path in found.items() if path is not None}


def find_released(folder: Path) -> ReleasedFiles | None:
    """Return the files of a released folder, None where it is something else.

    Raises:
        DataError: the sequences are there, but nothing says what the items are.
    """

    def find(*names: str) -> Path | None:
        return next((folder / name for name in names if (folder / name).is_file()), None)

    last, evaluation = find("test_seq.jsonl"), find("eval_seq.jsonl", "valid_seq.jsonl")
    sequences = [path for path in (last, evaluation, find("train_seq.jsonl")) if path]
    item_ids, user_ids = find("item2id.jsonl"), find("user2id.jsonl")
    if not item_ids or not user_ids or not sequences or sequences[0] == evaluation:
        return None
    files = ReleasedFiles(
        tuple(sequences),
        item_ids,
        user_ids,
        items=find("item.jsonl"),
        texts=next((folder / name for name in ("texts", "text") if (folder / name).is_dir()), None),
        text_features=find("text_feat.pth"),
        image_features=find("image_feat.pth"),
    )
    if files.texts is None and files.text_features is None:
        raise DataError(
            f"{folder}: nothing says what the items are, neither texts/ nor text_feat.pth is "
            f"there. {_NEXT}"
        )
    return files


def read_released(files: ReleasedFiles) -> AtomicTables:
    """Read a released folder; users, items and the order of events stay its authors'.

    Raises:
        DataError: a file is missing or malformed; ids are not 1..I and 0..U-1, each once; a user
            has no sequence or two whole ones; a shorter one is not its beginning; times are not
            integer seconds or not in order.
    """
    items, users = _read_ids(files.item_ids, first=1), _read_ids(files.user_ids, first=0)
    histories = _read_histories(files, len(items), users)
    interactions = histories_to_interactions(
        {user: events[:, 0] - 1 for user, events in histories.items()},
        items,
        users,
        {user: events[:, 1] for user, events in histories.items()},
    )
    has_image = _read_has_image(files.items, len(items)) if files.items else None
    return AtomicTables(interactions, _read_texts(files.texts, items), items, users, has_image)


def _read_histories(files: ReleasedFiles, num_items: int, users: list[str]) -> dict[int, IntArray]:
    """Read each user's whole sequence, (n, 2): item id and time; check the shorter ones."""
    whole, *shorter = files.sequences
    is_merged = not shorter and whole.name.startswith("train")
    histories: dict[int, IntArray] = {}
    for where, user, events in _read_sequences(whole, num_items, len(users)):
        if user in histories and not is_merged:
            raise DataError(
                f"{where}: user {user} has two lines; expected one whole sequence per user. {_NEXT}"
            )
        known = histories.get(user, events)
        _check_beginning(known, events, where, user)
        histories[user] = max(known, events, key=len)
    if len(histories) < len(users):
        missing = next(user for user in range(len(users)) if user not in histories)
        raise DataError(
            f"{whole}: {len(users) - len(histories)} of {len(users)} users have no sequence, user "
            f"{missing} among them. {_NEXT}"
        )
    for path in shorter:
        for where, user, events in _read_sequences(path, num_items, len(users)):
            _check_beginning(histories[user], events, where, user)
            if len(events) > len(histories[user]):
                raise DataError(f"{where}: user {user} has more events than in {whole}. {_NEXT}")
    return histories


def _check_beginning(known: IntArray, events: IntArray, where: str, user: int) -> None:
    length = min(len(known), len(events))
    if not np.array_equal(known[:length], events[:length]):
        raise DataError(
            f"{where}: the events of user {user} are not the beginning of its longer sequence; "
            f"expected files of one set. {_NEXT}"
        )


def _read_sequences(
    path: Path, num_items: int, num_users: int
) -> Iterator[tuple[str, int, IntArray]]:
    for where, row in _read_json_lines(path):
        user, events = row if isinstance(row, list) and len(row) == 2 else (None, None)
        if type(user) is not int or not isinstance(events, list) or not events:
            raise DataError(
                f"{where}: found {row!r:.80}, expected [user, [[item, time], ...]]. {_NEXT}"
            )
        if not 0 <= user < num_users:
            raise DataError(f"{where}: user {user} is not in 0..{num_users - 1}. {_NEXT}")
        yield where, user, _check_events(events, num_items, f"{where}: user {user}")


def _check_events(events: list[Any], num_items: int, where: str) -> IntArray:
    try:
        array = np.array(events)
    except (ValueError, OverflowError):  # lines of several lengths
        array = np.empty(0)
    if array.dtype != np.int64 or array.ndim != 2 or array.shape[1] != 2:
        raise DataError(
            f"{where}: {events!r:.80} are not pairs of integers, item and time. {_NEXT}"
        )
    items, times = array.T
    outside = items[(items < 1) | (items > num_items)]
    if len(outside):
        raise DataError(f"{where}: item {outside[0]} is not in 1..{num_items}. {_NEXT}")
    if times.min() < 0 or times.max() > LATEST:
        raise DataError(
            f"{where}: a time is not in 0..{LATEST} (Unix seconds), found {times.min()} to "
            f"{times.max()}. {_NEXT}"
        )
    if (np.diff(times) < 0).any():
        raise DataError(f"{where}: the events are not in the order of time. {_NEXT}")
    return array


def _read_ids(path: Path, first: int) -> list[str]:
    """Return the names in the order of their ids, which begin with `first`."""
    names: dict[int, str] = {}
    for where, row in _read_json_lines(path):
        name, number = row if isinstance(row, list) and len(row) == 2 else (None, None)
        if type(number) is not int or not isinstance(name, str) or not _NAME.fullmatch(name):
            raise DataError(f"{where}: found {row!r:.80}, expected [name, id]. {_NEXT}")
        if number in names:
            raise DataError(f"{where}: id {number} is there twice. {_NEXT}")
        names[number] = name
    last = first + len(names) - 1
    if names.keys() != set(range(first, last + 1)) or len(set(names.values())) < len(names):
        raise DataError(
            f"{path}: expected {len(names)} different names with the ids {first}..{last}. {_NEXT}"
        )
    return [names[number] for number in range(first, last + 1)]


def _read_has_image(path: Path, num_items: int) -> list[bool]:
    """Return whether each item has an image, from the paths that its entry names."""
    limit = MAX_ITEM_BYTES * (num_items + 1)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{path}: more than {limit} bytes for {num_items} items. {_NEXT}")
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError):  # one object per line
        entries = {}
        for _, entry in _read_json_lines(path):
            entries |= entry if isinstance(entry, dict) else {}
    expected = [str(number + 1) for number in range(num_items)]
    if not isinstance(entries, dict) or entries.keys() != set(expected):
        raise DataError(
            f"{path}: found {content[:80]!r}, expected JSON objects with the keys "
            f"1..{num_items}. {_NEXT}"
        )
    odd = [key for key in expected if not isinstance(entries[key], dict)]
    if odd:
        raise DataError(f"{path}: item {odd[0]} is {entries[odd[0]]!r:.80}, not an object. {_NEXT}")
    return [entries[key].get("vision") is not None for key in expected]


def _read_texts(folder: Path | None, items: list[str]) -> pl.DataFrame:
    """Read the items' texts by name: paths that a file names are not followed."""
    if folder is None:
        return pl.DataFrame(schema=METADATA_SCHEMA)
    rows: list[tuple[Any, ...]] = []
    for name in items:
        text = _read_text(folder / f"{name}.txt")
        if text:
            fields = _FIELDS.match(text[:_MAX_FIELD_CHARS])
            title, brand = fields.groups(default="") if fields else ("", "")
            rows.append((name, clean_title(title), clean_brand(brand), text, []))
    if len(rows) < len(items):
        logger.warning("%s: %d items have no text there", folder, len(items) - len(rows))
    return pl.DataFrame(rows, schema=METADATA_SCHEMA, orient="row").sort("asin")


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(4 * MAX_OFFICIAL_CHARS)  # a character has up to four bytes
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return encodable(content.decode(errors="replace")[:MAX_OFFICIAL_CHARS]).strip()


def _read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where a line is and its value."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}:{number}: more than {MAX_LINE_BYTES} bytes. {_NEXT}")
            if not line.strip():
                continue
            try:
                yield f"{path}:{number}", json.loads(line)
            except (ValueError, RecursionError):
                raise DataError(
                    f"{path}:{number}: found {line[:80]!r}, expected a line of JSON. {_NEXT}"
                ) from None
