"""A generated raw dump of one category in the format and the shape of Amazon Reviews 2018.

    python -m benchmarks.raw_dump FOLDER --ratings 5000000 --metadata-lines 200000

Users and items follow power laws: most users have one rating, a few items have most of them, so
that a 5-core leaves little. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.filtering import encode, k_core

NAME = "Dump"  # of the domain: `mmm4rec prepare --domain Dump --source FOLDER`
RATINGS_FILE = f"{NAME}.csv"
METADATA_FILE = f"meta_{NAME}.json.gz"

DUPLICATE_SHARE = 0.02  # of all rows: exact copies of another
RATINGS_PER_ITEM = 25
DESCRIBED_SHARE = 0.9  # of the rated items that have a metadata line
USER_EXPONENT = 2.55  # of the number of ratings a user has, cut off exponentially at USER_CUT
USER_CUT = 60.0
MAX_USER_RATINGS = 1000
ITEM_OFFSET = 20  # popularity of the item of rank r is 1 / (r + ITEM_OFFSET)
SAME_DAY_SHARE = 0.4  # of the ratings that a user gives on one and the same day
STARS = (0.10, 0.05, 0.08, 0.15, 0.62)  # share of 1 to 5
DAY = 86_400  # seconds
FIRST_DAY, LAST_DAY = 10_227, 17_805  # 1998-01-01 and 2018-10-01, days since 1970
ROWS_AT_ONCE = 1 << 19
LINES_AT_ONCE = 1 << 12
GZIP_LEVEL = 6  # about as dense as the files of the release

Ints = np.ndarray[Any, np.dtype[np.int64]]

_DIGITS = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", dtype="S1")
_ITEM_DIGITS, _USER_DIGITS = 7, 12
# Without a divisor in common with 36: multiples differ for all numbers, modulo a power of 36.
_ITEM_STEP, _USER_STEP = 48_271_229_633, 1_234_567_890_123_456_787


def write_raw_dump(folder: Path, ratings: int, metadata_lines: int, seed: int = 0) -> None:
    """Write RATINGS_FILE and METADATA_FILE.

    Args:
        folder: made if it is not there.
        ratings: rows of the ratings file, at least 1000; one item for every RATINGS_PER_ITEM.
        metadata_lines: lines of the metadata file. They describe DESCRIBED_SHARE of the items,
            or as many as there are lines; the rest are of items that nobody rated.
        seed: of everything random.

    Raises:
        ValueError: there are fewer than 1000 ratings.
    """
    if ratings < 1000:
        raise ValueError(f"ratings ({ratings}) must be at least 1000: it has no shape otherwise")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    num_items = ratings // RATINGS_PER_ITEM
    _write_ratings(folder / RATINGS_FILE, _draw_ratings(rng, ratings, num_items))
    described = min(metadata_lines, int(num_items * DESCRIBED_SHARE))
    unrated = np.arange(num_items, num_items + metadata_lines - described)
    items = np.concatenate([rng.permutation(num_items)[:described], unrated])
    _write_metadata(folder / METADATA_FILE, rng.permutation(items), rng)


@dataclass(frozen=True)
class _Ratings:
    """Rows of the ratings file, as numbers."""

    items: Ints
    users: Ints
    stars: Ints
    days: Ints

    def __getitem__(self, rows: Any) -> _Ratings:
        return _Ratings(self.items[rows], self.users[rows], self.stars[rows], self.days[rows])


def _draw_ratings(rng: np.random.Generator, ratings: int, num_items: int) -> _Ratings:
    num_copies = int(ratings * DUPLICATE_SHARE)
    num_distinct = ratings - num_copies
    users = _draw_users(rng, num_distinct)
    popularity = np.cumsum(1.0 / (np.arange(num_items) + ITEM_OFFSET))
    items = np.searchsorted(popularity, rng.random(num_distinct) * popularity[-1])
    items = rng.permutation(num_items)[items]  # names do not tell how popular an item is
    drawn = _Ratings(items, users, rng.choice(5, num_distinct, p=STARS) + 1, _draw_days(rng, users))
    copied = rng.integers(num_distinct, size=num_copies)
    mixed = rng.permutation(np.concatenate([np.arange(num_distinct), copied]))
    shuffled = drawn[mixed]
    return shuffled[np.argsort(shuffled.items, kind="stable")]  # the release is grouped by item


def _draw_users(rng: np.random.Generator, rows: int) -> Ints:
    counts = np.arange(1, MAX_USER_RATINGS + 1)
    weights = counts**-USER_EXPONENT * np.exp(-counts / USER_CUT)
    drawn = rng.choice(counts, rows, p=weights / weights.sum())
    num_users = int(np.searchsorted(np.cumsum(drawn), rows)) + 1
    return np.repeat(np.arange(num_users), drawn[:num_users])[:rows]


def _draw_days(rng: np.random.Generator, users: Ints) -> Ints:
    """Return days that become denser with the years; many of a user's are the same."""
    span = LAST_DAY - FIRST_DAY + 1
    own_day = rng.random(int(users.max()) + 1)[users]
    is_own = rng.random(len(users)) < SAME_DAY_SHARE
    when = np.where(is_own, own_day, rng.random(len(users)))
    return FIRST_DAY + (span * when**0.25).astype(np.int64)


