"""What fetching would take, asked of the servers before the first byte is fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3

from pipeline.download import (
    TIMEOUT,
    MirrorError,
    check_room,
    describe,
    is_fetched,
    open_session,
    resumable_bytes,
    total_bytes,
)

_SIZE = re.compile(r"bytes 0-0/([0-9]{1,18})")


@dataclass(frozen=True)
class RemoteFile:
    """A file and the addresses that serve the same bytes of it.

    Attributes:
        name: what it is called on disk.
        urls: http or https addresses, in the order in which they are tried.
        sha256: hex digest, None where none is known.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str | None = None


@dataclass(frozen=True)
class PlannedFile:
    """A raw file: there, or to be fetched.

    Attributes:
        name: its name.
        urls: addresses to fetch it from; none for a file of the user's.
        target: where it is or will be.
        bytes: size of the whole file, None where no server says.
        is_present: it is there, nothing need be fetched.
        resumable_bytes: already fetched of a file that is not there yet.
        problem: why no server says how large it is; empty where one does.
    """

    name: str
    urls: tuple[str, ...]
    target: Path
    bytes: int | None
    is_present: bool
    resumable_bytes: int = 0
    problem: str = ""

    @property
    def missing_bytes(self) -> int:
        """Bytes that have to be fetched, 0 where nobody knows."""
        return 0 if self.is_present else max(0, (self.bytes or 0) - self.resumable_bytes)


def present_file(path: Path) -> PlannedFile:
    """Return the plan of a file that is there."""
    return PlannedFile(path.name, (), path, path.stat().st_size, is_present=True)


def plan_download(editions: Sequence[RemoteFile], folder: Path) -> PlannedFile:
    """Find out what has to be fetched for one file; nothing is written.

    Args:
        editions: the file in one or several compressions. One that is there is taken, else the
            first that a server has.
        folder: where it would go.

    Raises:
        DataError: the file is there but was changed after it was fetched.
    """
    for file in editions:
        target = folder / file.name
        if is_fetched(target, file.urls):
            return present_file(target)
    problems = []
    with open_session(attempts=1, backoff_s=0.1) as session:
        for file in editions:
            for url in file.urls:
                try:
                    return _planned(file, folder, _ask_bytes(session, url))
                except (MirrorError, requests.RequestException, urllib3.exceptions.HTTPError) as e:
                    problems.append(f"{url}: {describe(e)}")
    return _planned(editions[0], folder, None, "; ".join(problems))


def check_room_for(files: Sequence[PlannedFile], folder: Path) -> None:
    """Refuse to begin where the disk cannot hold all files together.

    Raises:
        DataError: too few bytes are free.
    """
    missing = [file for file in files if file.missing_bytes]
    if missing:
        names = " and ".join(file.name for file in missing)
        check_room(folder, f"fetching {names}", sum(file.missing_bytes for file in missing))


def _planned(file: RemoteFile, folder: Path, size: int | None, problem: str = "") -> PlannedFile:
    target = folder / file.name
    return PlannedFile(
        name=file.name,
        urls=file.urls,
        target=target,
        bytes=size,
        is_present=False,
        resumable_bytes=resumable_bytes(target, file.urls),
        problem=problem,
    )


def _ask_bytes(session: requests.Session, url: str) -> int | None:
    """Ask how large a file is, of a server that may not know HEAD for one byte."""
    with session.head(url, timeout=TIMEOUT, allow_redirects=True) as answer:
        if answer.status_code == 200 and "Content-Length" in answer.headers:
            return total_bytes(answer, 0)
    one_byte = {"Range": "bytes=0-0"}
    with session.get(url, headers=one_byte, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 200:  # and the whole file: it is not read
            return total_bytes(answer, 0)
        size = _SIZE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status_code != 206 or size is None:
            raise MirrorError(f"HTTP {answer.status_code}")
        return int(size[1])
