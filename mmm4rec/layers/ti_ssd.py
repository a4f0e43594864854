"""TiSSD: the time-aware SSD block, one instance per layer for all modalities (arXiv:2506.02916).

Shape letters: M modalities, B batch, L length, W positions of a window, V = W and what its
convolution sees before it, D d_model, E d_inner, H heads, S groups * state.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from mmm4rec.config import ModelConfig
from mmm4rec.layers.gated_ssd import GatedSSD
from mmm4rec.layers.linear import CausalConv, SplitLinear
from mmm4rec.layers.time import TimeGate, TimeScale, TimeSignal
from mmm4rec.layers.window import Window, last_window


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
        self, x_MBLD: Tensor, time: TimeSignal | None, window: Window | None = None
    ) -> tuple[Tensor, TimeSignal | None]:
        """Mix each stream over its positions.

        Args:
            x_MBLD: the streams.
            time: their time signal; None: no time.
            window: the only positions at which the streams are wanted; None: all.

        Returns:
            Hidden states before residual and norm, (M, B, L, D) or (M, B, W, D), and the updated
            time signal.
        """
        r_MBLH, updated = self.read_time(time)
        return self.mix(x_MBLD, r_MBLH, window), updated

    def read_time(self, time: TimeSignal | None) -> tuple[Tensor | None, TimeSignal | None]:
        """Return the factor of the steps, (M or 1, B, L, H), and the updated time signal."""
        if self.time_scale is None or time is None:
            return None, None
        r_MBLH: Tensor = self.time_scale(time.values_SBHL)
        if self.time_gate is None:
            return r_MBLH, time
        updated = self.time_gate(time.values_SBHL, r_MBLH, time.mask_BHL)
        return r_MBLH, replace(time, values_SBHL=updated)

    def mix(self, x_MBLD: Tensor, r_MBLH: Tensor | None, window: Window | None = None) -> Tensor:
        """Return the hidden states of `forward`, given the factor of the steps."""
        if window is None:
            z_MBLE, x_MBLE, B_MBLS, C_MBLS, dt_MBLH = self.in_proj(x_MBLD)
            x_MBLE, B_MBLS, C_MBLS = self.conv(x_MBLE, B_MBLS, C_MBLS)
            return self.ssd(self.ssd.mix(x_MBLE, dt_MBLH, B_MBLS, C_MBLS, r_MBLH), z_MBLE)
        width, d_conv = window.at_BW.shape[1], self.conv.weight.shape[-1]
        before = last_window(window.at_BW[:, -1], width + d_conv - 1, x_MBLD.shape[2])
        x_MBWD, x_MBVD = window.take(x_MBLD), before.take(x_MBLD)
        z_MBWE, x_MBLE, B_MBLS, C_MBVS, dt_MBLH = self.in_proj(
            x_MBWD, x_MBLD, x_MBLD, x_MBVD, x_MBLD
        )
        x_MBLE, B_MBLS, C_MBVS = self.conv(x_MBLE, B_MBLS, C_MBVS * before.real_BW[..., None])
        y_MBWE = self.ssd.mix(
            x_MBLE, dt_MBLH, B_MBLS, C_MBVS[..., -width:, :], r_MBLH, window.at_BW
        )
        return self.ssd(y_MBWE, z_MBWE)
