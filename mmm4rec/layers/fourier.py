"""The filter that mixes two time signals in the frequency domain (arXiv:2506.02916).

`time_filter` chooses it, a part of it, or something plainer in its place.

Shape letters: B batch, H heads, L max_len, W frequency bins (L // 2 + 1).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mmm4rec.config import ModelConfig
from mmm4rec.layers.linear import INIT_STD, Linear
from mmm4rec.ops.precision import full_precision


class ComplexLinear(nn.Module):
    """A complex affine map as two real ones, `real` and `imag`, each with its own bias.

    real = real(x.real) - imag(x.imag), imag = imag(x.real) + real(x.imag): the effective bias is
    (b_real - b_imag) + i (b_real + b_imag).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.real = Linear(width, width)
        self.imag = Linear(width, width)

    def forward(self, x_BHW: Tensor) -> Tensor:
        """Map the last axis of a complex tensor."""
        return torch.complex(
            self.real(x_BHW.real) - self.imag(x_BHW.imag),
            self.imag(x_BHW.real) + self.real(x_BHW.imag),
        )

    @torch.no_grad()
    def start_at(self, *, scale: float = 0, offset: float = 0) -> None:
        """Shift the initial map by `scale` times the identity and a real `offset`."""
        self.real.weight.diagonal().add_(scale)
        self.real.bias.add_(offset / 2)
        self.imag.bias.sub_(offset / 2)


class ConstantKernel(nn.Module):
    """A learned complex number per frequency bin, in place of a map of the signal."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.real = nn.Parameter(torch.empty(width))
        self.imag = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both parts from N(0, 0.02)."""
        nn.init.normal_(self.real, std=INIT_STD)
        nn.init.normal_(self.imag, std=INIT_STD)

    def forward(self, x_BHW: Tensor) -> Tensor:
        """Return the kernel, (W,), whatever the signal."""
        return torch.complex(self.real, self.imag)

    @torch.no_grad()
    def start_at(self, *, offset: float) -> None:
        """Shift the initial kernel by a real `offset`."""
        self.real.add_(offset)


class TimeFilter(nn.Module, ABC):
    """What makes one time signal of the asking and the answering stream's."""

    def forward(
        self, query_BHL: Tensor, source_BHL: Tensor, mask_BHL: Tensor | None = None
    ) -> Tensor:
        """Mix the signals.

        Args:
            query_BHL: time signal of the asking stream, (..., H, L).
            source_BHL: time signal of the answering stream.
            mask_BHL: true at real positions; the result is 0 elsewhere. None: all are real.
        """
        with full_precision(query_BHL):
            output_BHL = self.mix(query_BHL, source_BHL)
        return output_BHL if mask_BHL is None else output_BHL * mask_BHL

    @abstractmethod
    def mix(self, query_BHL: Tensor, source_BHL: Tensor) -> Tensor:
        """Return the mixed signal, padding not yet masked."""


class MeanSignal(TimeFilter):
    """The mean of the two signals, without parameters (`time_filter: none`)."""

    def mix(self, query_BHL: Tensor, source_BHL: Tensor) -> Tensor:
        """Return the mean."""
        return (query_BHL + source_BHL) / 2


class GatedSignal(TimeFilter):
    """g q + (1 - g) s with g = sigmoid(W [q, s] + b): the filter's plain rival in the time domain.

    One gate per position, the same map for all heads, which reads both signals whole, as the
    filter does: 2 L^2 weights, where the filter has about 1.5 L^2. It starts near their mean
    (`time_filter: gate`). Between equal signals there is nothing to choose: a shared TiSSD makes
    them equal but for the dropout on time gaps.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = Linear(2 * config.max_len, config.max_len)

    def mix(self, query_BHL: Tensor, source_BHL: Tensor) -> Tensor:
        """Return the gated mean."""
        gate_BHL = torch.sigmoid(self.fc(torch.cat([query_BHL, source_BHL], dim=-1)))
        return torch.lerp(source_BHL, query_BHL, gate_BHL)


class FourierFilter(TimeFilter):
    """Mix the asking and the answering stream's time signals.

    out = irfft(C(K_q * S_q + K_s * S_s)) with S = rfft(signal), K = its own complex map of S.
    Under `time_scale: one_plus` it starts near the mean of the two signals. Differs from the
    official code, where it starts (and stays) near 0: test_fourier.py.

    `time_filter` takes parts away: `query_only` and `source_only` one of the two terms (it starts
    near the signal that is left), `not_adaptive` the kernel's dependence on the signal (K is a
    learned constant per bin), `not_learnable` the map C. The last two are our reading of the
    paper's "w/o AF" and "w/o LF", which it does not define further.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.max_len = config.max_len
        kind, width = config.time_filter, config.max_len // 2 + 1
        kernel = ConstantKernel if kind == "not_adaptive" else ComplexLinear
        self.query_map = kernel(width) if kind != "source_only" else None
        self.source_map = kernel(width) if kind != "query_only" else None
        self.output_map = ComplexLinear(width) if kind != "not_learnable" else nn.Identity()
        if config.time_scale == "one_plus":
            kernels = [part for part in (self.query_map, self.source_map) if part is not None]
            for part in kernels:
                part.start_at(offset=1 / len(kernels))
            if isinstance(self.output_map, ComplexLinear):
                self.output_map.start_at(scale=1)

    def mix(self, query_BHL: Tensor, source_BHL: Tensor) -> Tensor:
        """Return the filtered sum."""
        spectra = (torch.fft.rfft(signal, norm="ortho") for signal in (query_BHL, source_BHL))
        terms = [
            kernel(spectrum_BHW) * spectrum_BHW
            for kernel, spectrum_BHW in zip((self.query_map, self.source_map), spectra, strict=True)
            if kernel is not None
        ]
        mixed_BHW = self.output_map(functools.reduce(torch.add, terms))
        return torch.fft.irfft(mixed_BHW, n=self.max_len, norm="ortho")


def build_time_filter(config: ModelConfig) -> TimeFilter:
    """Return what `time_filter` asks for."""
    if config.time_filter == "none":
        return MeanSignal()
    return GatedSignal(config) if config.time_filter == "gate" else FourierFilter(config)
