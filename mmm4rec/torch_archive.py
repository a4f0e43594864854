"""Files of `torch.save` by strangers: mapped into memory, and nothing in them is executed."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

# What a reader of archives raises when bytes are not what it expects.
_DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class ArchiveError(Exception):
    """A file is not an archive of plain data; the message says why, not which file."""


def load_archive(path: Path, *, max_entries: int, max_entry_bytes: int) -> Any:
    """Read an archive of tensors and plain data; the tensors stay in the file.

    Args:
        path: written by `torch.save`, PyTorch 1.6 or later.
        max_entries: entries of the archive: one per tensor, and a few.
        max_entry_bytes: of an entry that holds no tensor.

    Raises:
        ArchiveError: the file cannot be read, is none or a damaged one, breaks a limit, or wants
            objects built that can run code.
    """
    try:
        _check_entries(path, max_entries, max_entry_bytes)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _DAMAGED as error:
        raise ArchiveError(_what_is_wrong(error)) from None


def _check_entries(path: Path, max_entries: int, max_entry_bytes: int) -> None:
    """Refuse unbounded sizes before anything is unpacked."""
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        raise ArchiveError("not a zip archive, as torch.save writes them since PyTorch 1.6")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if len(entries) > max_entries:
        raise ArchiveError(f"an archive of {len(entries)} entries (at most {max_entries})")
    for entry in entries:
        limit = size if "/data/" in entry.filename else max_entry_bytes
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > limit:
            raise ArchiveError(
                f"an archive whose entry {entry.filename[:80]!r} is compressed or larger than "
                f"{limit} bytes"
            )
    if sum(entry.file_size for entry in entries) > size:
        raise ArchiveError("an archive whose entries overlap")


def _what_is_wrong(error: Exception) -> str:
    """Name the object that would have been built, or say what the reader met."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    wanted = re.search(r"GLOBAL ([\w.]{1,100})", str(error))
    if wanted:
        return f"{wanted[1]}, an object whose loading can run code; nothing was loaded"
    if isinstance(error, pickle.UnpicklingError):  # its text advises to load it all the same
        return "a damaged archive, or objects that are no tensors"
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"a damaged archive ({reason})"
