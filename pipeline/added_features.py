"""A further modality for a prepared domain: a Parquet file of vectors by item name.

The file has the column `asin` and one column of lists of floats, all equally long. Items that it
does not name, or names with a null or with zeros only, are without the modality.

Shape letters: I items, F raw feature.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import nn

from mmm4rec.errors import ConfigError, DataError
from pipeline.feature_files import MAX_WIDTH
from pipeline.feature_stage import MODALITIES
from pipeline.foreign_features import import_features
from pipeline.locking import exclusive
from pipeline.prepared import load_names
from pipeline.schema import (
    FEATURES,
    MANIFEST,
    FeatureSet,
    atomic_path,
    prepared_dir,
    read_manifest,
    write_json,
)
from pipeline.stages import Echo

ASIN = "asin"
ROWS_AT_ONCE = 4096

_MODALITY = re.compile(r"[a-z][a-z0-9_]*")
_ENCODER = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
_EXPECTED = f"expected a column {ASIN} of text and one column of lists of floats"


def add_feature_column(
    data_dir: Path,
    domain: str,
    modality: str,
    file: Path,
    *,
    encoder: str | None = None,
    echo: Echo = print,
) -> FeatureSet:
    """Add a modality to a prepared domain, or other vectors of one that was added before.

    The features stand beside those that are there; `mmm4rec prepare` keeps them as long as the
    items stay the same. Models read them where `data.modalities` names them.

    Args:
        data_dir: the folder that holds `prepared/`.
        domain: name of a prepared domain.
        modality: how the modality is called: small letters, digits and `_`; not text or image.
        file: the Parquet file; rows of items that the domain does not have are left out.
        encoder: what made the vectors, where files of several domains come from the same: models
            move between domains whose features have one encoder and width. None: nothing else is
            taken to be of the same.
        echo: told what happens.

    Raises:
        ConfigError: the modality or the encoder cannot be called so.
        DataError: the domain is not there, or the file is not as above: it does not read, names
            an item twice, has vectors of several widths or values that are not finite, or names
            no item of the domain.
    """
    _check_names(modality, encoder)
    folder = prepared_dir(data_dir, domain)
    read_manifest(folder)
    work = data_dir / "work" / domain
    with exclusive(work, [folder], echo):
        manifest = read_manifest(folder)
        asins = load_names(data_dir, domain).asins[1:]
        vectors = _read_vectors(file, asins)
        scratch = work / ".added.tmp"  # a name that `exclusive` clears away after a kill
        try:
            added = _import(vectors, scratch, modality, encoder, manifest.fingerprint)
            with atomic_path(folder / FEATURES / modality / added.key) as temporary:
                shutil.move(scratch / added.key, temporary)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        new = modality, added.key
        kept = [one for one in manifest.features if (one.modality, one.key) != new]
        changed = manifest.model_copy(update={"features": [*kept, added]})
        write_json(changed.model_dump(mode="json"), folder / MANIFEST)
    echo(f"{folder}: {modality} of {added.present} of {len(asins)} items, width {added.width}")
    return added


def _check_names(modality: str, encoder: str | None) -> None:
    # The names of a ModuleDict's methods cannot name a part of a model.
    if not _MODALITY.fullmatch(modality) or hasattr(nn.ModuleDict, modality):
        raise ConfigError(
            f"the modality {modality!r} cannot name a part of a model: a name has small letters, "
            "digits and underscores and is no method of a dictionary. Next: choose another name"
        )
    if modality in MODALITIES:
        raise ConfigError(
            f"the features of the modality {modality} are made by mmm4rec prepare. Next: choose "
            f"another name, or --{modality}-encoder there"
        )
    if encoder is not None and not _ENCODER.fullmatch(encoder):
        raise ConfigError(
            f"the encoder {encoder!r}: a name has small letters and digits, with single dots or "
            "hyphens between them. Next: choose such a name"
        )


@dataclass(frozen=True)
class _Vectors:
    """Row k is of the item with id k + 1.

    Attributes:
        values_IF: the vectors, 0 where an item has none.
        present_I: whether it has one.
    """

    values_IF: NDArray[np.float32]
    present_I: NDArray[np.bool_]


def _import(
    vectors: _Vectors, folder: Path, modality: str, encoder: str | None, fingerprint: str
) -> FeatureSet:
    return import_features(
        vectors.values_IF,
        folder,
        modality,
        fingerprint,
        len(vectors.present_I),
        encoder or modality.replace("_", "-").strip("-"),
        present=vectors.present_I.tolist(),
        is_one_encoder=encoder is not None,
    )


def _read_vectors(file: Path, asins: list[str]) -> _Vectors:
    positions = {asin: position for position, asin in enumerate(asins)}
    seen: set[str] = set()
    values_IF = np.zeros((len(asins), 0), np.float32)
    present_I = np.zeros(len(asins), np.bool_)
    try:
        parquet = pq.ParquetFile(file)
        column = _find_column(parquet.schema_arrow, file)
        for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=[ASIN, column]):
            names = _check_asins(batch[ASIN], seen, file)
            block_BF, has_one_B = _check_lists(batch[column], names, values_IF.shape[1], file)
            if not values_IF.shape[1]:
                values_IF = np.zeros((len(asins), block_BF.shape[1]), np.float32)
            at_B = np.array([positions.get(name, -1) for name in names], np.int64)
            wanted_B = (at_B >= 0) & has_one_B
            values_IF[at_B[wanted_B]] = block_BF[wanted_B]
            present_I[at_B[wanted_B]] = True
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file} does not read as Parquet: {reason}; {_EXPECTED}") from None
    if not present_I.any():
        example = min(seen, default="no row at all")
        raise DataError(
            f"{file}: no vector of any of the domain's {len(asins)} items, such as {asins[0]}; "
            f"found {len(seen)} others, such as {example}. Next: check that the file is of this "
            "domain"
        )
    return _Vectors(values_IF, present_I)


def _find_column(schema: pa.Schema, file: Path) -> str:
    others = [name for name in schema.names if name != ASIN]
    fits = (
        len(others) == 1
        and schema.names.count(ASIN) == 1
        and schema.field(ASIN).type in (pa.string(), pa.large_string())
        and _is_list_of_floats(schema.field(others[0]).type)
    )
    if not fits:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(f"{file}: {_EXPECTED}, found {found or 'no column'}")
    return str(others[0])


def _is_list_of_floats(kind: pa.DataType) -> bool:
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return is_list and pa.types.is_floating(kind.value_type)


def _check_asins(column: pa.Array, seen: set[str], file: Path) -> list[str]:
    names: list[str] = column.to_pylist()
    for name in names:
        if name is None:
            raise DataError(f"{file}: a row has no {ASIN}; every vector needs its item's name")
        if name in seen:
            raise DataError(f"{file}: the item {name} is there twice; one row each is allowed")
        seen.add(name)
    return names


def _check_lists(
    column: pa.Array, names: list[str], width: int, file: Path
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the vectors, (B, F), and which rows have one; `width` 0 takes that of the first."""
    has_one_B = column.is_valid().to_numpy(zero_copy_only=False)
    given = column.drop_null()
    lengths = pc.list_value_length(given).to_numpy(zero_copy_only=False)
    named = [name for name, has_one in zip(names, has_one_B, strict=True) if has_one]
    width = width or (int(lengths[0]) if len(lengths) else 0)
    wrong = np.flatnonzero((lengths != width) | (lengths < 1) | (lengths > MAX_WIDTH))
    if len(wrong):
        raise DataError(
            f"{file}: the vector of {named[wrong[0]]} has {lengths[wrong[0]]} values, expected "
            f"{width}, as the first one has, and 1 to {MAX_WIDTH}"
        )
    flat = given.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    block_BF = np.zeros((len(names), width), np.float32)
    block_BF[has_one_B] = flat.reshape(-1, width)
    # A null in a list became NaN; what float16 cannot hold is refused like infinity.
    bad = np.flatnonzero(~(np.abs(block_BF) <= np.finfo(np.float16).max).all(axis=1))
    if len(bad):
        raise DataError(
            f"{file}: the vector of {names[bad[0]]} has a value that is not finite in float16 "
            f"(limit {np.finfo(np.float16).max:g}). Next: leave the item out, or scale all vectors"
        )
    return block_BF, has_one_B
