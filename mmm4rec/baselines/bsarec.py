"""BSARec: self-attention beside a filter that gives high frequencies their weight back.

Shin, Choi, Wi and Park, An Attentive Inductive Bias for Sequential Recommendation beyond the
Self-Attention, AAAI 2024 (arXiv:2312.10325): per layer alpha * filter + (1 - alpha) * attention,
filter(x) = low(x) + beta * high(x), where low keeps the c lowest frequencies of the discrete
Fourier transform along the history and high is the rest.
Differs from the authors' code: padding is 0 to the filter, which there is a position like any
other, and comes behind the items; it does not matter to the filter at which end it is.

Checked against a discrete Fourier transform written out, and the attention against torch's
`nn.MultiheadAttention` with the same weights: test_bsarec.py. There is no BSARec in RecBole 1.2.1.

Shape letters: B batch, L length, K max_len, D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.baselines.sequential import SequentialBaseline, at_last
from mmm4rec.baselines.transformer import PositionedItems, SelfAttention
from mmm4rec.batch import ItemCatalogue, SequenceBatch
from mmm4rec.config import ModelConfig
from mmm4rec.layers.dropout import Dropout
from mmm4rec.layers.feed_forward import FeedForward
from mmm4rec.layers.norm import LayerNorm
from mmm4rec.ops.precision import at_least_float32, full_precision

# The paper's choice for Amazon Beauty, the nearest of its data sets.
ALPHA = 0.7  # share of the filter
CUT_OFF = 5  # frequencies that are low: the mean and two on either side of it


def low_pass(length: int, cut_off: int) -> Tensor:
    """Return the (length, length) matrix that keeps the `cut_off` lowest frequencies of a signal.

    Frequencies come in pairs of opposite sign, and stay or go together.

    >>> low_pass(2, 1)
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    spectrum_WL = torch.fft.rfft(torch.eye(length, dtype=torch.float64), dim=0)
    spectrum_WL[cut_off // 2 + 1 :] = 0
    return torch.fft.irfft(spectrum_WL, n=length, dim=0).float()


class FrequencyRescaler(nn.Module):
    """LN(x + Drop(low(x) + beta * high(x))), beta the square of a learned number per channel.

    The transform always runs over `max_len` positions: how far a batch is padded changes nothing.
    """

    low_KK: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("low_KK", low_pass(config.max_len, CUT_OFF), persistent=False)
        self.sqrt_beta = nn.Parameter(torch.empty(config.d_model))
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of the high frequencies: 1 in the mean, as if nothing was filtered."""
        nn.init.normal_(self.sqrt_beta)

    def forward(self, x_BLD: Tensor, real_BL: Tensor) -> Tensor:
        """Filter along the history, (B, L, D); padding, where `real_BL` is false, counts as 0."""
        with full_precision(x_BLD):
            signal_BLD = at_least_float32(x_BLD) * real_BL[..., None]
            length = x_BLD.shape[1]
            low_BLD = self.low_KK[:length, :length] @ signal_BLD
            filtered_BLD = low_BLD + self.sqrt_beta.square() * (signal_BLD - low_BLD)
        output_BLD: Tensor = self.norm(self.dropout(filtered_BLD) + x_BLD)
        return output_BLD


class BSARecLayer(nn.Module):
    """FF(alpha * filter(x) + (1 - alpha) * attention(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.filter = FrequencyRescaler(config)
        self.feed_forward = FeedForward(config, F.gelu)

    def forward(self, x_BLD: Tensor, real_BL: Tensor) -> Tensor:
        """Mix the positions, (B, L, D)."""
        mixed_BLD = ALPHA * self.filter(x_BLD, real_BL) + (1 - ALPHA) * self.attention(x_BLD)
        output_BLD: Tensor = self.feed_forward(mixed_BLD)
        return output_BLD


class BSARec(SequentialBaseline):
    """Positions, then `num_layers` layers; see `SequentialBaseline`.

    Raises:
        ConfigError: as `SelfAttention`.
    """

    def __init__(self, config: ModelConfig, catalogue: ItemCatalogue) -> None:
        super().__init__(config, catalogue)
        self.positioned = PositionedItems(config)
        self.layers = nn.ModuleList(BSARecLayer(config) for _ in range(config.num_layers))

    def read(self, x_BLD: Tensor, batch: SequenceBatch) -> Tensor:
        """Return user_BD: what the last layer says at each row's last item."""
        x_BLD = self.positioned(x_BLD)
        positions_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        real_BL = positions_L < batch.lengths_B[:, None]
        for layer in self.layers:
            x_BLD = layer(x_BLD, real_BL)
        return at_last(x_BLD, batch.lengths_B)
