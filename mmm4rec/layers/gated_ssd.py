"""What TiSSD and TiCoSSD have in common: the state space, its gate and the output projection.

Shape letters: B batch, L length, D d_model, E d_inner, H heads, P head width, G groups, N state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmm4rec.config import ModelConfig
from mmm4rec.layers.linear import Linear
from mmm4rec.layers.norm import GatedRMSNorm
from mmm4rec.ops.precision import at_least_float32
from mmm4rec.ops.ssd import ssd

INITIAL_STEP = (1e-3, 0.1)  # drawn log-uniformly
INITIAL_DECAY = (1.0, 16.0)  # of -A, drawn uniformly


class GatedMixer(nn.Module):
    """W_o RMSNorm(y * SiLU(z)) + b_o, position by position; what y is, subclasses say in `mix`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = GatedRMSNorm(config.d_inner, eps=config.norm_eps)
        self.out_proj = Linear(config.d_inner, config.d_model)

    def forward(self, y_BLE: Tensor, z_BLE: Tensor) -> Tensor:
        """Gate, normalise and project what `mix` returned, (..., E) to (..., D)."""
        output_BLD: Tensor = self.out_proj(self.norm(y_BLE, z_BLE))
        return output_BLD


class GatedSSD(GatedMixer):
    """y = SSD(x, dt, B, C)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.head_dim = config.head_dim
        self.d_state = config.d_state
        self.skip = config.skip
        self.backend = config.ssd_backend
        self.A_log = nn.Parameter(torch.empty(config.num_heads))
        self.D = nn.Parameter(torch.ones(config.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(config.num_heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw decay and step of each head; the skip weight is 1, as in Mamba-2."""
        self.A_log.copy_(initial_log_decay(self.A_log))
        self.D.fill_(1)
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
        """Run the SSD.

        Args:
            x_BLE: input, (..., L, E).
            dt_BLH: step before bias and softplus, (..., L, H).
            B_BLS: what enters the state, all groups side by side, S = G * N.
            C_BLS: what reads the state, likewise, at all positions or at those of `read_at_BW`.
            r_BLH: time's factor of `dt_BLH`, over `max_len` positions, broadcastable to it;
                None: 1.
            read_at_BW: the only positions at which the state is read; None: all.
        """
        if r_BLH is not None:
            dt_BLH = at_least_float32(dt_BLH) * r_BLH[..., : dt_BLH.shape[-2], :]
        y_BLHP = ssd(
            x_BLE.unflatten(-1, (-1, self.head_dim)).flatten(0, -4),
            dt_BLH.flatten(0, -3),
            -torch.exp(at_least_float32(self.A_log)),
            B_BLS.unflatten(-1, (-1, self.d_state)).flatten(0, -4),
            C_BLS.unflatten(-1, (-1, self.d_state)).flatten(0, -4),
            self.D,
            self.dt_bias,
            skip=self.skip,
            backend=self.backend,
            read_at_BW=read_at_BW,
        )
        return y_BLHP.flatten(-2).unflatten(0, x_BLE.shape[:-2])


def initial_log_decay(like_H: Tensor) -> Tensor:
    """Draw log(-A) of each head, in shape, type and place of `like_H`."""
    return torch.empty_like(like_H).uniform_(*INITIAL_DECAY).log_()


def initial_step_bias(like_H: Tensor) -> Tensor:
    """Draw what softplus turns into the step of each head, likewise."""
    shortest, longest = torch.tensor(INITIAL_STEP).log().tolist()
    step_H = torch.empty_like(like_H).uniform_(shortest, longest).exp()
    return step_H + torch.log(-torch.expm1(-step_H))  # softplus^-1
