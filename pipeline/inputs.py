"""Where the raw files of a domain are: in a folder of the user's, or fetched first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmm4rec.errors import ConfigError, DataError
from pipeline.atomic import AtomicFiles, atomic_names, find_atomic
from pipeline.domains import (
    EDITIONS,
    Domain,
    Edition,
    Release,
    find_domain,
    name_domain,
    name_file,
)
from pipeline.download import Progress, UnavailableError, download
from pipeline.download_plan import (
    PlannedFile,
    RemoteFile,
    check_room_for,
    plan_download,
    present_file,
)
from pipeline.released import ReleasedFiles, find_released

INTERACTION_ENDS: dict[Release, tuple[str, ...]] = {
    "2018": (".csv", ".csv.gz", ".json.gz", ".json", "_5.json.gz", "_5.json"),
    "2023": (".csv", ".csv.gz", ".jsonl.gz", ".jsonl"),
}
METADATA_ENDS: dict[Release, tuple[str, ...]] = {
    "2018": (".json.gz", ".json"),
    "2023": (".jsonl.gz", ".jsonl"),
}

_Editions = list[RemoteFile]  # of one file; the first that a server has is fetched


@dataclass(frozen=True)
class AmazonFiles:
    """Native raw files of a domain: ratings (or reviews) and metadata."""

    interactions: Path
    metadata: Path
    release: Release = "2018"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, for the manifest."""
        return (self.interactions, self.metadata)

    @property
    def source_format(self) -> str:
        """What the manifest calls the format."""
        return f"amazon{self.release}"

    @property
    def features(self) -> dict[str, Path]:
        """Feature files by modality: none come with raw files."""
        return {}


RawFiles = AmazonFiles | AtomicFiles | ReleasedFiles


def resolve_inputs(
    domain: str,
    source: str | None,
    raw_dir: Path,
    progress: Progress | None = None,
    release: Release = "2018",
) -> RawFiles:
    """Return the raw files of a domain, fetched first if need be.

    Args:
        domain: a domain of the release, by its short or full name; with `source` also any other.
        source: a folder, whose files are used in place (or those of its subfolder with the
            domain's name); the base URL of the two raw files; None: the release's mirrors.
        raw_dir: where fetched files go, in a folder per domain.
        progress: told the file's name, bytes so far and bytes in all (None where unknown).
        release: the release that native raw files are of.

    Raises:
        ConfigError: the domain is unknown, or its name cannot be a folder's.
        DataError: the files are not in the folder, no mirror delivers them, they were changed
            after they were fetched, or the disk cannot hold them.
    """
    named, in_place = _locate(domain, source, release)
    if in_place is not None:
        return in_place
    wanted, folder = _remote_files(named, source), raw_dir / named.name
    plan = [plan_download(editions, folder) for editions in wanted]
    check_room_for(plan, folder)
    interactions, metadata = (
        planned.target if planned.is_present else _fetch(planned, editions, folder, progress)
        for planned, editions in zip(plan, wanted, strict=True)
    )
    return AmazonFiles(interactions, metadata, release)


def plan_inputs(
    domain: str, source: str | None, raw_dir: Path, release: Release = "2018"
) -> list[PlannedFile]:
    """Return what `resolve_inputs` would use and fetch; the servers are asked, nothing is written.

    Args and errors are those of `resolve_inputs`, but no mirror need deliver: a file that none has
    is planned with the reasons.
    """
    named, in_place = _locate(domain, source, release)
    if in_place is not None:
        return [present_file(path) for path in in_place.files]
    folder = raw_dir / named.name
    return [plan_download(editions, folder) for editions in _remote_files(named, source)]


def _locate(domain: str, source: str | None, release: Release) -> tuple[Domain, RawFiles | None]:
    """Return the domain, and its files if they are in a folder of the user's."""
    if source is None:
        return find_domain(domain, release), None
    named = name_domain(domain, release)
    if re.match(r"https?://", source):
        return named, None
    if "://" in source:
        raise ConfigError(f"--source {source}: an address begins with http:// or https://")
    return named, _find_files(named, Path(source))


def _remote_files(domain: Domain, source: str | None) -> tuple[_Editions, _Editions]:
    editions = EDITIONS[domain.release]
    return (
        [_remote_file(e, e.interactions, domain, source, domain.ratings_sha256) for e in editions],
        [_remote_file(e, e.metadata, domain, source, None) for e in editions],
    )


def _remote_file(
    edition: Edition, path: str, domain: Domain, source: str | None, sha256: str | None
) -> RemoteFile:
    path, name = path.format(domain.category), name_file(path, domain.category)
    if source is None:
        return RemoteFile(name, tuple(f"{base}/{path}" for base in edition.bases), sha256)
    base = source.rstrip("/")
    return RemoteFile(name, (f"{base}/{name}", f"{base}/{path}"))


def _fetch(
    planned: PlannedFile, editions: Sequence[RemoteFile], folder: Path, progress: Progress | None
) -> Path:
    failures = []
    for file in sorted(editions, key=lambda file: file.name != planned.name):
        try:
            return download(file.urls, folder / file.name, sha256=file.sha256, progress=progress)
        except UnavailableError as error:
            failures += error.failures
    raise UnavailableError(planned.name, failures)


def _find_files(domain: Domain, source: Path) -> RawFiles:
    stems = domain.aliases
    interactions = [stem + end for stem in stems for end in INTERACTION_ENDS[domain.release]]
    metadata = [f"meta_{stem}{end}" for stem in stems for end in METADATA_ENDS[domain.release]]
    places = [source, *(source / stem for stem in stems)]
    for place in places:
        found = [_first_file(place, names) for names in (interactions, metadata)]
        if found[0] is not None and found[1] is not None:
            return AmazonFiles(found[0], found[1], domain.release)
        processed = [*(find_atomic(place, stem) for stem in stems), find_released(place)]
        for files in processed:
            if files is not None:
                return files
    sequences, events, text, *indexes = atomic_names(domain.short)
    raise DataError(
        f"--source {source}: no raw files of {domain.name} there. Looked in "
        f"{', '.join(str(place) for place in places)} for one of {', '.join(interactions)} "
        f"together with one of {', '.join(metadata)}; or for {sequences}, {text} and "
        f"{' and '.join(indexes)}; or for {events} and {text}; or for test_seq.jsonl, "
        f"item2id.jsonl and user2id.jsonl. Next: check the folder, --domain and --release"
    )


def _first_file(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
