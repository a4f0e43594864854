"""TiCoSSD: one stream asks what another one answers (arXiv:2506.02916).

Shape letters: B batch, L length, W positions of a window, D d_model, E d_inner, H heads,
S groups * state.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmm4rec.config import ModelConfig
from mmm4rec.layers.attention import build_mixer, key_width
from mmm4rec.layers.linear import CausalConv, Linear, SplitLinear
from mmm4rec.layers.time import TimeScale
from mmm4rec.layers.window import Window


class TiCoSSD(nn.Module):
    """An SSD whose x, B and step come from the answering stream and whose C from the asking one.

    Under `mixer: attention` the asking stream attends to the answering one, causally, instead.
    The gate z comes from their sum. Differs from the paper's text; as in the official code.
    """

    def __init__(self, config: ModelConfig, *, use_time: bool) -> None:
        super().__init__()
        d_key = key_width(config)
        self.source_proj = SplitLinear(config.d_model, [config.d_inner, d_key, config.num_heads])
        self.query_proj = Linear(config.d_model, d_key)
        self.gate_proj = Linear(config.d_model, config.d_inner)
        self.source_conv = CausalConv(channels=config.d_inner + d_key, width=config.d_conv)
        self.query_conv = CausalConv(channels=d_key, width=config.d_conv)
        self.ssd = build_mixer(config, use_time=use_time)
        self.time_scale = TimeScale(config) if use_time else None

    def forward(
        self,
        query_BLD: Tensor,
        source_BLD: Tensor,
        time_BHL: Tensor | None,
        window: Window | None = None,
    ) -> Tensor:
        """Ask the source.

        Args:
            query_BLD: the asking stream; with a window only its positions, (B, W, D).
            source_BLD: the answering stream.
            time_BHL: the filtered time signal; None: no time.
            window: the positions of the asking stream that the answer at the last of them hangs
                on, `d_conv` of them where rows have as many. None: all, and all are answered.

        Returns:
            The answer before residual and norm, (B, L, D), or (B, 1, D) at a window's end.
        """
        C_BLS, read_at_BW, asked_BLD = self.query_proj(query_BLD), None, source_BLD
        if window is not None:
            last = window.narrow(1)
            C_BLS, read_at_BW = C_BLS * window.real_BW[..., None], last.at_BW
            query_BLD, asked_BLD = query_BLD[:, -1:], last.take(source_BLD)
        x_BLE, B_BLS, dt_BLH = self.source_proj(source_BLD)
        x_BLE, B_BLS = self.source_conv(x_BLE, B_BLS)
        (C_BLS,) = self.query_conv(C_BLS)
        r_BLH = self.time_scale(time_BHL) if self.time_scale is not None else None
        C_BLS = C_BLS[:, -query_BLD.shape[1] :]
        y_BLE = self.ssd.mix(x_BLE, dt_BLH, B_BLS, C_BLS, r_BLH, read_at_BW)
        answer_BLD: Tensor = self.ssd(y_BLE, self.gate_proj(query_BLD + asked_BLD))
        return answer_BLD
