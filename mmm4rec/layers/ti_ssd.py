"""TiSSD: the time-aware SSD block, one instance per layer for all modalities (arXiv:2506.02916).

Shape letters: M modalities, B batch, L length, D d_model, E d_inner, H heads, S groups * state.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from mmm4rec.config import ModelConfig
from mmm4rec.layers.gated_ssd import GatedSSD, at_position
from mmm4rec.layers.linear import CausalConv, SplitLinear
from mmm4rec.layers.time import TimeGate, TimeScale, TimeSignal


class TiSSD(nn.Module):
    """The shared block: hidden states and an updated time signal.

    Args:
        config: the architecture.
        use_time: false: a plain SSD.
        updates_time: false where nobody reads the updated signal.
    """

    def __init__(self, config: ModelConfig, *, use_time: bool, updates_time: bool) -> None:
        super().__init__()
        d_groups = config.num_groups * config.d_state
        conv_widths = [config.d_inner, d_groups, d_groups]
        self.in_proj = SplitLinear(config.d_model, [config.d_inner, *conv_widths, config.num_heads])
        self.conv = CausalConv(channels=sum(conv_widths), width=config.d_conv)
        self.ssd = GatedSSD(config)
        self.time_scale = TimeScale(config) if use_time else None
        self.time_gate = TimeGate(config) if use_time and updates_time else None

    def forward(
        self, x_MBLD: Tensor, time: TimeSignal | None, last_B: Tensor | None = None
    ) -> tuple[Tensor, TimeSignal | None]:
        """Mix each stream over its positions.

        Args:
            x_MBLD: the streams.
            time: their time signal; None: no time.
            last_B: the only position of each row that is wanted; None: all.

        Returns:
            Hidden states before residual and norm, (M, B, L, D) or (M, B, D), and the updated
            time signal.
        """
        z_MBLE, x_MBLE, B_MBLS, C_MBLS, dt_MBLH = self.in_proj(x_MBLD)
        x_MBLE, B_MBLS, C_MBLS = self.conv(x_MBLE, B_MBLS, C_MBLS)
        r_MBLH = self._time_factor(time)
        y_MBLE = self.ssd.mix(x_MBLE, dt_MBLH, B_MBLS, C_MBLS, r_MBLH)
        output_MBLD = self.ssd(at_position(y_MBLE, last_B), at_position(z_MBLE, last_B))
        return output_MBLD, self._update(time, r_MBLH)

    def _time_factor(self, time: TimeSignal | None) -> Tensor | None:
        if self.time_scale is None or time is None:
            return None
        r_MBLH: Tensor = self.time_scale(time.values_SBHL)
        return r_MBLH

    def _update(self, time: TimeSignal | None, r_MBLH: Tensor | None) -> TimeSignal | None:
        if self.time_gate is None or time is None:
            return time
        return replace(time, values_SBHL=self.time_gate(time.values_SBHL, r_MBLH, time.mask_BHL))
