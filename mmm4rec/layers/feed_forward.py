"""The position-wise feed-forward block."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.config import ModelConfig
from mmm4rec.layers.dropout import Dropout
from mmm4rec.layers.linear import Linear
from mmm4rec.layers.norm import LayerNorm


class FeedForward(nn.Module):
    """LN(x + Drop(fc2(Drop(activation(fc1 x))))); Hardswish in this model."""

    def __init__(
        self, config: ModelConfig, activation: Callable[[Tensor], Tensor] = F.hardswish
    ) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = Linear(config.d_model, config.d_feed_forward)
        self.fc2 = Linear(config.d_feed_forward, config.d_model)
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Transform each position, (..., D)."""
        hidden_BLF = self.dropout(self.activation(self.fc1(x_BLD)))
        output_BLD: Tensor = self.norm(self.dropout(self.fc2(hidden_BLF)) + x_BLD)
        return output_BLD


def build_feed_forward(config: ModelConfig) -> nn.Module:
    """Return the block, or nothing in its place where `use_feed_forward` is off."""
    return FeedForward(config) if config.use_feed_forward else nn.Identity()
