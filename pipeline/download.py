"""Whole files from mirrors, with resume and verification.

A download in progress is `.<name>.part`, beside it `.<name>.part.json` says where it comes from.
Interrupted, it goes on where it stopped, if the server still has the same file. A finished file
is in the lock (see `pipeline.lockfile`). One process at a time fetches into a folder.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import requests
import urllib3
from filelock import FileLock
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from mmm4rec.errors import DataError
from pipeline.lockfile import (
    LockedFile,
    check_unchanged,
    how_to_accept,
    lock_file,
    read_lock,
    write_entry,
)
from pipeline.schema import write_json

TIMEOUT = (10.0, 30.0)  # seconds to connect, and between two pieces of an answer
MAX_RETRY_AFTER = 60  # seconds; what a server may ask us to wait
MAX_REDIRECTS = 5
PIECE_BYTES = 1 << 20
PATIENCE = 60.0  # seconds in which at least MIN_BYTES must come
MIN_BYTES = 1 << 16
GAIN_BYTES = 1 << 20  # an attempt that brought this much does not count as failed
SPARE_BYTES = 1 << 28  # left free on the disk

Progress = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all if known


class MirrorError(Exception):
    """A mirror that does not deliver; the next one may."""


class UnavailableError(DataError):
    """No mirror delivers a file.

    Attributes:
        failures: what each said.
    """

    def __init__(self, name: str, failures: list[str]) -> None:
        super().__init__(
            f"cannot fetch {name}: {'; '.join(failures)}. Next: try again (it resumes), or get "
            f"the file by other means and name its folder with --source DIR"
        )
        self.failures = failures


def download(
    urls: Sequence[str],
    target: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    attempts: int = 4,
    backoff_s: float = 1.0,
) -> Path:
    """Fetch a file from the first mirror that delivers it whole.

    Args:
        urls: http or https addresses of the same file, tried in order.
        target: where it goes; it appears only when it is complete. One that a download from one
            of the addresses left, or that lies there and is not in the lock, is used as it is.
        sha256: hex digest that a fetched file must have, None where none is known.
        progress: told the file's name, bytes so far and bytes in all (None where unknown).
        attempts: failures in a row, none of them bringing GAIN_BYTES, before a mirror is left.
        backoff_s: seconds before the second attempt; doubled each time.

    Returns:
        `target`.

    Raises:
        UnavailableError: no mirror delivers it, or not the file that is in the lock.
        DataError: `target` was changed after it was fetched, or it cannot be written (a full disk;
            what has come stays for the next run).
    """
    with _alone(target.parent):
        if not is_fetched(target, urls):
            _fetch(urls, target, sha256, progress, attempts, backoff_s)
    return target


def is_fetched(target: Path, urls: Sequence[str]) -> bool:
    """Return whether nothing need be fetched: it is there, by hand or from one of the addresses.

    Raises:
        DataError: it was changed after it was fetched.
    """
    if not target.is_file():
        return False
    entry = read_lock(target.parent).get(target.name)
    if entry is None:
        return True
    if entry.url not in urls:
        return False
    check_unchanged(target, entry)
    return True


def resumable_bytes(target: Path, urls: Sequence[str]) -> int:
    """Return how many bytes of a file an interrupted download from one of the addresses left."""
    return max(_resumable(target, url)[0] for url in urls)


def check_room(folder: Path, what: str, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        folder: where it would be written; it need not exist yet.
        what: that needs the room.
        needed: bytes, besides SPARE_BYTES.

    Raises:
        DataError: fewer bytes are free.
    """
    free = free_bytes(folder)
    if needed + SPARE_BYTES > free:
        raise DataError(
            f"{folder}: {what} needs {needed:,} bytes more and {SPARE_BYTES:,} to spare, {free:,} "
            f"are free. Next: make room, or --data-dir on another disk"
        )


