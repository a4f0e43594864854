"""A chunk of inputs to a file of vectors: the unit of work of the feature stage.

`encode_chunk` needs nothing but its arguments, and a `Chunk` can be pickled: whichever process or
machine runs it writes the same file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders import ImageEncoder, TextEncoder
from pipeline.feature_store import input_hash, write_shard
from pipeline.images import MAX_PIXELS, ImageError, bombs_are_errors, decode_image, to_rgb

AnyEncoder: TypeAlias = TextEncoder | ImageEncoder
Advance: TypeAlias = Callable[[int], None]  # called with the number of inputs just encoded
Pixels: TypeAlias = NDArray[Any] | None  # what an encoder takes of a picture; None: no picture

DECODING_THREADS = 8
BATCHES_AHEAD = 2  # decoded while the model is busy


@dataclass(frozen=True)
class Chunk:
    """Inputs to be encoded into one file, each once.

    Attributes:
        path: the file, a shard of its own.
        item_ids: an item that has the input, for messages.
        inputs: texts, or image files relative to `image_folder`.
        image_folder: None for texts.
    """

    path: Path
    item_ids: list[int]
    inputs: list[str]
    image_folder: Path | None = None


def encode_chunk(chunk: Chunk, encoder: AnyEncoder, advance: Advance | None = None) -> None:
    """Encode the inputs of a chunk and write its file atomically.

    Raises:
        DataError: the encoder's output is not finite in float16.
    """
    present_N, values_NF = encode_inputs(chunk.inputs, encoder, chunk.image_folder, advance)
    hashes = [input_hash(value) for value in chunk.inputs]
    write_shard(
        chunk.path,
        chunk.item_ids,
        present_N,
        values_NF,
        chunk.path.stem,
        inputs_N=hashes,
        key=encoder.key,
    )


def encode_inputs(
    inputs: Sequence[str],
    encoder: AnyEncoder,
    image_folder: Path | None = None,
    advance: Advance | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Encode texts or image files.

    Args:
        inputs: N texts, or names of files.
        encoder: of texts or of images.
        image_folder: where the files are; None for texts.
        advance: called with the number of inputs just encoded.

    Returns:
        (N,) whether the input could be read, and (N, F) outputs, 0 where not.
    """
    if isinstance(encoder, TextEncoder):
        present_N, values_NF = np.ones(len(inputs), np.bool_), encoder.encode(inputs)
        if advance:
            advance(len(inputs))
        return present_N, values_NF
    assert image_folder is not None, "an encoder of images needs their folder"
    files = [image_folder / name for name in inputs]
    return _encode_files(files, encoder, advance)


def _encode_files(
    files: list[Path], encoder: ImageEncoder, advance: Advance | None
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    present_N = np.zeros(len(files), np.bool_)
    values_NF = np.zeros((len(files), encoder.width), np.float32)
    done = 0

    def read(path: Path) -> Pixels:
        try:
            return encoder.shrink(to_rgb(decode_image(path.read_bytes(), MAX_PIXELS)))
        except (OSError, ImageError):
            return None

    for batch in _read_ahead(read, files, encoder.batch_size):
        rows = done + np.flatnonzero([pixels is not None for pixels in batch])
        present_N[rows] = True
        values_NF[rows] = encoder.encode_shrunk([one for one in batch if one is not None])
        done += len(batch)
        if advance:
            advance(len(batch))
    return present_N, values_NF


def _read_ahead(
    read: Callable[[Path], Pixels], files: list[Path], batch_size: int
) -> Iterator[list[Pixels]]:
    """Yield batches in order, a few of them read beforehand by threads."""
    waiting: deque[list[Future[Pixels]]] = deque()
    with bombs_are_errors(), ThreadPoolExecutor(DECODING_THREADS) as threads:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            waiting.append([threads.submit(read, file) for file in batch])
            if len(waiting) > BATCHES_AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
