"""From raw files to a prepared domain: the only place that orders the stages.

    raw files -> tables -> images -> text features, image features -> prepared folder

Work in progress lives in `<data_dir>/work/<domain>`, one folder per stage; the prepared folder is
put together at the end and appears whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from mmm4rec.config import Config
from mmm4rec.errors import DataError
from pipeline.amazon import read_interactions, read_metadata
from pipeline.atomic import AtomicFiles, read_atomic
from pipeline.card import data_card
from pipeline.domains import name_domain
from pipeline.encoders import check_encoder, load_image_encoder, load_text_encoder
from pipeline.features import encode_images, encode_texts
from pipeline.filtering import drop_exact_duplicates, k_core, keep_items
from pipeline.images import fetch_images
from pipeline.inputs import AmazonFiles, resolve_inputs
from pipeline.outcomes import image_status
from pipeline.schema import (
    FEATURES,
    FORMAT_VERSION,
    INTERACTIONS,
    ITEMS,
    MANIFEST,
    USERS,
    Count,
    FeatureSet,
    InputFile,
    Manifest,
    atomic_path,
    item_fingerprint,
    prepared_dir,
    read_manifest,
    sha256_file,
    write_json,
)
from pipeline.splitting import ambiguous_order_share, assign_ids
from pipeline.stages import Echo, run_stage, stage_key
from pipeline.tables import write_parquet

RAW_ITEMS = "items_without_images.parquet"
BAD_LINES = "bad_lines.parquet"
_MODALITIES = ("text", "image")


def prepare_domain(
    domain: str, config: Config, *, source: str | None = None, echo: Echo = print
) -> Manifest:
    """Prepare a domain, doing only what its inputs and settings have not yet brought about.

    Args:
        domain: name of the domain.
        config: the sections prepare, images, features and data.data_dir are used.
        source: folder or base URL of the raw files; None: the mirrors of the catalogue.
        echo: told what happens.

    Returns:
        The manifest of the prepared folder.

    Raises:
        ConfigError: the domain or an encoder is unknown.
        DataError: raw files are missing or malformed, or nothing is left after the filters.
    """
    return _Preparation(name_domain(domain).name, config, echo).run(domain, source)


@dataclass(frozen=True)
class _Preparation:
    domain: str
    config: Config
    echo: Echo

    @property
    def work(self) -> Path:
        return self.config.data.data_dir / "work" / self.domain

    def run(self, domain: str, source: str | None) -> Manifest:
        check_encoder(self.config.features.text, "text")
        check_encoder(self.config.features.image, "image")
        raw_dir = self.config.data.data_dir / "raw"
        raw = resolve_inputs(domain, source, raw_dir, _say_bytes(self.echo))
        inputs = [
            InputFile(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path))
            for path in raw.files
        ]
        settings = self.config.prepare.model_dump(mode="json")
        tables_key = stage_key([[file.model_dump() for file in inputs], settings])
        tables = run_stage(
            "tables", self.work / "tables", tables_key, lambda to: self._tables(raw, to), self.echo
        )
        items = pl.read_parquet(self.work / "tables" / RAW_ITEMS)
        outcomes = self._images(items, tables_key)
        status = image_status(items, outcomes)
        features = [
            made
            for modality in _MODALITIES
            if (made := self._features(modality, items, status, tables["fingerprint"]))
        ]
        return self._publish(raw, inputs, tables, items, status, outcomes, features)

    def _tables(self, raw: AmazonFiles | AtomicFiles, folder: Path) -> dict[str, Any]:
        made = (
            _amazon_tables(self.domain, raw, self.config, folder)
            if isinstance(raw, AmazonFiles)
            else _atomic_tables(self.domain, raw, self.config)
        )
        has_time = made.interactions["timestamp"].null_count() < len(made.interactions)
        numbered = assign_ids(made.interactions, made.metadata, items=made.items, users=made.users)
        write_parquet(numbered.interactions, folder / INTERACTIONS)
        write_parquet(numbered.users, folder / USERS)
        write_parquet(numbered.items, folder / RAW_ITEMS)
        return {
            "counts": [count.model_dump() for count in made.counts],
            "bad_lines": made.bad_lines,
            "fingerprint": item_fingerprint(numbered.items["asin"]),
            "has_time": has_time,
            "ambiguous_order_share": (
                round(ambiguous_order_share(made.interactions), 4) if has_time else None
            ),
        }

    def _images(self, items: pl.DataFrame, tables_key: str) -> pl.DataFrame:
        folder = self.work / "images"
        found: list[pl.DataFrame] = []

        def fetch(into: Path) -> dict[str, Any]:
            found.append(
                fetch_images(items, into, self.config.images, _say_share(self.echo, "images"))
            )
            return {}

        settings = self.config.images.model_dump(mode="json")
        run_stage("images", folder, [tables_key, settings], fetch, self.echo, resumable=True)
        if not found:  # nothing is asked again: this only reads what is known
            quiet = self.config.images.model_copy(update={"enabled": False})
            found.append(fetch_images(items, folder, quiet))
        return found[0]

    def _features(
        self, modality: str, items: pl.DataFrame, status: pl.DataFrame, fingerprint: str
    ) -> FeatureSet | None:
        settings = self.config.features
        name = settings.text if modality == "text" else settings.image
        column = items["text"] if modality == "text" else status["file"]
        if name == "none" or column.null_count() == len(column):
            self.echo(f"{modality} features: none, no item has {modality}")
            return None

        def encode(folder: Path) -> dict[str, Any]:
            say = _say_share(self.echo, f"{modality} features")
            if modality == "text":
                text_encoder = load_text_encoder(name, settings.device)
                assert text_encoder is not None
                into = folder / text_encoder.key
                made = encode_texts(items, into, text_encoder, settings, fingerprint, say)
            else:
                image_encoder = load_image_encoder(name, settings.device)
                assert image_encoder is not None
                into, images = folder / image_encoder.key, self.work / "images"
                made = encode_images(
                    status, images, into, image_encoder, settings, fingerprint, say
                )
            return made.model_dump()

        content = stage_key([items["item_id"].to_list(), column.to_list()])
        inputs = [fingerprint, content, _encoder_identity(name), settings.shard_size]
        folder = self.work / FEATURES / modality / stage_key(_encoder_identity(name))
        return FeatureSet.model_validate(
            run_stage(f"{modality} features", folder, inputs, encode, self.echo, resumable=True)
        )

    def _publish(
        self,
        raw: AmazonFiles | AtomicFiles,
        inputs: list[InputFile],
        tables: dict[str, Any],
        items: pl.DataFrame,
        status: pl.DataFrame,
        outcomes: pl.DataFrame,
        features: list[FeatureSet],
    ) -> Manifest:
        target = prepared_dir(self.config.data.data_dir, self.domain)
        items = items.join(
            status.select("item_id", "image_status"), on="item_id", maintain_order="left"
        )
        interactions = pl.read_parquet(self.work / "tables" / INTERACTIONS)
        counts = [Count.model_validate(count) for count in tables["counts"]]
        card = data_card(self.domain, counts, tables, interactions, items, outcomes)
        with atomic_path(target) as temporary:
            temporary.mkdir()
            for name in (INTERACTIONS, USERS):
                _link(self.work / "tables" / name, temporary / name)
            write_parquet(items, temporary / ITEMS)
            kept = self._other_features(target, tables["fingerprint"], features)
            for made in [*features, *kept]:
                _link_tree(self._shards(target, made, features), temporary, made)
            manifest = Manifest(
                format_version=FORMAT_VERSION,
                domain=self.domain,
                source_format="amazon2018" if isinstance(raw, AmazonFiles) else "atomic",
                inputs=inputs,
                parameters={
                    name: getattr(self.config, name).model_dump(mode="json")
                    for name in ("prepare", "images", "features")
                },
                versions={name: version(name) for name in ("mmm4rec", "polars", "pyarrow")},
                counts=counts,
                fingerprint=tables["fingerprint"],
                has_time=tables["has_time"],
                features=[*features, *kept],
                card=card,
            )
            write_json(manifest.model_dump(mode="json"), temporary / MANIFEST)
        self.echo(f"prepared: {target}")
        return manifest

    def _other_features(
        self, target: Path, fingerprint: str, new: list[FeatureSet]
    ) -> list[FeatureSet]:
        """Return features of the same items by other encoders that the folder already has."""
        if not (target / MANIFEST).is_file():
            return []
        old = read_manifest(target)
        keys = {(made.modality, made.key) for made in new}
        same = old.fingerprint == fingerprint
        return [f for f in old.features if same and (f.modality, f.key) not in keys]

    def _shards(self, target: Path, made: FeatureSet, new: list[FeatureSet]) -> Path:
        if made not in new:
            return target / FEATURES / made.modality / made.key
        settings = self.config.features
        name = settings.text if made.modality == "text" else settings.image
        stage = stage_key(_encoder_identity(name))
        return self.work / FEATURES / made.modality / stage / made.key


@dataclass(frozen=True)
class _Filtered:
    interactions: pl.DataFrame
    metadata: pl.DataFrame
    items: list[str] | None
    users: list[str] | None
    counts: list[Count]
    bad_lines: dict[str, int]


def _amazon_tables(domain: str, raw: AmazonFiles, config: Config, folder: Path) -> _Filtered:
    settings = config.prepare
    ratings = read_interactions(raw.interactions, settings.max_bad_lines)
    counts = [_count("read", ratings.rows)]
    kept = ratings.rows
    if settings.duplicates == "exact":
        kept = drop_exact_duplicates(kept)
        counts.append(_count("exact duplicates removed", kept))
    # Only items that could survive are held in memory: the core with metadata is inside this one.
    wanted = k_core(kept, settings.k_core)["asin"].unique()
    metadata = read_metadata(
        raw.metadata,
        keep=wanted,
        template=settings.text_template,
        max_bad_lines=settings.max_bad_lines,
    )
    if settings.require_metadata:
        kept = keep_items(kept, metadata.asins)
        counts.append(_count("with metadata", kept))
    kept = k_core(kept, settings.k_core)
    counts.append(_count(f"{settings.k_core}-core", kept))
    if kept.is_empty():
        steps = "; ".join(f"{c.step}: {c.interactions:,} interactions" for c in counts)
        raise DataError(
            f"{domain}: nothing is left after the filters ({steps}). Next: check that ratings and "
            f"metadata are of one category, or --set prepare.k_core=N below {settings.k_core}"
        )
    write_parquet(pl.concat([ratings.bad_lines, metadata.bad_lines]), folder / BAD_LINES)
    bad = {
        raw.interactions.name: ratings.bad_lines.height,
        raw.metadata.name: metadata.bad_lines.height,
    }
    return _Filtered(kept, metadata.rows, None, None, counts, bad)


def _atomic_tables(domain: str, raw: AtomicFiles, config: Config) -> _Filtered:
    atomic = read_atomic(raw)
    kept, counts = atomic.interactions, [_count("read", atomic.interactions)]
    if atomic.items is None:
        kept = k_core(kept, config.prepare.k_core)
        counts.append(_count(f"{config.prepare.k_core}-core", kept))
    if kept.is_empty():
        raise DataError(
            f"{domain}: nothing is left of {counts[0].interactions:,} interactions in {raw.inter}. "
            f"Next: --set prepare.k_core=N below {config.prepare.k_core}"
        )
    return _Filtered(kept, atomic.metadata, atomic.items, atomic.users, counts, {})


def _count(step: str, interactions: pl.DataFrame) -> Count:
    users, items = (interactions[name].n_unique() for name in ("user", "asin"))
    return Count(step=step, users=users, items=items, interactions=len(interactions))


def _encoder_identity(name: str) -> list[Any]:
    """Return what an encoder's name stands for now: a folder's files may have changed."""
    folder = Path(name)
    if not folder.is_dir():
        return [name]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        str(folder.resolve()),
        *([p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files),
    ]


def _link_tree(shards: Path, prepared: Path, made: FeatureSet) -> None:
    into = prepared / FEATURES / made.modality / made.key
    into.mkdir(parents=True)
    for file in sorted(shards.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            _link(file, into / file.name)


def _link(file: Path, to: Path) -> None:
    """Share the file where the file system can, else copy it: files are replaced, never changed."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def _say_share(echo: Echo, stage: str) -> Callable[[int, int], None]:
    """Say every tenth of the way."""
    said = [0]

    def say(done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > said[0]:
            said[0] = tenth
            echo(f"{stage}: {done:,} of {total:,}")

    return say


def _say_bytes(echo: Echo) -> Callable[[str, int, int | None], None]:
    """Say every 64 MB."""
    said: dict[str, int] = {}

    def say(name: str, done: int, total: int | None) -> None:
        step = done // 2**26
        if step > said.get(name, 0):
            said[name] = step
            echo(f"{name}: {done / 1e6:,.0f} MB" + (f" of {total / 1e6:,.0f} MB" if total else ""))

    return say
