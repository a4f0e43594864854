"""The features of a domain: encoded here, or taken over from the set that brings them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from mmm4rec.config import Config
from mmm4rec.errors import ConfigError, DataError
from pipeline.audit import audit_features
from pipeline.encoders import EncoderSpec, Modality, check_encoder, load_encoder
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
    stage = _Stage(modality, subject, config, work / FEATURES / modality, echo)
    if name == SOURCE:
        _refuse_audit(modality, audit)
        return stage.take_over()
    column = subject.items["text"] if modality == "text" else subject.images["file"]
    if name == "none" or column.null_count() == len(column):
        echo(f"{stage.name}: none, no item has {modality}")
        return None
    return stage.encode(name, column, audit=audit)


@dataclass(frozen=True)
class _Stage:
    """The stage of one modality."""

    modality: Modality
    subject: Subject
    config: Config
    folder: Path
    echo: Echo

    @property
    def name(self) -> str:
        return f"{self.modality} features"

    def encode(self, encoder_name: str, column: pl.Series, *, audit: bool) -> MadeFeatures:
        settings = self.config.features
        how = (settings.device, settings.precision, settings.pooling)
        spec = EncoderSpec(self.modality, encoder_name, *how, settings.batch_size)
        load = lru_cache(1)(lambda: load_encoder(spec))  # only where there is something to do
        identity = [_identity(encoder_name), *how]
        content = stage_key([self.subject.items["item_id"].to_list(), column.to_list()])
        made = self._run(
            self.folder / stage_key(identity),
            [content, identity, settings.batch_size],
            lambda into: self._encode_all(into, load()),
        )
        if audit:
            self._audit(made, load())
        return made

    def take_over(self) -> MadeFeatures:
        """Take over the features that come with the set."""
        file, origin = self.subject.brought[self.modality], self.subject.source_format
        present = self.subject.has_image if self.modality == "image" else None
        shared_by = self.config.images.placeholder_items if self.modality == "image" else 0

        def import_all(into: Path) -> FeatureSet:
            return import_features(
                file,
                into,
                self.modality,
                self.subject.fingerprint,
                len(self.subject.items),
                f"{origin}-{self.modality}",
                present=present,
                shared_by=shared_by,
                # Their scripts use one encoder for all domains: a model can move between them.
                is_one_encoder=origin == "released",
                shard_size=self.config.features.shard_size,
            )

        stat = file.stat()
        inputs = [file.name, stat.st_size, stat.st_mtime_ns, present, shared_by]
        return self._run(self.folder / SOURCE, inputs, import_all)

    def _run(
        self, folder: Path, inputs: list[Any], work: Callable[[Path], FeatureSet]
    ) -> MadeFeatures:
        result = run_stage(
            self.name,
            folder,
            [self.subject.fingerprint, self.config.features.shard_size, *inputs],
            lambda into: work(into).model_dump(),
            self.echo,
            resumable=True,
        )
        made = FeatureSet.model_validate(result)
        return MadeFeatures(made, folder / made.key)

    def _encode_all(self, folder: Path, encoder: Any) -> FeatureSet:
        subject, settings = self.subject, self.config.features
        last = (settings, subject.fingerprint, say_share(self.echo, self.name))
        if self.modality == "text":
            return encode_texts(subject.items, folder / encoder.key, encoder, *last)
        into = folder / encoder.key
        return encode_images(subject.images, subject.image_folder, into, encoder, *last)

    def _audit(self, made: MadeFeatures, encoder: Any) -> None:
        subject = self.subject
        items, images = (
            (subject.items, None)
            if self.modality == "text"
            else (subject.images, subject.image_folder)
        )
        found = audit_features(
            items, made.shards, encoder, subject.fingerprint, image_folder=images
        )
        self.echo(
            f"{self.name}: audit of {found.items} items: cosine at least "
            f"{found.worst_cosine:.5f}, difference at most {found.worst_difference:.5f}; "
            f"{found.missing} items are missing"
        )


def _refuse_audit(modality: Modality, audit: bool) -> None:
    if audit:
        raise DataError(
            f"--audit: {modality} features that come with a set cannot be encoded again. Next: "
            f"leave out --audit"
        )


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
