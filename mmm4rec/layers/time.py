"""The time path: from timestamps to the signal that scales the step of each SSD block.

All of it runs at `max_len` positions, whatever the length of the batch, because several of its
layers mix positions; it is therefore not causal, unlike the item path. Unless `time_norm` is
`all_positions`, every such layer sees 0 at padding.

Shape letters: B batch, L max_len, H heads, S time signals: one per modality, or a single one for
all while they are equal.
"""

from __future__ import annotations

import math
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
TEN_YEARS = 3_650 * DAY  # a gap that comes out as 2
LONGEST_UNIT = 30 * DAY


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


def log_gaps(seconds_BL: Tensor, units_H: Tensor) -> Tensor:
    """Return log(1 + gap / unit) of each head's unit, from -2 (a tie) to 2 (ten years), (B, H, L).

    Args:
        seconds_BL: gaps in seconds, int64; a history out of order has no negative gap.
        units_H: in seconds, floating point, the type of the result.

    >>> log_gaps(torch.tensor([[0, 3_650 * 86_400]]), torch.tensor([1.0, 86_400.0]))
    tensor([[[-2.,  2.],
             [-2.,  2.]]])
    """
    units_H1 = units_H[:, None]
    gaps_B1L = seconds_BL.clamp(min=0).to(units_H.dtype)[:, None]
    return 4 * torch.log1p(gaps_B1L / units_H1) / torch.log1p(TEN_YEARS / units_H1) - 2


def head_units(kind: str, num_heads: int) -> Tensor:
    """Return the unit of each head in seconds, (H,): one for all, or from a second to a month.

    >>> head_units("log_units", 3)
    tensor([1.0000e+00, 1.6100e+03, 2.5920e+06])
    """
    if kind == "log_units":
        return torch.logspace(0, math.log10(LONGEST_UNIT), num_heads)
    return torch.full((num_heads,), float(DAY if kind == "log_days" else 1))


def second_gaps(timestamps_BL: Tensor) -> Tensor:
    """Return the differences of neighbouring stamps in seconds, int64, the first one 0.

    Padding takes part, as in the official code: the first padded gap is minus the last stamp.

    >>> second_gaps(torch.tensor([[5, 7, 0]]))
    tensor([[ 0,  2, -7]])
    """
    return F.pad(timestamps_BL.diff(dim=-1), (1, 0))


def gaps_to_next(timestamps_BL: Tensor, lengths_B: Tensor, query_time_B: Tensor) -> Tensor:
    """Return the seconds from each item to the next, from the last one to the query; int64.

    In place of the gap before each item, so that the last position has the time since its item;
    nothing is lost, for the gap before the first item says nothing.

    >>> gaps_to_next(torch.tensor([[5, 7, 0]]), torch.tensor([2]), torch.tensor([10]))
    tensor([[2, 3, 0]])
    """
    last_B1 = (lengths_B - 1)[:, None]
    next_BL = F.pad(timestamps_BL[:, 1:], (0, 1)).scatter(1, last_B1, query_time_B[:, None])
    return next_BL - timestamps_BL


class TimeEncoder(nn.Module):
    """Time gaps on the scale that the model reads, for each head."""

    units_H: Tensor

    def __init__(self, config: ModelConfig, *, num_modalities: int) -> None:
        super().__init__()
        self.max_len = config.max_len
        self.num_heads = config.num_heads
        self.num_modalities = num_modalities
        self.gaps = config.time_gaps
        self.masked = config.time_norm != "all_positions"
        self.dropout = Dropout(config.time_dropout)
        self.norm = build_position_norm(config)
        units_H = head_units(config.time_gaps, config.num_heads)
        self.register_buffer("units_H", units_H, persistent=False)

    def forward(
        self, timestamps_BL: Tensor, lengths_B: Tensor, query_time_B: Tensor | None = None
    ) -> TimeSignal:
        """Read the timestamps of a batch.

        Args:
            timestamps_BL: Unix seconds, int64, up to `max_len` positions; 0 where padded.
            lengths_B: number of real positions, at least 1.
            query_time_B: Unix seconds of the moment of recommending, int64; None: not known.
        """
        timestamps_BL = F.pad(timestamps_BL, (0, self.max_len - timestamps_BL.shape[-1]))
        positions_L = torch.arange(self.max_len, device=lengths_B.device)
        mask_BL = positions_L < lengths_B[:, None]
        if query_time_B is None:
            seconds_BL = second_gaps(timestamps_BL)
        else:
            seconds_BL = gaps_to_next(timestamps_BL, lengths_B, query_time_B)
        units_H = at_least_float32(self.units_H)
        if self.gaps == "seconds":
            gaps_BHL = seconds_BL[:, None].to(units_H.dtype)
        else:
            gaps_BHL = log_gaps(seconds_BL, units_H)
        # Under dropout each modality draws its own mask; otherwise one signal serves all.
        apart = self.training and self.dropout.p > 0
        gaps_SBHL = gaps_BHL.expand(self.num_modalities if apart else 1, -1, -1, -1)
        mask_BHL = mask_BL[:, None] if self.masked else None
        signal_SBHL = _normalise(self.norm, self.dropout(gaps_SBHL), mask_BHL)
        return TimeSignal(signal_SBHL.expand(-1, -1, self.num_heads, -1), mask_BHL)


class TimeScale(nn.Module):
    """r: the factor of each head's step, from a time signal.

    The first two layers act along positions, the same for all heads.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.alive = config.time_scale == "one_plus"
        self.residual = config.time_convolution == "residual"
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
            # Differs from the official code: two convolutions with SiLU shrink a small signal.
            return r_BLH + scaled_BLH if self.residual else r_BLH


class TimeGate(nn.Module):
    """D' = Norm(g D + (1 - g) r): the signal for the next layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = Linear(config.max_len, config.max_len if config.per_position_time_gate else 1)
        self.norm = build_position_norm(config)
        self.dropout = Dropout(config.time_dropout)

    def forward(self, signal_BHL: Tensor, r_BLH: Tensor, mask_BHL: Tensor | None) -> Tensor:
        """Return the updated signal, (..., H, L)."""
        with full_precision(signal_BHL):
            gate_BHL = torch.sigmoid(self.fc(self.dropout(signal_BHL)))
            mixed_BHL = torch.lerp(r_BLH.mT, signal_BHL, gate_BHL)
            return _normalise(self.norm, mixed_BHL, mask_BHL)


def build_position_norm(config: ModelConfig) -> PositionNorm | None:
    """Return the norm over a sequence's time signal; None: gaps stay comparable across users."""
    if config.time_norm == "none":
        return None
    return PositionNorm(config.max_len, eps=config.norm_eps)


def _normalise(norm: PositionNorm | None, signal_L: Tensor, mask_L: Tensor | None) -> Tensor:
    if norm is not None:
        normalised_L: Tensor = norm(signal_L, mask_L)
        return normalised_L
    return signal_L if mask_L is None else signal_L * mask_L
