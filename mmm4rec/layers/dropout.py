"""Dropout whose mask costs little on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Values of the random 16 bits that decide about one element; a probability is met to 1 / 2**17.
_LEVELS = 1 << 16
_LEAST_INT64 = -(1 << 63)


class Dropout(nn.Dropout):
    """Dropout that draws four elements with one random number on a CPU.

    There `nn.Dropout` asks its generator once per element, one element after the other, which
    takes as long as a matrix product. The mask is kept as one byte per element.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Zero elements with probability `p` and scale the others, any shape."""
        if not self.training or self.p == 0:
            return input
        # A GPU draws in parallel, and a compiler fuses the draw into its neighbours.
        if input.is_cuda or torch.compiler.is_compiling():
            return super().forward(input)
        dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        bits = torch.empty(-(-input.numel() // 4), dtype=torch.int64)
        levels = bits.random_(_LEAST_INT64, None).view(torch.int16)[: input.numel()]
        kept = (levels >= dropped - _LEVELS // 2).view(input.shape)
        return input * kept * (_LEVELS / (_LEVELS - dropped))
