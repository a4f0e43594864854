"""Causal attention in place of the SSD (`mixer: attention`), and the choice between the two.

Shape letters: B batch, L length, W positions that ask, K a second index over positions, E d_inner,
H heads, P width of a head, S width of keys (d_model), D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.config import ModelConfig
from mmm4rec.layers.gated_ssd import (
    GatedMixer,
    GatedSSD,
    initial_log_decay,
    initial_step_bias,
)
from mmm4rec.ops.precision import at_least_float32, full_precision


class GatedAttention(GatedMixer):
    """y = softmax(C B^T / sqrt(P) + log M) x.

    The SSD is (C B^T * M) x with a decay matrix M (arXiv:2405.21060); here C asks, B is asked, x
    answers and a softmax weighs, while projections, convolutions, gate and norm stay. Time steers
    it as it steers the SSD: log M_lk = A (delta_k+1 + ... + delta_l) with A < 0 and delta =
    softplus(r dt + dt_bias), so that what lies before a long gap fades. Without time there is
    no decay and dt is idle: plain attention, whose weights still move to and from data with
    timestamps. It knows of order what the causal convolutions in front of it (`d_conv` wide) and
    M say; there is no position embedding.

    The paper (arXiv:2506.02916v4, appendix) says only that attention stands in place of the SSD;
    the rest is our reading.
    """

    def __init__(self, config: ModelConfig, *, use_time: bool) -> None:
        super().__init__(config)
        self.num_heads = config.num_heads
        self.A_log = nn.Parameter(torch.empty(config.num_heads)) if use_time else None
        self.dt_bias = nn.Parameter(torch.empty(config.num_heads)) if use_time else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw decay and step of each head as the SSD does."""
        if self.A_log is not None and self.dt_bias is not None:
            self.A_log.copy_(initial_log_decay(self.A_log))
            self.dt_bias.copy_(initial_step_bias(self.dt_bias))

    def mix(
        self,
        x_BLE: Tensor,
        dt_BLH: Tensor,
        B_BLS: Tensor,
        C_BLS: Tensor,
        r_BLH: Tensor | None,
        read_at_BW: Tensor | None = None,
    ) -> Tensor:
        """Attend to each position and those before it; in float32 at least.

        Args:
            x_BLE: values, (..., L, E).
            dt_BLH: step before bias and softplus, (..., L, H); not looked at without
                time.
            B_BLS: keys.
            C_BLS: queries, at all positions or at those of `read_at_BW`.
            r_BLH: time's factor of `dt_BLH`, over `max_len` positions, broadcastable to it;
                None: 1.
            read_at_BW: the only positions that ask; None: all.
        """
        if r_BLH is not None:
            dt_BLH = at_least_float32(dt_BLH) * r_BLH[..., : dt_BLH.shape[-2], :]
        if read_at_BW is None:
            read_at_BW = torch.arange(x_BLE.shape[-2], device=x_BLE.device)[None]
        with full_precision(x_BLE):
            y_BHWP = F.scaled_dot_product_attention(
                self._by_head(C_BLS),
                self._by_head(B_BLS),
                self._by_head(x_BLE),
                attn_mask=self._mask(dt_BLH.flatten(0, -3), read_at_BW),
            )
        y_BWE = y_BHWP.transpose(1, 2).flatten(-2)
        return y_BWE.to(x_BLE.dtype).unflatten(0, x_BLE.shape[:-2])

    def _by_head(self, x_BLE: Tensor) -> Tensor:
        x_BLHP = at_least_float32(x_BLE).unflatten(-1, (self.num_heads, -1))
        return x_BLHP.flatten(0, -4).transpose(1, 2)

    def _mask(self, dt_BLH: Tensor, read_at_BW: Tensor) -> Tensor:
        """Return log M, -inf at later positions, (B, H, W, K); without time what may be read."""
        positions_K = torch.arange(dt_BLH.shape[1], device=dt_BLH.device)
        earlier_BHWK = (positions_K <= read_at_BW[..., None])[:, None]
        if self.A_log is None or self.dt_bias is None:
            return earlier_BHWK
        step_BLH = F.softplus(at_least_float32(dt_BLH) + at_least_float32(self.dt_bias))
        log_decay_BLH = -torch.exp(at_least_float32(self.A_log)) * step_BLH
        total_BHK = log_decay_BLH.mT.cumsum(-1)
        total_BHW = total_BHK.take_along_dim(read_at_BW[:, None], -1)
        log_decay_BHWK = total_BHW[..., None] - total_BHK[..., None, :]
        return log_decay_BHWK.masked_fill(~earlier_BHWK, -torch.inf)


def build_mixer(config: ModelConfig, *, use_time: bool) -> GatedSSD | GatedAttention:
    """Return what mixes positions in a block."""
    if config.mixer == "attention":
        return GatedAttention(config, use_time=use_time)
    return GatedSSD(config)


def key_width(config: ModelConfig) -> int:
    """Return how wide B and C are, all groups or heads side by side.

    >>> key_width(ModelConfig())
    512
    >>> key_width(ModelConfig(mixer="attention"))
    256
    """
    if config.mixer == "attention":
        return config.d_model
    return config.num_groups * config.d_state
