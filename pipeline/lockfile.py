"""What was fetched, held to: `lock.json` beside the raw files of a domain.

    {"Books.csv": {"url": ..., "bytes": ..., "sha256": ..., "modified_ns": ...}, ...}

A file that is fetched again must be the same; one that was changed in place is refused.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from mmm4rec.errors import DataError
from pipeline.schema import Plain, sha256_file, write_json

LOCK = "lock.json"


class LockedFile(Plain):
    """A fetched file."""

    url: str
    bytes: int
    sha256: str
    modified_ns: int = Field(description="time stamp, Unix nanoseconds; while it stays, so does it")


_Lock = TypeAdapter(dict[str, LockedFile])


def read_lock(folder: Path) -> dict[str, LockedFile]:
    """Return the locked files of a folder by name.

    Raises:
        DataError: the lock cannot be read.
    """
    path = folder / LOCK
    if not path.is_file():
        return {}
    try:
        return _Lock.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise DataError(
            f"{path} cannot be read as a lock of fetched files. Next: delete it to take the files "
            f"beside it as they are"
        ) from None


def lock_file(target: Path, url: str, content: Path) -> LockedFile:
    """Return the entry of a file that will be `target`, given where its content is now."""
    stat = content.stat()
    return LockedFile(
        url=url, bytes=stat.st_size, sha256=sha256_file(content), modified_ns=stat.st_mtime_ns
    )


def write_entry(target: Path, entry: LockedFile) -> None:
    """Put a file into the lock of its folder, in place of its earlier entry."""
    entries = read_lock(target.parent) | {target.name: entry}
    write_json(_Lock.dump_python(dict(sorted(entries.items()))), target.parent / LOCK)


def check_unchanged(target: Path, entry: LockedFile) -> None:
    """Refuse a file that is not the one that was fetched; it is read only if it looks changed.

    Raises:
        DataError: its size or its sha256 differs from the entry.
    """
    stat = target.stat()
    if (stat.st_size, stat.st_mtime_ns) == (entry.bytes, entry.modified_ns):
        return
    digest = sha256_file(target)
    if digest != entry.sha256:
        raise DataError(
            f"{target} was changed after it was fetched: it has {stat.st_size:,} bytes and sha256 "
            f"{digest}, {LOCK} says {entry.bytes:,} bytes and {entry.sha256}. Next: delete "
            f"{target} to fetch it again, or {how_to_accept(target)}"
        )


def how_to_accept(target: Path) -> str:
    """Say what to do to go on with another file than the locked one."""
    return f"to accept the other file remove the entry {target.name!r} from {target.parent / LOCK}"
