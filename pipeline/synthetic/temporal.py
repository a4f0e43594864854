"""Planted worlds in which time decides what comes next, with known ceilings.

Items belong to clusters of `ITEMS_PER_CLUSTER`; a cluster shows in both modalities of its items.
What follows is drawn from one cluster, the answer, with probability `FOLLOW`, and from any cluster
otherwise. The answer is the last item's cluster plus a step, and the step depends on one hidden
bit that only times tell:

    gap      whether the gap between the last two interactions was long
    query    whether the time from the last interaction to the moment of recommending is long
    marked   whether the gap before a marked item, several steps back, was long
    rhythm   which of two periods the gaps follow, under noise
    nothing  no bit at all: the step is always the same

Recall at `ITEMS_PER_CLUSTER` is the share of users whose target lies in the best cluster, so that
the ceilings of a model that sees times, and of one that does not, can be counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmm4rec.errors import ConfigError

Kind = Literal["gap", "query", "marked", "rhythm", "nothing"]
Unit = Literal["days", "seconds"]

KINDS: tuple[Kind, ...] = get_args(Kind)
UNITS: tuple[Unit, ...] = get_args(Unit)
NUM_CLUSTERS = 8
ITEMS_PER_CLUSTER = 10
FOLLOW = 0.9  # probability that the next item is one of the answer
STEPS = (1, 3)  # from the last item's cluster to the answer, by the hidden bit
DAY = 86_400
LONGEST = 3_650 * DAY  # seconds: ten years
# A gap is drawn log-uniformly on its side of the border; between the sides nothing lies.
SHORT = {"seconds": (1, 600), "days": (DAY, 4 * DAY)}
LONG = {"seconds": (3_600, LONGEST), "days": (10 * DAY, LONGEST)}
TIES = 0.3  # share of short gaps that are zero
PERIODS = (3, 5)  # of the rhythm, in interactions, by the hidden bit
RHYTHM = 1.5  # amplitude, in standard deviations of the noise
RHYTHM_LENGTH = 18  # interactions before the target
START = 1_262_304_000  # 2010-01-01
BETWEEN = (3, 5)  # steps from the marked item to the last one before the answer

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class TemporalWorld:
    """A world as it was drawn.

    Attributes:
        items_N: item ids from 1, user after user, oldest first.
        seconds_N: Unix seconds.
        offsets_U: first position of each user and, last, N.
        clusters_I: cluster of each item, -1 for the padding item 0.
        bits_U: of each user's last interaction, the bit that is likelier given the times.
    """

    items_N: IntArray
    seconds_N: IntArray
    offsets_U: IntArray
    clusters_I: IntArray
    bits_U: IntArray

    def ceilings(self, last_users: int) -> tuple[float, float]:
        """Return the best recall at `ITEMS_PER_CLUSTER` of a blind and of a seeing model.

        Args:
            last_users: so many of the last users are asked for their last interaction.
        """
        ends_U = self.offsets_U[-last_users:] - 1
        clusters_N = self.clusters_I[self.items_N]
        steps_U = (clusters_N[ends_U] - clusters_N[ends_U - 1]) % NUM_CLUSTERS
        blind = max(float(np.mean(steps_U == step)) for step in STEPS)
        seeing_U = steps_U == np.array(STEPS)[self.bits_U[-last_users:]]
        return blind, float(seeing_U.mean())


def draw_world(kind: Kind, *, unit: Unit, num_users: int, seed: int) -> TemporalWorld:
    """Draw a world; equal arguments give equal worlds.

    Args:
        kind: what decides, see the module.
        unit: `days`: times are whole days, as Amazon's; `seconds`: sessions of minutes.
        num_users: sequences, at least 1.
        seed: 0 or more.

    Raises:
        ConfigError: the kind is unknown.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no planted world {kind!r}. Allowed: {', '.join(KINDS)}")
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    draw = {"marked": _draw_marked, "rhythm": _draw_rhythm}.get(kind, _draw_steps)
    users = [draw(rng, kind, unit) for _ in range(num_users)]
    clusters_N = np.concatenate([clusters for clusters, _, _ in users])
    gaps_N = np.concatenate([gaps for _, gaps, _ in users])
    offsets_U = np.cumsum([0, *(len(clusters) for clusters, _, _ in users)])
    clusters_I = np.repeat(np.arange(clusters_N.max() + 1), ITEMS_PER_CLUSTER)
    return TemporalWorld(
        items_N=clusters_N * ITEMS_PER_CLUSTER
        + rng.integers(ITEMS_PER_CLUSTER, size=len(clusters_N))
        + 1,
        seconds_N=_times(rng, gaps_N, offsets_U, unit),
        offsets_U=offsets_U.astype(np.int64),
        clusters_I=np.concatenate([[-1], clusters_I]),
        bits_U=np.array([bit for _, _, bit in users]),
    )


