"""What the miniature shop lists: the metadata file and the pictures on the server."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.schema import atomic_path
from pipeline.synthetic.behaviour import NUM_LOOKS, NUM_THEMES, IntArray, Latents
from pipeline.synthetic.items import (
    Vocabulary,
    damage_title,
    deal,
    draw_metadata,
    pick,
    random_codes,
)
from pipeline.synthetic.pictures import draw_product
from pipeline.synthetic.shop import (
    IMAGE_PATH,
    WITHOUT_IMAGE,
    Fate,
    Fault,
    Listing,
    draw_fates,
    list_item,
)

RARE_SHARE, UNLISTED_SHARE, STALE_SHARE = 0.08, 0.04, 0.05  # per item of the core
DAMAGE_SHARES = {"span": 0.05, "entity": 0.1, "tag": 0.05}  # of titles
NUM_BRANDS = 12
IMAGE_FIELDS = ("imageURL", "imageURLHighRes")
STALE_IMAGE = f"{IMAGE_PATH}/NOLONGERHERE.jpg"


@dataclass(frozen=True)
class Catalogue:
    """A domain's items.

    Attributes:
        core: asins with their place in the latent arrays.
        rare: asins with metadata that are bought too seldom.
        unlisted: asins without metadata.
        fates: what becomes of the pictures of the core's items.
        lines: metadata in file order; image URLs without scheme and host.
        faults: what the server does instead of answering, by URL path.
        ledger: how many there are of what.
    """

    core: list[str]
    rare: list[str]
    unlisted: list[str]
    fates: list[Fate]
    lines: list[dict[str, Any]]
    faults: dict[str, Fault]
    ledger: dict[str, int]


def draw_catalogue(
    rng: np.random.Generator, www: Path, latents: Latents, vocabulary: Vocabulary
) -> Catalogue:
    """Draw metadata and pictures for the core's items, and for others around them.

    The pictures are written under `www`.
    """
    num_core = len(latents.looks)
    num_rare, num_unlisted, num_stale = (
        max(2, round(share * num_core)) for share in (RARE_SHARE, UNLISTED_SHARE, STALE_SHARE)
    )
    asins = random_codes(rng, num_core + num_rare + num_unlisted, "B0", 8)
    listed, unlisted = asins[: num_core + num_rare], asins[num_core + num_rare :]
    looks = np.append(latents.looks, rng.integers(NUM_LOOKS, size=num_rare))
    themes = np.append(latents.themes, rng.integers(NUM_THEMES, size=num_rare))
    fates = draw_fates(rng, num_core)
    rare_fates: list[Fate] = ["ok"] * num_rare
    listings = _draw_listings(rng, www, looks, [*fates, *rare_fates], vocabulary)
    lines = _draw_lines(rng, listed, themes, vocabulary, listings)
    lines = [lines[index] for index in rng.permutation(len(lines))]
    return Catalogue(
        core=listed[:num_core],
        rare=listed[num_core:],
        unlisted=unlisted,
        fates=fates,
        lines=_insert_stale(rng, lines, num_stale),
        faults={path: fault for listing in listings for path, fault in listing.faults.items()},
        ledger={
            "items_below_core": num_rare,
            "items_without_metadata": num_unlisted,
            "stale_metadata_lines": num_stale,
            "items_without_image": sum(fate in WITHOUT_IMAGE for fate in fates),
            **{f"titles_with_{kind}": n for kind, n in _num_damaged(len(listed)).items()},
            **{f"images_{fate}": count for fate, count in sorted(Counter(fates).items())},
        },
    )


def write_metadata(folder: Path, name: str, catalogue: Catalogue, url: str) -> None:
    """Write `meta_<name>.json.gz`: one JSON object per line, images under the base URL `url`.

    The same bytes for the same catalogue and URL: the gzip header holds no time and no name.
    """
    with (
        atomic_path(folder / f"meta_{name}.json.gz") as path,
        path.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as zipped,
    ):
        for line in catalogue.lines:
            images = {key: [url + image for image in line[key]] for key in IMAGE_FIELDS}
            zipped.write(json.dumps({**line, **images}).encode() + b"\n")


def _draw_listings(
    rng: np.random.Generator,
    www: Path,
    looks: IntArray,
    fates: Sequence[Fate],
    vocabulary: Vocabulary,
) -> list[Listing]:
    listings = []
    for look, fate in zip(looks.tolist(), fates, strict=True):
        picture = draw_product(rng, look, pick(rng, vocabulary.silhouettes))
        listings.append(list_item(rng, www, picture, fate))
    return listings


def _draw_lines(
    rng: np.random.Generator,
    asins: Sequence[str],
    themes: IntArray,
    vocabulary: Vocabulary,
    listings: Sequence[Listing],
) -> list[dict[str, Any]]:
    brands = [code.title() for code in random_codes(rng, NUM_BRANDS, "", 6)]
    damages = deal(rng, _num_damaged(len(asins)), "none", len(asins))
    lines = []
    for asin, theme, damage, listing in zip(asins, themes.tolist(), damages, listings, strict=True):
        line = draw_metadata(rng, asin, theme, vocabulary, pick(rng, brands))
        line["title"] = damage_title(line["title"], damage)
        images = {"imageURL": list(listing.small), "imageURLHighRes": list(listing.large)}
        lines.append({**line, **images})
    return lines


def _num_damaged(num_titles: int) -> dict[str, int]:
    return {kind: max(1, round(share * num_titles)) for kind, share in DAMAGE_SHARES.items()}


def _insert_stale(
    rng: np.random.Generator, lines: Sequence[dict[str, Any]], count: int
) -> list[dict[str, Any]]:
    """Put outdated lines of some items before the valid ones: the last line of an item counts."""
    result = list(lines)
    for line in [lines[index] for index in rng.choice(len(lines), count, replace=False)]:
        stale = {**line, "title": "Currently unavailable", "description": []}
        stale.update({key: [STALE_IMAGE] for key in IMAGE_FIELDS})
        result.insert(int(rng.integers(result.index(line) + 1)), stale)
    return result
