"""Content nearest neighbour: what looks most like the last item, without any training.

Shape letters: B batch, F widths of all modalities together, I items with the padding item 0,
N item ids.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.baselines.sequential import at_last
from mmm4rec.batch import ItemCatalogue, SequenceBatch
from mmm4rec.errors import DataError


class ContentNeighbour(nn.Module):
    """Scores an item by its cosine with the last item, the mean over the modalities.

    A modality that one of the two lacks counts as 0. The last item itself is a candidate like any
    other, as it is for every model here, and scores highest.

    Args:
        catalogue: the items and their frozen features.

    Raises:
        DataError: no item has any feature.
    """

    units_IF: Tensor

    def __init__(self, catalogue: ItemCatalogue) -> None:
        super().__init__()
        known = [modality for modality in catalogue.features.values() if modality.width]
        if not known:
            raise DataError(
                f"no item has {' or '.join(catalogue.features)} features: there is no content to "
                "compare. Next: mmm4rec prepare"
            )
        units = [F.normalize(modality.values_IF.float(), dim=-1) for modality in known]
        # The weight of the mean on either side, so that both are rows of one matrix.
        self.register_buffer("units_IF", torch.cat(units, 1) / len(units) ** 0.5, persistent=False)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Return the features of each row's last item, (B, F)."""
        return self.units_IF[at_last(batch.items_BL, batch.lengths_B)]

    def item_matrix(self) -> Tensor:
        """Return the features of all items, (I, F), the padding item in row 0."""
        return self.units_IF

    def encode_items(self, ids_N: Tensor) -> Tensor:
        """Return the features of some items, (N, F)."""
        return self.units_IF[ids_N]

    def score(self, user_BF: Tensor, items_IF: Tensor) -> Tensor:
        """Return scores_BI, -1..1."""
        return user_BF @ items_IF.mT
