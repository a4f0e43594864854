"""One layer: the shared TiSSD over all streams, then the chain of fusions (arXiv:2506.02916).

Shape letters: M modalities, B batch, L length, D d_model, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmm4rec.config import ModelConfig
from mmm4rec.layers.co_ti_ssd import TiCoSSD
from mmm4rec.layers.dropout import Dropout
from mmm4rec.layers.feed_forward import build_feed_forward
from mmm4rec.layers.fourier import FourierFilter
from mmm4rec.layers.gated_ssd import at_position
from mmm4rec.layers.norm import LayerNorm
from mmm4rec.layers.ti_ssd import TiSSD
from mmm4rec.layers.time import TimeSignal


class Fusion(nn.Module):
    """A stream asks what the fused stream so far answers, under their filtered time signals."""

    def __init__(self, config: ModelConfig, *, use_time: bool) -> None:
        super().__init__()
        self.filter = FourierFilter(config) if use_time else None
        self.co_ssd = TiCoSSD(config, use_time=use_time)
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = build_feed_forward(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        query_BLD: Tensor,
        source_BLD: Tensor,
        time_BHL: Tensor | None,
        last_B: Tensor | None = None,
    ) -> Tensor:
        """Return the fused stream, (B, L, D), or (B, D) at `last_B`.

        Args:
            query_BLD: the asking stream.
            source_BLD: the fused stream so far.
            time_BHL: the filtered time signal; None: no time.
            last_B: the only position of each row that is wanted; None: all.
        """
        answer_BLD = self.co_ssd(query_BLD, source_BLD, time_BHL, last_B)
        both_BLD = at_position(query_BLD, last_B) + at_position(source_BLD, last_B)
        fused_BLD: Tensor = self.feed_forward(self.norm(self.dropout(answer_BLD) + both_BLD))
        return fused_BLD


class Layer(nn.Module):
    """All streams through the shared TiSSD, then each but the first asks the fused stream so far.

    The first stream has the feed-forward block, the others do not: so the official code does it
    (its text is first, its vision second), unlike the paper's text.

    Args:
        config: the architecture.
        modalities: names of the streams, in the order of fusion.
        use_time: false: no time signal at all.
        is_last: whether the updated time signal goes nowhere from here.
    """

    def __init__(
        self, config: ModelConfig, modalities: Sequence[str], *, use_time: bool, is_last: bool
    ) -> None:
        super().__init__()
        updates_time = not is_last or len(modalities) > 1
        self.ti_ssd = TiSSD(config, use_time=use_time, updates_time=updates_time)
        self.norms = nn.ModuleDict(
            {name: LayerNorm(config.d_model, eps=config.norm_eps) for name in modalities}
        )
        self.feed_forward = build_feed_forward(config)
        self.fusions = nn.ModuleDict(
            {name: Fusion(config, use_time=use_time) for name in modalities[1:]}
        )
        self.dropout = Dropout(config.dropout)

    def forward(
        self, streams: list[Tensor], time: TimeSignal | None, last_B: Tensor | None = None
    ) -> tuple[list[Tensor], TimeSignal | None]:
        """Run the layer.

        Args:
            streams: one (B, L, D) per modality.
            time: their time signal; None: no time.
            last_B: the only position of each row at which the last stream is wanted; None: all.

        Returns:
            The streams, the last one being (B, D) where `last_B` is given, and the updated time.
        """
        last_alone_B = last_B if len(streams) == 1 else None
        mixed_MBLD, time = self.ti_ssd(torch.stack(streams), time, last_alone_B)
        first, *others = (
            norm(self.dropout(mixed_BLD) + at_position(x_BLD, last_alone_B))
            for norm, mixed_BLD, x_BLD in zip(self.norms.values(), mixed_MBLD, streams, strict=True)
        )
        outputs = [self.feed_forward(first)]
        fused_time_BHL = time.of_modality(0) if time else None
        for index, fusion in enumerate(self.fusions.values(), start=1):
            if time and fused_time_BHL is not None:
                fused_time_BHL = fusion.get_submodule("filter")(
                    time.of_modality(index), fused_time_BHL, time.mask_BHL
                )
            wanted_B = last_B if index == len(others) else None
            outputs.append(fusion(others[index - 1], outputs[-1], fused_time_BHL, wanted_B))
        return outputs, time
