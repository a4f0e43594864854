"""The categories of the Amazon Reviews 2018 release: names, files, addresses, published counts."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from mmm4rec.errors import ConfigError

# Bases of the release, in the order in which they are tried; each has the two folders below.
MIRRORS = (
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2",
    "https://jmcauley.ucsd.edu/data/amazon_v2",
)
RATINGS_FOLDER = "categoryFilesSmall"
METADATA_FOLDER = "metaFiles2"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # a domain's name is also a folder's


@dataclass(frozen=True)
class PublishedCounts:
    """Size of a domain after the 5-core, as published (Table I of arXiv:2506.02916)."""

    users: int
    items: int
    interactions: int


@dataclass(frozen=True)
class Domain:
    """A set of interactions and items.

    Attributes:
        name: what it is called here, and its prepared folder.
        category: its name in the release, and in the names of its files.
        published: what the literature counts, None where it says nothing.
    """

    name: str
    category: str
    published: PublishedCounts | None = None

    @property
    def ratings_file(self) -> str:
        """Name of the "ratings only" file in the release."""
        return f"{self.category}.csv"

    @property
    def metadata_file(self) -> str:
        """Name of the metadata file in the release."""
        return f"meta_{self.category}.json.gz"


PRETRAINING = (
    Domain("Food", "Grocery_and_Gourmet_Food", PublishedCounts(115_349, 39_670, 1_027_413)),
    Domain("CDs", "CDs_and_Vinyl", PublishedCounts(94_010, 64_439, 1_118_563)),
    Domain("Kindle", "Kindle_Store", PublishedCounts(138_436, 98_111, 2_204_596)),
    Domain("Movies", "Movies_and_TV", PublishedCounts(281_700, 59_203, 3_226_731)),
    Domain("Home", "Home_and_Kitchen", PublishedCounts(731_913, 185_552, 6_451_926)),
)
DOWNSTREAM = (
    Domain("Scientific", "Industrial_and_Scientific", PublishedCounts(8_442, 4_385, 59_427)),
    Domain("Pantry", "Prime_Pantry", PublishedCounts(13_101, 4_898, 126_962)),
    Domain("Instruments", "Musical_Instruments", PublishedCounts(24_962, 9_964, 208_926)),
    Domain("Arts", "Arts_Crafts_and_Sewing", PublishedCounts(45_486, 21_019, 395_150)),
    # The tables of the papers say 87,436 users: two digits swapped.
    Domain("Office", "Office_Products", PublishedCounts(87_346, 25_986, 684_837)),
)
OTHERS = tuple(
    Domain(category, category)
    for category in (
        "All_Beauty",
        "AMAZON_FASHION",
        "Appliances",
        "Automotive",
        "Books",
        "Cell_Phones_and_Accessories",
        "Clothing_Shoes_and_Jewelry",
        "Digital_Music",
        "Electronics",
        "Gift_Cards",
        "Luxury_Beauty",
        "Magazine_Subscriptions",
        "Patio_Lawn_and_Garden",
        "Pet_Supplies",
        "Software",
        "Sports_and_Outdoors",
        "Tools_and_Home_Improvement",
        "Toys_and_Games",
        "Video_Games",
    )
)
CATALOGUE = (*PRETRAINING, *DOWNSTREAM, *OTHERS)


def find_domain(name: str) -> Domain:
    """Return a domain of the catalogue by its short or its full name.

    Raises:
        ConfigError: there is none; the message names the nearest.

    >>> find_domain("Office") == find_domain("Office_Products")
    True
    """
    domain = _known(name)
    if domain is None:
        names = {alias.lower(): alias for d in CATALOGUE for alias in (d.name, d.category)}
        close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        known = ", ".join(d.name for d in CATALOGUE)
        hint = f"did you mean {names[close[0]]!r}?" if close else f"known: {known}."
        raise ConfigError(
            f"unknown domain {name!r}, {hint} Next, for a set of your own: --source DIR, with "
            f"{name}.csv and meta_{name}.json.gz in it"
        )
    return domain


def name_domain(name: str) -> Domain:
    """Return a domain of the catalogue, or else one of the user's own, whose files bear its name.

    Raises:
        ConfigError: the name cannot be that of a folder.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"domain {name!r}: a name is 1 to 64 letters, digits, or _ -")
    return _known(name) or Domain(name, name)


def _known(name: str) -> Domain | None:
    return next((d for d in CATALOGUE if name in (d.name, d.category)), None)
