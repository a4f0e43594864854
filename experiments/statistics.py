"""Estimates with intervals, paired comparisons, and correction for many comparisons.

Everything is computed from one value per user and seed, so that runs can be compared user by user.
All draws are seeded: the same values give the same numbers.

Shape letters: S seeds, U users, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mmm4rec.errors import DataError
from mmm4rec.metrics import TargetRank, per_user_metrics
from mmm4rec.runner import RANKS

LEVEL = 0.95  # of every interval
RESAMPLES = 1_000
FLIPS = 9_999  # so that the smallest p is 1 / 10,000
PIECE = 1 << 22  # numbers held at once, of resamples or of flipped signs


@dataclass(frozen=True)
class Estimate:
    """A mean over users and seeds.

    Attributes:
        value: the mean.
        low: lower end of its 95 % interval.
        high: upper end.
        seeds: how many it is from.
    """

    value: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """What one row is above another, the same users and seeds in both.

    Attributes:
        difference: other minus reference.
        low: lower end of its 95 % interval.
        high: upper end.
        p: of no difference, two-sided, in (0, 1].
    """

    difference: float
    low: float
    high: float
    p: float


def user_metrics(run_folder: Path, cutoffs: tuple[int, ...]) -> dict[str, Tensor]:
    """Return `recall@k` and `ndcg@k` of every user of a run, (U,), float64, by ascending user id.

    Raises:
        DataError: the run has no ranks.
    """
    path = run_folder / RANKS
    if not path.is_file():
        raise DataError(
            f"{path} is not there: the run was not tested. Next: delete {run_folder} and run again"
        )
    table = pq.read_table(path, columns=["user_id", "better", "tied"]).sort_by("user_id")
    better_U, tied_U = (
        torch.from_numpy(table[name].to_numpy().copy()).long() for name in ("better", "tied")
    )
    return per_user_metrics(TargetRank(better_U, tied_U), cutoffs)


def estimate(per_seed: list[Tensor]) -> Estimate:
    """Return the mean over users and seeds with its 95 % interval.

    The interval is a percentile bootstrap on two levels: seeds and users are drawn with
    replacement, the same users under every drawn seed. One seed less is drawn than there are:
    drawing all of them would make the spread of the means too small, by a fifth in variance for
    five seeds (Rao and Wu, JASA 83, 1988). With one seed only the users vary.
    Every metric of the same users and number of seeds sees the same draws.

    Args:
        per_seed: for each seed one value per user, (U,), the users in the same order.

    Raises:
        DataError: there is no value, or the seeds have different users.
    """
    values_SU = _stack(per_seed)
    low, high = _interval(values_SU)
    return Estimate(float(values_SU.mean()), low, high, len(per_seed))


def compare(reference: list[Tensor], other: list[Tensor]) -> Comparison:
    """Compare two rows by user and seed.

    The interval is that of `estimate` on the differences. The p is of a sign-flip permutation test
    on each user's difference, averaged over the seeds: were there no difference, either sign would
    be as likely. With 9,999 random flips and the observed signs counted as one of them, it is at
    least 1 / 10,000. The test asks about other users and these seeds; the interval about both.

    Args:
        reference: for each seed one value per user, (U,).
        other: the same users and seeds.

    Raises:
        DataError: there is no value, or the users or the seeds are not the same.
    """
    reference_SU, other_SU = _stack(reference), _stack(other)
    if reference_SU.shape != other_SU.shape:
        raise DataError(
            f"rows of {_size(reference_SU)} and of {_size(other_SU)} cannot be compared in pairs. "
            "Next: test both on the same data with the same seeds"
        )
    differences_SU = other_SU - reference_SU
    low, high = _interval(differences_SU)
    p = _sign_flip_p(differences_SU.mean(0))
    return Comparison(float(differences_SU.mean()), low, high, p)


def holm(p_values: list[float]) -> list[float]:
    """Correct p values of a family of tests (Holm, Scandinavian Journal of Statistics 6, 1979).

    Returns:
        The corrected values in the order given: never below the p itself, never above 1, in the
        same order of size.

    >>> holm([0.5, 0.01, 0.03])
    [0.5, 0.03, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[at]))
        corrected[at] = largest
    return corrected


def _stack(per_seed: list[Tensor]) -> Tensor:
    sizes = {len(values) for values in per_seed}
    if len(sizes) != 1 or sizes == {0}:
        raise DataError(
            f"every seed must have a value for each of the same users, found {len(per_seed)} "
            f"seeds with {sorted(sizes)} users. Next: test all seeds on the same data"
        )
    return torch.stack([values.double().cpu() for values in per_seed])


def _size(values_SU: Tensor) -> str:
    return f"{values_SU.shape[0]} seeds and {values_SU.shape[1]} users"


def _interval(values_SU: Tensor) -> tuple[float, float]:
    num_seeds, num_users = values_SU.shape
    users_BU = _draws(num_users, num_users)
    pieces = users_BU.split(max(1, PIECE // num_users))
    means_BS = torch.cat([piece.double() @ values_SU.T for piece in pieces]) / num_users
    drawn = max(1, num_seeds - 1)
    means_B = (means_BS * _draws(num_seeds, drawn)).sum(1) / drawn
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(means_B, torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high


@lru_cache(maxsize=4)
def _draws(count: int, drawn: int) -> Tensor:
    """Return how often each of `count` is in each of `RESAMPLES` draws, (B, count), uint8.

    None is ever 256 times in a draw: of fewer there are not as many, of more it will not happen.
    """
    # Users and seeds are drawn from different streams even where there are as many of both.
    generator = torch.Generator().manual_seed(2 * count + (drawn == count))
    draws = torch.empty(RESAMPLES, count, dtype=torch.uint8)
    for row in draws:
        row[:] = torch.bincount(
            torch.randint(count, (drawn,), generator=generator), minlength=count
        )
    return draws


def _sign_flip_p(differences_U: Tensor) -> float:
    changed_U = differences_U[differences_U != 0].numpy()
    if not len(changed_U):
        return 1.0
    random = np.random.default_rng(0)
    observed = abs(changed_U.sum())
    # Sums in another order differ in their last digits: equal ones must count as equal.
    at_least = observed - 1e-9 * np.abs(changed_U).sum()
    extreme, left, rows = 0, FLIPS, max(1, PIECE // len(changed_U))
    while left:
        size = min(rows, left)
        bytes_ = random.integers(256, size=(size, -(-len(changed_U) // 8)), dtype=np.uint8)
        flipped = np.unpackbits(bytes_, axis=1, count=len(changed_U))
        sums = changed_U.sum() - 2 * (flipped @ changed_U)
        extreme += int((np.abs(sums) >= at_least).sum())
        left -= size
    return (extreme + 1) / (FLIPS + 1)
