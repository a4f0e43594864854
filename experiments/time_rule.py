"""Which property of a domain tells beforehand whether time helps a model.

Shape letters: N domains, S statistics, K resamples or permutations, G points of a grid.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.figures import draw_points
from experiments.statistics import Estimate
from mmm4rec.errors import DataError
from pipeline.describe import DomainStatistics

LEAST_DOMAINS = 4
EXACT_UP_TO = 7  # domains: 5,040 orders
PERMUTATIONS = 10_000  # beyond
RESAMPLES = 2_000
GRID = 50  # points of the band
TELLING = 0.05  # p of the family below which a rule is called one

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class TimeGain:
    """One domain.

    Attributes:
        name: of the domain or planted world.
        statistics: as `describe` returns them.
        gain: NDCG@10 of a model with time minus that of the same model without.
    """

    name: str
    statistics: DomainStatistics
    gain: Estimate


@dataclass(frozen=True)
class Association:
    """How a statistic and the gain go together.

    Attributes:
        statistic: a key of `DomainStatistics.predictors`.
        rho: Spearman's rank correlation, -1..1.
        p: two-sided, by permutation of the gains, for this statistic alone.
        family_p: probability that the strongest of all the statistics would be as strong by
            chance: what counts for one that was picked out of many.
    """

    statistic: str
    rho: float
    p: float
    family_p: float


@dataclass(frozen=True)
class FittedLine:
    """gain = intercept + slope * statistic, and how sure that is.

    Attributes:
        intercept: gain at 0.
        slope: gain per unit of the statistic.
        grid: values of the statistic, ascending.
        low: lower end of the band at each of them: 95 % of the lines through resampled domains.
        high: upper end.
        error: mean absolute error for a domain that the rule has not seen; the statistic too is
            chosen without it.
        mean_error: the same of the plain mean gain of the other domains.
    """

    intercept: float
    slope: float
    grid: list[float]
    low: list[float]
    high: list[float]
    error: float
    mean_error: float


@dataclass(frozen=True)
class TimeRule:
    """What the domains say together.

    Attributes:
        domains: names, in the order given.
        gains: of each.
        values: of the strongest statistic.
        associations: of all the statistics, the strongest first.
        left_out: statistics that a domain lacks or that all domains share.
        line: for the strongest statistic.
    """

    domains: list[str]
    gains: list[Estimate]
    values: list[float]
    associations: list[Association]
    left_out: list[str]
    line: FittedLine

    @property
    def best(self) -> Association:
        """The strongest statistic."""
        return self.associations[0]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data (for JSON and for a plot)."""
        return asdict(self)

    def paragraph(self) -> str:
        """Return what can be said, as Markdown."""
        best, line = self.best, self.line
        sign = "+" if line.slope >= 0 else "-"
        told = (
            f"Over {len(self.domains)} domains the gain from time goes most with "
            f"**{best.statistic}** (Spearman's rho {best.rho:+.2f}, p = {best.p:.2g}; "
            f"p = {best.family_p:.2g} as the strongest of {len(self.associations)} statistics)."
        )
        rule = (
            f"Rule of thumb: gain in NDCG@10 = {line.intercept:+.3f} {sign} {abs(line.slope):.3g} "
            f"* {best.statistic}; on a domain that it has not seen it is off by {line.error:.3f} "
            f"on average, the plain mean gain by {line.mean_error:.3f}."
        )
        return "\n\n".join([told, rule, self._verdict()])

    def _verdict(self) -> str:
        if self.best.family_p >= TELLING:
            return "So few domains cannot tell this from chance: take it as a guess, not as a rule."
        if self.line.error >= self.line.mean_error:
            return (
                "The order of the domains is more than chance, the size of the gain is not "
                "predicted better than by the mean."
            )
        return "More than chance, and better than the mean on domains that it has not seen."


def fit_time_rule(rows: list[TimeGain], *, seed: int = 0) -> TimeRule:
    """Find the statistic that goes most with the gain from time, and a line through it.

    Args:
        rows: one per domain.
        seed: of permutations and resampling.

    Raises:
        DataError: there are too few domains, a gain is not finite, or no statistic is known of
            all domains and differs between them.
    """
    _check(rows)
    gain_N = np.array([row.gain.value for row in rows])
    predictors = [row.statistics.predictors() for row in rows]
    names = list(dict.fromkeys(name for known in predictors for name in known))
    table = _common(predictors, names)
    rng = np.random.default_rng(seed)
    found = sorted(_associate(table, gain_N, rng), key=lambda a: -abs(a.rho))
    best_N = table[found[0].statistic]
    return TimeRule(
        domains=[row.name for row in rows],
        gains=[row.gain for row in rows],
        values=best_N.tolist(),
        associations=found,
        left_out=[name for name in names if name not in table],
        line=_line(table, best_N, gain_N, rng),
    )


def draw_rule(rule: TimeRule, path: Path) -> None:
    """Draw the gain of each domain against the strongest statistic, and the line with its band.

    Args:
        rule: what was found.
        path: the PNG to write.
    """
    line = rule.line
    band = [
        (x, Estimate(line.intercept + line.slope * x, low, high, seeds=1))
        for x, low, high in zip(line.grid, line.low, line.high, strict=True)
    ]
    draw_points(
        list(zip(rule.domains, rule.values, rule.gains, strict=True)),
        x_label=rule.best.statistic,
        y_label="gain in NDCG@10 from time",
        path=path,
        line=band,
    )


