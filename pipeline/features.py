"""Frozen encoders over a catalogue: texts and images to feature shards, resumable by shard."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from mmm4rec.config import FeaturesConfig
from pipeline.encoders import Encoder, ImageEncoder, TextEncoder
from pipeline.feature_store import EncoderRecord, count_present, holds, shard_paths, write_shard
from pipeline.images import (
    MAX_PIXELS,
    ImageError,
    Progress,
    bombs_are_errors,
    decode_image,
    to_rgb,
)
from pipeline.schema import ENCODER_FILE, FeatureSet, write_json

logger = logging.getLogger(__name__)

# Encodes a batch: which of the inputs have an output, and those outputs in order, (n, F).
EncodeBatch = Callable[[list[str]], tuple[list[bool], NDArray[np.float32]]]


def encode_texts(
    items: pl.DataFrame,
    folder: Path,
    encoder: TextEncoder,
    config: FeaturesConfig,
    fingerprint: str,
    progress: Progress | None = None,
) -> FeatureSet:
    """Encode the texts of all items.

    An item whose text is null or blank has none: `present` is false and its values are 0. A shard
    that came from the same items, texts and encoder is not computed again.

    Args:
        items: item_id, text.
        folder: gets the shards and the encoder's record.
        encoder: a text encoder.
        config: sizes of batches and shards.
        fingerprint: item fingerprint.
        progress: called with items done and all items.

    Raises:
        DataError: the encoder's output is not finite in float16.
    """

    def encode(texts: list[str]) -> tuple[list[bool], NDArray[np.float32]]:
        return [True] * len(texts), encoder.encode(texts)

    texts = [text if text and text.strip() else None for text in items["text"].to_list()]
    work = _Work(items["item_id"].to_list(), texts, encode, encoder, fingerprint)
    return _encode("text", work, folder, config, progress)


def encode_images(
    items: pl.DataFrame,
    image_folder: Path,
    folder: Path,
    encoder: ImageEncoder,
    config: FeaturesConfig,
    fingerprint: str,
    progress: Progress | None = None,
) -> FeatureSet:
    """Encode the images of all items.

    An item without a file, or whose file cannot be decoded (a warning counts these), has no image:
    `present` is false and its values are 0. A shard that came from the same items, files and
    encoder is not computed again.

    Args:
        items: item_id, file (relative to `image_folder`, named by content; null: none).
        image_folder: where `fetch_images` has put the files.
        folder: gets the shards and the encoder's record.
        encoder: an image encoder.
        config: sizes of batches and shards.
        fingerprint: item fingerprint.
        progress: called with items done and all items.

    Raises:
        DataError: the encoder's output is not finite in float16.
    """

    def encode(files: list[str]) -> tuple[list[bool], NDArray[np.float32]]:
        found = [_open(image_folder / file) for file in files]
        images = [image for image in found if image is not None]
        return [image is not None for image in found], encoder.encode(images)

    files = items["file"].to_list()
    work = _Work(items["item_id"].to_list(), files, encode, encoder, fingerprint)
    with bombs_are_errors():
        features = _encode("image", work, folder, config, progress)
    unreadable = sum(file is not None for file in files) - features.present
    if unreadable:
        logger.warning("%d image files in %s cannot be read: missing", unreadable, image_folder)
    return features


@dataclass(frozen=True)
class _Work:
    """What is to be encoded, by what; a shard is a slice of it."""

    item_ids: list[int]
    inputs: list[str | None]  # None: the item lacks the modality
    encode: EncodeBatch
    encoder: Encoder[str] | Encoder[Image.Image]
    fingerprint: str

    def digest(self, part: slice) -> str:
        """Hash everything that a shard depends on."""
        parts = [self.fingerprint, self.encoder.key, self.item_ids[part], self.inputs[part]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _encode(
    modality: str, work: _Work, folder: Path, config: FeaturesConfig, progress: Progress | None
) -> FeatureSet:
    encoder, num_items = work.encoder, len(work.item_ids)
    written = set()
    for number, start in enumerate(range(0, num_items, config.shard_size)):
        part = slice(start, min(start + config.shard_size, num_items))
        path = folder / f"part-{number:05}.parquet"
        if not holds(path, work.digest(part)):
            _encode_shard(work, part, path, config.batch_size)
        written.add(path)
        if progress:
            progress(part.stop, num_items)
    for path in shard_paths(folder):
        if path not in written:  # of another shard size, or of a larger catalogue
            path.unlink()
    record = EncoderRecord(
        encoder=encoder.name,
        revision=encoder.revision,
        preprocessing=encoder.preprocessing,
        key=encoder.key,
        width=encoder.width,
        blank=encoder.blank.tolist(),
        fingerprint=work.fingerprint,
        num_items=num_items,
    )
    write_json(record.model_dump(), folder / ENCODER_FILE)
    return FeatureSet(
        modality=modality,
        key=encoder.key,
        encoder=encoder.name,
        width=encoder.width,
        present=count_present(folder),
    )


def _encode_shard(work: _Work, part: slice, path: Path, batch_size: int) -> None:
    path.with_name(ENCODER_FILE).unlink(missing_ok=True)  # not whole until the end
    inputs = work.inputs[part]
    present_N = np.zeros(len(inputs), np.bool_)
    values_NF = np.zeros((len(inputs), work.encoder.width), np.float32)
    rows = [row for row, value in enumerate(inputs) if value is not None]
    rows.sort(key=lambda row: len(inputs[row] or ""))  # texts of one batch need little padding
    for start in range(0, len(rows), batch_size):
        batch = np.array(rows[start : start + batch_size])
        has_output, outputs_BF = work.encode([inputs[row] or "" for row in batch])
        present_N[batch] = has_output
        values_NF[batch[has_output]] = outputs_BF
    write_shard(path, work.item_ids[part], present_N, values_NF, work.digest(part))


def _open(path: Path) -> Image.Image | None:
    try:
        return to_rgb(decode_image(path.read_bytes(), MAX_PIXELS))
    except (OSError, ImageError):
        return None
