"""The features of a domain: encoded here, or taken over from the set that brings them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mmm4rec.config import Config
from mmm4rec.errors import ConfigError, DataError
from pipeline.audit import audit_features
from pipeline.encoders import EncoderSpec, Modality, check_encoder, load_encoder
from pipeline.encoding import AnyEncoder
from pipeline.features import encode_images, encode_texts
from pipeline.foreign_features import import_features
from pipeline.schema import FEATURES, FeatureSet
from pipeline.stages import Echo, run_stage, say_share, stage_key

MODALITIES: tuple[Modality, ...] = ("text", "image")
SOURCE = "source"  # in place of an encoder's name: the features that come with the set


@dataclass(frozen=True)
class Subject:
    """What features are made of.

    Attributes:
        items: item_id, text.
        images: item_id, file (relative to `image_folder`; null: none).
        image_folder: where the files are.
        fingerprint: item fingerprint.
        brought: feature files that come with the set, by modality.
        has_image: whether the set's authors had an image, per item; None where they do not say.
        source_format: of the set.
    """

    items: pl.DataFrame
    images: pl.DataFrame
    image_folder: Path
    fingerprint: str
    brought: dict[str, Path]
    has_image: list[bool] | None
    source_format: str


@dataclass(frozen=True)
class MadeFeatures:
    """Features and the folder of their shards."""

    features: FeatureSet
    shards: Path


def check_encoders(config: Config, brought: dict[str, Path] | None = None) -> None:
    """Refuse encoders that cannot be had, before anything long begins.

    Args:
        config: the sections features and prepare are used.
        brought: feature files that come with the set; None: not known yet.

    Raises:
        ConfigError: a name is no encoder's, or the set brings no features.
    """
    for modality in MODALITIES:
        name = getattr(config.features, modality)
        if name != SOURCE:
            check_encoder(name, modality)
        elif config.prepare.require_image:
            raise ConfigError(
                f"--{modality}-encoder {SOURCE}: features that come with a set are of all its "
                f"items, --require-image leaves some out. Next: leave out one of the two"
            )
        elif brought is not None and modality not in brought:
            raise ConfigError(
                f"--{modality}-encoder {SOURCE}: no {modality} features come with this set. "
                f"Next: name an encoder, or none"
            )


def make_features(
    modality: Modality, subject: Subject, config: Config, work: Path, *, audit: bool, echo: Echo
) -> MadeFeatures | None:
    """Return the features of one modality, made if need be; None where nothing has the modality.

    Args:
        modality: text or image.
        subject: what they are made of.
        config: the sections features and images are used.
        work: work folder of the domain.
        audit: encode a random sample again and compare.
        echo: told what happens.

    Raises:
        ConfigError: there is no such encoder.
        DataError: the encoder cannot be had, features cannot be used, or the audit fails.
    """
    name = getattr(config.features, modality)
    if name == SOURCE:
        return _import(modality, subject, config, work, audit, echo)
    column = subject.items["text"] if modality == "text" else subject.images["file"]
    if name == "none" or column.null_count() == len(column):
        echo(f"{modality} features: none, no item has {modality}")
        return None
    return _encode(modality, name, column, subject, config, work, audit=audit, echo=echo)


def _encode(
    modality: Modality,
    name: str,
    column: pl.Series,
    subject: Subject,
    config: Config,
    work: Path,
    *,
    audit: bool,
    echo: Echo,
) -> MadeFeatures:
    settings = config.features
    spec = EncoderSpec(
        modality, name, settings.device, settings.precision, settings.pooling, settings.batch_size
    )
    identity = [_identity(name), settings.device, settings.precision, settings.pooling]
    folder = work / FEATURES / modality / stage_key(identity)
    loaded: list[AnyEncoder] = []

    def load() -> AnyEncoder:
        if not loaded:
            encoder = load_encoder(spec)
            assert encoder is not None
            loaded.append(encoder)
        return loaded[0]

    def encode(into: Path) -> dict[str, Any]:
        return _encode_all(modality, subject, config, into, load(), echo).model_dump()

    content = stage_key([subject.items["item_id"].to_list(), column.to_list()])
    inputs = [subject.fingerprint, content, identity, settings.batch_size, settings.shard_size]
    stage = f"{modality} features"
    made = FeatureSet.model_validate(run_stage(stage, folder, inputs, encode, echo, resumable=True))
    if audit:
        _audit(modality, subject, folder / made.key, load(), echo)
    return MadeFeatures(made, folder / made.key)


def _encode_all(
    modality: Modality,
    subject: Subject,
    config: Config,
    folder: Path,
    encoder: Any,
    echo: Echo,
) -> FeatureSet:
    into, say = folder / encoder.key, say_share(echo, f"{modality} features")
    if modality == "text":
        return encode_texts(subject.items, into, encoder, config.features, subject.fingerprint, say)
    return encode_images(
        subject.images,
        subject.image_folder,
        into,
        encoder,
        config.features,
        subject.fingerprint,
        say,
    )


def _audit(
    modality: Modality, subject: Subject, shards: Path, encoder: AnyEncoder, echo: Echo
) -> None:
    items, images = (
        (subject.items, None) if modality == "text" else (subject.images, subject.image_folder)
    )
    found = audit_features(items, shards, encoder, subject.fingerprint, image_folder=images)
    echo(
        f"{modality} features: audit of {found.items} items: cosine at least "
        f"{found.worst_cosine:.5f}, difference at most {found.worst_difference:.5f}; "
        f"{found.missing} items are missing"
    )


def _import(
    modality: Modality, subject: Subject, config: Config, work: Path, audit: bool, echo: Echo
) -> MadeFeatures:
    if audit:
        raise DataError(
            f"--audit: {modality} features that come with a set cannot be encoded again. Next: "
            f"leave out --audit"
        )
    file = subject.brought[modality]
    present = subject.has_image if modality == "image" else None
    shared_by = config.images.placeholder_items if modality == "image" else 0
    # Their scripts use one encoder for every domain: a model can move between them.
    is_one_encoder = subject.source_format == "released"

    def take_over(folder: Path) -> dict[str, Any]:
        return import_features(
            file,
            folder,
            modality,
            subject.fingerprint,
            len(subject.items),
            f"{subject.source_format}-{modality}",
            present=present,
            shared_by=shared_by,
            is_one_encoder=is_one_encoder,
            shard_size=config.features.shard_size,
        ).model_dump()

    stat = file.stat()
    inputs = [
        subject.fingerprint,
        [file.name, stat.st_size, stat.st_mtime_ns],
        present,
        shared_by,
        config.features.shard_size,
    ]
    folder = work / FEATURES / modality / SOURCE
    made = FeatureSet.model_validate(
        run_stage(f"{modality} features", folder, inputs, take_over, echo, resumable=True)
    )
    return MadeFeatures(made, folder / made.key)


def _identity(name: str) -> list[Any]:
    """Return what an encoder's name stands for now: a folder's files may have changed."""
    folder = Path(name)
    if not folder.is_dir():
        return [name]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        str(folder.resolve()),
        *([p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files),
    ]
