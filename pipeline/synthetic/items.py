"""Words and metadata of the miniature Amazon's items.

A theme shows only as words, the same words in every domain; nouns and brands belong to the
domain and say nothing about it. Some titles are damaged as Amazon's are.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pipeline.synthetic.behaviour import NUM_THEMES

T = TypeVar("T")

# What Amazon left in place of many titles: a tag that never closes.
SPAN_TITLE = '<span class="a-size-medium a-color-secondary"'
STRAY_WORD_SHARE = 0.15  # texts with a word of another theme

THEME_WORDS: tuple[tuple[str, ...], ...] = (
    ("ocean", "coastal", "nautical"),
    ("forest", "woodland", "timber"),
    ("cosmic", "galaxy", "lunar"),
    ("retro", "vintage", "antique"),
    ("athletic", "sporty", "racing"),
    ("winter", "snowy", "nordic"),
    ("festive", "carnival", "jubilee"),
    ("desert", "safari", "canyon"),
)
assert len(THEME_WORDS) == NUM_THEMES

_SIZES = ("small", "large", "medium", "set of 2", "pack of 6", "single", "deluxe", "travel size")
_QUALITIES = (
    "sturdy",
    "handy",
    "popular",
    "simple",
    "reliable",
    "everyday",
    "improved",
    "original",
)
_OCCASIONS = ("gifts", "weekends", "guests", "beginners", "families", "daily use", "collectors")
_THEME_SENTENCES = ("{} style.", "Pure {}.", "Every inch {}.")


@dataclass(frozen=True)
class Vocabulary:
    """What is particular to a domain's products.

    Attributes:
        category: the shop's name of the department.
        nouns: what the products are.
        silhouettes: their outlines, keys of `pictures.SILHOUETTES`.
    """

    category: str
    nouns: tuple[str, ...]
    silhouettes: tuple[str, ...]


VOCABULARIES = {
    "MiniFood": Vocabulary(
        "Mini Grocery",
        ("granola", "tea", "crackers", "honey", "noodles", "cocoa"),
        ("pouch", "box"),
    ),
    "MiniHome": Vocabulary(
        "Mini Household", ("lamp", "cushion", "kettle", "rug", "vase", "basket"), ("round", "tent")
    ),
    "MiniMovies": Vocabulary(
        "Mini Cinema", ("drama", "comedy", "documentary", "series", "musical"), ("box", "round")
    ),
    "MiniOffice": Vocabulary(
        "Mini Stationery", ("notebook", "stapler", "binder", "pen", "planner"), ("box", "bottle")
    ),
    "MiniArts": Vocabulary(
        "Mini Crafts", ("canvas", "yarn", "brush", "clay", "stencil", "beads"), ("tent", "pouch")
    ),
}


def random_codes(rng: np.random.Generator, count: int, prefix: str, length: int) -> list[str]:
    """Return `count` distinct codes of `length` capital letters and digits after `prefix`."""
    letters = np.array(list(string.ascii_uppercase + string.digits))
    codes = [prefix + "".join(row) for row in letters[rng.integers(36, size=(count, length))]]
    assert len(set(codes)) == count, "a collision in the space of codes"
    return codes


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Draw one of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


def deal(rng: np.random.Generator, counts: Mapping[T, int], rest: T, size: int) -> list[T]:
    """Return `size` values in random order: each as often as `counts` says, the others `rest`."""
    dealt = [value for value, count in counts.items() for _ in range(count)]
    dealt += [rest] * (size - len(dealt))
    return [dealt[index] for index in rng.permutation(size)]


def draw_metadata(
    rng: np.random.Generator, asin: str, theme: int, vocabulary: Vocabulary, brand: str
) -> dict[str, Any]:
    """Draw one metadata line in the schema of the Amazon 2018 release, without image URLs."""
    noun = pick(rng, vocabulary.nouns)
    return {
        "category": [vocabulary.category, f"{noun.title()} &amp; More"],
        "tech1": "",
        "description": _draw_description(rng, theme),
        "fit": "",
        "title": _draw_title(rng, theme, noun),
        "also_buy": [],
        "tech2": "",
        "brand": brand,
        "feature": [_neutral_sentence(rng)],
        "rank": [],
        "also_view": [],
        "details": {},
        "main_cat": vocabulary.category,
        "similar_item": "",
        "date": "",
        "price": f"${rng.uniform(3, 90):.2f}",
        "asin": asin,
    }


def damage_title(title: str, kind: str) -> str:
    """Return a title with HTML junk: kind "span" (all that is left), "entity", "tag", "none"."""
    if kind == "span":
        return SPAN_TITLE
    if kind == "entity":
        return title.replace(", ", " &amp; ") + " &#39;New&#39;&nbsp;"
    return f"<b>{title}</b><br />" if kind == "tag" else title


def _draw_title(rng: np.random.Generator, theme: int, noun: str) -> str:
    words = [_theme_word(rng, theme), pick(rng, _QUALITIES), _theme_word(rng, theme), noun]
    return f"{' '.join(words).title()}, {pick(rng, _SIZES)}"


def _draw_description(rng: np.random.Generator, theme: int) -> list[str]:
    sentences = [pick(rng, _THEME_SENTENCES).format(_theme_word(rng, theme)) for _ in range(3)]
    if rng.random() < STRAY_WORD_SHARE:
        sentences.append(f"Not {_theme_word(rng, int(rng.integers(NUM_THEMES)))}.")
    return [" ".join(sentences), _neutral_sentence(rng)]


def _theme_word(rng: np.random.Generator, theme: int) -> str:
    return pick(rng, THEME_WORDS[theme])


def _neutral_sentence(rng: np.random.Generator) -> str:
    return f"{pick(rng, _QUALITIES).title()}, for {pick(rng, _OCCASIONS)}."
