"""The categories of the Amazon Reviews releases: names, files, addresses, published counts."""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmm4rec.errors import ConfigError

Release = Literal["2018", "2023"]

SUFFIX_2023 = "-2023"  # of a domain's name: its folder is not that of the 2018 release

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # a domain's name is also a folder's


@dataclass(frozen=True)
class PublishedCounts:
    """Size of a domain after the 5-core, as published (Table I of arXiv:2506.02916).

    Attributes:
        users: users.
        items: items.
        interactions: interactions.
        images: items that had an image when others downloaded them. Unconfirmed: quoted from
            memory of the table in MISSRec (arXiv:2308.11175), not read in it again.
    """

    users: int
    items: int
    interactions: int
    images: int | None = None


@dataclass(frozen=True)
class Domain:
    """A set of interactions and items.

    Attributes:
        name: what it is called here, and its prepared folder.
        category: its name in the release, and in the names of its files.
        published: what the literature counts after the 5-core, None where it says nothing.
        ratings: lines of the "ratings only" file as the release's page states them.
        ratings_sha256: of that file as the mirrors serve it (with CRLF line ends).
        release: the release it is of.
    """

    name: str
    category: str
    published: PublishedCounts | None = None
    ratings: int | None = None
    ratings_sha256: str | None = None
    release: Release = "2018"

    @property
    def short(self) -> str:
        """The name without the release."""
        return self.name.removesuffix(SUFFIX_2023)

    @property
    def aliases(self) -> tuple[str, ...]:
        """All names that mean this domain, and that its files may bear."""
        return tuple(dict.fromkeys((self.category, self.name, self.short)))


@dataclass(frozen=True)
class Edition:
    """The files of a release in one compression.

    Attributes:
        bases: mirrors that serve the same bytes, in the order in which they are tried.
        interactions: path of the interactions below a base; {} stands for the category.
        metadata: path of the item metadata.
    """

    bases: tuple[str, ...]
    interactions: str
    metadata: str


EDITIONS: dict[Release, tuple[Edition, ...]] = {
    "2018": (
        Edition(
            (
                "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2",
                "https://jmcauley.ucsd.edu/data/amazon_v2",
            ),
            "categoryFilesSmall/{}.csv",
            "metaFiles2/meta_{}.json.gz",
        ),
    ),
    "2023": (
        Edition(
            ("https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023",),
            "raw/review_categories/{}.jsonl.gz",
            "raw/meta_categories/meta_{}.jsonl.gz",
        ),
        Edition(
            ("https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023/resolve/main",),
            "raw/review_categories/{}.jsonl",
            "raw/meta_categories/meta_{}.jsonl",
        ),
    ),
}


def _read_ratings() -> dict[str, tuple[int, str]]:
    """Return lines and sha256 of the "ratings only" files of the 2018 release by category.

    Lines as on the release's page, sha256 as the loaders of OmniRec check it; both are those of
    the file itself for Magazine_Subscriptions.
    """
    with Path(__file__).with_name("ratings_2018.csv").open(encoding="ascii", newline="") as file:
        return {
            row["category"]: (int(row["ratings"]), row["sha256"]) for row in csv.DictReader(file)
        }


_RATINGS = _read_ratings()
_PRETRAINING = {
    "Food": ("Grocery_and_Gourmet_Food", PublishedCounts(115_349, 39_670, 1_027_413, 29_990)),
    "CDs": ("CDs_and_Vinyl", PublishedCounts(94_010, 64_439, 1_118_563, 21_166)),
    "Kindle": ("Kindle_Store", PublishedCounts(138_436, 98_111, 2_204_596, 0)),
    "Movies": ("Movies_and_TV", PublishedCounts(281_700, 59_203, 3_226_731, 8_675)),
    "Home": ("Home_and_Kitchen", PublishedCounts(731_913, 185_552, 6_451_926, 34_320)),
}
_DOWNSTREAM = {
    "Scientific": ("Industrial_and_Scientific", PublishedCounts(8_442, 4_385, 59_427, 1_585)),
    "Pantry": ("Prime_Pantry", PublishedCounts(13_101, 4_898, 126_962, 4_587)),
    "Instruments": ("Musical_Instruments", PublishedCounts(24_962, 9_964, 208_926, 6_289)),
    "Arts": ("Arts_Crafts_and_Sewing", PublishedCounts(45_486, 21_019, 395_150, 9_437)),
    # The tables of the papers say 87,436 users: two digits swapped.
    "Office": ("Office_Products", PublishedCounts(87_346, 25_986, 684_837, 16_628)),
}
_SHORT_NAMES = {category: name for name, (category, _) in (_PRETRAINING | _DOWNSTREAM).items()}
_CATEGORIES_2023 = (
    "All_Beauty",
    "Amazon_Fashion",
    "Appliances",
    "Arts_Crafts_and_Sewing",
    "Automotive",
    "Baby_Products",
    "Beauty_and_Personal_Care",
    "Books",
    "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories",
    "Clothing_Shoes_and_Jewelry",
    "Digital_Music",
    "Electronics",
    "Gift_Cards",
    "Grocery_and_Gourmet_Food",
    "Handmade_Products",
    "Health_and_Household",
    "Health_and_Personal_Care",
    "Home_and_Kitchen",
    "Industrial_and_Scientific",
    "Kindle_Store",
    "Magazine_Subscriptions",
    "Movies_and_TV",
    "Musical_Instruments",
    "Office_Products",
    "Patio_Lawn_and_Garden",
    "Pet_Supplies",
    "Software",
    "Sports_and_Outdoors",
    "Subscription_Boxes",
    "Tools_and_Home_Improvement",
    "Toys_and_Games",
    "Video_Games",
    "Unknown",  # items whose category was not known
)