def _write_ratings(path: Path, rows: _Ratings) -> None:
    with path.open("wb") as file:
        for first in range(0, len(rows.items), ROWS_AT_ONCE):
            part = rows[first : first + ROWS_AT_ONCE]
            table = pl.DataFrame(
                {
                    "item": item_names(part.items),
                    "user": _names(b"A", part.users, _USER_STEP, _USER_DIGITS),
                    "rating": part.stars.astype(np.float64),
                    "timestamp": part.days * DAY,
                }
            )
            table.write_csv(file, include_header=False, float_precision=1)


def item_names(numbers: Ints) -> list[str]:
    """Return ASINs, a different one for every number.

    >>> item_names(np.array([0, 1]))
    ['B000000000', 'B00M6BFZ5T']
    """
    return _names(b"B00", numbers, _ITEM_STEP, _ITEM_DIGITS)


def _names(prefix: bytes, numbers: Ints, step: int, num_digits: int) -> list[str]:
    # Python's integers where 64 bits would overflow; the distinct names are few.
    distinct, places = np.unique(numbers, return_inverse=True)
    spread = distinct.astype(object) * step % 36**num_digits
    rest = spread.astype(np.int64)
    digits = np.empty((len(rest), num_digits), dtype="S1")
    for place in reversed(range(num_digits)):
        digits[:, place] = _DIGITS[rest % 36]
        rest //= 36
    names = np.char.add(prefix, digits.view(f"S{num_digits}").ravel()).astype("U")
    return names[places].tolist()


def _write_metadata(path: Path, items: Ints, rng: np.random.Generator) -> None:
    writer = _MetadataWriter(rng)
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as zipped,
    ):
        for first in range(0, len(items), LINES_AT_ONCE):
            zipped.write(b"".join(writer.lines(items[first : first + LINES_AT_ONCE], len(items))))


