"""Reading text files that nobody vouches for: bounded, streaming, each bad line accounted for."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import polars as pl

from mmm4rec.errors import DataError

BLOCK_BYTES = 1 << 23  # read at once; what is held of a file that streams
MAX_LINE_BYTES = 1 << 24  # the longest metadata lines of Amazon have some 10^5 bytes
LATEST = 4_102_444_800  # Unix seconds, 2100-01-01; anything later is in another unit
BAD_LINE_SCHEMA = {
    "file": pl.String,
    "line": pl.UInt64,  # from 1, as editors count
    "reason": pl.String,
    "text": pl.String,  # the line's beginning
}

Content = Literal["CSV", "JSON lines", "tab-separated lines"]

_GZIP = b"\x1f\x8b"
_SIGNATURES = {
    _GZIP: "a gzip inside a gzip",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x80\x04": "a Python pickle",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}


@dataclass(frozen=True)
class RawTable:
    """What was read from a raw file.

    Attributes:
        rows: the table, in the order of the file.
        lines: lines in the file, blank and malformed ones included.
        bad_lines: malformed lines that were set aside (BAD_LINE_SCHEMA).
    """

    rows: pl.DataFrame
    lines: int
    bad_lines: pl.DataFrame


class Quarantine:
    """Malformed lines of one file, set aside up to a limit."""

    def __init__(self, path: Path, expected: str, max_bad_lines: int) -> None:
        self.path = path
        self.expected = expected
        self.max_bad_lines = max_bad_lines
        self._rows: list[tuple[str, int, str, str]] = []

    def add(self, line: int, reason: str, text: bytes) -> None:
        """Set a line aside.

        Args:
            line: its number in the file, from 1.
            reason: what is wrong with it.
            text: the line.

        Raises:
            DataError: there are more than `max_bad_lines` now.
        """
        excerpt = text[:200].decode("utf-8", "replace").rstrip("\r\n")
        self._rows.append((self.path.name, line, reason, excerpt))
        count = len(self._rows)
        if count > self.max_bad_lines:
            raise DataError(
                f"{self.path}:{line}: {reason}; found {excerpt[:80]!r}, expected {self.expected}. "
                f"Malformed lines so far: {count}, allowed: {self.max_bad_lines}. Next: fetch the "
                f"file again, or --set prepare.max_bad_lines=N to set up to N such lines aside"
            )

    def table(self) -> pl.DataFrame:
        """Return the lines that were set aside, in BAD_LINE_SCHEMA."""
        return pl.DataFrame(self._rows, schema=BAD_LINE_SCHEMA, orient="row")


def read_blocks(path: Path, content: Content) -> Iterator[bytes]:
    """Yield a file, plain or gzipped, in blocks of whole lines.

    Args:
        path: the file; whether it is gzipped is read from its first bytes.
        content: what it should hold; a file that is plainly something else is refused.

    Raises:
        DataError: the file cannot be read, is empty, its gzip is truncated or damaged, a line has
            more than MAX_LINE_BYTES, or it is something else than `content`.
    """
    rest = b""
    with _open(path) as file:
        head = _read(file, path)
        _check_content(path, head, content)
        chunk = head.removeprefix(b"\xef\xbb\xbf")
        while chunk:
            end = chunk.rfind(b"\n") + 1
            if end:
                yield rest + chunk[:end]
                rest = b""
            rest += chunk[end:]
            if len(rest) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path}: a line has more than {MAX_LINE_BYTES} bytes; expected {content}. "
                    f"Next: fetch the file again"
                )
            chunk = _read(file, path)
    if rest:
        yield rest


def split_lines(block: bytes) -> list[bytes]:
    r"""Split a block into its lines, without their line ends.

    >>> split_lines(b"a\r\nb\n")
    [b'a', b'b']
    """
    lines = block.removesuffix(b"\n").split(b"\n")
    return [line.removesuffix(b"\r") for line in lines]


def _open(path: Path) -> BinaryIO:
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == _GZIP
        return gzip.open(path, "rb") if gzipped else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _read(file: BinaryIO, path: Path) -> bytes:
    try:
        return file.read(BLOCK_BYTES)
    except EOFError:
        problem = "the gzip ends early (a truncated download)"
    except (OSError, zlib.error) as error:
        problem = f"damaged: {error}"
    raise DataError(f"{path}: {problem}. Next: delete it and fetch it again")


def _check_content(path: Path, head: bytes, content: Content) -> None:
    found = _looks_like(head)
    if found is not None and found != content:
        raise DataError(
            f"{path}: expected {content}, but this looks like {found}. Next: delete it and fetch "
            f"it again, or name the right file"
        )


def _looks_like(head: bytes) -> str | None:
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return name
    first, _, second = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:4096].partition(b"\n")
    if not first:
        return "an empty file"
    if b"\x00" in first[:512]:
        return "a binary file, or text in UTF-16"
    return _text_looks_like(first, second)


def _text_looks_like(first: bytes, second: bytes) -> str | None:
    if first.startswith(b"<"):
        return "an HTML or XML page"
    if first.startswith((b"{'", b'{u"', b"{u'")):
        return "Python literals, one per line (the 2014 release)"
    if first.rstrip() in (b"{", b"[") or first.startswith((b"[{", b'["')):
        return "JSON spread over several lines, or one JSON list"
    if first.startswith(b"{"):
        return "JSON lines"
    if b"\t" in first:
        return "tab-separated lines"
    return "CSV" if first.count(b",") >= 2 and second.count(b",") >= 2 else None
