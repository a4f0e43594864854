"""TiM4Rec: the SSD of Mamba-2 whose decay matrix knows the time between interactions.

Fan et al., TiM4Rec: An Efficient Sequential Recommendation Model Based on Time-Aware Structured
State Space Duality Model, Neurocomputing 2025 (arXiv:2409.16182). MMM4Rec's shared block is this
one, so it is the same code here: `layers.ti_ssd` and `layers.time`, with the same settings of the
time path, whose defaults are corrections that `fidelity: official` turns off. Around it stands the
layer of Mamba4Rec with a Hardswish feed-forward.
Differs from the authors' code: the number of groups is a setting.

Checked against the decay matrix written out from the steps and time factors, and without time
against the plain SSD: test_tim4rec.py. There is no TiM4Rec in RecBole 1.2.1.

Shape letters: M modalities (here 1), B batch, L length, D d_model.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmm4rec.baselines.sequential import SequentialBaseline, at_last
from mmm4rec.batch import ItemCatalogue, SequenceBatch
from mmm4rec.config import ModelConfig
from mmm4rec.layers.dropout import Dropout
from mmm4rec.layers.feed_forward import build_feed_forward
from mmm4rec.layers.norm import LayerNorm
from mmm4rec.layers.ti_ssd import TiSSD
from mmm4rec.layers.time import TimeEncoder, TimeSignal


class TiM4RecLayer(nn.Module):
    """FF(LN(Drop(TiSSD(x, time)) + x)); a single layer has no residual around its TiSSD."""

    def __init__(self, config: ModelConfig, *, use_time: bool, is_last: bool) -> None:
        super().__init__()
        self.residual = config.num_layers > 1
        self.ti_ssd = TiSSD(config, use_time=use_time, updates_time=not is_last)
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = build_feed_forward(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, time: TimeSignal | None) -> tuple[Tensor, TimeSignal | None]:
        """Return the hidden states, (B, L, D), and the time signal of the next layer."""
        mixed_MBLD, time = self.ti_ssd(x_BLD[None], time)
        mixed_BLD = self.dropout(mixed_MBLD[0])
        normed_BLD = self.norm(mixed_BLD + x_BLD if self.residual else mixed_BLD)
        return self.feed_forward(normed_BLD), time


class TiM4Rec(SequentialBaseline):
    """`num_layers` layers over LN(Drop(items)) and their times; see `SequentialBaseline`.

    Without timestamps, or with `use_time` off, each layer is a plain SSD.
    """

    def __init__(self, config: ModelConfig, catalogue: ItemCatalogue) -> None:
        super().__init__(config, catalogue)
        use_time = config.use_time and catalogue.has_time
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = Dropout(config.item_dropout)
        self.time_encoder = TimeEncoder(config, num_modalities=1) if use_time else None
        self.layers = nn.ModuleList(
            TiM4RecLayer(config, use_time=use_time, is_last=index == config.num_layers - 1)
            for index in range(config.num_layers)
        )

    def read(self, x_BLD: Tensor, batch: SequenceBatch) -> Tensor:
        """Return user_BD: what the last layer says at each row's last item."""
        x_BLD = self.norm(self.dropout(x_BLD))
        time = None
        if self.time_encoder is not None:
            time = self.time_encoder(batch.timestamps_BL, batch.lengths_B, batch.query_time_B)
        for layer in self.layers:
            x_BLD, time = layer(x_BLD, time)
        return at_last(x_BLD, batch.lengths_B)