def _of_2018(named: dict[str, tuple[str, PublishedCounts]]) -> tuple[Domain, ...]:
    return tuple(
        Domain(name, category, published, *_RATINGS[category])
        for name, (category, published) in named.items()
    )


def _of_2023(category: str) -> Domain:
    return Domain(_SHORT_NAMES.get(category, category) + SUFFIX_2023, category, release="2023")


PRETRAINING = _of_2018(_PRETRAINING)
DOWNSTREAM = _of_2018(_DOWNSTREAM)
OTHERS = tuple(
    Domain(category, category, None, *ratings)
    for category, ratings in _RATINGS.items()
    if category not in _SHORT_NAMES
)
CATALOGUES: dict[Release, tuple[Domain, ...]] = {
    "2018": (*PRETRAINING, *DOWNSTREAM, *OTHERS),
    "2023": tuple(map(_of_2023, _CATEGORIES_2023)),
}


def find_domain(name: str, release: Release = "2018") -> Domain:
    """Return a domain of a release by its short or its full name.

    Raises:
        ConfigError: there is none; the message names the nearest.

    >>> find_domain("Office") == find_domain("Office_Products")
    True
    >>> find_domain("Office", "2023").name
    'Office-2023'
    """
    _check_release(name, release)
    domain = _known(name, release)
    if domain is None:
        catalogue = CATALOGUES[release]
        names = {alias.lower(): alias for d in catalogue for alias in d.aliases}
        close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        known = ", ".join(d.short for d in catalogue)
        hint = f"did you mean {names[close[0]]!r}?" if close else f"known: {known}."
        files = [name_file(EDITIONS[release][0].interactions, name)]
        files.append(name_file(EDITIONS[release][0].metadata, name))
        raise ConfigError(
            f"unknown domain {name!r} of release {release}, {hint} Next, for a set of your own: "
            f"--source DIR, with {files[0]} and {files[1]} in it"
        )
    return domain


def name_domain(name: str, release: Release | None = None) -> Domain:
    """Return a domain of a release, or else one of the user's own, whose files bear its name.

    Args:
        name: a short or full name, or that of a prepared folder.
        release: the release; None: the one that the name is of, as a prepared folder's is.

    Raises:
        ConfigError: the name cannot be that of a folder, or is of another release.

    >>> name_domain("Office-2023").category
    'Office_Products'
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"domain {name!r}: a name is 1 to 64 letters, digits, or _ -")
    if release is None:
        release = "2023" if name.endswith(SUFFIX_2023) else "2018"
    _check_release(name, release)
    return _known(name, release) or _own(name, release)


def name_file(path: str, category: str) -> str:
    """Return the file name of a category, given a path of an `Edition`.

    >>> name_file("metaFiles2/meta_{}.json.gz", "Books")
    'meta_Books.json.gz'
    """
    return path.rpartition("/")[2].format(category)


def _known(name: str, release: Release) -> Domain | None:
    return next((d for d in CATALOGUES[release] if name in d.aliases), None)


def _own(name: str, release: Release) -> Domain:
    short = name.removesuffix(SUFFIX_2023)
    suffix = SUFFIX_2023 if release == "2023" else ""
    return Domain(short + suffix, short, release=release)


def _check_release(name: str, release: Release) -> None:
    if release == "2018" and name.endswith(SUFFIX_2023):
        raise ConfigError(
            f"domain {name!r} is of release 2023, but the release asked for is 2018. "
            f"Next: --release 2023"
        )