def free_bytes(folder: Path) -> int:
    """Return how many bytes can be written to a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free


def _fetch(
    urls: Sequence[str],
    target: Path,
    sha256: str | None,
    progress: Progress | None,
    attempts: int,
    backoff_s: float,
) -> None:
    failures = []
    with open_session(attempts, backoff_s) as session:
        for url in urls:
            transfer = _Transfer(session, url, target, progress)
            try:
                transfer.run(attempts, backoff_s)
                transfer.finish(sha256)
            except MirrorError as error:
                failures.append(f"{url}: {error}")
            else:
                return
    raise UnavailableError(target.name, failures)


class _Transfer:
    """One file from one mirror."""

    def __init__(
        self, session: requests.Session, url: str, target: Path, progress: Progress | None
    ) -> None:
        self.session = session
        self.url = url
        self.target = target
        self.progress = progress
        self.part, self.part_source = _part_paths(target)

    def run(self, attempts: int, backoff_s: float) -> None:
        """Transfer until the part is whole."""
        failed = 0
        while True:
            before = _size(self.part)
            try:
                self._request()
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                problem = describe(error)
            else:
                return
            failed = 0 if _size(self.part) - before >= GAIN_BYTES else failed + 1
            if failed >= attempts:
                raise MirrorError(f"{problem} ({attempts} attempts)")
            time.sleep(backoff_s * 2 ** max(0, failed - 1))

    def finish(self, sha256: str | None) -> None:
        """Verify the part and give it its name."""
        entry = lock_file(self.target, self.url, self.part)
        try:
            self._check(entry, sha256)
        except MirrorError:
            self.part.unlink()
            raise
        with _writing(self.target):
            write_entry(self.target, entry)  # first: a file that has its name is in the lock
            self.part.replace(self.target)
            self.part_source.unlink(missing_ok=True)

    def _check(self, found: LockedFile, sha256: str | None) -> None:
        locked = read_lock(self.target.parent).get(self.target.name)
        if locked is not None and locked.sha256 != found.sha256:
            raise MirrorError(
                f"its sha256 is {found.sha256}, not {locked.sha256} as of the file fetched "
                f"earlier from {locked.url} ({how_to_accept(self.target)})"
            )
        if locked is None and sha256 not in (None, found.sha256):
            raise MirrorError(f"its sha256 is {found.sha256}, expected {sha256}")

    def _request(self) -> None:
        offset, validator = _resumable(self.target, self.url)
        headers = {"Range": f"bytes={offset}-", "If-Range": validator} if offset else {}
        with self.session.get(self.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            content_range = answer.headers.get("Content-Range", "")
            if answer.status_code == 416 and content_range == f"bytes */{offset}":
                return  # interrupted between the last byte and the name
            if answer.status_code == 206 and content_range.startswith(f"bytes {offset}-"):
                self._save(answer, offset)
                return
            self.part.unlink(missing_ok=True)  # not to be resumed: from the beginning
            if answer.status_code in (206, 416):
                raise requests.ConnectionError(f"answers with the range {content_range!r}")
            if answer.status_code != 200:
                raise MirrorError(f"HTTP {answer.status_code}")
            with _writing(self.part_source):
                write_json({"url": self.url, "validator": _validator(answer)}, self.part_source)
            self._save(answer, 0)

    def _save(self, answer: requests.Response, offset: int) -> None:
        total = total_bytes(answer, offset)
        self._check_disk((total or offset) - offset)
        with _writing(self.part), self.part.open("ab" if offset else "wb") as file:
            done = self._copy(answer, file, offset, total)
        if total is not None and done != total:
            raise requests.ConnectionError(f"ended after {done} of {total} bytes")

    def _copy(self, answer: requests.Response, file: BinaryIO, done: int, total: int | None) -> int:
        since, done_then = time.monotonic(), done
        while piece := answer.raw.read1(PIECE_BYTES, decode_content=False):
            file.write(piece)
            done += len(piece)
            if self.progress is not None:
                self.progress(self.target.name, done, total)
            if total is None:
                self._check_disk(0)
            if time.monotonic() - since >= PATIENCE:
                if done - done_then < MIN_BYTES:
                    raise urllib3.exceptions.HTTPError(
                        f"fewer than {MIN_BYTES} bytes in {PATIENCE:g} seconds"
                    )
                since, done_then = time.monotonic(), done
        return done

    def _check_disk(self, needed: int) -> None:
        check_room(self.target.parent, self.target.name, needed)


def open_session(attempts: int, backoff_s: float) -> requests.Session:
    """Return a session that asks again, after a pause, where a server says to."""
    session = requests.Session()
    session.headers["User-Agent"] = "mmm4rec"
    session.headers["Accept-Encoding"] = "identity"  # the file's own bytes, so that they can resume
    session.max_redirects = MAX_REDIRECTS
    retry = Retry(
        total=attempts,
        connect=0,  # and read: the transfer's own loop, which resumes
        read=0,
        status_forcelist=(429, 500, 502, 503, 504),
        backoff_factor=backoff_s,
        retry_after_max=MAX_RETRY_AFTER,
        raise_on_status=False,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder and let no other process fetch into it; wait for one that does."""
    lock = FileLock(folder / ".fetching.lock")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}. Next: make room (or choose another "
            f"--data-dir) and run the command again, it resumes"
        ) from None


def describe(error: Exception) -> str:
    """Return the innermost reason: requests and urllib3 wrap it in their own."""
    inner = error.args[0] if error.args else error
    return str(getattr(inner, "reason", error))[:300]


def total_bytes(answer: requests.Response, offset: int) -> int | None:
    """Return the size of the whole file, None where only the end of the answer will tell."""
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding not in ("identity", "gzip", "x-gzip"):  # gzip: the readers recognise it
        raise MirrorError(f"sends the encoding {encoding!r}, which was not asked for")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise MirrorError("answers with an HTML page")
    length = answer.headers.get("Content-Length", "")
    if re.fullmatch(r"[0-9]{1,18}", length):
        return offset + int(length)
    if answer.headers.get("Transfer-Encoding", "") == "chunked":
        return None
    raise MirrorError("does not say how long the file is")


def _validator(answer: requests.Response) -> str | None:
    etag = answer.headers.get("ETag", "W/")
    return answer.headers.get("Last-Modified") if etag.startswith("W/") else etag


def _part_paths(target: Path) -> tuple[Path, Path]:
    part = target.with_name(f".{target.name}.part")
    return part, target.with_name(f"{part.name}.json")


def _resumable(target: Path, url: str) -> tuple[int, str]:
    """Return how many bytes can be kept and what the server must still have for that."""
    part, part_source = _part_paths(target)
    source = _read_record(part_source)
    if source.get("url") == url and isinstance(source.get("validator"), str):
        return _size(part), source["validator"]
    return 0, ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):  # a record that cannot be read is none
        return {}
    return record if isinstance(record, dict) else {}