# Each draws one user: clusters, the gap before each interaction in seconds, and the bit of the last
# interaction that is likelier given the times.
User = tuple[IntArray, FloatArray, int]


def _draw_steps(rng: np.random.Generator, kind: Kind, unit: Unit) -> User:
    """Every interaction after the second answers the times before it."""
    length = int(rng.integers(6, 13))
    bits = rng.integers(2, size=length)
    gaps = _gaps(rng, bits, unit)
    # `bits[i]` is of the gap before interaction i: the answer at i reads its own or the last one.
    read = {"gap": np.roll(bits, 1), "query": bits, "nothing": np.zeros_like(bits)}[kind]
    clusters = [int(rng.integers(NUM_CLUSTERS))]
    for bit in read[1:]:
        clusters.append(_answer(rng, clusters[-1], int(bit)))
    return np.array(clusters), gaps, int(read[-1])


def _draw_marked(rng: np.random.Generator, kind: Kind, unit: Unit) -> User:
    """Fillers, a marked item, fillers, a question, the answer."""
    before, after = int(rng.integers(2, 5)), int(rng.integers(BETWEEN[0], BETWEEN[1] + 1)) - 1
    marked = 2 * NUM_CLUSTERS
    fillers = rng.integers(NUM_CLUSTERS, size=before + after)
    clusters = [*fillers[:before], marked, *fillers[before:]]
    bits = rng.integers(2, size=len(clusters) + 2)
    bit = int(bits[before])
    return _ask(rng, clusters, bit), _gaps(rng, bits, unit), bit


def _draw_rhythm(rng: np.random.Generator, kind: Kind, unit: Unit) -> User:
    """Fillers whose gaps have one of two periods, a question, the answer."""
    bit = int(rng.integers(2))
    places = np.arange(RHYTHM_LENGTH - 1)  # of the gaps between interactions
    phase = int(rng.integers(PERIODS[bit]))
    signal = _wave(bit, phase, places) + rng.normal(size=len(places))
    clusters = rng.integers(NUM_CLUSTERS, size=RHYTHM_LENGTH - 1).tolist()
    middle = {"days": 30.0 * DAY, "seconds": 3_600.0}[unit]
    gaps = np.concatenate([[0.0], middle * np.exp(0.7 * signal), [middle]])
    return _ask(rng, clusters, bit), gaps.clip(max=LONGEST), _likelier(signal, places)


def _ask(rng: np.random.Generator, clusters: list[int], bit: int) -> IntArray:
    """Add a question (an item of the second set of clusters) and its answer."""
    asked = int(rng.integers(NUM_CLUSTERS))
    return np.array([*clusters, NUM_CLUSTERS + asked, _answer(rng, asked, bit)])


def _answer(rng: np.random.Generator, cluster: int, bit: int) -> int:
    if rng.random() >= FOLLOW:
        return int(rng.integers(NUM_CLUSTERS))
    return (cluster + STEPS[bit]) % NUM_CLUSTERS


def _gaps(rng: np.random.Generator, bits: IntArray, unit: Unit) -> FloatArray:
    """Return the gap before each interaction in seconds, long where the bit is 1."""
    low, high = np.array([SHORT[unit], LONG[unit]], dtype=np.float64)[bits].T
    gaps = np.exp(rng.uniform(np.log(low), np.log(high)))
    return np.where((bits == 0) & (rng.random(len(bits)) < TIES), 0.0, gaps)


def _wave(bit: int, phase: int, places: IntArray) -> FloatArray:
    return RHYTHM * np.sqrt(2) * np.cos(2 * np.pi * (places + phase) / PERIODS[bit])


def _likelier(signal: FloatArray, places: IntArray) -> int:
    """Return which period is likelier: Bayes' rule, periods and phases equally likely."""
    likelihoods = [
        np.mean(
            [
                np.exp(-0.5 * np.square(signal - _wave(bit, phase, places)).sum())
                for phase in range(PERIODS[bit])
            ]
        )
        for bit in (0, 1)
    ]
    return int(np.argmax(likelihoods))


def _times(
    rng: np.random.Generator, gaps_N: FloatArray, offsets_U: IntArray, unit: Unit
) -> IntArray:
    step = DAY if unit == "days" else 1
    whole_N = np.rint(gaps_N / step).astype(np.int64) * step
    whole_N[offsets_U[:-1]] = START + step * rng.integers(
        4 * LONGEST // 10 // step, size=len(offsets_U) - 1
    )
    total_N = np.cumsum(whole_N)
    before_U = np.concatenate([[0], total_N[offsets_U[1:-1] - 1]])
    return total_N - np.repeat(before_U, np.diff(offsets_U))
