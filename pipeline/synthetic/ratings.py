"""The miniature ratings file, with what real ones are full of.

Every user of the core buys along the planted structure. Around the core: users and items with
too few interactions, items that the metadata does not know, exact duplicate rows. Dropping all
of these gives back the core's sequences as they were drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.schema import atomic_path
from pipeline.synthetic.behaviour import ENTRY_DAYS, FIRST_DAY, IntArray
from pipeline.synthetic.catalogue import Catalogue
from pipeline.synthetic.items import random_codes

DAY = 86_400  # seconds
CORE = 5  # interactions that keep a user or an item
OCCASIONAL_SHARE = 0.2  # users below the core, per user of the core
DUPLICATE_SHARE = 0.02  # of all rows
T = TypeVar("T")
STARS, STAR_SHARES = (5.0, 4.0, 3.0, 2.0, 1.0), (0.55, 0.2, 0.1, 0.07, 0.08)


class Row(NamedTuple):
    """One line of the ratings file; `day` counts from 1970-01-01."""

    asin: str
    user: str
    rating: float
    day: int


def draw_ratings(
    rng: np.random.Generator,
    catalogue: Catalogue,
    sequences: Sequence[IntArray],
    days: Sequence[IntArray],
) -> tuple[list[Row], dict[str, int]]:
    """Draw the ratings file around the core's sequences.

    Returns:
        The rows in file order, and how many there are of what.
    """
    num_occasional = round(OCCASIONAL_SHARE * len(sequences))
    codes = random_codes(rng, len(sequences) + num_occasional, "A", 13)
    users, occasional = codes[: len(sequences)], codes[len(sequences) :]
    rows = [
        *_core_rows(rng, users, catalogue.core, sequences, days),
        *_unlisted_rows(rng, users, catalogue.unlisted),
        *_rare_rows(rng, users, occasional, catalogue.rare),
        *_occasional_rows(rng, occasional, catalogue.core),
    ]
    with_copies = _add_duplicates(rng, _shuffle_rows(rng, rows))
    return with_copies, {
        "rows": len(with_copies),
        "duplicate_rows": len(with_copies) - len(rows),
        "users_below_core": num_occasional,
        "core_users": len(sequences),
        "core_items": len(catalogue.core),
        "core_interactions": sum(map(len, sequences)),
        "users_with_ties": sum(int((np.diff(user_days) == 0).any()) for user_days in days),
    }


def write_ratings(folder: Path, name: str, rows: Sequence[Row]) -> None:
    """Write `<name>.csv` as Amazon does: asin, user, rating, Unix seconds; no header."""
    lines = [f"{row.asin},{row.user},{row.rating},{row.day * DAY}\n" for row in rows]
    with atomic_path(folder / f"{name}.csv") as path:
        path.write_text("".join(lines), encoding="utf-8")


def _core_rows(
    rng: np.random.Generator,
    users: Sequence[str],
    asins: Sequence[str],
    sequences: Sequence[IntArray],
    days: Sequence[IntArray],
) -> list[Row]:
    """Return the interactions of the core, each user's in order."""
    return [
        Row(asins[item], user, _draw_rating(rng), day)
        for user, sequence, user_days in zip(users, sequences, days, strict=True)
        for item, day in zip(sequence.tolist(), user_days.tolist(), strict=True)
    ]


def _unlisted_rows(
    rng: np.random.Generator, users: Sequence[str], asins: Sequence[str]
) -> list[Row]:
    """Return purchases of items without metadata: enough of each for the 5-core."""
    return [
        Row(asin, user, _draw_rating(rng), _draw_day(rng))
        for asin in asins
        for user in _draw_distinct(rng, users, int(rng.integers(5, 12)))
    ]


def _rare_rows(
    rng: np.random.Generator,
    users: Sequence[str],
    occasional_users: Sequence[str],
    asins: Sequence[str],
) -> list[Row]:
    """Return purchases of items below the core: one to four by core users each.

    Three more come from occasional users, so that some items fall only once these have fallen:
    filtering once is not enough. Each occasional user helps one item at most.
    """
    rows = []
    for index, asin in enumerate(asins):
        buyers = _draw_distinct(rng, users, int(rng.integers(1, 5)))
        buyers += occasional_users[3 * index : 3 * index + 3]
        rows += [Row(asin, user, _draw_rating(rng), _draw_day(rng)) for user in buyers]
    return rows


def _occasional_rows(
    rng: np.random.Generator, users: Sequence[str], asins: Sequence[str]
) -> list[Row]:
    """Return the purchases of occasional users: one to three items of the core each."""
    return [
        Row(asin, user, _draw_rating(rng), _draw_day(rng))
        for user in users
        for asin in _draw_distinct(rng, asins, int(rng.integers(1, 4)))
    ]


def _shuffle_rows(rng: np.random.Generator, rows: Sequence[Row]) -> list[Row]:
    """Shuffle rows; those of one user and day keep their order.

    Days are all that the file knows of time: within a day, the line number alone tells what
    came first.
    """
    keys = rng.random(len(rows))
    for group in _same_day(rows).values():
        keys[group] = np.sort(keys[group])
    return [rows[index] for index in np.argsort(keys)]


def _add_duplicates(rng: np.random.Generator, rows: Sequence[Row]) -> list[Row]:
    """Repeat a share of the rows exactly, at random places.

    Only rows that are alone on their user's day are repeated: whichever copy is dropped, the
    order stays.
    """
    alone = [rows[group[0]] for group in _same_day(rows).values() if len(group) == 1]
    copies = _draw_distinct(rng, alone, round(DUPLICATE_SHARE * len(rows)))
    result = list(rows)
    for copy in copies:
        result.insert(int(rng.integers(len(result) + 1)), copy)
    return result


def _same_day(rows: Sequence[Row]) -> dict[tuple[str, int], list[int]]:
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.user, row.day].append(index)
    return groups


def _draw_distinct(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    chosen = rng.choice(len(options), size=min(count, len(options)), replace=False)
    return [options[index] for index in chosen]


def _draw_rating(rng: np.random.Generator) -> float:
    return STARS[int(np.searchsorted(np.cumsum(STAR_SHARES)[:-1], rng.random(), side="right"))]


def _draw_day(rng: np.random.Generator) -> int:
    return FIRST_DAY + int(rng.integers(ENTRY_DAYS + 365))
