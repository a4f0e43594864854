"""The time path: from timestamps to the signal that scales the step of each SSD block.

All of it runs at `max_len` positions, whatever the length of the batch, because several of its
layers mix positions; it is therefore not causal, unlike the item path. In `time_norm:
real_positions` every such layer sees 0 at padding.

Shape letters: B batch, L max_len, H heads, S time signals: one per modality, or a single one for
all while they are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.config import ModelConfig
from mmm4rec.layers.dropout import Dropout
from mmm4rec.layers.linear import CausalConv, Linear
from mmm4rec.layers.norm import PositionNorm
from mmm4rec.ops.precision import at_least_float32, full_precision

DAY = 86_400  # seconds


@dataclass(frozen=True)
class TimeSignal:
    """What the time path hands from layer to layer.

    Attributes:
        values_SBHL: the signal; S is 1 where the modalities share it.
        mask_BHL: (B, 1, L), true at real positions; None: padding counts as real.
    """

    values_SBHL: Tensor
    mask_BHL: Tensor | None

    def of_modality(self, index: int) -> Tensor:
        """Return the signal (B, H, L) of one modality."""
        return self.values_SBHL[index if len(self.values_SBHL) > 1 else 0]


def log_day_gaps(timestamps_BL: Tensor, mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Return log(1 + days since the previous item), 0 at the first item and at padding.

    Args:
        timestamps_BL: Unix seconds, int64; subtracted as integers, so that no second is lost.
        mask_BL: true at real positions, which come first.
        dtype: of the result.

    >>> times = torch.tensor([[86_400, 2 * 86_400, 0]])
    >>> log_day_gaps(times, torch.tensor([[True, True, False]]), torch.float32).exp()
    tensor([[1., 2., 1.]])
    """
    # A history out of order has no negative gap: log1p would be undefined below -1 day.
    seconds_BL = second_gaps(timestamps_BL).clamp(min=0) * mask_BL
    return torch.log1p(seconds_BL.to(dtype) / DAY)


def second_gaps(timestamps_BL: Tensor) -> Tensor:
    """Return the differences of neighbouring stamps in seconds, int64, the first one 0.

    Padding takes part, as in the official code: the first padded gap is minus the last stamp.

    >>> second_gaps(torch.tensor([[5, 7, 0]]))
    tensor([[ 0,  2, -7]])
    """
    return F.pad(timestamps_BL.diff(dim=-1), (1, 0))


class TimeEncoder(nn.Module):
    """Normalised time gaps, one copy per head."""

    def __init__(self, config: ModelConfig, *, num_modalities: int) -> None:
        super().__init__()
        self.max_len = config.max_len
        self.num_heads = config.num_heads
        self.num_modalities = num_modalities
        self.gaps = config.time_gaps
        self.masked = config.time_norm == "real_positions"
        self.dropout = Dropout(config.time_dropout)
        self.norm = PositionNorm(config.max_len, eps=config.norm_eps)

    def forward(self, timestamps_BL: Tensor, lengths_B: Tensor) -> TimeSignal:
        """Read the timestamps of a batch.

        Args:
            timestamps_BL: Unix seconds, int64, up to `max_len` positions; 0 where padded.
            lengths_B: number of real positions, at least 1.
        """
        timestamps_BL = F.pad(timestamps_BL, (0, self.max_len - timestamps_BL.shape[-1]))
        positions_L = torch.arange(self.max_len, device=lengths_B.device)
        mask_BL = positions_L < lengths_B[:, None]
        dtype = at_least_float32(self.norm.weight).dtype
        if self.gaps == "log_days":
            gaps_BL = log_day_gaps(timestamps_BL, mask_BL, dtype)
        else:
            gaps_BL = second_gaps(timestamps_BL).to(dtype)
        # Under dropout each modality draws its own mask; otherwise one signal serves all.
        apart = self.training and self.dropout.p > 0
        gaps_SBL = gaps_BL.expand(self.num_modalities if apart else 1, -1, -1)
        signal_SBL = self.norm(self.dropout(gaps_SBL), mask_BL if self.masked else None)
        return TimeSignal(
            values_SBHL=signal_SBL[:, :, None].expand(-1, -1, self.num_heads, -1),
            mask_BHL=mask_BL[:, None] if self.masked else None,
        )


class TimeScale(nn.Module):
    """r: the factor of each head's step, from a time signal.

    The first two layers act along positions, the same for all heads.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.alive = config.time_scale == "one_plus"
        self.fc1 = Linear(config.max_len, config.max_len)
        self.fc2 = Linear(config.max_len, config.max_len)
        self.conv1 = CausalConv(channels=config.num_heads, width=config.d_conv)
        self.conv2 = CausalConv(channels=config.num_heads, width=config.d_conv)
        self.dropout = Dropout(config.time_dropout)

    def forward(self, signal_BHL: Tensor) -> Tensor:
        """Return r_BLH from (..., H, L), which is 0 at padding if padding must not matter."""
        with full_precision(signal_BHL):
            change_BHL = self.fc2(F.silu(self.fc1(self.dropout(signal_BHL))))
            # Differs from the official code: Tanhshrink is flat at 0, where training starts
            # (test_time.py).
            scale_BHL = 1 + change_BHL if self.alive else F.tanhshrink(change_BHL)
            scaled_BLH = (signal_BHL * scale_BHL).mT
            (r_BLH,) = self.conv2(*self.conv1(scaled_BLH))
            return r_BLH


class TimeGate(nn.Module):
    """D' = Norm(g D + (1 - g) r): the signal for the next layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = Linear(config.max_len, config.max_len if config.per_position_time_gate else 1)
        self.norm = PositionNorm(config.max_len, eps=config.norm_eps)
        self.dropout = Dropout(config.time_dropout)

    def forward(self, signal_BHL: Tensor, r_BLH: Tensor, mask_BHL: Tensor | None) -> Tensor:
        """Return the updated signal, (..., H, L)."""
        with full_precision(signal_BHL):
            gate_BHL = torch.sigmoid(self.fc(self.dropout(signal_BHL)))
            mixed_BHL: Tensor = self.norm(torch.lerp(r_BLH.mT, signal_BHL, gate_BHL), mask_BHL)
            return mixed_BHL
