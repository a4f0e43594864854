"""The blocks of SASRec and BSARec: positions, causal self-attention, point-wise feed-forward.

Checked against torch's own `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` with the same
weights: test_sasrec.py, test_bsarec.py.

Shape letters: B batch, L length, D d_model, H attention heads, P head width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.baselines.item_vectors import Embedding
from mmm4rec.config import ModelConfig
from mmm4rec.errors import ConfigError
from mmm4rec.layers.dropout import Dropout
from mmm4rec.layers.linear import Linear, SplitLinear
from mmm4rec.layers.norm import LayerNorm


class PositionedItems(nn.Module):
    """Drop(LN(item + position)); the oldest item that is read stands at position 0."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.positions = Embedding(config.max_len, config.d_model)
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = Dropout(config.item_dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Add each position's learned vector, (B, L, D)."""
        x_BLD = x_BLD + self.positions.weight[: x_BLD.shape[1]]
        positioned_BLD: Tensor = self.dropout(self.norm(x_BLD))
        return positioned_BLD


class SelfAttention(nn.Module):
    """LN(x + Drop(W_o softmax(q k / sqrt(P)) v)); no position looks at a later one.

    Padding comes behind the real items, so that this is all the masking there is.

    Raises:
        ConfigError: the heads do not divide d_model.
    """

    def __init__(self, config: ModelConfig) -> None:
        if config.d_model % config.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads ({config.num_attention_heads}) must divide d_model "
                f"({config.d_model}). Next: --set model.num_attention_heads=1"
            )
        super().__init__()
        self.num_heads = config.num_attention_heads
        # Laid out as nn.MultiheadAttention does.
        self.in_proj = SplitLinear(config.d_model, [config.d_model] * 3)
        self.out_proj = Linear(config.d_model, config.d_model)
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Attend, add and normalise, (B, L, D)."""
        q_BHLP, k_BHLP, v_BHLP = (
            part_BLD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part_BLD in self.in_proj(x_BLD)
        )
        y_BHLP = F.scaled_dot_product_attention(
            q_BHLP, k_BHLP, v_BHLP, dropout_p=self.dropout.p * self.training, is_causal=True
        )
        attended_BLD = self.out_proj(y_BHLP.transpose(1, 2).flatten(2))
        output_BLD: Tensor = self.norm(self.dropout(attended_BLD) + x_BLD)
        return output_BLD
