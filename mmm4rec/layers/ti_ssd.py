"""TiSSD: the time-aware SSD block, one instance per layer for all modalities (arXiv:2506.02916).

`share_ti_ssd: false` gives each modality its own, the paper's "w/o shared weights".

Shape letters: M modalities, B batch, L length, W positions of a window, V = W and what its
convolution sees before it, D d_model, E d_inner, H heads, S groups * state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmm4rec.config import ModelConfig
from mmm4rec.layers.attention import build_mixer, key_width
from mmm4rec.layers.linear import CausalConv, SplitLinear
from mmm4rec.layers.time import TimeGate, TimeScale, TimeSignal
from mmm4rec.layers.window import Window, last_window


class TiSSD(nn.Module):
    """One block: hidden states and an updated time signal.

    Args:
        config: the architecture.
        use_time: false: a plain SSD.
        updates_time: false where nobody reads the updated signal.
    """

    def __init__(self, config: ModelConfig, *, use_time: bool, updates_time: bool) -> None:
        super().__init__()
        d_key = key_width(config)
        conv_widths = [config.d_inner, d_key, d_key]
        self.in_proj = SplitLinear(config.d_model, [config.d_inner, *conv_widths, config.num_heads])
        self.conv = CausalConv(channels=sum(conv_widths), width=config.d_conv)
        self.ssd = build_mixer(config, use_time=use_time)
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

    def of_modality(self, index: int) -> TiSSD:
        """Return the block of one modality: this one serves all."""
        return self


class SeparateTiSSD(nn.Module):
    """A TiSSD for each modality, with the interface of a shared one; windows are for its blocks.

    Args:
        config: the architecture.
        use_time: false: plain SSDs.
        updates_time: names of the modalities, in order, and whether somebody reads the updated
            signal of each.
    """

    def __init__(
        self, config: ModelConfig, *, use_time: bool, updates_time: Mapping[str, bool]
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(
            {
                name: TiSSD(config, use_time=use_time, updates_time=updates)
                for name, updates in updates_time.items()
            }
        )

    def forward(self, x_MBLD: Tensor, time: TimeSignal | None) -> tuple[Tensor, TimeSignal | None]:
        """Mix each stream over its positions, as `TiSSD.forward`."""
        r_MBLH, updated = self.read_time(time)
        return self.mix(x_MBLD, r_MBLH), updated

    def read_time(self, time: TimeSignal | None) -> tuple[Tensor | None, TimeSignal | None]:
        """Return the factor of the steps, (M, B, L, H), and the updated time signals."""
        if time is None:
            return None, None
        factors: list[Tensor] = []
        signals: list[Tensor] = []
        for index in range(len(self.blocks)):
            own = replace(time, values_SBHL=time.of_modality(index)[None])
            r_1BLH, updated = self.of_modality(index).read_time(own)
            if r_1BLH is None or updated is None:
                return None, None
            factors.append(r_1BLH)
            signals.append(updated.values_SBHL)
        return torch.cat(factors), replace(time, values_SBHL=torch.cat(signals))

    def mix(self, x_MBLD: Tensor, r_MBLH: Tensor | None) -> Tensor:
        """Return the hidden states of the first streams, M of them, given the factor of each."""
        mixed = [
            self.of_modality(index).mix(x_1BLD, None if r_MBLH is None else r_MBLH[index][None])
            for index, x_1BLD in enumerate(x_MBLD.split(1))
        ]
        return torch.cat(mixed)

    def of_modality(self, index: int) -> TiSSD:
        """Return the block of one modality."""
        block = list(self.blocks.values())[index]
        assert isinstance(block, TiSSD)
        return block
