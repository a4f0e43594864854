"""The prepared domain folder: file names, column types, the manifest.

    <data_dir>/prepared/<domain>/
      manifest.json          what it was made from and what came out
      interactions.parquet   user_id, item_id, timestamp; by user, then the total order
      users.parquet          user_id, user
      items.parquet          item_id from 1, asin, title, brand, text, image_urls, image_status
      features/<modality>/<encoder key>/*.parquet   item_id, present, values

A folder either has its manifest and is whole, or is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmm4rec.errors import DataError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INTERACTIONS = "interactions.parquet"
USERS = "users.parquet"
ITEMS = "items.parquet"
FEATURES = "features"
ENCODER_FILE = "encoder.json"  # beside the shards of one encoder


class Plain(BaseModel):
    """Base of the records in a manifest: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InputFile(Plain):
    """A raw file that went in."""

    name: str
    bytes: int
    sha256: str


class Count(Plain):
    """What is left after a step."""

    step: str
    users: int
    items: int
    interactions: int


class FeatureSet(Plain):
    """One encoder's output for one modality."""

    modality: str
    key: str
    encoder: str
    width: int
    present: int = Field(description="items that have the modality")


class Manifest(Plain):
    """What a prepared folder was made from and what came out."""

    format_version: int
    domain: str
    source_format: str = Field(description="amazon2018, amazon2023, atomic or released")
    inputs: list[InputFile]
    parameters: dict[str, Any]
    versions: dict[str, str]
    counts: list[Count]
    fingerprint: str = Field(description="item fingerprint: hash of the ordered asins")
    has_time: bool
    features: list[FeatureSet]
    card: dict[str, Any] = Field(description="the data card, as printed by `mmm4rec prepare`")


def item_fingerprint(asins: Iterable[str]) -> str:
    """Hash the ordered item names; two catalogues are the same where it is equal.

    >>> item_fingerprint(["A", "B"]) == item_fingerprint(["B", "A"])
    False
    """
    digest = hashlib.sha256()
    for asin in asins:
        digest.update(asin.encode() + b"\n")
    return digest.hexdigest()[:16]


def prepared_dir(data_dir: Path, domain: str) -> Path:
    """Return where a prepared domain lives."""
    return data_dir / "prepared" / domain


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Raises:
        DataError: there is none, or it was written by another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} is not a prepared domain: it has no {MANIFEST}. "
            f"Next: mmm4rec prepare --domain {folder.name} --data-dir {folder.parent.parent}"
        )
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} does not read as a manifest of format {FORMAT_VERSION}: "
            f"{error.errors()[0]['msg']}. Next: delete {folder} and run mmm4rec prepare again"
        ) from None
    if manifest.format_version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format {manifest.format_version}, this version reads {FORMAT_VERSION}. "
            f"Next: delete {folder} and run mmm4rec prepare again"
        )
    return manifest


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place if the block succeeds.

    Works for a file or a folder (which the block creates). Whatever goes wrong, Ctrl-C included,
    `path` is as it was and nothing half-written stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = f"{platform.node()}-{os.getpid()}"  # machines may share the folder
    temporary = path.parent / f".{path.name}.{owner}.tmp"
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir() and temporary.is_dir():
            retired = path.parent / f".{path.name}.{owner}.old"
            path.rename(retired)
            temporary.rename(path)
            _remove(retired)
        else:
            temporary.replace(path)
    except Exception as error:
        error.add_note(f"while writing {path}")  # a full disk does not say which file it was
        raise
    finally:
        _remove(temporary)


def write_json(value: Any, path: Path) -> None:
    """Write plain data atomically as JSON, keys in the order given."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
