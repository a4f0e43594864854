"""How far apart the modalities are behind each TiSSD.

Shape letters: M modalities, B batch, L length, D d_model, N real positions.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from mmm4rec.batch import SequenceBatch
from mmm4rec.layers.layer import Layer
from mmm4rec.model import MMM4Rec


class Alignment(Callback):
    """Logs, per layer and pair of modalities, two distances of the TiSSD's outputs.

    `watch/alignment/layer0/text-image/cosine` says how far the two point apart at the same
    position, `.../cka` how differently they arrange the positions, whatever their axes. Measured
    on the first validation batch of every epoch, the same users each time.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._distances: dict[str, float] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the first batch."""
        model = pl_module.model
        if batch_idx == 0 and isinstance(model, MMM4Rec):
            self._distances = {
                f"watch/alignment/{name}/{pair}/{kind}": distance
                for (name, modalities), mixed_MBLD in zip(
                    _modalities(model).items(), model.shared_outputs(batch), strict=True
                )
                for pair, by_kind in _measure(modalities, mixed_MBLD, batch).items()
                for kind, distance in by_kind.items()
            }

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        for name, distance in self._distances.items():
            pl_module.log(name, distance, sync_dist=True)


def _modalities(model: MMM4Rec) -> dict[str, list[str]]:
    """Return the modalities of each layer, by its name, in order."""
    layers = [module for module in model.layers if isinstance(module, Layer)]
    return {f"layer{n}": list(layer.norms) for n, layer in enumerate(layers)}


def _measure(
    modalities: list[str], mixed_MBLD: Tensor, batch: SequenceBatch
) -> dict[str, dict[str, float]]:
    positions_L = torch.arange(mixed_MBLD.shape[2], device=mixed_MBLD.device)
    real_BL = positions_L < batch.lengths_B[:, None]
    by_modality = dict(zip(modalities, mixed_MBLD[:, real_BL].double(), strict=True))
    return {
        f"{one}-{other}": {
            "cosine": cosine_distance(by_modality[one], by_modality[other]),
            "cka": cka_distance(by_modality[one], by_modality[other]),
        }
        for one, other in combinations(modalities, 2)
    }


def cosine_distance(x_ND: Tensor, y_ND: Tensor) -> float:
    """Return the mean of 1 - cos over the rows: 0 same direction, 1 orthogonal, 2 opposite.

    >>> cosine_distance(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0], [1, 0]]))
    0.5
    """
    return float(1 - F.cosine_similarity(x_ND, y_ND, dim=-1).mean())


def cka_distance(x_ND: Tensor, y_ND: Tensor) -> float:
    """Return 1 - linear centred kernel alignment (arXiv:1905.00414), 0..1.

    0 where one is the other, rotated, scaled and shifted; 1 where every direction of one is
    uncorrelated with every direction of the other, or where one does not vary at all.

    >>> x_ND = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
    >>> round(cka_distance(x_ND, 2 * x_ND.flip(1) + 1), 6)
    0.0
    """
    x_ND, y_ND = x_ND - x_ND.mean(0), y_ND - y_ND.mean(0)
    own = (x_ND.mT @ x_ND).norm() * (y_ND.mT @ y_ND).norm()
    shared = (x_ND.mT @ y_ND).square().sum()
    return max(0.0, float(1 - shared / own)) if own > 0 else 1.0
