"""What flows from the pipeline into the model.

Shape letters, used as capital suffixes of tensor names everywhere:
B batch, L sequence length, D d_model, E d_inner, H heads, P head width, N state, G groups,
I items with the padding item 0, F raw feature width, K cut-off, M modalities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

PADDING_ID = 0

# Scores of a piece of a batch against all items: what stays in a CPU's cache, what fills a GPU.
SCORES_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 27}
# However large the catalogue: fewer rows would leave the products without work per item read.
LEAST_ROWS_AT_ONCE = 128


def rows_at_once(items_ID: Tensor) -> int:
    """Return how many users are scored against all of `items_ID` at once.

    A batch with more is taken in pieces, so that batch times items is never held in memory.

    >>> rows_at_once(torch.zeros(1 << 13, 2))
    256
    >>> rows_at_once(torch.zeros(1 << 19, 2))
    128
    """
    budget = SCORES_AT_ONCE.get(items_ID.device.type, SCORES_AT_ONCE["cpu"])
    return max(LEAST_ROWS_AT_ONCE, budget // max(1, len(items_ID)))


@dataclass(frozen=True)
class SequenceBatch:
    """A batch of histories and their targets.

    Attributes:
        items_BL: item ids, int64, oldest first, right-padded with 0.
        lengths_B: number of real items in each row, int64, 1..L.
        timestamps_BL: Unix seconds, int64, valid where items are and 0 elsewhere. With
            `data.target_time: leaked` the target's own time stands at index `lengths_B` of rows
            that have room for it, as the authors' loader leaves it.
        targets_B: id of the next item, int64, 1..I-1.
        users_B: user ids, int64, so that a rank can be traced to its user.
        query_time_B: Unix seconds of the moment of recommending; only where the config asks.
    """

    items_BL: Tensor
    lengths_B: Tensor
    timestamps_BL: Tensor
    targets_B: Tensor
    users_B: Tensor
    query_time_B: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.lengths_B.shape[0])

    def to(self, device: torch.device | str, **kwargs: Any) -> SequenceBatch:
        """Return the batch on `device`; `kwargs` are those of `Tensor.to`."""
        return self._map(lambda tensor: tensor.to(device, **kwargs))

    def take(self, rows_R: Tensor) -> SequenceBatch:
        """Return some rows, by their positions or by a bool per row."""
        return self._map(lambda tensor: tensor[rows_R])

    def _map(self, change: Callable[[Tensor], Tensor]) -> SequenceBatch:
        changed = {
            f.name: change(value)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)


@dataclass(frozen=True)
class ModalityFeatures:
    """Frozen features of one modality for a whole catalogue.

    Attributes:
        values_IF: encoder outputs, floating point; row 0 (padding) and the rows of items without
            this modality are 0. F is 0 where no item has it and no width is known.
        present_I: bool, true where the item has this modality; false at 0.
        blank_F: what the encoder says of a blank input (a white picture, an empty text), for
            the `white` policy; None where no encoder ran.
        encoder_key: identifies encoder, revision and preprocessing; None where none ran.
    """

    values_IF: Tensor
    present_I: Tensor
    blank_F: Tensor | None = None
    encoder_key: str | None = None

    @property
    def width(self) -> int:
        """Raw feature width F."""
        return int(self.values_IF.shape[1])


@dataclass(frozen=True)
class ItemCatalogue:
    """All items that can be asked about and recommended.

    Attributes:
        features: the modalities, in the order in which the model fuses them.
        fingerprint: hash of the ordered item names; a checkpoint with item-bound weights fits
            only the catalogue with its fingerprint.
        has_time: false where the domain has no timestamps at all.
    """

    features: dict[str, ModalityFeatures]
    fingerprint: str
    has_time: bool = True

    @property
    def num_items(self) -> int:
        """Number of items, the padding item not counted (ids are 1..num_items)."""
        return int(next(iter(self.features.values())).present_I.shape[0]) - 1

    @property
    def encoder_keys(self) -> dict[str, str | None]:
        """Encoder key of each modality."""
        return {name: modality.encoder_key for name, modality in self.features.items()}
