"""Running an operation over a batch in pieces that stay in a CPU's cache.

Fresh memory is what element-wise steps cost most on a CPU: an operation that goes through many of
them is faster piece by piece, even though its backward pass computes the piece once more. It also
keeps nothing but its inputs for that pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of the first input that pass through all steps at once.
CACHED_ELEMENTS = 1 << 18


def piece_rows(x: Tensor) -> int:
    """Return how many rows of `x` make a piece: all of them on a GPU or under a compiler."""
    if x.is_cuda or torch.compiler.is_compiling() or not x.numel():
        return max(1, len(x))
    return max(1, CACHED_ELEMENTS // x[0].numel())


def in_pieces(
    function: Callable[..., Tensor], batched: Sequence[Tensor], shared: Sequence[Tensor]
) -> Tensor:
    """Return `function(*batched, *shared)`, computed piece by piece where that is faster.

    Args:
        function: differentiable and free of randomness; treats the rows of `batched` apart and
            returns one tensor with the same rows.
        batched: tensors with the batch as first axis, the largest one first.
        shared: tensors that all rows use.

    >>> in_pieces(torch.mul, [torch.ones(2, 3)], [torch.tensor(5.0)]).sum()
    tensor(30.)
    """
    rows = piece_rows(batched[0])
    # A recomputation in the backward pass would not know of autocast.
    if rows >= len(batched[0]) or torch.is_autocast_enabled(batched[0].device.type):
        return function(*batched, *shared)
    output: Tensor = _InPieces.apply(function, rows, len(batched), *batched, *shared)  # type: ignore[no-untyped-call]
    return output


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], rows: int, num_batched: int, *inputs: Tensor
    ) -> Tensor:
        ctx.function, ctx.rows, ctx.num_batched = function, rows, num_batched
        ctx.save_for_backward(*inputs)
        shared = inputs[num_batched:]
        pieces = zip(*(x.split(rows) for x in inputs[:num_batched]), strict=True)
        first = function(*next(pieces), *shared)
        output = first.new_empty(len(inputs[0]), *first.shape[1:])
        output[:rows] = first
        for out, piece in zip(output.split(rows)[1:], pieces, strict=True):
            out.copy_(function(*piece, *shared))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[3:]
        inputs = [
            x.detach().requires_grad_(need)
            for x, need in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        num_batched, rows = ctx.num_batched, ctx.rows
        asked = [i for i, need in enumerate(wanted) if need]
        grads = [
            torch.zeros_like(x, memory_format=torch.contiguous_format) if x.requires_grad else x
            for x in inputs
        ]
        for start in range(0, len(grad_output), rows):
            piece = slice(start, start + rows)
            leaves = [
                x[piece].detach().requires_grad_(x.requires_grad) if i < num_batched else x
                for i, x in enumerate(inputs)
            ]
            with torch.enable_grad():
                output = ctx.function(*leaves)
            found = torch.autograd.grad(output, [leaves[i] for i in asked], grad_output[piece])
            for i, grad in zip(asked, found, strict=True):
                target = grads[i][piece] if i < num_batched else grads[i]
                target.add_(grad)
        return (
            None,
            None,
            None,
            *(g if need else None for g, need in zip(grads, wanted, strict=True)),
        )
