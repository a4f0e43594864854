"""The filter that mixes two time signals in the frequency domain (arXiv:2506.02916).

Shape letters: B batch, H heads, L max_len, W frequency bins (L // 2 + 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmm4rec.config import ModelConfig
from mmm4rec.layers.linear import Linear
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
    def start_at(self, *, scale: float, offset: float) -> None:
        """Shift the initial map by `scale` times the identity and a real `offset`."""
        self.real.weight.diagonal().add_(scale)
        self.real.bias.add_(offset / 2)
        self.imag.bias.sub_(offset / 2)


class FourierFilter(nn.Module):
    """Mix the asking and the answering stream's time signals.

    out = irfft(C(K_q * S_q + K_s * S_s)) with S = rfft(signal), K = its own complex map of S.
    Under `time_scale: one_plus` it starts near the mean of the two signals. Differs from the
    official code, where it starts (and stays) near 0: test_fourier.py.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.max_len = config.max_len
        width = config.max_len // 2 + 1
        self.query_map = ComplexLinear(width)
        self.source_map = ComplexLinear(width)
        self.output_map = ComplexLinear(width)
        if config.time_scale == "one_plus":
            self.query_map.start_at(scale=0, offset=0.5)
            self.source_map.start_at(scale=0, offset=0.5)
            self.output_map.start_at(scale=1, offset=0)

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
            query_BHW = torch.fft.rfft(query_BHL, norm="ortho")
            source_BHW = torch.fft.rfft(source_BHL, norm="ortho")
            mixed_BHW = (
                self.query_map(query_BHW) * query_BHW + self.source_map(source_BHW) * source_BHW
            )
            output_BHL = torch.fft.irfft(self.output_map(mixed_BHW), n=self.max_len, norm="ortho")
        return output_BHL if mask_BHL is None else output_BHL * mask_BHL
