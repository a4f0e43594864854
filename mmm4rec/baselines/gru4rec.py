"""GRU4Rec: a recurrent network over the history.

Hidasi, Karatzoglou, Baltrunas and Tikk, Session-based Recommendations with Recurrent Neural
Networks, ICLR 2016 (arXiv:1511.06939), equations 1 to 4: a GRU without biases. Differs from the
paper: the output is an item vector, scored by a dot product, the loss is the cross-entropy over
all items, and histories are not cut into sessions.

Checked against torch's `nn.GRUCell` and the equations written out (test_gru4rec.py), and by hand
against RecBole 1.2.1 with the same weights.

Shape letters: B batch, L length, D d_model.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmm4rec.baselines.sequential import SequentialBaseline, at_last
from mmm4rec.batch import ItemCatalogue, SequenceBatch
from mmm4rec.config import ModelConfig
from mmm4rec.layers.dropout import Dropout
from mmm4rec.layers.linear import Linear
from mmm4rec.ops.precision import at_least_float32, full_precision


class GRU4Rec(SequentialBaseline):
    """`num_layers` GRUs of width `d_model` and an affine map; see `SequentialBaseline`."""

    def __init__(self, config: ModelConfig, catalogue: ItemCatalogue) -> None:
        super().__init__(config, catalogue)
        self.dropout = Dropout(config.item_dropout)
        self.gru = nn.GRU(
            config.d_model, config.d_model, config.num_layers, bias=False, batch_first=True
        )
        self.out_proj = Linear(config.d_model, config.d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all matrices as Glorot and Bengio (2010) do.

        No norm makes up for small weights here: from N(0, 0.02) a run may stop for want of
        progress before it has begun to learn.
        """
        for weight in (*self.gru.parameters(), self.out_proj.weight):
            nn.init.xavier_uniform_(weight)

    def read(self, x_BLD: Tensor, batch: SequenceBatch) -> Tensor:
        """Return user_BD, made of the state behind each row's last item."""
        # Errors of a narrow type would add up along the history.
        with full_precision(x_BLD):
            states_BLD, _ = self.gru(self.dropout(at_least_float32(x_BLD)))
        user_BD: Tensor = self.out_proj(at_last(states_BLD, batch.lengths_B))
        return user_BD
