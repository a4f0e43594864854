"""Exact full-catalogue ranking metrics, with ties in expectation.

Shape letters: B batch, R rows of a piece, D d_model, I items with the padding item 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mmm4rec.batch import PADDING_ID, rows_at_once
from mmm4rec.errors import DivergenceError


class TargetRank(NamedTuple):
    """Where a target stands among all candidates.

    Attributes:
        better_B: candidates with a higher score, int64, 0..I-1.
        tied_B: other candidates with the same score, int64. With ties the place is one of
            `better .. better + tied`, each equally likely.
    """

    better_B: Tensor
    tied_B: Tensor

    @property
    def expected_B(self) -> Tensor:
        """Expected place, 1 = best, float64."""
        return 1 + self.better_B.double() + self.tied_B.double() / 2


def target_rank(
    scores_BI: Tensor, targets_B: Tensor, *, padding_candidate: bool = False
) -> TargetRank:
    """Rank each row's target among all items by counting.

    Args:
        scores_BI: finite scores, (B, I), column 0 the padding item.
        targets_B: target ids, int64, 1..I-1.
        padding_candidate: whether column 0 is ranked like an item (the authors' code does).

    Raises:
        DivergenceError: a score is not finite.

    >>> target_rank(torch.tensor([[9.0, 1.0, 3.0, 3.0]]), torch.tensor([2])).expected_B
    tensor([1.5000], dtype=torch.float64)
    """
    # Extremes carry whatever is not finite, and take a tenth of the time of asking every score.
    finite_B = torch.isfinite(scores_BI.amax(1)) & torch.isfinite(scores_BI.amin(1))
    if bad := int((~finite_B).sum()):
        raise DivergenceError(
            f"{bad} of {len(scores_BI)} users have a score that is not finite, so no rank: the "
            "model diverged. Next: lower optimizer.lr, or trainer.precision 32-true"
        )
    candidates_BI = scores_BI if padding_candidate else scores_BI[:, PADDING_ID + 1 :]
    target_scores_B1 = scores_BI.gather(1, targets_B[:, None])
    assert candidates_BI.shape[1] < 1 << 24, "float32 counts exactly up to 2**24"
    # Ones and zeros in float32 are summed several times faster than truth values.
    flags_BI = torch.empty_like(candidates_BI, dtype=torch.float32)
    better_B = torch.gt(candidates_BI, target_scores_B1, out=flags_BI).sum(1).long()
    not_worse_B = torch.ge(candidates_BI, target_scores_B1, out=flags_BI).sum(1).long()
    return TargetRank(better_B, not_worse_B - better_B - 1)


def catalogue_rank(
    user_BD: Tensor, items_ID: Tensor, targets_B: Tensor, *, padding_candidate: bool = False
) -> TargetRank:
    """Return `target_rank` of `user_BD @ items_ID.T` without ever holding all scores.

    Args:
        user_BD: (B, D).
        items_ID: (I, D), row 0 the padding item.
        targets_B: target ids, int64, 1..I-1.
        padding_candidate: whether row 0 is ranked like an item (the authors' code does).

    Raises:
        DivergenceError: a score is not finite.

    >>> catalogue_rank(torch.ones(1, 1), torch.tensor([[9.0], [1.0], [3.0]]), torch.tensor([1]))
    TargetRank(better_B=tensor([1]), tied_B=tensor([0]))
    """
    step = rows_at_once(items_ID)
    pieces = [
        target_rank(user_RD @ items_ID.T, targets_R, padding_candidate=padding_candidate)
        for user_RD, targets_R in zip(user_BD.split(step), targets_B.split(step), strict=True)
    ]
    better, tied = zip(*pieces, strict=True)
    return TargetRank(torch.cat(better), torch.cat(tied))


def recall(rank: TargetRank, cutoff: int) -> Tensor:
    """Return each row's chance that its one target is among the first `cutoff`, float64.

    >>> recall(TargetRank(torch.tensor([9]), torch.tensor([1])), 10)
    tensor([0.5000], dtype=torch.float64)
    """
    inside_B = (cutoff - rank.better_B).clamp(min=0).minimum(rank.tied_B + 1)
    return inside_B.double() / (rank.tied_B + 1)


def ndcg(rank: TargetRank, cutoff: int) -> Tensor:
    """Return each row's expected NDCG at `cutoff` for its one target, float64.

    >>> ndcg(TargetRank(torch.tensor([2]), torch.tensor([0])), 10)
    tensor([0.5000], dtype=torch.float64)
    """
    places_K = torch.arange(cutoff, dtype=torch.float64, device=rank.better_B.device)
    gain_before_K = torch.cat([places_K.new_zeros(1), (1 / torch.log2(places_K + 2)).cumsum(0)])
    first_B = rank.better_B.clamp(max=cutoff)
    end_B = (rank.better_B + rank.tied_B + 1).clamp(max=cutoff)
    return (gain_before_K[end_B] - gain_before_K[first_B]) / (rank.tied_B + 1)


METRICS = {"recall": recall, "ndcg": ndcg}


class RankingMetrics(Metric):
    """Recall and NDCG over ranks, equal to the last digit on one process and on many.

    The states are whole numbers per user; they are gathered, put in the order of the users, and
    only then averaged, so that neither the number of processes nor the batch size can change a
    result. A user seen twice counts once.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    users: list[Tensor]
    better: list[Tensor]
    tied: list[Tensor]

    def __init__(self, cutoffs: tuple[int, ...] = (10, 20, 50)) -> None:
        """Report at `cutoffs`, each at least 1."""
        super().__init__()
        self.cutoffs = cutoffs
        for state in ("users", "better", "tied"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, users_B: Tensor, rank: TargetRank) -> None:
        """Add the ranks of users, one row each."""
        self.users.append(users_B)
        self.better.append(rank.better_B)
        self.tied.append(rank.tied_B)

    def ranks(self) -> tuple[Tensor, TargetRank]:
        """Return user ids in ascending order and their ranks, on the CPU."""
        users, better, tied = (
            dim_zero_cat(state).cpu() for state in (self.users, self.better, self.tied)
        )
        order = torch.argsort(users, stable=True)
        users, better, tied = users[order], better[order], tied[order]
        first = torch.ones(len(users), dtype=torch.bool)
        first[1:] = users[1:] != users[:-1]
        return users[first], TargetRank(better[first], tied[first])

    def compute(self) -> dict[str, Tensor]:
        """Return `recall@k` and `ndcg@k` for every cutoff, float64."""
        _, rank = self.ranks()
        return {
            name: values.mean() for name, values in per_user_metrics(rank, self.cutoffs).items()
        }


def per_user_metrics(rank: TargetRank, cutoffs: tuple[int, ...]) -> dict[str, Tensor]:
    """Return `recall@k` and `ndcg@k` of every user, float64."""
    return {
        f"{name}@{cutoff}": metric(rank, cutoff)
        for name, metric in METRICS.items()
        for cutoff in cutoffs
    }


def bootstrap_intervals(
    values: dict[str, Tensor], samples: int, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of the means, users resampled with replacement.

    Every metric sees the same resamples, so intervals of one run can be compared.

    Args:
        values: one value per user and metric, all of one length U > 0.
        samples: number of resamples.
        seed: of the resampling.
        level: share of the resampled means inside the interval.
    """
    values_UM = torch.stack([column.double().cpu() for column in values.values()], dim=1)
    count = len(values_UM)
    generator = torch.Generator().manual_seed(seed)
    means_SM = torch.stack(
        [
            torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count)
            .double()
            .matmul(values_UM)
            for _ in range(samples)
        ]
    ) / max(count, 1)
    tail = (1 - level) / 2
    low_M, high_M = torch.quantile(means_SM, torch.tensor([tail, 1 - tail]).double(), dim=0)
    return {
        name: (low, high)
        for name, low, high in zip(values, low_M.tolist(), high_M.tolist(), strict=True)
    }
