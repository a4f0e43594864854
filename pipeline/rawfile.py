"""Reading text files that nobody vouches for: bounded, streaming, each bad line accounted for."""

from __future__ import annotations

import codecs
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import polars as pl

from mmm4rec.errors import DataError

BLOCK_BYTES = 1 << 23  # of a block: a file that streams is held in some of them, not as a whole
BLOCKS_AHEAD = 2  # read while the one before is parsed
MAX_LINE_BYTES = 1 << 24  # the longest metadata lines of Amazon have some 10^5 bytes
LATEST = 4_102_444_800  # Unix seconds, 2100-01-01; anything later is in another unit
BAD_LINE_SCHEMA = {
    "file": pl.String,
    "line": pl.UInt64,  # from 1, as editors count
    "reason": pl.String,
    "text": pl.String,  # the line's beginning
}

Step = TypeVar("Step")
Content = Literal["CSV", "JSON lines", "tab-separated lines"]

_GZIP = b"\x1f\x8b"
_PACKED_BYTES = 1 << 19  # read of a gzip at once; some megabytes of text
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
    codecs.BOM_UTF16_LE: "text in UTF-16",
    codecs.BOM_UTF16_BE: "text in UTF-16",
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
                f"file again, or --max-bad-lines N to set up to N such lines aside"
            )

    def table(self) -> pl.DataFrame:
        """Return the lines that were set aside, in BAD_LINE_SCHEMA."""
        return pl.DataFrame(self._rows, schema=BAD_LINE_SCHEMA, orient="row")


def read_blocks(path: Path, content: Content) -> Iterator[bytes]:
    """Yield a file, plain or gzipped, in blocks of whole lines of about BLOCK_BYTES.

    A thread reads ahead, so that decompressing and parsing go on at the same time. It ends with
    the iteration, also where that is broken off.

    Args:
        path: the file; whether it is gzipped is read from its first bytes.
        content: what it should hold; a file that is plainly something else is refused.

    Raises:
        DataError: the file cannot be read, is empty, its gzip is truncated or damaged, a line has
            more than MAX_LINE_BYTES, or it is something else than `content`.
    """
    yield from work_ahead(_whole_lines(path, content))


def work_ahead(steps: Generator[Step]) -> Iterator[Step]:
    """Yield what a generator does, which a thread runs a little ahead.

    The thread ends with the iteration, also where that is broken off; what it raises is raised
    here, in its turn.
    """
    worker = ThreadPoolExecutor(1, "ahead")
    try:
        ahead = deque(worker.submit(next, steps, None) for _ in range(BLOCKS_AHEAD))
        while (step := ahead.popleft().result()) is not None:
            ahead.append(worker.submit(next, steps, None))
            yield step
    finally:
        worker.shutdown(cancel_futures=True)
        steps.close()


def split_lines(block: bytes) -> list[bytes]:
    r"""Split a block into its lines, without their line ends.

    >>> split_lines(b"a\r\nb\n")
    [b'a', b'b']
    """
    lines = block.removesuffix(b"\n").split(b"\n")
    return [line.removesuffix(b"\r") for line in lines]


def first_lines(block: bytes, max_bytes: int) -> list[bytes]:
    r"""Return the lines that are whole within the first bytes of a block.

    >>> first_lines(b"a\nb\nc", 4), first_lines(b"a\nb", 4)
    ([b'a', b'b'], [b'a', b'b'])
    """
    end = len(block) if len(block) <= max_bytes else block.rfind(b"\n", 0, max_bytes) + 1
    return split_lines(block[:end])


def _whole_lines(path: Path, content: Content) -> Generator[bytes]:
    rest, is_head = b"", True
    for data in _joined(_read(path)):
        if is_head:
            _check_content(path, data, content)
            data, is_head = data.removeprefix(codecs.BOM_UTF8), False
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = b""
        rest += data[end:]
        if len(rest) > MAX_LINE_BYTES:
            raise DataError(
                f"{path}: a line has more than {MAX_LINE_BYTES} bytes; expected {content}. "
                f"Next: fetch the file again"
            )
    if rest:
        yield rest


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join pieces to BLOCK_BYTES and more: a gzip may come in many small members."""
    held, size = [], 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= BLOCK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def _read(path: Path) -> Iterator[bytes]:
    """Yield what a file holds, decompressed, in pieces of at most BLOCK_BYTES."""
    try:
        with path.open("rb") as file:
            is_gzip = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            yield from _inflate(file) if is_gzip else iter(lambda: file.read(BLOCK_BYTES), b"")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except EOFError:
        problem = "the gzip ends early (a truncated download)"
    except zlib.error as error:
        problem = f"the gzip is damaged ({error})"
    else:
        return
    raise DataError(f"{path}: {problem}. Next: delete it and fetch it again")


def _inflate(file: BinaryIO) -> Iterator[bytes]:
    """Decompress in steps large enough that another thread seldom waits for this one.

    Raises:
        EOFError: the gzip ends early.
        zlib.error: it is damaged, or something else follows it.
    """
    packed = file.read(_PACKED_BYTES)
    while packed:
        member = zlib.decompressobj(wbits=31)  # checks length and CRC at the member's end
        while not member.eof:
            packed = packed or file.read(_PACKED_BYTES)
            data = member.decompress(packed, BLOCK_BYTES)
            if not packed and not data:
                raise EOFError
            yield data
            packed = member.unconsumed_tail
        packed = member.unused_data.lstrip(b"\0")  # padding
        while not packed and (more := file.read(_PACKED_BYTES)):
            packed = more.lstrip(b"\0")


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
    lines = head.removeprefix(codecs.BOM_UTF8).lstrip()[:4096].split(b"\n", 2)
    first, second = lines[0], lines[1] if len(lines) > 1 else b""
    if not first:
        return "an empty file"
    if b"\x00" in first[:512]:
        return "a binary file, or text in UTF-16"
    return _text_looks_like(first.rstrip(), second)


def _text_looks_like(first: bytes, second: bytes) -> str | None:
    if first.startswith(b"<"):
        return "an HTML or XML page"
    if first.startswith((b"{'", b'{u"', b"{u'")):
        return "Python literals, one per line (the 2014 release)"
    if _is_spread_json(first, second):
        return "JSON spread over several lines, or one JSON list"
    if first.startswith(b"{"):
        return "JSON lines"
    if b"\t" in first:
        return "tab-separated lines"
    return "CSV" if first.count(b",") >= 2 and second.count(b",") >= 2 else None


def _is_spread_json(first: bytes, second: bytes) -> bool:
    is_open = first.startswith(b"{") and not first.endswith(b"}")
    goes_on = is_open and second.lstrip().startswith((b'"', b"}"))
    return first in (b"{", b"[") or first.startswith((b"[{", b'["')) or goes_on
