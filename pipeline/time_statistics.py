"""Statistics of when things happen: pure functions of flat arrays, user after user.

None depends on the order of the users: whatever is shuffled is sorted before.

Shape letters: N interactions, G gaps between neighbouring interactions of one user, U users,
L gaps of one user, R rows (one per user that has any), I items with the padding item 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MINUTE, HOUR, DAY = 60, 3_600, 86_400  # seconds
WEEK, MONTH, YEAR = 7 * DAY, 30 * DAY, 365 * DAY
SOLAR_YEAR = 365.2425 * DAY  # of the calendar, on average
# Bucket 0 holds the gaps of 0 seconds, bucket 1 those below a minute, ..., the last the rest.
GAP_EDGES = (1, MINUTE, HOUR, DAY, WEEK, MONTH, YEAR)
NUM_BUCKETS = len(GAP_EDGES) + 1
RESOLUTIONS = (DAY, HOUR, MINUTE)
LEAST_RHYTHM = 6  # gaps: below, at most one frequency is seen twice
RHYTHM_SHUFFLES = 8
INFORMATION_SHUFFLES = 200
MOST_USERS_ASKED = 100_000  # for the information of a gap: more would only take longer
OWN_GROUP = 128  # so many of the most bought items are told apart

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Rhythm:
    """How strong a rhythm is, and how strong it would be by chance.

    Attributes:
        strength: 0..1.
        by_chance: the same where there is no rhythm.
        p: probability of such a strength or a greater one by chance.
    """

    strength: float
    by_chance: float
    p: float


@dataclass(frozen=True)
class Information:
    """How much one thing tells about another.

    Attributes:
        bits: mutual information less what shuffling leaves of it; a little below 0 by chance.
        p: share of the shuffles (and of what was found) with at least as much, at least
            1 / (1 + INFORMATION_SHUFFLES).
        users: that were asked, one pair each: pairs of one user would not be independent.
    """

    bits: float
    p: float
    users: int


def resolution(times_N: IntArray) -> int:
    """Return the seconds that all times are whole multiples of, from the first: a day at most.

    >>> resolution(np.array([86_400, 5 * 86_400])), resolution(np.array([7, 127, 67]))
    (86400, 60)
    """
    since_N = times_N - times_N[:1]
    return next((unit for unit in RESOLUTIONS if not (since_N % unit).any()), 1)


def gap_buckets(seconds_G: IntArray) -> IntArray:
    """Return the bucket of each gap, 0..NUM_BUCKETS - 1.

    >>> gap_buckets(np.array([0, 59, 60, 86_400, 10**9])).tolist()
    [0, 1, 2, 4, 7]
    """
    return np.searchsorted(np.array(GAP_EDGES), seconds_G, side="right").astype(np.int64)


def entropy(counts: IntArray) -> float:
    """Return the entropy in bits of a histogram; 0 where it is empty.

    >>> entropy(np.array([3, 3, 0, 6]))
    1.5
    """
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(abs((shares * np.log2(shares)).sum()))


def burstiness(seconds_G: IntArray, user_G: IntArray) -> float | None:
    """Return the mean burstiness over the users with at least two gaps that are not all 0.

    (sigma - mu) / (sigma + mu) of a user's gaps (Goh and Barabasi, EPL 81, 48002, 2008), freed of
    its dependence on their number n (Kim and Jo, Phys. Rev. E 94, 032311, 2016), r being
    sigma / mu: ((n + 1)^.5 r - (n - 1)^.5) / (((n + 1)^.5 - 2) r + (n - 1)^.5).

    Returns:
        -1: every gap of a user is as long as the others; 0: events come at random; 1: all at
        once but for one gap. None: no user has two gaps.

    >>> burstiness(np.array([5, 5, 5]), np.array([0, 0, 0]))
    -1.0
    """
    count_U = np.bincount(user_G)
    mean_U = np.bincount(user_G, seconds_G) / np.maximum(count_U, 1)
    variance_U = np.bincount(user_G, np.square(seconds_G - mean_U[user_G])) / np.maximum(count_U, 1)
    asked_U = (count_U >= 2) & (mean_U > 0)
    if not asked_U.any():
        return None
    n, r = count_U[asked_U], np.sqrt(variance_U[asked_U]) / mean_U[asked_U]
    below = np.sqrt(n - 1)
    bursty = (np.sqrt(n + 1) * r - below) / ((np.sqrt(n + 1) - 2) * r + below)
    return float(bursty.mean())


def memory(log_G: FloatArray, user_G: IntArray) -> float | None:
    """Return the correlation of neighbouring log gaps of a user, -1..1, over all users at once.

    That some users are slower than others counts: one gap tells of the next. None: fewer than
    three pairs, or gaps that are all equal.

    >>> round(memory(np.array([1.0, 3.0, 1.0, 3.0]), np.zeros(4, np.int64)), 12)
    -1.0
    """
    same_G = user_G[1:] == user_G[:-1]
    one, other = log_G[:-1][same_G], log_G[1:][same_G]
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def periodicity(log_G: FloatArray, user_G: IntArray) -> Rhythm | None:
    """Return how much of the spectrum of a user's log gaps stands in its strongest frequency.

    Left out are the mean and the slowest swing, which a user shows only once: a drift is no
    rhythm. By chance: the same gaps in random order, `RHYTHM_SHUFFLES` times; p is that of the
    mean difference over the users (normal). None: fewer than two users have `LEAST_RHYTHM` gaps
    that are not all equal.
    """
    rng = np.random.default_rng(0)
    found, shuffled = [], []
    for series_RL in _by_length(log_G, user_G):
        strength_R = _strongest_share(series_RL)
        chance_SR = [
            _strongest_share(rng.permuted(series_RL, axis=1)) for _ in range(RHYTHM_SHUFFLES)
        ]
        found.append(strength_R)
        shuffled.append(np.mean(chance_SR, axis=0))
    if sum(map(len, found)) < 2:
        return None
    found_R, chance_R = np.concatenate(found), np.concatenate(shuffled)
    spread = float(np.std(found_R - chance_R, ddof=1)) / math.sqrt(len(found_R))
    distance = float(np.mean(found_R - chance_R))
    z = distance / spread if spread else math.copysign(math.inf, distance) if distance else 0.0
    return Rhythm(float(found_R.mean()), float(chance_R.mean()), math.erfc(z / math.sqrt(2)) / 2)


def _by_length(log_G: FloatArray, user_G: IntArray) -> Iterator[FloatArray]:
    """Yield the gaps of the users with equally many, (R, L), in an order of their own."""
    count_U = np.bincount(user_G)
    first_U = np.cumsum(count_U) - count_U
    for length in np.unique(count_U[count_U >= LEAST_RHYTHM]):
        series_RL = log_G[first_U[count_U == length][:, None] + np.arange(length)]
        series_RL = series_RL[np.ptp(series_RL, axis=1) > 0]
        if len(series_RL):
            yield series_RL[np.lexsort(series_RL.T)]


def _strongest_share(series_RL: FloatArray) -> FloatArray:
    length = series_RL.shape[1]
    amplitude_RW = np.abs(np.fft.rfft(series_RL - series_RL.mean(axis=1, keepdims=True)))[:, 2:]
    power_RW = 2 * np.square(amplitude_RW)
    if length % 2 == 0:
        power_RW[:, -1] /= 2  # the highest frequency has no mirror image
    # A pure slowest swing leaves nothing but rounding.
    total_R = np.maximum(power_RW.sum(axis=1), 1e-12)
    return np.asarray(power_RW.max(axis=1) / total_R)


def calendar_rhythm(times_N: IntArray, user_N: IntArray, period: float) -> Rhythm:
    """Return how much the times gather in one part of a period: the resultant length on its circle.

    By chance: each user's times turned by an angle of their own, so that what one user does at
    one moment counts once. Sums of many users' arrows are then normal, and the strength has the
    Rayleigh distribution.

    Args:
        times_N: Unix seconds, at least one.
        user_N: user ids, 0 or more.
        period: seconds.
    """
    angle_N = 2 * np.pi * (times_N % period) / period
    arrow_U = np.bincount(user_N, np.cos(angle_N)) + 1j * np.bincount(user_N, np.sin(angle_N))
    strength = float(np.abs(arrow_U.sum())) / len(times_N)
    by_chance = float(np.sqrt(np.square(np.abs(arrow_U)).sum())) / len(times_N)
    # Users whose own arrows vanish have no angle to be turned by.
    p = math.exp(-((strength / by_chance) ** 2)) if by_chance > 1e-9 else 1.0
    return Rhythm(strength, by_chance, p)


def item_groups(items_N: IntArray) -> IntArray:
    """Return a group for each item, (I,): itself if often bought, else what is bought as often.

    The `OWN_GROUP` most bought items are on their own; of the others those go together whose
    number of interactions has the same whole part of its binary logarithm.
    """
    count_I = np.bincount(items_N)
    group_I = OWN_GROUP + np.log2(np.maximum(count_I, 1)).astype(np.int64)
    most_bought = np.argsort(-count_I, kind="stable")[:OWN_GROUP]
    group_I[most_bought] = np.arange(len(most_bought))
    return group_I


def gap_information(seconds_R: IntArray, next_R: IntArray, last_R: IntArray) -> Information | None:
    """Return what the bucket of a gap tells about the group of the next item.

    The mutual information given the last item's group, less its mean over shuffles of the gaps
    among the users with the same last group. None: there is no user.

    Args:
        seconds_R: one gap of each user.
        next_R: group of the item that came next.
        last_R: group of the item before it.
    """
    if len(seconds_R) == 0:
        return None
    rng = np.random.default_rng(0)
    bucket_R = gap_buckets(seconds_R)
    order = np.lexsort((bucket_R, next_R, last_R))
    if len(order) > MOST_USERS_ASKED:
        order = order[np.sort(rng.choice(len(order), MOST_USERS_ASKED, replace=False))]
    bucket_R, next_R, last_R = bucket_R[order], next_R[order], last_R[order]
    pair_R = _codes(last_R * (1 + next_R.max()) + next_R)
    fixed = (
        entropy(np.bincount(pair_R))
        + entropy(np.bincount(_codes(last_R) * NUM_BUCKETS + bucket_R))
        - entropy(np.bincount(last_R))
    )

    def told(bucket_R: IntArray) -> float:
        return fixed - entropy(np.bincount(pair_R * NUM_BUCKETS + bucket_R))

    found = told(bucket_R)
    # Sorted by the last group first, a shuffle keeps every gap within it.
    chance = np.array(
        [
            told(bucket_R[np.lexsort((rng.random(len(order)), last_R))])
            for _ in range(INFORMATION_SHUFFLES)
        ]
    )
    reached = int((chance >= found - 1e-12).sum())
    return Information(
        found - float(chance.mean()), (1 + reached) / (1 + INFORMATION_SHUFFLES), len(order)
    )


def _codes(values: IntArray) -> IntArray:
    return np.unique(values, return_inverse=True)[1]
