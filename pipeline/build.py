"""From raw files to a prepared domain: the only place that orders the stages.

    raw files -> tables -> images -> text features, image features -> prepared folder

What each stage makes lies in `<data_dir>/work/<domain>`, one folder per stage; the prepared folder
is put together at the end and appears whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from mmm4rec.config import Config
from pipeline.atomic import AtomicFiles, read_atomic
from pipeline.card import data_card
from pipeline.domains import Domain, name_domain
from pipeline.feature_stage import (
    MODALITIES,
    MadeFeatures,
    Subject,
    check_encoders,
    make_features,
)
from pipeline.images import fetch_images
from pipeline.inputs import AmazonFiles, RawFiles, resolve_inputs
from pipeline.locking import exclusive
from pipeline.outcomes import image_status
from pipeline.published import compare_counts
from pipeline.released import read_released
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
from pipeline.splitting import NumberedTables, ambiguous_order_share, assign_ids
from pipeline.stages import Echo, Work, run_stage, say_share, stage_key, unfinish_stage
from pipeline.survivors import Survivors, filter_amazon, filter_processed, filter_to_images
from pipeline.tables import RAW_ITEMS, write_parquet

BAD_LINES = "bad_lines.parquet"


def prepare_domain(
    domain: str,
    config: Config,
    *,
    source: str | None = None,
    retry_temporary: bool = False,
    audit: bool = False,
    echo: Echo = print,
) -> Manifest:
    """Prepare a domain, doing only what its inputs and settings have not yet brought about.

    Two processes do not prepare one domain at once: the second waits, and finds it done.

    Args:
        domain: name of the domain.
        config: the sections prepare, images, features and data.data_dir are used.
        source: folder or base URL of the raw files; None: the mirrors of the catalogue.
        retry_temporary: ask again for images whose last failure was temporary.
        audit: encode a random sample of the items again and compare.
        echo: told what happens.

    Returns:
        The manifest of the prepared folder.

    Raises:
        ConfigError: the domain or an encoder is unknown.
        DataError: raw files are missing or malformed, nothing is left after the filters, an image
            host does not answer, or the audit fails.
    """
    check_encoders(config)
    named = name_domain(domain, config.prepare.release)
    preparation = _Preparation(named, config, echo)
    is_helper = config.features.num_nodes > 1 and not _is_first_machine(config)
    raw_dir, release = config.data.data_dir / "raw", config.prepare.release
    raw = resolve_inputs(domain, source, raw_dir, _say_bytes(echo), release)
    check_encoders(config, raw.features)
    alone = exclusive(preparation.work, [preparation.target], echo)
    with nullcontext() if is_helper else alone:
        made = preparation.make(raw, retry_temporary=retry_temporary, audit=audit)
        if is_helper:
            return read_manifest(preparation.target)
        return preparation.publish(made)


def _is_first_machine(config: Config) -> bool:
    from pipeline.encoding_processes import is_first_machine  # loads Lightning

    return is_first_machine(config.features)


@dataclass(frozen=True)
class _Tables:
    """Numbered tables, where they lie and what the stage said of them."""

    folder: Path
    key: str
    items: pl.DataFrame  # ITEM_SCHEMA without image_status
    made: dict[str, Any]


@dataclass(frozen=True)
class _Made:
    """What the stages have brought about."""

    raw: RawFiles
    inputs: list[InputFile]
    tables: _Tables
    status: pl.DataFrame  # item_id, image_status, file
    outcomes: pl.DataFrame
    features: list[MadeFeatures]


@dataclass(frozen=True)
class _Preparation:
    domain: Domain
    config: Config
    echo: Echo

    @property
    def work(self) -> Path:
        return self.config.data.data_dir / "work" / self.domain.name

    @property
    def target(self) -> Path:
        return prepared_dir(self.config.data.data_dir, self.domain.name)

    def make(self, raw: RawFiles, *, retry_temporary: bool, audit: bool) -> _Made:
        inputs = [
            InputFile(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path))
            for path in raw.files
        ]
        tables = self._tables(raw, inputs)
        outcomes = self._images(tables, retry_temporary)
        status = image_status(tables.items, outcomes, self.config.images.placeholder_items)
        if self.config.prepare.require_image:
            tables, status = self._with_images(tables, status)
        subject = Subject(
            items=tables.items,
            images=status,
            image_folder=self.work / "images",
            fingerprint=tables.made["fingerprint"],
            brought=raw.features,
            has_image=tables.made["has_image"],
            source_format=raw.source_format,
        )
        features = [
            made
            for modality in MODALITIES
            if (
                made := make_features(
                    modality, subject, self.config, self.work, audit=audit, echo=self.echo
                )
            )
        ]
        return _Made(raw, inputs, tables, status, outcomes, features)

    def _tables(self, raw: RawFiles, inputs: list[InputFile]) -> _Tables:
        settings = self.config.prepare.model_dump(mode="json", exclude={"require_image"})
        key = stage_key([[file.model_dump() for file in inputs], settings])

        def make(folder: Path) -> dict[str, Any]:
            made = self._filter(raw, folder)
            write_parquet(made.bad_lines, folder / BAD_LINES)
            numbered = assign_ids(
                made.interactions, made.metadata, items=made.items, users=made.users
            )
            bad_lines = dict(made.bad_lines.group_by("file").len().iter_rows())
            return {
                **_write_numbered(numbered, made.interactions, made.counts, folder),
                "cut_users": made.cut_users,
                "has_image": made.has_image,
                "bad_lines": {path.name: bad_lines.get(path.name, 0) for path in raw.files},
            }

        return self._numbered("tables", key, make)

    def _filter(self, raw: RawFiles, folder: Path) -> Survivors:
        settings = self.config.prepare
        if isinstance(raw, AmazonFiles):
            return filter_amazon(self.domain.name, raw, settings, folder)
        tables = read_atomic(raw) if isinstance(raw, AtomicFiles) else read_released(raw)
        return filter_processed(self.domain.name, tables, settings)

    def _with_images(self, tables: _Tables, status: pl.DataFrame) -> tuple[_Tables, pl.DataFrame]:
        """Leave out the items without an image, and what falls below the core without them."""
        with_image = tables.items["asin"].filter(status["file"].is_not_null())

        def make(folder: Path) -> dict[str, Any]:
            rows = _name(tables)
            kept, counts = filter_to_images(self.domain.name, rows, with_image, self.config.prepare)
            numbered = assign_ids(kept, tables.items.drop("item_id"))
            before = [Count.model_validate(count) for count in tables.made["counts"]]
            made = _write_numbered(numbered, kept, [*before, *counts], folder)
            return {**tables.made, **made, "has_time": tables.made["has_time"]}

        key = stage_key([tables.key, with_image.to_list()])
        left = self._numbered("tables with images", key, make)
        asins = tables.items["asin"]
        named = status.with_columns(asins).drop("item_id")
        ids = left.items.select("item_id", "asin")
        return left, ids.join(named, on="asin", how="left", maintain_order="left").drop("asin")

    def _numbered(self, name: str, key: str, make: Work) -> _Tables:
        folder = self.work / name.replace(" ", "_")
        made = run_stage(name, folder, key, make, self.echo)
        return _Tables(folder, key, pl.read_parquet(folder / RAW_ITEMS), made)

    def _images(self, tables: _Tables, retry_temporary: bool) -> pl.DataFrame:
        folder, items = self.work / "images", tables.items
        fetch_all = _image_engine(self.config)
        found: list[pl.DataFrame] = []

        def fetch(into: Path) -> dict[str, Any]:
            say = say_share(self.echo, "images")
            found.append(
                fetch_all(items, into, self.config.images, say, retry_temporary=retry_temporary)
            )
            return {}

        # What is a placeholder is told from what has been fetched, by whichever engine.
        without = {"placeholder_items", "engine", "workers"}
        settings = self.config.images.model_dump(mode="json", exclude=without)
        if retry_temporary:
            unfinish_stage(folder)
        run_stage("images", folder, [tables.key, settings], fetch, self.echo, resumable=True)
        if not found:  # nothing is asked again: this only reads what is known
            quiet = self.config.images.model_copy(update={"enabled": False})
            found.append(fetch_images(items, folder, quiet))
        return found[0]

    def publish(self, made: _Made) -> Manifest:
        tables = made.tables
        items = tables.items.join(
            made.status.select("item_id", "image_status"), on="item_id", maintain_order="left"
        )
        interactions = pl.read_parquet(tables.folder / INTERACTIONS)
        counts = [Count.model_validate(count) for count in tables.made["counts"]]
        features = [one.features for one in made.features]
        card = data_card(
            self.domain.name,
            counts,
            tables.made,
            interactions,
            items,
            made.outcomes,
            self._compare(made, counts),
            features,
        )
        with atomic_path(self.target) as temporary:
            temporary.mkdir()
            for name in (INTERACTIONS, USERS):
                _link(tables.folder / name, temporary / name)
            write_parquet(items, temporary / ITEMS)
            kept = self._other_features(tables.made["fingerprint"], features)
            for one in [*made.features, *kept]:
                _link_tree(one, temporary)
            manifest = Manifest(
                format_version=FORMAT_VERSION,
                domain=self.domain.name,
                source_format=made.raw.source_format,
                inputs=made.inputs,
                parameters={
                    name: getattr(self.config, name).model_dump(mode="json")
                    for name in ("prepare", "images", "features")
                },
                versions={name: version(name) for name in ("mmm4rec", "polars", "pyarrow")},
                counts=counts,
                fingerprint=tables.made["fingerprint"],
                has_time=tables.made["has_time"],
                features=[*features, *(one.features for one in kept)],
                card=card,
            )
            write_json(manifest.model_dump(mode="json"), temporary / MANIFEST)
        self.echo(f"prepared: {self.target}")
        return manifest

    def _compare(self, made: _Made, counts: list[Count]) -> dict[str, Any] | None:
        if not isinstance(made.raw, AmazonFiles):
            return None
        with_image = made.status["file"].count() if self.config.images.enabled else None
        return compare_counts(self.domain, counts, self.config.prepare, with_image)

    def _other_features(self, fingerprint: str, new: list[FeatureSet]) -> list[MadeFeatures]:
        """Return features of the same items by other encoders that the folder already has."""
        if not (self.target / MANIFEST).is_file():
            return []
        old = read_manifest(self.target)
        keys = {(made.modality, made.key) for made in new}
        same = old.fingerprint == fingerprint
        return [
            MadeFeatures(one, self.target / FEATURES / one.modality / one.key)
            for one in old.features
            if same and (one.modality, one.key) not in keys
        ]


def _image_engine(config: Config) -> Callable[..., pl.DataFrame]:
    if config.images.engine == "local":
        return fetch_images
    from pipeline.ray_images import fetch_with_ray

    return fetch_with_ray


def _write_numbered(
    numbered: NumberedTables, named: pl.DataFrame, counts: list[Count], folder: Path
) -> dict[str, Any]:
    write_parquet(numbered.interactions, folder / INTERACTIONS)
    write_parquet(numbered.users, folder / USERS)
    write_parquet(numbered.items, folder / RAW_ITEMS)
    has_time = named["timestamp"].null_count() < len(named)
    return {
        "counts": [count.model_dump() for count in counts],
        "fingerprint": item_fingerprint(numbered.items["asin"]),
        "has_time": has_time,
        "ambiguous_order_share": round(ambiguous_order_share(named), 4) if has_time else None,
    }


def _name(tables: _Tables) -> pl.DataFrame:
    """Return user, asin, timestamp and position, in the total order."""
    users = pl.read_parquet(tables.folder / USERS)
    timestamp = pl.col("timestamp") if tables.made["has_time"] else pl.lit(None, pl.Int64)
    return (
        pl.read_parquet(tables.folder / INTERACTIONS)
        .join(users, on="user_id", maintain_order="left")
        .join(tables.items.select("item_id", "asin"), on="item_id", maintain_order="left")
        .with_row_index("position")
        .select("user", "asin", timestamp.alias("timestamp"), "position")
    )


def _link_tree(made: MadeFeatures, prepared: Path) -> None:
    into = prepared / FEATURES / made.features.modality / made.features.key
    into.mkdir(parents=True)
    for file in sorted(made.shards.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            _link(file, into / file.name)


def _link(file: Path, to: Path) -> None:
    """Share the file where the file system can, else copy it: files are replaced, never changed."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def _say_bytes(echo: Echo) -> Callable[[str, int, int | None], None]:
    """Say every 64 MB."""
    said: dict[str, int] = {}

    def say(name: str, done: int, total: int | None) -> None:
        step = done // 2**26
        if step > said.get(name, 0):
            said[name] = step
            echo(f"{name}: {done / 1e6:,.0f} MB" + (f" of {total / 1e6:,.0f} MB" if total else ""))

    return say
