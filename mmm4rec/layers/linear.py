"""Affine maps and convolutions with the initialisation of the released code.

Shape letters: L length, C channels, K width of the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.ops.conv import causal_conv_silu

INIT_STD = 0.02


class Linear(nn.Linear):
    """An affine map; weights start at N(0, 0.02), biases at 0."""

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        nn.init.normal_(self.weight, std=INIT_STD)
        nn.init.zeros_(self.bias)


class SplitLinear(Linear):
    """One affine map whose outputs are wanted apart.

    Each part is its own product: the gradients of a split would be concatenated again, which on a
    CPU costs half as much as the product.
    """

    def __init__(self, in_features: int, widths: Sequence[int]) -> None:
        super().__init__(in_features, sum(widths))
        self.widths = list(widths)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return one (..., width) tensor per width, from one input for each or one for all."""
        weights, biases = self.weight.split(self.widths), self.bias.split(self.widths)
        if len(inputs) == 1:
            inputs *= len(self.widths)
        return tuple(F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))


class CausalConv(nn.Module):
    """A causal depthwise convolution over positions and SiLU.

    Differs from the official code, whose co-block falls back to Hardswish without a compiled
    extension: always SiLU, as in its reference runs.
    """

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        # Laid out as nn.Conv1d does, so that weights move between the two unchanged.
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases from U(-1/sqrt(K), 1/sqrt(K)), torch's default."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, *parts_LC: Tensor) -> tuple[Tensor, ...]:
        """Convolve and activate parts, each (..., L, C), whose channels add up.

        Parts may differ in their number of positions.
        """
        widths = [part_LC.shape[-1] for part_LC in parts_LC]
        weights, biases = self.weight.split(widths), self.bias.split(widths)
        return tuple(
            causal_conv_silu(part_LC.flatten(0, -3), w, b).view(part_LC.shape)
            for part_LC, w, b in zip(parts_LC, weights, biases, strict=True)
        )
