"""What a study takes away from a prepared domain: a modality of some items, or some items' past.

Which items it is follows from a seed and from nothing that a version of a library could change; a
larger share takes the items of every smaller one, and more.

Shape letters: I items with the padding item 0, N interactions, U users.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.config import DataConfig
from pipeline.sequences import FlatSequences


def choose_items(eligible_I: Tensor, share: float, *salt: object) -> Tensor:
    """Choose a share of the eligible items: their number times `share`, rounded half to even.

    Args:
        eligible_I: bool.
        share: 0..1.
        salt: what the choice depends on beside the item ids.

    Returns:
        chosen_I, bool.

    >>> int(choose_items(torch.tensor([False, True, True, True, True]), 0.5, "seed").sum())
    2
    """
    prefix = repr(salt).encode()
    ids = [int(item_id) for item_id in eligible_I.nonzero()]
    ids.sort(key=lambda item_id: hashlib.blake2b(prefix + b"%d" % item_id).digest())
    chosen_I = torch.zeros_like(eligible_I)
    chosen_I[ids[: round(share * len(ids))]] = True
    return chosen_I


def hide_modalities(catalogue: ItemCatalogue, config: DataConfig) -> ItemCatalogue:
    """Take the modalities of `config.hidden_modalities` from their shares of the items."""
    features = {
        name: _hide(modality, share, config.hidden_seed, name, catalogue.fingerprint)
        if (share := config.hidden_modalities.get(name, 0.0))
        else modality
        for name, modality in catalogue.features.items()
    }
    return ItemCatalogue(features, catalogue.fingerprint, catalogue.has_time)


def _hide(modality: ModalityFeatures, share: float, *salt: object) -> ModalityFeatures:
    hidden_I = choose_items(modality.present_I, share, *salt)
    return ModalityFeatures(
        modality.values_IF.masked_fill(hidden_I[:, None], 0),
        modality.present_I & ~hidden_I,
        modality.blank_F,
        modality.encoder_key,
    )


def choose_cold(catalogue: ItemCatalogue, config: DataConfig) -> Tensor:
    """Return cold_I: the items that `config.cold_share` keeps out of all that is trained on."""
    is_item_I = torch.arange(catalogue.num_items + 1) > 0
    salt = (config.hidden_seed, "cold", catalogue.fingerprint)
    return choose_items(is_item_I, config.cold_share, *salt)


def drop_items(sequences: FlatSequences, cold_I: Tensor, *, keep_last: bool) -> FlatSequences:
    """Remove some items from everybody's interactions; users and their numbers stay.

    Args:
        sequences: all interactions.
        cold_I: bool, true for the items to remove.
        keep_last: leave them where they are the last interaction of a user.
    """
    offsets_U = sequences.offsets_U
    kept_N = ~cold_I[sequences.items_N]
    if keep_last:
        kept_N[offsets_U[1:][offsets_U.diff() > 0] - 1] = True
    before_N = torch.cat([kept_N.new_zeros(1, dtype=torch.int64), kept_N.long().cumsum(0)])
    return FlatSequences(
        sequences.items_N[kept_N], sequences.timestamps_N[kept_N], before_N[offsets_U]
    )
