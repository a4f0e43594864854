"""Cross-entropy over the full catalogue and over the targets of a batch.

Shape letters: B batch, D d_model, I items with the padding item 0, R rows of a piece.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmm4rec.batch import PADDING_ID, rows_at_once


def full_catalogue_loss(
    scores_BI: Tensor, targets_B: Tensor, *, padding_candidate: bool = False
) -> Tensor:
    """Return the mean cross-entropy of the targets among all items (fine-tuning).

    Args:
        scores_BI: (B, I), column 0 the padding item.
        targets_B: target ids, int64, 1..I-1.
        padding_candidate: whether column 0 is a class, as in the authors' code.

    >>> full_catalogue_loss(torch.zeros(1, 5), torch.tensor([3])).exp()
    tensor(4.)
    """
    if padding_candidate:
        return F.cross_entropy(_at_least_float32(scores_BI), targets_B)
    return F.cross_entropy(_at_least_float32(scores_BI[:, PADDING_ID + 1 :]), targets_B - 1)


def catalogue_loss(
    user_BD: Tensor, items_ID: Tensor, targets_B: Tensor, *, padding_candidate: bool = False
) -> Tensor:
    """Return `full_catalogue_loss` of `user_BD @ items_ID.T` without ever holding all scores.

    A piece of the batch is scored against all items, and its gradients are taken at once from the
    same scores: nothing is computed twice, and beside the gradients of its two inputs the memory
    is that of one piece (`rows_at_once`). It can be differentiated once.

    Args:
        user_BD: (B, D). A bias per item would be one more column: 1 here, the bias in `items_ID`.
        items_ID: (I, D), row 0 the padding item.
        targets_B: target ids, int64, 1..I-1.
        padding_candidate: whether row 0 is a class, as in the authors' code.

    >>> catalogue_loss(torch.zeros(1, 2), torch.ones(5, 2), torch.tensor([3])).exp()
    tensor(4.)
    """
    with torch.autocast(user_BD.device.type, enabled=False):
        user_BD, items_ID = _at_least_float32(user_BD), _at_least_float32(items_ID)
        first = PADDING_ID if padding_candidate else PADDING_ID + 1
        loss: Tensor = _CatalogueLoss.apply(user_BD, items_ID, targets_B, first)  # type: ignore[no-untyped-call]
    return loss


class _CatalogueLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, user_BD: Tensor, items_ID: Tensor, targets_B: Tensor, first: int
    ) -> Tensor:
        rows = rows_at_once(items_ID)
        candidates_ID, classes_B = items_ID[first:], targets_B - first
        scores_RI = user_BD.new_empty(min(rows, len(user_BD)), len(candidates_ID))
        wanted = any(ctx.needs_input_grad)
        user_grad_BD = torch.empty_like(user_BD) if wanted else None
        items_grad_ID = torch.zeros_like(items_ID) if wanted else None
        losses = []
        for at in range(0, len(user_BD), rows):
            user_RD = user_BD[at : at + rows]
            scores_RI = torch.mm(user_RD, candidates_ID.T, out=scores_RI[: len(user_RD)])
            losses.append(_to_gradient(scores_RI, classes_B[at : at + rows]))
            if user_grad_BD is not None and items_grad_ID is not None:
                torch.mm(scores_RI, candidates_ID, out=user_grad_BD[at : at + rows])
                items_grad_ID[first:].addmm_(scores_RI.T, user_RD)
        ctx.save_for_backward(user_grad_BD, items_grad_ID)
        return torch.cat(losses).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        user_grad_BD, items_grad_ID = ctx.saved_tensors
        wants_user, wants_items, *_ = ctx.needs_input_grad
        weight = grad / len(user_grad_BD)
        return (
            user_grad_BD * weight if wants_user else None,
            items_grad_ID * weight if wants_items else None,
            None,
            None,
        )


def _to_gradient(scores_RI: Tensor, classes_R: Tensor) -> Tensor:
    """Return each row's loss; its scores become the loss's gradient, softmax minus one-hot."""
    of_classes_R1 = scores_RI.gather(1, classes_R[:, None])
    top_R1 = scores_RI.amax(1, keepdim=True)
    torch.softmax(scores_RI, 1, out=scores_RI)
    # The top score's share is 1 / sum(exp(score - top)): the sum need not be taken again.
    log_total_R1 = top_R1 - scores_RI.amax(1, keepdim=True).log()
    scores_RI.scatter_add_(1, classes_R[:, None], -torch.ones_like(of_classes_R1))
    return (log_total_R1 - of_classes_R1).squeeze(1)


def in_batch_loss(scores_BB: Tensor, targets_B: Tensor, *, mask_duplicates: bool = True) -> Tensor:
    """Return the mean cross-entropy of each row's target among the targets of the batch.

    Args:
        scores_BB: column j scores the target of row j.
        targets_B: target ids, int64, 1..I-1.
        mask_duplicates: leave out other rows' copies of a row's own target. The authors' code
            keeps them as negatives, which bounds the loss of two equal targets by ln 2 from below.

    >>> in_batch_loss(torch.zeros(2, 2), torch.tensor([4, 4]))
    tensor(0.)
    """
    scores_BB = _at_least_float32(scores_BB)
    if mask_duplicates:
        same_BB = targets_B[:, None] == targets_B[None, :]
        same_BB.fill_diagonal_(False)
        scores_BB = scores_BB.masked_fill(same_BB, -torch.inf)
    return F.cross_entropy(scores_BB, torch.arange(len(targets_B), device=targets_B.device))


def _at_least_float32(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
