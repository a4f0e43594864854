"""From raw files to the interactions and items that survive the policies, with every count."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from mmm4rec.config import PrepareConfig
from mmm4rec.errors import DataError
from pipeline.amazon import InteractionScan
from pipeline.atomic import AtomicTables
from pipeline.candidates import Candidates, collect_candidates
from pipeline.filtering import k_core, keep_items
from pipeline.inputs import AmazonFiles
from pipeline.metadata import read_metadata
from pipeline.rawfile import BAD_LINE_SCHEMA
from pipeline.schema import Count

DUPLICATES = {"exact": "exact duplicates removed", "pair": "first event of each user and item"}


@dataclass(frozen=True)
class Survivors:
    """What is left of a set after the policies.

    Attributes:
        interactions: user, asin, timestamp, position; in the order of the file.
        metadata: rows in METADATA_SCHEMA, those of other items among them.
        counts: what was left after each step.
        items: names in the order of their ids, None where the set brings no numbers.
        users: as `items`.
        bad_lines: malformed lines that were set aside (BAD_LINE_SCHEMA).
        has_image: whether the set's authors had an image, per item; None where they do not say.
        cut_users: users whose older events may be missing.
    """

    interactions: pl.DataFrame
    metadata: pl.DataFrame
    counts: list[Count]
    items: list[str] | None = None
    users: list[str] | None = None
    bad_lines: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=BAD_LINE_SCHEMA))
    has_image: list[bool] | None = None
    cut_users: int = 0


def filter_amazon(
    domain: str, files: AmazonFiles, settings: PrepareConfig, folder: Path
) -> Survivors:
    """Read native raw files, holding in memory only what can survive.

    Args:
        domain: its name, for messages.
        files: interactions and metadata.
        settings: the policies.
        folder: where a temporary folder can be made.

    Raises:
        DataError: a file is missing or malformed, or nothing is left.
    """
    scan = InteractionScan(
        files.interactions, release=settings.release, max_bad_lines=settings.max_bad_lines
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".spilled-") as spilled:
        found = collect_candidates(
            scan, Path(spilled), duplicates=settings.duplicates, k=settings.k_core
        )
        counts = [found.read]
        if settings.duplicates != "keep":
            counts.append(_renamed(found.distinct, DUPLICATES[settings.duplicates]))
        # The core with metadata is inside this one: no other item's metadata need be held.
        core = k_core(found.rows, settings.k_core)
        wanted = found.items[core["asin"].unique()]
        metadata = read_metadata(
            files.metadata,
            release=settings.release,
            keep=wanted,
            template=settings.text_template,
            max_bad_lines=settings.max_bad_lines,
        )
        if settings.require_metadata:
            counts.append(found.count_items("with metadata", metadata.asins))
            core = k_core(_keep_names(core, found, metadata.asins), settings.k_core)
    counts.append(count(core_step(settings), core))
    kept = found.name(core)
    _refuse_nothing(domain, kept, counts, settings)
    bad_lines = pl.concat([scan.bad_lines, metadata.bad_lines])
    return Survivors(kept, metadata.rows, counts, bad_lines=bad_lines)


def filter_processed(domain: str, tables: AtomicTables, settings: PrepareConfig) -> Survivors:
    """Take over a set that others have processed; one without numbers is filtered to its core.

    Raises:
        DataError: nothing is left.
    """
    kept, counts = tables.interactions, [count("read", tables.interactions)]
    if tables.items is None:
        kept = k_core(kept, settings.k_core)
        counts.append(count(core_step(settings), kept))
    _refuse_nothing(domain, kept, counts, settings)
    return Survivors(
        kept,
        tables.metadata,
        counts,
        tables.items,
        tables.users,
        has_image=tables.has_image,
        cut_users=tables.cut_users,
    )


def filter_to_images(
    domain: str, interactions: pl.DataFrame, with_image: pl.Series, settings: PrepareConfig
) -> tuple[pl.DataFrame, list[Count]]:
    """Keep the interactions with items that have an image, and of these the core again.

    Args:
        domain: its name, for messages.
        interactions: user, asin and more.
        with_image: asins of the items that have an image.
        settings: the policies.

    Raises:
        DataError: nothing is left.
    """
    kept = keep_items(interactions, with_image)
    counts = [count("with image", kept)]
    kept = k_core(kept, settings.k_core)
    counts.append(count(f"{core_step(settings)} again", kept))
    _refuse_nothing(domain, kept, counts, settings)
    return kept, counts


def core_step(settings: PrepareConfig) -> str:
    """Return the name of the step that filters to the k-core."""
    return f"{settings.k_core}-core"


def count(step: str, interactions: pl.DataFrame) -> Count:
    """Count the users, items and rows of interactions with user and asin."""
    users, items = (interactions[name].n_unique() for name in ("user", "asin"))
    return Count(step=step, users=users, items=items, interactions=len(interactions))


def _keep_names(core: pl.DataFrame, found: Candidates, names: pl.Series) -> pl.DataFrame:
    is_kept = found.items.is_in(names.implode())
    return core.filter(is_kept[core["asin"]])


def _renamed(counted: Count, step: str) -> Count:
    return counted.model_copy(update={"step": step})


def _refuse_nothing(
    domain: str, kept: pl.DataFrame, counts: list[Count], settings: PrepareConfig
) -> None:
    if kept.is_empty():
        steps = "; ".join(f"{c.step}: {c.interactions:,} interactions" for c in counts)
        raise DataError(
            f"{domain}: nothing is left after the filters ({steps}). Next: check that ratings "
            f"and metadata are of one category, or --set prepare.k_core=N below {settings.k_core}"
        )