class _MetadataWriter:
    """Lines about items, put together from made-up words."""

    SYLLABLES = "ba be bo da de do ka ke ko la le lo ma me mo na ne no ra re ro sa se so ta te to"

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        syllables = self.SYLLABLES.split()
        self.words = ["".join(parts) for parts in self._choices(syllables, 4000, 2, 4)]
        pairs = self._choices([word.title() for word in self.words], 700, 2, 2)
        self.brands = [f"{first} &amp; {second}" for first, second in pairs[:500]]
        self.categories = [[NAME, first, f"{second}s"] for first, second in pairs[500:]]
        self.sentences = [
            _sentence(words, number)
            for number, words in enumerate(self._choices(self.words, 4000, 12, 31))
        ]

    def lines(self, items: Ints, num_items: int) -> Iterator[bytes]:
        """Yield the line of each item.

        Args:
            items: numbers of the items.
            num_items: of all items; the lists of related items name any of them.
        """
        related = iter(item_names(self.rng.integers(num_items, size=len(items) * 48)))
        picks = self.rng.integers(1 << 30, size=(len(items), 24)).tolist()
        for asin, pick in zip(item_names(items), picks, strict=True):
            names = [next(related) for _ in range(48)]
            yield json.dumps(self._record(asin, pick, names)).encode() + b"\n"

    def _record(self, asin: str, pick: list[int], related: list[str]) -> dict[str, Any]:
        """Return an item's metadata, decided by the numbers in `pick`."""
        title = " ".join(self.words[p % len(self.words)].title() for p in pick[:6])
        description = [self.sentences[p % len(self.sentences)] for p in pick[6 : 6 + pick[6] % 7]]
        images = [
            f"https://images-na.ssl-images-amazon.com/images/I/{p:011d}._SS40_.jpg"
            for p in pick[13 : 13 + max(0, pick[13] % 5 - 1)]
        ]
        category = self.categories[pick[17] % len(self.categories)]
        return {
            "category": category,
            "tech1": "",
            "description": description,
            "fit": "",
            "title": '<span class="a-size-medium' if pick[18] % 40 == 0 else title,
            "also_buy": related[: pick[19] % 31],
            "tech2": "",
            "brand": self.brands[pick[20] % len(self.brands)],
            "feature": [self.sentences[pick[21] % len(self.sentences)]],
            "rank": f"{pick[22] % 900_000 + 1:,} in {category[1]} (",
            "also_view": related[31:][: pick[23] % 18],
            "details": {
                "Shipping Weight:": f"{pick[0] % 90 / 10} pounds (",
                "Item model number:": f"{pick[1] % 10**6}",
                "ASIN: ": asin,
                "Domestic Shipping: ": "Item can be shipped within U.S.",
            },
            "main_cat": "Dump",
            "similar_item": "",
            "date": f"June {pick[2] % 28 + 1}, {2000 + pick[3] % 18}",
            "price": f"${pick[4] % 200}.{pick[5] % 100:02d}",
            "asin": asin,
            "imageURL": images,
            "imageURLHighRes": [url.replace("._SS40_", "") for url in images],
        }

    def _choices(self, words: list[str], count: int, least: int, most: int) -> list[list[str]]:
        """Return `count` lists of `least` to `most` words."""
        lengths = self.rng.integers(least, most + 1, count).tolist()
        picks = self.rng.integers(len(words), size=(count, most)).tolist()
        return [
            [words[place] for place in pick[:length]]
            for pick, length in zip(picks, lengths, strict=True)
        ]


def _sentence(words: list[str], number: int) -> str:
    """Return a sentence; most have the leftovers of web pages that cleaning has to deal with."""
    kind = number % 6
    if kind == 0:
        words[2] = f"<b>{words[2]}</b>"
    elif kind == 1:
        words[3] = f"{words[3]}&#39;s"
    elif kind == 2:
        words[4] = f"&amp;quot;{words[4]}&amp;quot;"
    elif kind == 3:
        words[5] = "caf\u00e9 \u2013"
    return f"{' '.join(words).capitalize()}."


def measure_shape(folder: Path) -> dict[str, float]:
    """Count what a dump is made of.

    Returns:
        Rows, users, items, shares (0..1) of rows that repeat another, of users with one rating
        and of distinct rows that survive the 5-core, and the size of that core.
    """
    columns = ["asin", "user", "rating", "timestamp"]
    rows = pl.read_csv(folder / RATINGS_FILE, has_header=False, new_columns=columns)
    distinct = rows.unique()
    coded = pl.DataFrame({name: encode(distinct[name])[0] for name in ("user", "asin")})
    core = k_core(coded, 5)
    per_user = coded.group_by("user").len()["len"]
    return {
        "ratings": len(rows),
        "users": len(per_user),
        "items": coded["asin"].n_unique(),
        "duplicate_share": round(1 - len(distinct) / len(rows), 4),
        "one_rating_share": round(int((per_user == 1).sum()) / len(per_user), 4),
        "core_share": round(len(core) / len(distinct), 4),
        "core_users": core["user"].n_unique(),
        "core_items": core["asin"].n_unique(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ratings", type=int, default=5_000_000)
    parser.add_argument("--metadata-lines", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    write_raw_dump(arguments.folder, arguments.ratings, arguments.metadata_lines, arguments.seed)
    print(f"written in {time.perf_counter() - began:.1f} s")
    for name, value in measure_shape(arguments.folder).items():
        print(f"{name:<20}{value:>14,}")
    for name in (RATINGS_FILE, METADATA_FILE):
        print(f"{name:<20}{(arguments.folder / name).stat().st_size:>14,} bytes")


if __name__ == "__main__":
    main()
