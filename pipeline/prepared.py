"""A prepared domain folder to arrays, without any of the tools that prepared it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.errors import ConfigError, DataError
from pipeline.feature_store import read_features
from pipeline.schema import (
    FEATURES,
    INTERACTIONS,
    ITEMS,
    USERS,
    Count,
    FeatureSet,
    Manifest,
    item_fingerprint,
    prepared_dir,
    read_manifest,
)
from pipeline.sequences import FlatSequences

MAX_TITLE_CHARS = 100

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class PreparedDomain:
    """One domain, ready to be batched."""

    name: str
    manifest: Manifest
    sequences: FlatSequences
    catalogue: ItemCatalogue


@dataclass(frozen=True)
class Names:
    """What ids stand for, for people.

    Attributes:
        asins: item names by item id; index 0 is the padding item's empty name.
        titles: item titles by item id; where there is none, how the item's text begins.
        users: user names by user id.
    """

    asins: list[str]
    titles: list[str]
    users: list[str]


def load_domain(
    data_dir: Path, domain: str, modalities: tuple[str, ...], encoders: dict[str, str]
) -> PreparedDomain:
    """Load a prepared domain.

    Args:
        data_dir: the folder that holds `prepared/`.
        domain: name of the domain.
        modalities: the streams wanted; one that the domain lacks is missing for every item.
        encoders: encoder key per modality, needed where a domain has several.

    Raises:
        DataError: the folder is not there, incomplete, or its parts do not belong together.
        ConfigError: `encoders` names one that the domain does not have, or must and does not.
    """
    folder = prepared_dir(data_dir, domain)
    manifest = read_manifest(folder)
    features = {
        modality: _load_modality(folder, manifest, modality, encoders.get(modality))
        for modality in modalities
    }
    if not any(modality.present_I.any() for modality in features.values()):
        raise DataError(
            f"{folder}: no item has any of the modalities {', '.join(modalities)}. "
            f"Next: mmm4rec prepare --domain {domain} with --text-encoder or --image-encoder"
        )
    catalogue = ItemCatalogue(features, manifest.fingerprint, manifest.has_time)
    return PreparedDomain(domain, manifest, _load_sequences(folder, manifest), catalogue)


def load_names(data_dir: Path, domain: str) -> Names:
    """Load the names of items and users.

    Raises:
        DataError: the folder is not a prepared domain, or its parts do not belong together.
    """
    folder = prepared_dir(data_dir, domain)
    manifest = read_manifest(folder)
    items = _read_table(folder / ITEMS, ["asin", "title", "text"])
    users = _read_table(folder / USERS, ["user"])
    found = item_fingerprint(items["asin"].to_pylist()), len(users)
    expected = manifest.fingerprint, manifest.counts[-1].users
    if found != expected:
        raise DataError(
            f"{folder} has items with the fingerprint {found[0]} and {found[1]} users, its "
            f"manifest says {expected[0]} and {expected[1]}. {_again(folder)}"
        )
    described = zip(items["title"].to_pylist(), items["text"].to_pylist(), strict=True)
    return Names(
        asins=["", *items["asin"].to_pylist()],
        titles=["", *(title or text[:MAX_TITLE_CHARS] for title, text in described)],
        users=users["user"].to_pylist(),
    )


def _load_sequences(folder: Path, manifest: Manifest) -> FlatSequences:
    path, final = folder / INTERACTIONS, manifest.counts[-1]
    table = _read_table(path, ["user_id", "item_id", "timestamp"])
    user_ids, item_ids, timestamps = (
        column.to_numpy().astype(np.int64) for column in table.itercolumns()
    )
    problem = _problem(user_ids, item_ids, final)
    if problem:
        raise DataError(
            f"{path}: {problem}; the manifest says {final.interactions} rows of {final.users} "
            f"users and {final.items} items. {_again(folder)}"
        )
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user_ids, minlength=final.users))])
    return FlatSequences(
        torch.from_numpy(item_ids),
        torch.from_numpy(timestamps),
        torch.from_numpy(offsets.astype(np.int64)),
    )


def _problem(user_ids: IntArray, item_ids: IntArray, final: Count) -> str | None:
    if len(user_ids) != final.interactions:
        return f"{len(user_ids)} rows"
    if (np.diff(user_ids) < 0).any():
        return "not sorted by user"
    if user_ids.max(initial=0) >= final.users:
        return f"user id {user_ids.max()}"
    outside = item_ids[(item_ids < 1) | (item_ids > final.items)]
    return f"item id {outside[0]}" if len(outside) else None


def _read_table(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path} does not read as Parquet: {reason}. {_again(path.parent)}"
        ) from None


def _again(folder: Path) -> str:
    return f"Next: delete {folder} and run mmm4rec prepare again"


def _load_modality(
    folder: Path, manifest: Manifest, modality: str, wanted: str | None
) -> ModalityFeatures:
    num_items = manifest.counts[-1].items
    chosen = _choose(folder, manifest, modality, wanted)
    if chosen is None:
        return ModalityFeatures(
            torch.zeros(num_items + 1, 0), torch.zeros(num_items + 1, dtype=torch.bool)
        )
    stored = read_features(
        folder / FEATURES / modality / chosen.key, num_items, manifest.fingerprint
    )
    return ModalityFeatures(
        torch.from_numpy(stored.values),
        torch.from_numpy(stored.present),
        torch.from_numpy(stored.blank),
        stored.key,
    )


def _choose(
    folder: Path, manifest: Manifest, modality: str, wanted: str | None
) -> FeatureSet | None:
    sets = {found.key: found for found in manifest.features if found.modality == modality}
    if wanted is None and len(sets) <= 1:
        return next(iter(sets.values()), None)
    if wanted in sets:
        return sets[wanted]
    problem = "has several encoders" if wanted is None else f"has no encoder {wanted!r}"
    raise ConfigError(
        f"{folder}: {modality} {problem}; it has {', '.join(sorted(sets)) or 'none'}. "
        f"Next: --set 'data.encoders={{{modality}: KEY}}'"
    )


def find_history(
    sequences: FlatSequences, names: Names, *, user: str | None, history: str | None
) -> tuple[list[int], list[int]]:
    """Return item ids and timestamps of a user, or of item names given by hand.

    Args:
        sequences: of the domain.
        names: of the domain.
        user: a user's name.
        history: item names, oldest first, comma-separated; they are taken as bought together, at
            the last moment of the domain.

    Raises:
        ConfigError: neither or both are given.
        DataError: the user or an item is unknown; the message names what is close.
    """
    if (user is None) == (history is None):
        raise ConfigError("give either --user NAME or --history ASIN,ASIN")
    if user is not None:
        known = {name: index for index, name in enumerate(names.users)}
        if user not in known:
            raise DataError(f"no user {user!r} in this domain{_example(user, names.users)}")
        first, end = sequences.offsets_U[known[user] : known[user] + 2].tolist()
        return sequences.items_N[first:end].tolist(), sequences.timestamps_N[first:end].tolist()
    asins = [asin.strip() for asin in (history or "").split(",") if asin.strip()]
    ids = {name: index for index, name in enumerate(names.asins) if index}
    for asin in asins:
        if asin not in ids:
            raise DataError(f"no item {asin!r} in this domain{_example(asin, names.asins[1:])}")
    moment = int(sequences.timestamps_N.max()) if len(sequences.timestamps_N) else 0
    return [ids[asin] for asin in asins], [moment] * len(asins)


def _example(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; a known one is {known[0]!r}"
