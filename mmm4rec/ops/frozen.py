"""An affine map of features that are never trained.

Shape letters: N rows asked for, I rows of the table, F raw feature width, D output width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows of the table that are cast to the type of the product at once.
ROWS_AT_ONCE = 1 << 12


def frozen_linear(
    values_IF: Tensor, ids_N: Tensor | None, weight_DF: Tensor, bias_D: Tensor
) -> Tensor:
    """Return rows of `values_IF` under an affine map.

    A piece of the table is gathered and cast at a time, in both passes: a copy of a catalogue's
    features in the type of the product would be larger than everything else in a training step.

    Args:
        values_IF: frozen features, of any floating type; no gradient goes there.
        ids_N: which rows, int64; None: all.
        weight_DF: (D, F).
        bias_D: (D,).

    >>> table_IF = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).half()
    >>> frozen_linear(table_IF, torch.tensor([1, 1]), torch.ones(1, 2), torch.tensor([0.5]))
    tensor([[7.5000],
            [7.5000]])
    """
    device = values_IF.device.type
    narrowed = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if narrowed else weight_DF.dtype
    output_ND: Tensor = _FrozenLinear.apply(values_IF, ids_N, weight_DF, bias_D, dtype)  # type: ignore[no-untyped-call]
    return output_ND


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values_IF: Tensor,
        ids_N: Tensor | None,
        weight_DF: Tensor,
        bias_D: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(values_IF, ids_N)
        ctx.dtype = dtype
        weight_DF, bias_D = weight_DF.to(dtype), bias_D.to(dtype)
        count = len(values_IF if ids_N is None else ids_N)
        output_ND = values_IF.new_empty(count, len(weight_DF), dtype=dtype)
        for piece in _slices(count):
            values_RF = _rows(values_IF, ids_N, piece).to(dtype)
            torch.addmm(bias_D, values_RF, weight_DF.T, out=output_ND[piece])
        return output_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        values_IF, ids_N = ctx.saved_tensors
        _, _, wants_weight, wants_bias, _ = ctx.needs_input_grad
        # Pieces are summed in float32 at least.
        wide = torch.promote_types(ctx.dtype, torch.float32)
        weight_grad_DF = None
        if wants_weight:
            weight_grad_DF = grad_ND.new_zeros(grad_ND.shape[1], values_IF.shape[1], dtype=wide)
            for piece in _slices(len(grad_ND)):
                values_RF = _rows(values_IF, ids_N, piece).to(ctx.dtype)
                weight_grad_DF += grad_ND[piece].to(ctx.dtype).T @ values_RF
        bias_grad_D = grad_ND.sum(0, dtype=wide) if wants_bias else None
        return None, None, weight_grad_DF, bias_grad_D, None


def _rows(values_IF: Tensor, ids_N: Tensor | None, piece: slice) -> Tensor:
    return values_IF[piece] if ids_N is None else values_IF[ids_N[piece]]


def _slices(count: int) -> list[slice]:
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE)]
