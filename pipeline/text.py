"""What an item says: Amazon's titles, brands and descriptions, cleaned and put together.

Amazon's fields are fragments of web pages: entities escaped once or twice, tags, tags that were
never closed (most titles of Magazine_Subscriptions are nothing but
`<span class="a-size-medium a-color-secondary"`), and scripts.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Template = Literal["clean", "official"]

# Characters kept of a field: no encoder reads more, and a hostile field costs no more.
MAX_CHARS = {"title": 512, "brand": 128, "category": 512, "feature": 2048, "description": 4096}
MAX_OFFICIAL_CHARS = 1 << 16
_MAX_PARTS = 64  # of a list

_ESCAPES = 4  # entities are escaped up to twice in the data; each round also frees tags
_HUGE_REFERENCE = re.compile(r"&#[xX]?[0-9a-fA-F]{8,};?")  # int() refuses thousands of digits
_INVISIBLE = re.compile(r"[\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff\ufffd\ud800-\udfff]")
_REPLACEMENT = "\ufffd"  # the one invisible character that Python calls printable
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SCRIPT = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)", re.I | re.S)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_UNCLOSED_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*\s+[\w-]+\s*=[^<>]*\Z")
_TAIL_OF_TAG = re.compile(r"""\A[^<>]*["']\s*/?>""")
_SCRIPT_TITLE = re.compile(r"getTime\b|\bfunction\s*\(|\bP\.when\(")


def clean(value: Any, max_chars: int, separator: str = " ") -> str:
    """Return what a reader of the web page would see of a field, on one line.

    Args:
        value: a string, a number or a list of them; anything else is no text.
        max_chars: where the text is cut, between two words.
        separator: between the parts of a list; none is said twice.

    >>> clean("<b>Salt &amp;amp; Pepper</b><br>12 oz", 80)
    'Salt & Pepper 12 oz'
    >>> clean(["Grocery", "</span>", "Salt &amp; Pepper"], 80, ", ")
    'Grocery, Salt & Pepper'
    """
    parts = value[:_MAX_PARTS] if isinstance(value, list) else [value]
    cleaned = dict.fromkeys(_clean_part(_as_text(part), max_chars) for part in parts)
    return cut(separator.join(part for part in cleaned if part), max_chars)


def clean_title(value: Any) -> str:
    """Return a title as `clean` does; empty where it is a leftover of markup or a script.

    >>> clean_title('<span class="a-size-medium a-color-secondary"')
    ''
    """
    text = _as_text(value)[: 4 * MAX_CHARS["title"]]
    is_script = _SCRIPT_TITLE.search(text) is not None
    return "" if is_script else clean(_TAIL_OF_TAG.sub("", text), MAX_CHARS["title"])


def clean_brand(value: Any) -> str:
    """Return a brand as `clean` does."""
    return clean(value, MAX_CHARS["brand"])


def cut(text: str, max_chars: int) -> str:
    """Return the text up to `max_chars` characters, between two words where there are two.

    >>> cut("one two three", 9)
    'one two'
    """
    if len(text) <= max_chars:
        return text
    words, space, _ = text[: max_chars + 1].rpartition(" ")
    return words if space else text[:max_chars]


class ItemText(NamedTuple):
    """What an item says: title and brand cleaned, possibly empty; text never empty."""

    title: str
    brand: str
    text: str


def describe_item(asin: str, record: Mapping[str, Any], template: Template) -> ItemText:
    """Return the title and the brand of an item, and the text that the encoder reads.

    Args:
        asin: the item's name.
        record: title, brand, category, feature and description as published; each may be missing
            or of another type.
        template: `clean`: title, brand, description; where there is no title, brand, category,
            features and description. `official`: as the authors' released code writes it,
            which describes missing fields by their empty values and cleans nothing.
    """
    title, brand = clean_title(record.get("title")), clean_brand(record.get("brand"))
    is_official = template == "official"
    text = official_text(asin, record) if is_official else _clean_text(asin, title, brand, record)
    return ItemText(title, brand, text)


def item_text(asin: str, record: Mapping[str, Any], template: Template) -> str:
    """Return the text that the encoder reads, as `describe_item`; never empty."""
    return describe_item(asin, record, template).text


def official_text(asin: str, record: Mapping[str, Any]) -> str:
    """Return the text of the authors' released code.

    >>> official_text("B1", {"title": "Salt", "description": ["Fine.", "White."]})
    "Title: Salt ; Description: ['Fine.', 'White.'] ; "
    """
    parts = [
        f"{key.capitalize()}: {record[key]} ; "
        for key in ("title", "brand", "description")
        if record.get(key) is not None
    ]
    text = "".join(parts) or f"Asin: {asin} ; "
    return encodable(text[:MAX_OFFICIAL_CHARS])


def encodable(text: str) -> str:
    """Return the text with `?` for what UTF-8 cannot hold (half an emoji, from broken JSON)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _clean_text(asin: str, title: str, brand: str, record: Mapping[str, Any]) -> str:
    fields = ["description"] if title else ["category", "feature", "description"]
    details = [
        clean(record.get(name), MAX_CHARS[name], ", " if name == "category" else " ")
        for name in fields
    ]
    parts = dict.fromkeys(part for part in (title, brand, *details) if part)  # no part twice
    return " ".join(_as_sentence(part) for part in parts) or asin


def _as_sentence(text: str) -> str:
    return text if text[-1] in ".!?" else f"{text}."


def _as_text(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number or isinstance(value, str) else ""


def _clean_part(text: str, max_chars: int) -> str:
    text = text[: 4 * max_chars]  # markup is not text: read more than is kept
    if _may_have_markup(text):
        text = _show(text)
    if not text.isprintable() or _REPLACEMENT in text:
        text = _CONTROL.sub(" ", _INVISIBLE.sub("", text))
    return " ".join(text.split())


def _may_have_markup(text: str) -> bool:
    return "&" in text or "<" in text


def _show(text: str) -> str:
    text = _HUGE_REFERENCE.sub(" ", text)
    for _ in range(_ESCAPES):
        before = text
        text = _strip_markup(html.unescape(text))
        if text == before or not _may_have_markup(text):
            break
    return text


def _strip_markup(text: str) -> str:
    if "<" not in text:
        return text
    for markup in (_SCRIPT, _TAG, _UNCLOSED_TAG):
        text = markup.sub(" ", text)
    return text
