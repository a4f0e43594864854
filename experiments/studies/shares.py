"""How much of a metric is left when something is taken away, with the uncertainty of the users.

Shape letters: U users, K ways of taking away, B resamples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.statistics import LEVEL, RESAMPLES, Estimate
from mmm4rec.errors import DataError


def kept_shares(values_KU: list[Tensor], whole_U: Tensor, *, seeds: int = 1) -> list[Estimate]:
    """Return the means of `values_KU` as shares of that of `whole_U`.

    The intervals are percentiles of a bootstrap over users, both means of the same resamples.

    Args:
        values_KU: a metric of each user, for every way of taking away.
        whole_U: the same without taking anything away.
        seeds: how many runs the values are averages of.

    Raises:
        DataError: the mean without taking away is 0.

    >>> kept_shares([torch.tensor([0.0, 0.5])], torch.tensor([0.0, 1.0]))[0].value
    0.5
    """
    all_UK = torch.stack([whole_U, *values_KU], dim=1).double()
    sums_K = all_UK.sum(0)
    if not sums_K[0] > 0:
        raise DataError(
            "the metric of the model as it is is 0 for every user: there is nothing of which a "
            "share could be kept. Next: train longer, or choose a larger cut-off"
        )
    count = len(all_UK)
    generator = torch.Generator().manual_seed(0)
    users = (torch.randint(count, (count,), generator=generator) for _ in range(RESAMPLES))
    sums_BK = torch.stack(
        [torch.bincount(users_U, minlength=count).double() @ all_UK for users_U in users]
    )
    # A resample of users who have nothing to lose has no share.
    shares_BK = sums_BK[:, 1:] / sums_BK[:, :1]
    tail = (1 - LEVEL) / 2
    low_K, high_K = torch.nanquantile(shares_BK, torch.tensor([tail, 1 - tail]).double(), dim=0)
    return [
        Estimate(value, low, high, seeds)
        for value, low, high in zip(
            (sums_K[1:] / sums_K[0]).tolist(), low_K.tolist(), high_K.tolist(), strict=True
        )
    ]
