"""What the raw files of each Amazon release hold, and how the file of another kind is told.

The readers know no field by name: which key holds what is written here, once per release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mmm4rec.errors import DataError
from pipeline.domains import Release
from pipeline.rawfile import LATEST

Kind = Literal["ratings", "reviews", "metadata"]

_EARLIEST = 100_000_000  # Unix seconds, 1973: times of ratings are later, in either unit


@dataclass(frozen=True)
class InteractionFields:
    """Fields of an interaction.

    Attributes:
        user: key of the user in a review.
        asin: key of the item.
        rating: key of the rating.
        timestamp: key of the time.
        per_second: units of the time in a second.
        unit: their name.
        columns: user, asin, rating and timestamp in the order of a ratings file.
        header: its first line, empty where it has none.
    """

    user: str
    asin: str
    rating: str
    timestamp: str
    per_second: int
    unit: str
    columns: tuple[str, ...]
    header: str

    @property
    def latest(self) -> int:
        """The latest time that is no mistake, in the unit of the release."""
        return LATEST * self.per_second

    def describe_time(self, timestamp: int | None, found: Any) -> str:
        """Say what is wrong with a time: the number, None where what was found is none."""
        if timestamp is None:
            return f"timestamp {found!r:.80} is not an integer"
        return (
            f"timestamp {timestamp!r:.80} is not in 0..{self.latest} (Unix {self.unit} until 2100)"
        )


@dataclass(frozen=True)
class MetadataFields:
    """Fields of an item.

    Attributes:
        asin: key of its name.
        text: key of each field that `pipeline.text` reads, by the name it has there.
        url_lists: keys of lists of image URLs, the best first.
        pictures: key of the images as objects, empty where there are none.
        sizes: keys of their URLs, the best first.
    """

    asin: str
    text: Mapping[str, str]
    url_lists: tuple[str, ...] = ()
    pictures: str = ""
    sizes: tuple[str, ...] = ()


INTERACTIONS: Mapping[Release, InteractionFields] = {
    "2018": InteractionFields(
        user="reviewerID",
        asin="asin",
        rating="overall",
        timestamp="unixReviewTime",
        per_second=1,
        unit="seconds",
        columns=("asin", "user", "rating", "timestamp"),
        header="",
    ),
    "2023": InteractionFields(
        user="user_id",
        asin="parent_asin",
        rating="rating",
        timestamp="timestamp",
        per_second=1000,
        unit="milliseconds",
        columns=("user", "asin", "rating", "timestamp"),
        header="user_id,parent_asin,rating,timestamp",
    ),
}
METADATA: Mapping[Release, MetadataFields] = {
    "2018": MetadataFields(
        asin="asin",
        text={name: name for name in ("title", "brand", "category", "feature", "description")},
        url_lists=("imageURLHighRes", "imageURL", "image"),  # `image` in older files
    ),
    "2023": MetadataFields(
        asin="parent_asin",
        text={
            "title": "title",
            "brand": "store",
            "category": "categories",
            "feature": "features",
            "description": "description",
        },
        pictures="images",
        sizes=("hi_res", "large", "thumb"),
    ),
}


def check_records(
    path: Path, records: Sequence[Mapping[str, Any]], kind: Kind, release: Release
) -> None:
    """Refuse a file of JSON lines that is plainly of another kind, release or unit of time.

    Args:
        path: the file.
        records: those at its beginning that are well-formed.
        kind: what it should hold.
        release: of which release.

    Raises:
        DataError: it is another file; the message says which.
    """
    found = [known for record in records if (known := _kind_of_record(record))]
    if found and (kind, release) not in found:
        _refuse(path, found[0], kind, release)
    if kind == "reviews":
        key = INTERACTIONS[release].timestamp
        _check_unit(path, [record.get(key) for record in records], release)


def check_rows(path: Path, lines: Sequence[str], release: Release) -> None:
    """Refuse a ratings file that is plainly of another release or unit of time.

    Args:
        path: the file.
        lines: those at its beginning.
        release: of which release it should be.

    Raises:
        DataError: it is another file, or has a header where there should be none or another.
    """
    header, first = INTERACTIONS[release].header, lines[0]
    rows = [line for line in lines if line.strip()]
    found = _release_of_row(rows[0]) if rows else None
    if found and found != release:
        _refuse(path, ("ratings", found), "ratings", release)
    if header and first != header:
        raise DataError(
            f"{path}: the first line of ratings of the {release} release is {header}, but here it "
            f"is {first!r:.80}. Next: delete it and fetch it again"
        )
    if not header and _is_header(rows):
        raise DataError(
            f"{path}: ratings of the {release} release have no header, but this begins with "
            f"{rows[0]!r:.80}. Next: fetch the published file, or take that line out if the "
            f"columns are item,user,rating,timestamp"
        )
    times = [_integer(row.split(",")[3]) for row in rows if row.count(",") == 3]
    _check_unit(path, times, release)


def _kind_of_record(record: Mapping[str, Any]) -> tuple[Kind, Release] | None:
    for release in get_args(Release):
        fields = INTERACTIONS[release]
        if fields.user in record and fields.asin in record:
            return "reviews", release
    return next(
        (("metadata", release) for release in ("2023", "2018") if METADATA[release].asin in record),
        None,
    )


def _release_of_row(first: str) -> Release | None:
    if first == INTERACTIONS["2023"].header:
        return "2023"
    fields = first.split(",")
    return "2018" if len(fields) == 4 and _integer(fields[3]) is not None else None


def _refuse(path: Path, found: tuple[Kind, Release], kind: Kind, release: Release) -> None:
    remedy = f"--release {found[1]}" if found[0] == kind else "give each file its own name"
    raise DataError(
        f"{path}: expected {kind} of the {release} release, but this looks like {found[0]} of the "
        f"{found[1]} release. Next: {remedy}"
    )


def _check_unit(path: Path, values: Sequence[Any], release: Release) -> None:
    times = [value for value in values if type(value) is int]
    for other, fields in INTERACTIONS.items():
        low, high = _EARLIEST * fields.per_second, fields.latest
        if other != release and times and low < min(times) and max(times) <= high:
            raise DataError(
                f"{path}: times of the {release} release are {INTERACTIONS[release].unit}, but "
                f"these look like {fields.unit} ({times[0]}). Next: --release {other} if it is of "
                f"that release, else fetch the published file"
            )


def _is_header(rows: Sequence[str]) -> bool:
    numbers = [[_integer(field) for field in row.split(",")[3:4]] for row in rows[:2]]
    return len(numbers) == 2 and numbers[0] == [None] and numbers[1] != [None]


def _integer(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) < 20 else None
