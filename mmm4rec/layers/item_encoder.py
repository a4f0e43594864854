"""From item ids to vectors: what the sequence reads, and the candidates it is scored against.

Shape letters: N item ids, I items with the padding item 0, F raw feature width, D d_model.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.batch import PADDING_ID, ItemCatalogue, ModalityFeatures
from mmm4rec.config import ModelConfig
from mmm4rec.errors import ConfigError
from mmm4rec.layers.dropout import Dropout
from mmm4rec.layers.linear import INIT_STD, Linear
from mmm4rec.layers.norm import LayerNorm
from mmm4rec.ops.frozen import ROWS_AT_ONCE, frozen_linear
from mmm4rec.ops.pieces import in_pieces
from mmm4rec.ops.precision import at_least_float32, full_precision


class ModalityEncoder(nn.Module):
    """The adapter of one modality and what stands for an item without it.

    Policies (`missing_modality`): `learned`, a learned vector instead of the adapter's output;
    `zero`, a raw feature of zeros; `white`, the encoder's view of a blank input, as in the
    official code. A modality that no item has, of unknown width, has no adapter and is the learned
    vector throughout.

    Raises:
        ConfigError: the policy is `white`, items miss the modality, and no encoder has said what
            a blank input looks like.
    """

    values_IF: Tensor
    present_I: Tensor

    def __init__(self, config: ModelConfig, name: str, features: ModalityFeatures) -> None:
        super().__init__()
        values_IF = features.values_IF
        if config.missing_modality == "white" and features.width:
            values_IF = _fill_blank(name, features)
        self.register_buffer("values_IF", values_IF, persistent=False)
        self.register_buffer("present_I", features.present_I, persistent=False)
        self.adapter = Linear(features.width, config.d_model) if features.width else None
        self.missing: nn.Parameter | None = None
        if self.adapter is None or config.missing_modality == "learned":
            self.missing = nn.Parameter(torch.empty(config.d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the learned vector like a weight: candidates are normalised, so it is not 0."""
        if self.missing is not None:
            nn.init.normal_(self.missing, std=INIT_STD)

    def forward(self, ids_N: Tensor | None) -> Tensor:
        """Return the (N, D) vectors of some items; None: of all, the padding item included."""
        present_N = rows(self.present_I, ids_N)
        if self.adapter is None:
            assert self.missing is not None
            return self.missing.expand(len(present_N), -1)
        x_ND = frozen_linear(self.values_IF, ids_N, self.adapter.weight, self.adapter.bias)
        if self.missing is None:
            return x_ND
        return torch.where(present_N[:, None], x_ND, self.missing)


def rows(table_ID: Tensor, ids_N: Tensor | None) -> Tensor:
    """Return rows of a table; None: the table itself, without a copy."""
    return table_ID if ids_N is None else table_ID[ids_N]


def _fill_blank(name: str, features: ModalityFeatures) -> Tensor:
    missing_I = ~features.present_I
    missing_I[PADDING_ID] = False
    count = int(missing_I.sum())
    if not count:
        return features.values_IF
    if features.blank_F is None:
        raise ConfigError(
            f"model.missing_modality is white, but {count} of {len(missing_I) - 1} items have no "
            f"{name} and its features do not say how the encoder sees a blank input (allowed "
            "here: learned, zero). Next: --set model.missing_modality=learned, or make the "
            f"{name} features with an encoder: mmm4rec prepare"
        )
    blank_F = features.blank_F.to(features.values_IF)
    return torch.where(missing_I[:, None], blank_F, features.values_IF)


class ItemEncoder(nn.Module):
    """All modalities of an item.

    The same adapters and item biases serve both sides; the sequence side has dropout and a layer
    norm, the candidate side unit length.

    Raises:
        ConfigError: a modality has no usable name, or as `ModalityEncoder`.
    """

    def __init__(self, config: ModelConfig, catalogue: ItemCatalogue) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.eps = config.norm_eps
        for name in catalogue.features:
            check_name(name)
        self.modalities = nn.ModuleDict(
            {name: ModalityEncoder(config, name, f) for name, f in catalogue.features.items()}
        )
        self.norms = nn.ModuleDict(
            {name: LayerNorm(config.d_model, eps=config.norm_eps) for name in catalogue.features}
        )
        self.item_bias = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(catalogue.num_items + 1, config.d_model))
                for name in (catalogue.features if config.use_item_bias else ())
            }
        )
        self.dropout = Dropout(config.item_dropout)

    def forward(self, items_N: Tensor) -> list[Tensor]:
        """Return one (..., D) stream per modality; padding is an item like any other.

        Args:
            items_N: item ids, int64, of any shape.
        """
        # Padding and popular items stand at many positions: each is encoded once.
        ids_N, place_N = items_N.unique(return_inverse=True)
        return [
            norm(self.dropout(self.encode(name, ids_N)[place_N]))
            for name, norm in self.norms.items()
        ]

    def candidates(self, ids_N: Tensor | None) -> Tensor:
        """Return the (N, D) vectors whose product with a user vector is the score; None: all.

        The sum over modalities of unit vectors, divided by the temperature.
        """
        if torch.is_grad_enabled():
            return self._candidates(ids_N)
        # No modality has to exist as a whole where nothing is kept for a backward pass.
        if ids_N is None:
            present_I = next(iter(self.modalities.values())).get_buffer("present_I")
            ids_N = torch.arange(len(present_I), device=present_I.device)
        pieces = ids_N.split(ROWS_AT_ONCE)
        return torch.cat([self._candidates(piece_N) for piece_N in pieces])

    def _candidates(self, ids_N: Tensor | None) -> Tensor:
        vectors = [at_least_float32(self.encode(name, ids_N)) for name in self.modalities]
        with full_precision(vectors[0]):
            add = functools.partial(_unit_sum, eps=self.eps, temperature=self.temperature)
            return in_pieces(add, vectors, ())

    def encode(self, name: str, ids_N: Tensor | None) -> Tensor:
        """Return the (N, D) vectors of one modality: adapter and item bias."""
        x_ND: Tensor = self.modalities[name](ids_N)
        if name not in self.item_bias:
            return x_ND
        return x_ND + rows(self.item_bias[name], ids_N)


def _unit_sum(*vectors_ND: Tensor, eps: float, temperature: float) -> Tensor:
    first_ND, *others = (F.normalize(x_ND, dim=-1, eps=eps) for x_ND in vectors_ND)
    return sum(others, start=first_ND) / temperature


def check_name(name: str) -> None:
    """Check that a modality can name a part of a model.

    Raises:
        ConfigError: it cannot.
    """
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ConfigError(
            f"the modality {name!r} cannot name a part of the model: a name has letters, digits "
            "and underscores and is no method of a dictionary. Next: rename the feature folder"
        )
