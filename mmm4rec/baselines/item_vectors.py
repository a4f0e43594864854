"""What a baseline knows of an item: who it is, what it looks like, or both.

Shape letters: N item ids, I items with the padding item 0, D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmm4rec.batch import ItemCatalogue
from mmm4rec.config import ModelConfig
from mmm4rec.errors import ConfigError
from mmm4rec.layers.item_encoder import ModalityEncoder, check_name, rows
from mmm4rec.layers.linear import INIT_STD
from mmm4rec.ops.precision import at_least_float32


class Embedding(nn.Embedding):
    """A table of vectors that starts at N(0, 0.02), as the affine maps do."""

    def reset_parameters(self) -> None:
        """Draw the initial vectors."""
        nn.init.normal_(self.weight, std=INIT_STD)


class ItemVectors(nn.Module):
    """One vector per item, for the history and for the candidates.

    `item_inputs` says what it is made of: `ids`, a learned table, as in the papers; `features`,
    the mean of the adapted frozen modalities; `both`, their sum. The table fits only the items of
    its catalogue, the adapters fit any.

    Raises:
        ConfigError: features are asked for where no item has any, a modality has no usable name, or
            as `ModalityEncoder`.
    """

    def __init__(self, config: ModelConfig, catalogue: ItemCatalogue) -> None:
        super().__init__()
        use_ids = config.item_inputs != "features"
        features = catalogue.features if config.item_inputs != "ids" else {}
        if not use_ids and not any(modality.width for modality in features.values()):
            raise ConfigError(
                f"model.item_inputs is features, but no item has {' or '.join(features)} features "
                "(allowed here: ids). Next: --set model.item_inputs=ids, or mmm4rec prepare"
            )
        for name in features:
            check_name(name)
        self.modalities = nn.ModuleDict(
            {name: ModalityEncoder(config, name, modality) for name, modality in features.items()}
        )
        self.item_table = Embedding(catalogue.num_items + 1, config.d_model) if use_ids else None

    def forward(self, items_N: Tensor) -> Tensor:
        """Return the (..., D) vectors of ids of any shape; padding is an item like any other."""
        # Padding and popular items stand at many positions: each is encoded once.
        ids_N, place_N = items_N.unique(return_inverse=True)
        return self.encode(ids_N)[place_N]

    def encode(self, ids_N: Tensor | None) -> Tensor:
        """Return the (N, D) vectors of some items; None: of all, the padding item included."""
        parts = []
        if self.modalities:
            adapted = [at_least_float32(encode(ids_N)) for encode in self.modalities.values()]
            parts.append(torch.stack(adapted).mean(0))
        if self.item_table is not None:
            parts.append(rows(self.item_table.weight, ids_N))
        return sum(parts[1:], start=parts[0])
