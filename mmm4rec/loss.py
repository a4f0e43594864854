"""Cross-entropy over the full catalogue and over the targets of a batch.

Shape letters: B batch, I items with the padding item 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmm4rec.batch import PADDING_ID


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
