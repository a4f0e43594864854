"""Norms, in float32 at least.

Shape letters: B batch, L length, D d_model, E d_inner.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.ops.pieces import in_pieces
from mmm4rec.ops.precision import at_least_float32


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis that never computes in a narrow type."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, (..., D)."""
        return super().forward(at_least_float32(input))


class GatedRMSNorm(nn.Module):
    """RMSNorm(y * SiLU(z)) * weight: the gate comes before the norm, as in Mamba-2."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y_BLE: Tensor, z_BLE: Tensor) -> Tensor:
        """Gate and normalise over the last axis, (..., E)."""
        y_BLE, z_BLE = at_least_float32(y_BLE), at_least_float32(z_BLE)
        normalise = functools.partial(_gated_rms_norm, eps=self.eps)
        output_BLE = in_pieces(
            normalise, (y_BLE.flatten(0, -2), z_BLE.flatten(0, -2)), (self.weight,)
        )
        return output_BLE.view(y_BLE.shape)


def _gated_rms_norm(y_BE: Tensor, z_BE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    return F.rms_norm(y_BE * F.silu(z_BE), weight_E.shape, weight_E, eps)


class PositionNorm(nn.Module):
    """Normalise a time signal over its positions.

    With a mask the statistics are those of the real positions and padding comes out as 0.
    Differs from the official code, where padding takes part (no mask): test_norm.py.
    """

    def __init__(self, length: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(length))
        self.bias = nn.Parameter(torch.zeros(length))

    def forward(self, signal_L: Tensor, mask_L: Tensor | None) -> Tensor:
        """Normalise the last axis.

        Args:
            signal_L: (..., L).
            mask_L: bool, true at real positions (at least one), broadcastable; None: all are.
        """
        signal_L = at_least_float32(signal_L)
        if mask_L is None:
            return F.layer_norm(signal_L, self.weight.shape, self.weight, self.bias, self.eps)
        count = mask_L.sum(-1, keepdim=True)
        mean = (signal_L * mask_L).sum(-1, keepdim=True) / count
        centred_L = (signal_L - mean) * mask_L
        variance = centred_L.square().sum(-1, keepdim=True) / count
        normalised_L = centred_L * torch.rsqrt(variance + self.eps)
        return (normalised_L * self.weight + self.bias) * mask_L
