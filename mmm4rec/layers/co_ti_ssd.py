"""TiCoSSD: one stream asks what another one answers (arXiv:2506.02916).

Shape letters: B batch, L length, D d_model, E d_inner, H heads, S groups * state.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmm4rec.config import ModelConfig
from mmm4rec.layers.gated_ssd import GatedSSD, at_position
from mmm4rec.layers.linear import CausalConv, Linear, SplitLinear
from mmm4rec.layers.time import TimeScale


class TiCoSSD(nn.Module):
    """An SSD whose x, B and step come from the answering stream and whose C from the asking one.

    The gate z comes from their sum. Differs from the paper's text; as in the official code.
    """

    def __init__(self, config: ModelConfig, *, use_time: bool) -> None:
        super().__init__()
        d_groups = config.num_groups * config.d_state
        self.source_proj = SplitLinear(config.d_model, [config.d_inner, d_groups, config.num_heads])
        self.query_proj = Linear(config.d_model, d_groups)
        self.gate_proj = Linear(config.d_model, config.d_inner)
        self.source_conv = CausalConv(channels=config.d_inner + d_groups, width=config.d_conv)
        self.query_conv = CausalConv(channels=d_groups, width=config.d_conv)
        self.ssd = GatedSSD(config)
        self.time_scale = TimeScale(config) if use_time else None

    def forward(
        self,
        query_BLD: Tensor,
        source_BLD: Tensor,
        time_BHL: Tensor | None,
        last_B: Tensor | None = None,
    ) -> Tensor:
        """Ask the source.

        Args:
            query_BLD: the asking stream.
            source_BLD: the answering stream.
            time_BHL: the filtered time signal; None: no time.
            last_B: the only position of each row that is wanted; None: all.

        Returns:
            The answer before residual and norm, (B, L, D) or (B, D).
        """
        x_BLE, B_BLS, dt_BLH = self.source_proj(source_BLD)
        x_BLE, B_BLS = self.source_conv(x_BLE, B_BLS)
        (C_BLS,) = self.query_conv(self.query_proj(query_BLD))
        r_BLH = self.time_scale(time_BHL) if self.time_scale is not None else None
        y_BLE = self.ssd.mix(x_BLE, dt_BLH, B_BLS, C_BLS, r_BLH)
        both_BLD = at_position(query_BLD, last_B) + at_position(source_BLD, last_B)
        answer_BLD: Tensor = self.ssd(at_position(y_BLE, last_B), self.gate_proj(both_BLD))
        return answer_BLD
