"""Where the raw files of a domain are: in a folder of the user's, or fetched first."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmm4rec.errors import ConfigError, DataError
from pipeline.atomic import AtomicFiles, atomic_names, find_atomic
from pipeline.domains import (
    METADATA_FOLDER,
    MIRRORS,
    RATINGS_FOLDER,
    Domain,
    find_domain,
    name_domain,
)
from pipeline.download import Progress, download

INTERACTION_ENDS = (".csv", ".csv.gz", ".json.gz", ".json", "_5.json.gz", "_5.json")
METADATA_ENDS = (".json.gz", ".json")


@dataclass(frozen=True)
class AmazonFiles:
    """Native raw files of a domain: ratings (or reviews) and metadata."""

    interactions: Path
    metadata: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, for the manifest."""
        return (self.interactions, self.metadata)


def resolve_inputs(
    domain: str, source: str | None, raw_dir: Path, progress: Progress | None = None
) -> AmazonFiles | AtomicFiles:
    """Return the raw files of a domain, fetched first if need be.

    Args:
        domain: a domain of the catalogue, by its short or full name; with `source` also any other.
        source: a folder, whose files are used in place (or those of its subfolder with the
            domain's name); the base URL of the two raw files; None: the release's mirrors.
        raw_dir: where fetched files go, in a folder per domain.
        progress: told the file's name, bytes so far and bytes in all (None where unknown).

    Raises:
        ConfigError: the domain is unknown, or its name cannot be a folder's.
        DataError: the files are not in the folder, or no mirror delivers them.
    """
    if source is None:
        known = find_domain(domain)
        return _fetch_files(known, _mirror_urls, raw_dir / known.name, progress)
    named = name_domain(domain)
    if re.match(r"https?://", source):
        urls_of = partial(_source_urls, source.rstrip("/"))
        return _fetch_files(named, urls_of, raw_dir / named.name, progress)
    if "://" in source:
        raise ConfigError(f"--source {source}: an address begins with http:// or https://")
    return _find_files(named, Path(source))


def _mirror_urls(folder: str, file: str) -> list[str]:
    return [f"{mirror}/{folder}/{file}" for mirror in MIRRORS]


def _source_urls(source: str, folder: str, file: str) -> list[str]:
    return [f"{source}/{file}", f"{source}/{folder}/{file}"]


def _fetch_files(
    domain: Domain,
    urls_of: Callable[[str, str], list[str]],
    folder: Path,
    progress: Progress | None,
) -> AmazonFiles:
    ratings, metadata = domain.ratings_file, domain.metadata_file
    return AmazonFiles(
        download(urls_of(RATINGS_FOLDER, ratings), folder / ratings, progress=progress),
        download(urls_of(METADATA_FOLDER, metadata), folder / metadata, progress=progress),
    )


def _find_files(domain: Domain, source: Path) -> AmazonFiles | AtomicFiles:
    stems = list(dict.fromkeys((domain.category, domain.name)))
    interactions = [stem + end for stem in stems for end in INTERACTION_ENDS]
    metadata = [f"meta_{stem}{end}" for stem in stems for end in METADATA_ENDS]
    places = [source, *(source / stem for stem in stems)]
    for place in places:
        found = [_first_file(place, names) for names in (interactions, metadata)]
        if found[0] is not None and found[1] is not None:
            return AmazonFiles(found[0], found[1])
        for stem in stems:
            atomic = find_atomic(place, stem)
            if atomic is not None:
                return atomic
    sequences, events, text, *indexes = atomic_names(domain.name)
    raise DataError(
        f"--source {source}: no raw files of {domain.name} there. Looked in "
        f"{', '.join(str(place) for place in places)} for one of {', '.join(interactions)} "
        f"together with one of {', '.join(metadata)}; or for {sequences}, {text} and "
        f"{' and '.join(indexes)}; or for {events} and {text}. Next: check the folder and --domain"
    )


def _first_file(folder: Path, names: list[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
