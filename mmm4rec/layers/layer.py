"""One layer: TiSSD over all streams, then the chain of fusions (arXiv:2506.02916).

Shape letters: M modalities, B batch, L length, W positions of a window, D d_model, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmm4rec.config import ModelConfig
from mmm4rec.layers.co_ti_ssd import TiCoSSD
from mmm4rec.layers.dropout import Dropout
from mmm4rec.layers.feed_forward import build_feed_forward
from mmm4rec.layers.fourier import build_time_filter
from mmm4rec.layers.norm import LayerNorm
from mmm4rec.layers.ti_ssd import SeparateTiSSD, TiSSD
from mmm4rec.layers.time import TimeSignal
from mmm4rec.layers.window import Window, last_window


class Fusion(nn.Module):
    """A stream asks what the fused stream so far answers, under their filtered time signals."""

    def __init__(self, config: ModelConfig, *, use_time: bool) -> None:
        super().__init__()
        self.filter = build_time_filter(config) if use_time else None
        self.co_ssd = TiCoSSD(config, use_time=use_time)
        self.norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = build_feed_forward(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        query_BLD: Tensor,
        source_BLD: Tensor,
        time_BHL: Tensor | None,
        window: Window | None = None,
    ) -> Tensor:
        """Return the fused stream, (B, L, D), or (B, 1, D) at the end of a window.

        Args:
            query_BLD: the asking stream; with a window only its positions, (B, W, D).
            source_BLD: the fused stream so far.
            time_BHL: the filtered time signal; None: no time.
            window: see `TiCoSSD.forward`.
        """
        answer_BLD = self.co_ssd(query_BLD, source_BLD, time_BHL, window)
        if window is not None:
            query_BLD, source_BLD = query_BLD[:, -1:], window.narrow(1).take(source_BLD)
        both_BLD = query_BLD + source_BLD
        fused_BLD: Tensor = self.feed_forward(self.norm(self.dropout(answer_BLD) + both_BLD))
        return fused_BLD


class Layer(nn.Module):
    """All streams through their TiSSD, then each but the first asks the fused stream so far.

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
        # The last fusion asks at one position, with what its convolution sees before it.
        self.query_width = config.d_conv if len(modalities) > 1 else 1
        self.ti_ssd = _build_ti_ssd(config, modalities, use_time=use_time, is_last=is_last)
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
        window = (
            None if last_B is None else last_window(last_B, self.query_width, streams[-1].shape[1])
        )
        r_MBLH, updated = self.ti_ssd.read_time(time)
        first, *others = self._mix(streams, r_MBLH, window)
        outputs = [self.feed_forward(first)]
        fused_time_BHL = updated.of_modality(0) if updated else None
        for index, fusion in enumerate(self.fusions.values(), start=1):
            if updated and fused_time_BHL is not None:
                fused_time_BHL = fusion.get_submodule("filter")(
                    updated.of_modality(index), fused_time_BHL, updated.mask_BHL
                )
            wanted = window if index == len(others) else None
            outputs.append(fusion(others[index - 1], outputs[-1], fused_time_BHL, wanted))
        if window is not None:
            outputs[-1] = outputs[-1].squeeze(1)
        return outputs, updated

    def _mix(
        self, streams: list[Tensor], r_MBLH: Tensor | None, window: Window | None
    ) -> list[Tensor]:
        """Return the streams behind their TiSSD, the last one at its window alone."""
        whole = streams if window is None else streams[:-1]
        mixed: list[Tensor] = []
        if whole:
            mixed += self.ti_ssd.mix(torch.stack(whole), _of(r_MBLH, slice(len(whole))))
        if window is not None:
            last_1BLD = streams[-1][None]
            block = self.ti_ssd.of_modality(-1)
            mixed += block.mix(last_1BLD, _of(r_MBLH, slice(-1, None)), window)
            streams = [*whole, window.take(streams[-1])]
        return [
            norm(self.dropout(mixed_BLD) + x_BLD)
            for norm, mixed_BLD, x_BLD in zip(self.norms.values(), mixed, streams, strict=True)
        ]


def _build_ti_ssd(
    config: ModelConfig, modalities: Sequence[str], *, use_time: bool, is_last: bool
) -> TiSSD | SeparateTiSSD:
    """Return the block of all modalities, or one for each."""
    # Behind the last layer nobody reads the updated time but the filters.
    chosen = {"source_only": modalities[:1], "query_only": modalities[1:]}
    filtered = chosen.get(config.time_filter, modalities) if len(modalities) > 1 else ()
    updates_time = {name: not is_last or name in filtered for name in modalities}
    if config.share_ti_ssd:
        return TiSSD(config, use_time=use_time, updates_time=any(updates_time.values()))
    return SeparateTiSSD(config, use_time=use_time, updates_time=updates_time)


def _of(r_MBLH: Tensor | None, modalities: slice) -> Tensor | None:
    """Return the factor of some modalities, which may be one for all."""
    return r_MBLH if r_MBLH is None or len(r_MBLH) == 1 else r_MBLH[modalities]
