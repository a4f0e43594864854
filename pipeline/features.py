"""Frozen encoders over a catalogue: texts and images to feature shards.

What has been encoded once, in whichever run and for whichever item, is not encoded again while its
folder lives: a vector belongs to its input.
"""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl

from mmm4rec.config import FeaturesConfig
from pipeline.encoders import ImageEncoder, TextEncoder
from pipeline.encoding import AnyEncoder, encode_chunk
from pipeline.feature_plan import FeaturePlan, finish_features, plan_features
from pipeline.feature_store import EncoderRecord, count_present
from pipeline.images import Progress
from pipeline.schema import FeatureSet

logger = logging.getLogger(__name__)


def encode_texts(
    items: pl.DataFrame,
    folder: Path,
    encoder: TextEncoder,
    config: FeaturesConfig,
    fingerprint: str,
    progress: Progress | None = None,
) -> FeatureSet:
    """Encode the texts of all items.

    An item whose text is null or blank has none: `present` is false and its values are 0. A text
    that several items share, or that the folder has the vector of, is not encoded again. Can be
    killed at any moment and called again: the files are those of an undisturbed call.

    Args:
        items: item_id, text.
        folder: gets the shards and the encoder's record.
        encoder: a text encoder.
        config: size of shards, number of processes.
        fingerprint: item fingerprint.
        progress: called with items done and all items.

    Raises:
        ConfigError: there are fewer GPUs than processes, or Ray is missing.
        DataError: the encoder's output is not finite in float16.
    """
    return _encode(text_inputs(items), folder, encoder, config, fingerprint, progress)


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
    `present` is false and its values are 0. Otherwise as `encode_texts`.

    Args:
        items: item_id, file (relative to `image_folder`, named by content; null: none).
        image_folder: where `fetch_images` has put the files.
        folder: gets the shards and the encoder's record.
        encoder: an image encoder.
        config: size of shards, number of processes.
        fingerprint: item fingerprint.
        progress: called with items done and all items.

    Raises:
        ConfigError: there are fewer GPUs than processes, or Ray is missing.
        DataError: the encoder's output is not finite in float16.
    """
    files = image_inputs(items)
    features = _encode(files, folder, encoder, config, fingerprint, progress, image_folder)
    unreadable = files["input"].count() - features.present
    if unreadable:
        logger.warning("%d image files in %s cannot be read: missing", unreadable, image_folder)
    return features


def text_inputs(items: pl.DataFrame) -> pl.DataFrame:
    """Return item_id and input: the text, null where it is blank."""
    is_text = pl.col("text").str.strip_chars().str.len_bytes() > 0
    return items.select("item_id", pl.when(is_text).then("text").alias("input"))


def image_inputs(items: pl.DataFrame) -> pl.DataFrame:
    """Return item_id and input: the file, null where there is none."""
    return items.select("item_id", pl.col("file").alias("input"))


def _encode(
    items: pl.DataFrame,
    folder: Path,
    encoder: AnyEncoder,
    config: FeaturesConfig,
    fingerprint: str,
    progress: Progress | None,
    image_folder: Path | None = None,
) -> FeatureSet:
    record = EncoderRecord(
        encoder=encoder.name,
        revision=encoder.revision,
        preprocessing=encoder.preprocessing,
        key=encoder.key,
        width=encoder.width,
        blank=encoder.blank.tolist(),
        fingerprint=fingerprint,
        num_items=len(items),
    )
    num_processes = config.devices * (1 if config.engine == "ray" else config.num_nodes)
    plan = plan_features(
        folder,
        record,
        items,
        config.shard_size,
        image_folder=image_folder,
        num_processes=num_processes,
    )
    if config.engine == "ray":
        from pipeline.ray_jobs import encode_with_ray

        encode_with_ray(plan, encoder.spec, config, progress)
    elif num_processes > 1 and (plan.chunks or config.num_nodes > 1):  # machines wait for others
        from pipeline.encoding_processes import encode_in_processes

        encode_in_processes(plan, encoder.spec, config, progress)
    else:
        _encode_here(plan, encoder, progress)
    return FeatureSet(
        modality=encoder.modality,
        key=encoder.key,
        encoder=encoder.name,
        width=encoder.width,
        present=count_present(folder),
    )


def _encode_here(plan: FeaturePlan, encoder: AnyEncoder, progress: Progress | None) -> None:
    done = plan.num_items - plan.num_new

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, plan.num_items)

    advance(0)
    for chunk in plan.chunks:
        encode_chunk(chunk, encoder, advance)
    finish_features(plan)
