"""SASRec: causal self-attention over the history.

Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018 (arXiv:1808.09781),
equations 1 to 7, in the form in which it is compared with: norms behind the residuals and GELU.
Differs from the paper: it normalises before each block, uses ReLU, and counts positions from the
most recent item, because it pads on the left.

Checked against torch's `nn.TransformerEncoderLayer` (test_sasrec.py) and by hand against RecBole
1.2.1, both with the same weights.

Shape letters: B batch, L length, D d_model.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mmm4rec.baselines.sequential import SequentialBaseline, at_last
from mmm4rec.baselines.transformer import PositionedItems, SelfAttention
from mmm4rec.batch import ItemCatalogue, SequenceBatch
from mmm4rec.config import ModelConfig
from mmm4rec.layers.feed_forward import FeedForward


class SASRec(SequentialBaseline):
    """Positions, then `num_layers` times attention and feed-forward; see `SequentialBaseline`.

    Raises:
        ConfigError: as `SelfAttention`.
    """

    def __init__(self, config: ModelConfig, catalogue: ItemCatalogue) -> None:
        super().__init__(config, catalogue)
        self.positioned = PositionedItems(config)
        self.layers = nn.ModuleList(
            nn.Sequential(SelfAttention(config), FeedForward(config, F.gelu))
            for _ in range(config.num_layers)
        )

    def read(self, x_BLD: Tensor, batch: SequenceBatch) -> Tensor:
        """Return user_BD: what the last layer says at each row's last item."""
        x_BLD = self.positioned(x_BLD)
        for layer in self.layers:
            x_BLD = layer(x_BLD)
        return at_last(x_BLD, batch.lengths_B)
