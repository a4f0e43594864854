"""Causal depthwise convolution over positions, followed by SiLU.

Shape letters: B batch, L length, C channels, K width of the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmm4rec.ops.pieces import piece_rows


def causal_conv_silu(x_BLC: Tensor, weight_C1K: Tensor, bias_C: Tensor) -> Tensor:
    """Convolve every channel with its own taps over the present and the K-1 positions before.

    A sum of shifted products with its own backward pass, in pieces (see `pieces`): on a CPU about
    six times faster than `nn.Conv1d` and `silu` at the paper's width. Only the input is kept.

    Args:
        x_BLC: (B, L, C); positions before the first are 0.
        weight_C1K: (C, 1, K), laid out as `nn.Conv1d` does, the last tap at the present position.
        bias_C: (C,).

    Returns:
        SiLU of the convolution, (B, L, C), in the type of `x_BLC`; summed in that of the weights.

    >>> x_BLC = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> y_BLC = causal_conv_silu(x_BLC, torch.tensor([[[10.0, 1.0]]]), torch.zeros(1))
    >>> torch.allclose(y_BLC.flatten(), torch.nn.functional.silu(torch.tensor([1.0, 12.0, 23.0])))
    True
    """
    y_BLC: Tensor = _CausalConvSiLU.apply(x_BLC.to(weight_C1K.dtype), weight_C1K, bias_C)  # type: ignore[no-untyped-call]
    return y_BLC.to(x_BLC.dtype)


class _CausalConvSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLC: Tensor, weight_C1K: Tensor, bias_C: Tensor) -> Tensor:
        taps_KC = weight_C1K.squeeze(1).T.contiguous()
        ctx.save_for_backward(x_BLC, taps_KC, bias_C)
        y_BLC = torch.empty_like(x_BLC, memory_format=torch.contiguous_format)
        for x_piece, y_piece in _pieces(x_BLC, y_BLC):
            summed = _convolve(x_piece, taps_KC, bias_C)
            torch.sigmoid(summed, out=y_piece).mul_(summed)
        return y_BLC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BLC, taps_KC, bias_C = ctx.saved_tensors
        x_grad_BLC = torch.empty_like(x_BLC, memory_format=torch.contiguous_format)
        taps_grad_KC, bias_grad_C = torch.zeros_like(taps_KC), torch.zeros_like(bias_C)
        length = x_BLC.shape[1]
        for x_piece, x_grad, grad in _pieces(x_BLC, x_grad_BLC, grad_BLC):
            summed = _convolve(x_piece, taps_KC, bias_C)
            grad = torch.ops.aten.silu_backward(grad, summed)
            bias_grad_C += grad.sum((0, 1))
            torch.mul(grad, taps_KC[-1], out=x_grad)
            taps_grad_KC[-1] += torch.mul(grad, x_piece, out=summed).sum((0, 1))
            for shift in range(1, min(len(taps_KC), length)):
                later, earlier = grad[:, shift:], x_piece[:, : length - shift]
                x_grad[:, : length - shift].addcmul_(later, taps_KC[-1 - shift])
                taps_grad_KC[-1 - shift] += (later * earlier).sum((0, 1))
        return x_grad_BLC, taps_grad_KC.T[:, None], bias_grad_C


def _convolve(x_BLC: Tensor, taps_KC: Tensor, bias_C: Tensor) -> Tensor:
    length = x_BLC.shape[1]
    y_BLC = torch.addcmul(bias_C, x_BLC, taps_KC[-1])
    for shift in range(1, min(len(taps_KC), length)):
        y_BLC[:, shift:].addcmul_(x_BLC[:, : length - shift], taps_KC[-1 - shift])
    return y_BLC


def _pieces(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    rows = piece_rows(tensors[0])
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
