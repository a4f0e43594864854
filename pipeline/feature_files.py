"""Files of feature matrices by other people, mapped into memory; nothing in them is executed.

    *.feat1CLS, *.feat3CLS   raw float32 without header; row k is item number k (UniSRec, MISSRec)
    *.pth                    one tensor by `torch.save`; row k is the item with id k + 1

Both start at the first item: there is no row for padding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmm4rec.errors import DataError
from mmm4rec.torch_archive import ArchiveError, load_archive

Rows: TypeAlias = NDArray[Any] | Tensor

MAX_WIDTH = 1 << 14
MAX_ENTRIES = 64  # of a tensor's archive; one has about seven
MAX_ENTRY_BYTES = 1 << 16  # of an entry that holds no values; a plain tensor's have some hundred


def open_features(path: Path, num_items: int) -> Rows:
    """Map a file of features into memory; nothing in it is executed.

    Args:
        path: `*.pth`: a tensor by `torch.save`; anything else: raw float32, little-endian.
        num_items: rows expected.

    Returns:
        (I, F), floats of the file's width, F at most MAX_WIDTH.

    Raises:
        DataError: the file cannot be read, holds something else than one matrix of floats, or has
            another number of rows.
    """
    if path.suffix in (".pth", ".pt"):
        return _open_tensor(path, num_items)
    return _open_floats(path, num_items)


def check_shape(rows: Rows, num_items: int, where: str) -> None:
    """Check that a matrix holds plain floats, one row per item.

    Raises:
        DataError: it does not; the message begins with `where`.
    """
    shape = tuple(rows.shape)
    is_plain = (
        rows.is_floating_point() and rows.layout == torch.strided and rows.device.type == "cpu"
        if isinstance(rows, Tensor)
        else np.issubdtype(rows.dtype, np.floating)
    )
    if not is_plain or len(shape) != 2 or shape[0] != num_items or not 1 <= shape[1] <= MAX_WIDTH:
        raise DataError(
            f"{where}: found shape {shape} of {rows.dtype}, expected ({num_items}, width) floats, "
            f"one row per item, with a width in 1..{MAX_WIDTH}. Next: check that the features "
            f"belong to this set"
        )


def _open_floats(path: Path, num_items: int) -> NDArray[np.float32]:
    size = _size(path)
    width, rest = divmod(size, 4 * num_items) if num_items else (0, size)
    if rest or not 1 <= width <= MAX_WIDTH:
        raise DataError(
            f"{path}: {size} bytes are not {num_items} items x width x 4 bytes with a width in "
            f"1..{MAX_WIDTH}; expected raw float32, one row per item. Next: check that the file "
            f"belongs to this set, and fetch it again"
        )
    return np.memmap(path, dtype="<f4", mode="r", shape=(num_items, width))


def _open_tensor(path: Path, num_items: int) -> Tensor:
    size, limit = _size(path), 8 * MAX_WIDTH * num_items + MAX_ENTRIES * MAX_ENTRY_BYTES
    if size > limit:
        raise DataError(f"{path}: {size} bytes, expected at most {limit} for {num_items} items")
    try:
        content = load_archive(path, max_entries=MAX_ENTRIES, max_entry_bytes=MAX_ENTRY_BYTES)
    except ArchiveError as error:
        raise DataError(
            f"{path}: expected one tensor of floats, found {error}. {_again(path)}"
        ) from None
    if isinstance(content, dict):
        tensors = [value for value in content.values() if isinstance(value, Tensor)]
    else:
        tensors = [content] if isinstance(content, Tensor) else []
    if len(tensors) != 1:
        raise DataError(
            f"{path}: expected one tensor of floats, found an object of type "
            f"{type(content).__name__} with {len(tensors)} tensors. {_again(path)}"
        )
    check_shape(tensors[0], num_items, str(path))
    return tensors[0].detach()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _again(path: Path) -> str:
    return f"Next: save the matrix alone, torch.save(tensor, {path.name!r}), where it came from"
