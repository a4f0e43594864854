"""The last few positions of each row, where nothing else of a stream is wanted.

Shape letters: B batch, L length, W positions of a window, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Neighbouring positions of each row, up to and with its last real one.

    Attributes:
        at_BW: the positions, int64, each once and in order. Where a row begins later than its
            window, positions behind the window's end stand in.
        real_BW: false where they do.
    """

    at_BW: Tensor
    real_BW: Tensor

    def take(self, x_BLD: Tensor) -> Tensor:
        """Return the window of a stream, (..., B, W, D); any number of leading axes."""
        length, (count, width) = x_BLD.shape[-2], self.at_BW.shape
        first_B1 = torch.arange(0, count * length, length, device=x_BLD.device)[:, None]
        x_XD = x_BLD.reshape(-1, count * length, x_BLD.shape[-1])
        taken_XD = x_XD.index_select(1, (first_B1 + self.at_BW).flatten())
        return taken_XD.view(*x_BLD.shape[:-2], width, x_BLD.shape[-1])

    def narrow(self, width: int) -> Window:
        """Return the last `width` positions."""
        return Window(self.at_BW[:, -width:], self.real_BW[:, -width:])


def last_window(last_B: Tensor, width: int, length: int) -> Window:
    """Return the window of `width` positions, or of all `length`, that ends at `last_B`.

    >>> last_window(torch.tensor([3, 1]), 3, length=5).at_BW
    tensor([[1, 2, 3],
            [2, 0, 1]])
    """
    width = min(width, length)
    at_BW = last_B[:, None] + torch.arange(1 - width, 1, device=last_B.device)
    real_BW = at_BW >= 0
    return Window(torch.where(real_BW, at_BW, at_BW + width), real_BW)
