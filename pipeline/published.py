"""Counts of a preparation beside those that others published: where does a difference begin?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmm4rec.config import PrepareConfig
from pipeline.domains import Domain
from pipeline.schema import Count

READ = "read"
CORE = "5-core"
IMAGES = "images"

# Settings under which the published counts came about: those of the authors' released code.
_POLICIES = {"release": "2018", "duplicates": "exact", "require_metadata": True, "k_core": 5}


def compare_counts(
    domain: Domain, counts: list[Count], settings: PrepareConfig, images: int | None = None
) -> dict[str, Any]:
    """Compare the counts after each step with the published ones.

    Args:
        domain: whose published counts are used.
        counts: what was left after each step of a preparation from native raw files; the steps
            `read` and `5-core` are compared.
        settings: the policies of the preparation.
        images: items of the 5-core that have an image; None where images were not asked for.

    Returns:
        Plain data: `rows`, each with step, quantity, published, found and difference (found less
        published), in the order of the steps; `first_difference`, the first step with a
        difference, None where there is none; `note`, why nothing is compared, else None.

    >>> from pipeline.domains import find_domain
    >>> read = Count(step="read", users=72_098, items=2_428, interactions=89_688)
    >>> compared = compare_counts(find_domain("Magazine_Subscriptions"), [read], PrepareConfig())
    >>> compared["rows"][0]["difference"], compared["first_difference"]
    (-1, 'read')
    """
    note = _why_not(domain, settings)
    rows = [] if note else list(_rows(domain, {count.step: count for count in counts}, images))
    first = next((row["step"] for row in rows if row["difference"]), None)
    return {"rows": rows, "first_difference": first, "note": note}


def _why_not(domain: Domain, settings: PrepareConfig) -> str | None:
    for name, published in _POLICIES.items():
        found = getattr(settings, name)
        if found != published:
            return f"not comparable: {name} is {found}, published counts are of {published}"
    if domain.ratings is None and domain.published is None:
        return f"not comparable: no published counts of {domain.name} are known"
    return None


def _rows(domain: Domain, found: dict[str, Count], images: int | None) -> Iterator[dict[str, Any]]:
    published = domain.published
    if READ in found and domain.ratings is not None:
        yield _row(READ, "interactions", domain.ratings, found[READ].interactions)
    if published is None:
        return
    if CORE in found:
        for quantity in ("users", "items", "interactions"):
            yield _row(CORE, quantity, getattr(published, quantity), getattr(found[CORE], quantity))
    if images is not None and published.images is not None:
        yield _row(IMAGES, "items", published.images, images)


def _row(step: str, quantity: str, published: int, found: int) -> dict[str, Any]:
    return {
        "step": step,
        "quantity": quantity,
        "published": published,
        "found": found,
        "difference": found - published,
    }
