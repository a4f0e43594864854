"""What the trained baselines have in common: item vectors in, a dot product out.

Shape letters: B batch, R rows of a piece, L length, N item ids, I items with the padding item 0,
D d_model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mmm4rec.baselines.item_vectors import ItemVectors
from mmm4rec.batch import ItemCatalogue, SequenceBatch
from mmm4rec.config import ModelConfig
from mmm4rec.model import checked_length, split_by_length
from mmm4rec.ops.precision import at_least_float32, full_precision


class SequentialBaseline(nn.Module, ABC):
    """A model that reads item vectors and answers with one of their kind.

    The score is the dot product with an item's vector, as in all of the papers: neither side is
    normalised, and `temperature` has no part in it. What stands behind the last real item of a
    history changes nothing.

    Args:
        config: the architecture; a field that a model does not name has no effect on it.
        catalogue: the items; their features become buffers that no checkpoint holds.

    Raises:
        ConfigError: as `ItemVectors`.
    """

    def __init__(self, config: ModelConfig, catalogue: ItemCatalogue) -> None:
        super().__init__()
        self.max_len = config.max_len
        self.item_encoder = ItemVectors(config, catalogue)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Return user_BD.

        Args:
            batch: histories of at most `max_len` items; targets and users are not looked at.

        Raises:
            DataError: the histories are longer than the model reads.
        """
        x_BLD = self.item_encoder(batch.items_BL)
        pieces = split_by_length(batch.lengths_B, checked_length(batch, self.max_len))
        users = [
            self.read(x_BLD[rows_R, :longest], batch.take(rows_R)) for rows_R, longest in pieces
        ]
        order_B = torch.cat([rows_R for rows_R, _ in pieces])
        return torch.cat(users)[order_B.argsort()]

    @abstractmethod
    def read(self, x_BLD: Tensor, batch: SequenceBatch) -> Tensor:
        """Return user_BD from the item vectors of a batch, up to its longest history.

        Args:
            x_BLD: (B, L, D), whatever padding is encoded as behind a row's last item.
            batch: the lengths and times of these rows.
        """

    def item_matrix(self) -> Tensor:
        """Return items_ID for `score`, the padding item in row 0."""
        return self.item_encoder.encode(None)

    def encode_items(self, ids_N: Tensor) -> Tensor:
        """Return items_ND, the rows of `item_matrix` for some ids."""
        return self.item_encoder.encode(ids_N)

    def score(self, user_BD: Tensor, items_ID: Tensor) -> Tensor:
        """Return scores_BI: one matrix product, in float32 at least."""
        with full_precision(user_BD):
            return at_least_float32(user_BD) @ at_least_float32(items_ID).mT


def at_last(x_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """Return what stands at each row's last real position, (B, D).

    >>> at_last(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([2, 1]))
    tensor([[2.],
            [3.]])
    """
    return x_BLD[torch.arange(len(x_BLD), device=x_BLD.device), lengths_B - 1]
