"""The selective scan of Mamba: a diagonal state space whose step, input and output vary.

    h_l = exp(step_l A) h_{l-1} + step_l B_l x_l        y_l = C_l . h_l + D x_l

Every channel has a decay per state, unlike in Mamba-2 (`ops.ssd`), so that no matrix over pairs of
positions does it: this goes through the positions one by one.

Shape letters: B batch, L length, E channels, N state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmm4rec.ops.pieces import in_pieces
from mmm4rec.ops.precision import at_least_float32, full_precision


def selective_scan(
    x_BLE: Tensor, step_BLE: Tensor, A_EN: Tensor, B_BLN: Tensor, C_BLN: Tensor, D_E: Tensor
) -> Tensor:
    """Run the state space over each sequence (Mamba, arXiv:2312.00752, equation 2).

    Args:
        x_BLE: input.
        step_BLE: positive steps.
        A_EN: decay rates, negative.
        B_BLN: how the input enters the state, the same for all channels.
        C_BLN: how the state is read, likewise.
        D_E: weight of the input in the output.

    Returns:
        y_BLE, float32 at least.

    >>> one = torch.ones(1, 3, 1)
    >>> selective_scan(one, one, -torch.ones(1, 1), one, one, torch.zeros(1)).flatten()
    tensor([1.0000, 1.3679, 1.5032])
    """
    with full_precision(x_BLE):
        batched = [at_least_float32(tensor) for tensor in (x_BLE, step_BLE, B_BLN, C_BLN)]
        shared = [at_least_float32(tensor) for tensor in (A_EN, D_E)]
        return in_pieces(_scan, batched, shared)


def _scan(
    x_BLE: Tensor, step_BLE: Tensor, B_BLN: Tensor, C_BLN: Tensor, A_EN: Tensor, D_E: Tensor
) -> Tensor:
    entering_BLE = step_BLE * x_BLE
    state_BEN = x_BLE.new_zeros(len(x_BLE), *A_EN.shape)
    read: list[Tensor] = []
    for position in range(x_BLE.shape[1]):
        decay_BEN = torch.exp(step_BLE[:, position, :, None] * A_EN)
        entering_BEN = entering_BLE[:, position, :, None] * B_BLN[:, position, None]
        state_BEN = torch.addcmul(entering_BEN, decay_BEN, state_BEN)
        read.append((state_BEN @ C_BLN[:, position, :, None]).squeeze(-1))
    return torch.stack(read, dim=1) + D_E * x_BLE
