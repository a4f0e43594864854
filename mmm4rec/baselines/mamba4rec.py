"""Mamba4Rec: the selective state space of Mamba over the history.

Liu, Lin, Wang, Liu and Caverlee, Mamba4Rec: Towards Efficient Sequential Recommendation with
Selective State Space Models, 2024 (arXiv:2403.03900), around the block of Mamba (arXiv:2312.00752,
figure 3). Mamba-1's scan, not the SSD of Mamba-2; in plain PyTorch (`selective_scan`).
Differs from the authors' code: the bias of the step keeps Mamba's initialisation, which there the
model's own overwrites with 0.

Checked against the recurrence written out in float64 (test_selective_scan.py), and the block
against that of transformers with the same weights (test_mamba4rec.py). There is no Mamba4Rec in
RecBole 1.2.1.

Shape letters: B batch, L length, D d_model, E d_inner, N state, R rank of the step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.baselines.selective_scan import selective_scan
from mmm4rec.baselines.sequential import SequentialBaseline, at_last
from mmm4rec.batch import ItemCatalogue, SequenceBatch
from mmm4rec.config import ModelConfig
from mmm4rec.layers.dropout import Dropout
from mmm4rec.layers.feed_forward import FeedForward
from mmm4rec.layers.gated_ssd import initial_step_bias
from mmm4rec.layers.linear import INIT_STD, CausalConv
from mmm4rec.layers.norm import LayerNorm
from mmm4rec.ops.precision import at_least_float32

CHANNELS_PER_RANK = 16  # the step is made of d_model / 16 numbers per position, as in Mamba


class Mamba(nn.Module):
    """W_o (scan(SiLU(conv(u))) * SiLU(z)) with u, z = W_i x."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        rank = math.ceil(config.d_model / CHANNELS_PER_RANK)
        self.widths = [rank, config.d_state, config.d_state]
        self.in_proj = nn.Linear(config.d_model, 2 * config.d_inner, bias=False)
        self.conv = CausalConv(channels=config.d_inner, width=config.d_conv)
        self.x_proj = nn.Linear(config.d_inner, sum(self.widths), bias=False)
        self.step_proj = nn.Linear(rank, config.d_inner)
        self.A_log = nn.Parameter(torch.empty(config.d_inner, config.d_state))
        self.D = nn.Parameter(torch.empty(config.d_inner))
        self.out_proj = nn.Linear(config.d_inner, config.d_model, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start each channel's states at the rates 1..N, its step log-uniform, its skip at 1."""
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            nn.init.normal_(linear.weight, std=INIT_STD)
        bound = self.step_proj.in_features**-0.5
        self.step_proj.weight.uniform_(-bound, bound)
        self.step_proj.bias.copy_(initial_step_bias(self.step_proj.bias))
        self.A_log.copy_(torch.arange(1, self.A_log.shape[1] + 1).log().expand_as(self.A_log))
        self.D.fill_(1)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Mix the positions, (B, L, D)."""
        u_BLE, z_BLE = self.in_proj(x_BLD).chunk(2, dim=-1)
        (u_BLE,) = self.conv(u_BLE)
        low_BLR, B_BLN, C_BLN = self.x_proj(u_BLE).split(self.widths, dim=-1)
        step_BLE = F.softplus(at_least_float32(self.step_proj(low_BLR)))
        A_EN = -torch.exp(at_least_float32(self.A_log))
        y_BLE = selective_scan(u_BLE, step_BLE, A_EN, B_BLN, C_BLN, self.D)
        output_BLD: Tensor = self.out_proj(y_BLE * F.silu(z_BLE))
        return output_BLD


class MambaLayer(nn.Module):
    """FF(LN(Drop(Mamba(x)) + x)); a single layer has no residual around its Mamba."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.residual = config.num_layers > 1
        self.mamba = Mamba(config)
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = FeedForward(config, F.gelu)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Mix the positions, then transform each, (B, L, D)."""
        mixed_BLD = self.dropout(self.mamba(x_BLD))
        output_BLD: Tensor = self.feed_forward(
            self.norm(mixed_BLD + x_BLD if self.residual else mixed_BLD)
        )
        return output_BLD


class Mamba4Rec(SequentialBaseline):
    """`num_layers` layers over LN(Drop(items)), without positions; see `SequentialBaseline`."""

    def __init__(self, config: ModelConfig, catalogue: ItemCatalogue) -> None:
        super().__init__(config, catalogue)
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = Dropout(config.item_dropout)
        self.layers = nn.ModuleList(MambaLayer(config) for _ in range(config.num_layers))

    def read(self, x_BLD: Tensor, batch: SequenceBatch) -> Tensor:
        """Return user_BD: what the last layer says at each row's last item."""
        x_BLD = self.norm(self.dropout(x_BLD))
        for layer in self.layers:
            x_BLD = layer(x_BLD)
        return at_last(x_BLD, batch.lengths_B)
