"""Popularity: every user gets the items that were bought most often.

Shape letters: B batch, I items with the padding item 0, N any number of items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmm4rec.batch import SequenceBatch


class Popularity(nn.Module):
    """Scores an item by how often it is a training target or the first of a history."""

    counts_I: Tensor

    def __init__(self, train_items_N: Tensor, num_items: int) -> None:
        """Count `train_items_N`, the item ids (1..num_items) of all training interactions."""
        super().__init__()
        counts_I = torch.bincount(train_items_N, minlength=num_items + 1).float()
        self.register_buffer("counts_I", counts_I)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Return the same one-dimensional user vector for everyone, (B, 1)."""
        return self.counts_I.new_ones(len(batch), 1)

    def item_matrix(self) -> Tensor:
        """Return the counts, (I, 1)."""
        return self.counts_I[:, None]

    def encode_items(self, ids_N: Tensor) -> Tensor:
        """Return the counts of some items, (N, 1)."""
        return self.item_matrix()[ids_N]

    def score(self, user_BD: Tensor, items_ID: Tensor) -> Tensor:
        """Return scores_BI."""
        return user_BD @ items_ID.T
