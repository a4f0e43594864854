"""The planted structure of the miniature Amazon: who buys what next.

Every item has two latent properties, a look (seen in its picture) and a theme (read in its
words). With probability `follow` each, and independently, the next item has the successor of the
last item's look and the successor of the theme of the item before that; otherwise a random look
or theme. The successors are the same in every domain. Within the cell (look, theme) an item is
drawn by its own mild popularity. Nothing else about items or users matters: both modalities and
the order of the sequence are needed.

Shape letters: N items of a domain, U users, P looks (pictures), T themes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_LOOKS = 5
NUM_THEMES = 8
MIN_LENGTH, MAX_LENGTH = 5, 15  # interactions of one user
FIRST_DAY = 14_600  # days after 1970-01-01: 2009-12-22
ENTRY_DAYS = 4 * 365  # users arrive during these
SAME_DAY_SHARE = 0.2
POPULARITY_SKEW = 0.4  # standard deviation of an item's log weight

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """What follows what, in every domain of a world.

    Attributes:
        look_successor: (NUM_LOOKS,), a single cycle, so that no look follows itself.
        theme_successor: (NUM_THEMES,), likewise.
        follow: probability that look and theme, each for itself, obey; 0..1.
    """

    look_successor: IntArray
    theme_successor: IntArray
    follow: float


@dataclass(frozen=True)
class Latents:
    """The hidden properties of a domain's items, each (N,); weights are positive."""

    looks: IntArray
    themes: IntArray
    weights: FloatArray


def draw_rule(rng: np.random.Generator, follow: float) -> Rule:
    """Draw the successors of looks and themes."""
    return Rule(_cycle(rng, NUM_LOOKS), _cycle(rng, NUM_THEMES), follow)


def draw_latents(rng: np.random.Generator, num_items: int) -> Latents:
    """Spread `num_items` items evenly over the cells, in random order."""
    cells = np.resize(rng.permutation(NUM_LOOKS * NUM_THEMES), num_items)
    cells = rng.permutation(cells)
    weights = np.exp(rng.normal(0.0, POPULARITY_SKEW, num_items))
    return Latents(cells // NUM_THEMES, cells % NUM_THEMES, weights)


def next_item_probabilities(rule: Rule, latents: Latents) -> FloatArray:
    """Return the probability of each next item, (P, T, N); the last axis sums to 1.

    Indexed by the look of the last item and the theme of the one before. Generator and ceiling
    both read this table, so that the ceiling is exact. Cells without an item lend their
    probability to the others.
    """
    cells = latents.looks * NUM_THEMES + latents.themes
    share_of_cell_N = latents.weights / np.bincount(cells, latents.weights)[cells]
    by_look_PN = _follow(rule.look_successor, rule.follow)[:, latents.looks]
    by_theme_TN = _follow(rule.theme_successor, rule.follow)[:, latents.themes]
    joint_PTN = by_look_PN[:, None] * by_theme_TN[None] * share_of_cell_N
    return np.asarray(joint_PTN / joint_PTN.sum(axis=-1, keepdims=True))


def context(latents: Latents, sequence: IntArray) -> tuple[int, int]:
    """Return what decides the next item: look of the last one, theme of the one before.

    A first item stands for the one before it too.
    """
    return int(latents.looks[sequence[-1]]), int(latents.themes[sequence[-2:][0]])


def draw_lengths(rng: np.random.Generator, num_users: int, mean_length: float) -> IntArray:
    """Draw the number of interactions of each user, (U,), MIN_LENGTH..MAX_LENGTH."""
    spread = MAX_LENGTH - MIN_LENGTH
    return MIN_LENGTH + rng.binomial(spread, (mean_length - MIN_LENGTH) / spread, num_users)


def draw_sequences(
    rng: np.random.Generator, next_PTN: FloatArray, latents: Latents, lengths_U: IntArray
) -> list[IntArray]:
    """Draw one sequence of item indices per user.

    The rule says nothing about a user's first item. Taking the least-bought one brings every item
    above the 5-core without bending the rule.
    """
    cumulative_PTN = np.cumsum(next_PTN, axis=-1)
    last = len(latents.looks) - 1
    bought_N = rng.random(last + 1)  # below 1: breaks ties between equal counts
    sequences = []
    for length in lengths_U:
        sequence = np.full(length, np.argmin(bought_N))
        for position, draw in enumerate(rng.random(length - 1), start=1):
            cumulative_N = cumulative_PTN[context(latents, sequence[:position])]
            # Rounding may leave the last sum a little below 1.
            sequence[position] = min(int(np.searchsorted(cumulative_N, draw, "right")), last)
        np.add.at(bought_N, sequence, 1.0)
        sequences.append(sequence)
    return sequences


def draw_days(rng: np.random.Generator, sequence: IntArray) -> IntArray:
    """Draw the day (since 1970) of each interaction: irregular gaps, several on one day.

    A user never buys the same item twice on one day: that would be an exact duplicate row.
    """
    day = FIRST_DAY + int(rng.integers(ENTRY_DAYS))
    days, today = [day], {int(sequence[0])}
    for item in sequence[1:].tolist():
        if item in today or rng.random() >= SAME_DAY_SHARE:
            day += 1 + min(int(rng.lognormal(3.0, 1.2)), 700)
            today.clear()
        today.add(item)
        days.append(day)
    return np.array(days, dtype=np.int64)


def rank_metrics(scores_UN: FloatArray, targets_U: IntArray, cutoff: int) -> dict[str, float]:
    """Return recall and NDCG at `cutoff` over the whole catalogue; ties take the expected rank.

    >>> rank_metrics(np.array([[0.1, 0.7, 0.2]]), np.array([2]), cutoff=2)["recall@2"]
    1.0
    """
    target_scores = np.take_along_axis(scores_UN, targets_U[:, None], axis=1)
    above = (scores_UN > target_scores).sum(axis=1)
    equal = (scores_UN == target_scores).sum(axis=1) - 1
    ranks_U = 1 + above + equal / 2
    hits_U = ranks_U <= cutoff
    gains_U = np.where(hits_U, 1 / np.log2(ranks_U + 1), 0.0)
    return {f"recall@{cutoff}": float(hits_U.mean()), f"ndcg@{cutoff}": float(gains_U.mean())}


def _cycle(rng: np.random.Generator, size: int) -> IntArray:
    order = rng.permutation(size)
    successor = np.empty(size, dtype=np.int64)
    successor[order] = np.roll(order, -1)
    return successor


def _follow(successor: IntArray, follow: float) -> FloatArray:
    obeyed = np.eye(len(successor))[successor]
    return follow * obeyed + (1 - follow) / len(successor)