def rank(values: FloatArray) -> FloatArray:
    """Return ranks from 1 on the last axis, ties the mean of theirs.

    >>> rank(np.array([3.0, 1.0, 3.0]))
    array([2.5, 1. , 2.5])
    """
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return np.asarray(below + (equal + 1) / 2)


def spearman(one: FloatArray, other: FloatArray) -> FloatArray:
    """Return the rank correlation on the last axis; 0 where a side is constant.

    >>> round(float(spearman(np.array([1.0, 2.0, 9.0]), np.array([3.0, 2.0, 1.0]))), 12)
    -1.0
    """
    a, b = (r - r.mean(-1, keepdims=True) for r in (rank(one), rank(other)))
    spread = np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))
    return np.asarray((a * b).sum(-1) / np.where(spread > 0, spread, 1.0))


def _check(rows: list[TimeGain]) -> None:
    if len(rows) < LEAST_DOMAINS:
        raise DataError(
            f"{len(rows)} domains say nothing about the next one: at least {LEAST_DOMAINS} are "
            "needed. Next: measure the gain from time on more domains or planted worlds"
        )
    for row in rows:
        if not math.isfinite(row.gain.value):
            raise DataError(
                f"the gain from time of {row.name} is {row.gain.value}, not a finite number. "
                "Next: look at the metrics of its runs"
            )


def _common(predictors: list[dict[str, float]], names: list[str]) -> dict[str, FloatArray]:
    """Return the statistics that all domains have and that differ between them, each (N,)."""
    table = {
        name: np.array([known[name] for known in predictors])
        for name in names
        if all(name in known for known in predictors)
    }
    table = {name: value_N for name, value_N in table.items() if np.ptp(value_N) > 0}
    if not table:
        raise DataError(
            "no statistic is known of all domains and differs between them. Next: leave out the "
            "domains without timestamps"
        )
    return table


def _associate(
    table: dict[str, FloatArray], gain_N: FloatArray, rng: np.random.Generator
) -> list[Association]:
    value_SN = np.stack(list(table.values()))
    rho_S = spearman(value_SN, gain_N)
    order_KN = _orders(len(gain_N), rng)
    chance_KS = np.abs(spearman(value_SN[None], gain_N[order_KN][:, None]))
    # The order that was found is among the exact ones; to a sample of orders it is added.
    added = 0 if len(order_KN) == math.factorial(len(gain_N)) else 1

    def p(chance_K: FloatArray, rho: float) -> float:
        reached = int((chance_K >= abs(rho) - 1e-12).sum())
        return (reached + added) / (len(order_KN) + added)

    return [
        Association(name, float(rho), p(chance_K, rho), p(chance_KS.max(1), rho))
        for name, rho, chance_K in zip(table, rho_S, chance_KS.T, strict=True)
    ]


def _orders(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if count <= EXACT_UP_TO:
        return np.array(list(permutations(range(count))))
    return rng.permuted(np.tile(np.arange(count), (PERMUTATIONS, 1)), axis=1)


def _line(
    table: dict[str, FloatArray], best_N: FloatArray, gain_N: FloatArray, rng: np.random.Generator
) -> FittedLine:
    intercept, slope = _least_squares(best_N, gain_N)
    grid_G = np.linspace(best_N.min(), best_N.max(), GRID)
    chosen_KN = rng.integers(len(gain_N), size=(RESAMPLES, len(gain_N)))
    a_K, b_K = _least_squares(best_N[chosen_KN], gain_N[chosen_KN])
    low_G, high_G = np.quantile(a_K[:, None] + b_K[:, None] * grid_G, [0.025, 0.975], axis=0)
    error, mean_error = _errors(table, gain_N)
    return FittedLine(
        float(intercept),
        float(slope),
        grid_G.tolist(),
        low_G.tolist(),
        high_G.tolist(),
        error,
        mean_error,
    )


def _least_squares(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return intercept and slope on the last axis; slope 0 where all x are equal."""
    dx, dy = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    below = np.square(dx).sum(-1)
    slope = (dx * dy).sum(-1) / np.where(below > 0, below, 1.0)
    return np.asarray(y.mean(-1) - slope * x.mean(-1)), np.asarray(slope)


def _errors(table: dict[str, FloatArray], gain_N: FloatArray) -> tuple[float, float]:
    """Return the mean absolute error for each domain from the others: by the rule, by the mean."""
    by_rule, by_mean = [], []
    for left_out in range(len(gain_N)):
        others = np.arange(len(gain_N)) != left_out
        best_N = max(table.values(), key=lambda v: abs(spearman(v[others], gain_N[others])))
        intercept, slope = _least_squares(best_N[others], gain_N[others])
        by_rule.append(abs(intercept + slope * best_N[left_out] - gain_N[left_out]))
        by_mean.append(abs(gain_N[others].mean() - gain_N[left_out]))
    return float(np.mean(by_rule)), float(np.mean(by_mean))
