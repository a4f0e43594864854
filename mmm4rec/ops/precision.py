"""What stays in float32 under bfloat16 autocast: decay, cumulative sums, norms, time, scores."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32 where its type is narrower, otherwise as it is.

    >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
    torch.float32
    >>> at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype
    torch.float64
    """
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def full_precision(x: Tensor) -> torch.autocast:
    """Return a context on the device of `x` in which autocast does not narrow anything."""
    return torch.autocast(x.device.type, enabled=False)
