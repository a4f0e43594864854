import json
import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import polars as pl
import pytest
from PIL import Image

from experiments.statistics import Estimate
from experiments.time_rule import TimeGain, draw_rule, fit_time_rule, rank, spearman
from mmm4rec.errors import DataError
from pipeline.describe import DomainStatistics, describe_interactions
from pipeline.tables import INTERACTION_SCHEMA


class _Known:
    """Statistics that are known beforehand."""

    def __init__(self, **numbers):
        self.numbers = numbers

    def predictors(self):
        return self.numbers


def _gain(value):
    return Estimate(value, value - 0.01, value + 0.01, seeds=1)


def _rows(gains, **statistics):
    return [
        TimeGain(
            f"world{at}",
            _Known(**{k: v[at] for k, v in statistics.items() if v[at] is not None}),
            _gain(gain),
        )
        for at, gain in enumerate(gains)
    ]


def test_ranks_and_correlations_by_hand():
    assert rank(np.array([0.5, 0.1, 0.5, 0.9])).tolist() == [2.5, 1, 2.5, 4]
    # d = (0, 1, 1, 0, 0): 1 - 6 * 2 / (5 * 24)
    one, other = np.array([1.0, 2, 3, 4, 5]), np.array([10.0, 30, 20, 40, 50])
    assert spearman(one, other) == pytest.approx(0.9)
    assert spearman(one, np.full(5, 2.0)) == 0


def test_spearman_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    one, other = rng.integers(5, size=30).astype(float), rng.normal(size=30)
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)


def test_a_perfect_order_of_five_has_the_exact_p():
    rule = fit_time_rule(_rows([0.1, 0.2, 0.3, 0.4, 0.9], told=[1, 2, 3, 4, 5]))
    assert rule.best.rho == pytest.approx(1)
    assert rule.best.p == pytest.approx(2 / math.factorial(5))  # this order and its reverse
    assert rule.best.family_p == rule.best.p


def test_picking_the_best_of_many_costs():
    statistics = {"a": [1, 2, 3, 4, 5], "b": [2, 1, 4, 5, 3], "c": [5, 1, 3, 2, 4]}
    gains = [0.1, 0.2, 0.3, 0.5, 0.4]
    rule = fit_time_rule(_rows(gains, **statistics))
    assert rule.best.statistic == "a"
    # By the definition, one order of the gains after the other.
    columns = [np.array(values, dtype=float) for values in statistics.values()]
    strongest = [
        max(abs(float(spearman(column, np.array(order)))) for column in columns)
        for order in permutations(gains)
    ]
    reached = np.mean([value >= rule.best.rho - 1e-9 for value in strongest])
    assert rule.best.family_p == pytest.approx(reached)
    assert rule.best.p < rule.best.family_p


def test_the_strongest_comes_first_whatever_its_sign():
    rule = fit_time_rule(
        _rows([0.4, 0.3, 0.2, 0.1], weak=[1, 3, 2, 4], against=[1, 2, 3, 4], same=[7] * 4)
    )
    assert [found.statistic for found in rule.associations] == ["against", "weak"]
    assert rule.best.rho == pytest.approx(-1)
    assert rule.left_out == ["same"]
    assert rule.values == [1, 2, 3, 4]


def test_a_statistic_that_a_domain_lacks_is_left_out():
    rule = fit_time_rule(_rows([0.1, 0.2, 0.3, 0.4], known=[1, 3, 2, 4], some=[1, None, 2, 3]))
    assert rule.best.statistic == "known"
    assert rule.left_out == ["some"]


def test_a_line_without_noise_is_found_exactly():
    x = np.array([0.0, 0.5, 1.0, 1.5, 3.0])
    rule = fit_time_rule(_rows((0.02 + 0.1 * x).tolist(), told=x))
    line = rule.line
    assert (line.intercept, line.slope) == (pytest.approx(0.02), pytest.approx(0.1))
    assert (line.grid[0], line.grid[-1]) == (0, 3)
    assert line.error == pytest.approx(0, abs=1e-12)
    # The mean of the other four is off by 5 / 4 of the distance from the mean of all.
    assert line.mean_error == pytest.approx(1.25 * np.abs(0.1 * (x - x.mean())).mean())
    middle = np.array(line.grid)
    assert np.allclose(line.high, 0.02 + 0.1 * middle, atol=0.15)
    assert (np.array(line.low) <= np.array(line.high) + 1e-12).all()


def test_the_error_is_that_of_a_rule_chosen_without_the_domain():
    rng = np.random.default_rng(1)
    gains, table = rng.normal(size=8), rng.normal(size=(12, 8))
    rule = fit_time_rule(_rows(gains.tolist(), **{f"s{at}": row for at, row in enumerate(table)}))
    errors = []
    for out in range(8):
        y = np.delete(gains, out)
        chosen = max(table, key=lambda row, out=out, y=y: abs(spearman(np.delete(row, out), y)))
        slope, intercept = np.polyfit(np.delete(chosen, out), y, 1)
        errors.append(abs(intercept + slope * chosen[out] - gains[out]))
    assert rule.line.error == pytest.approx(np.mean(errors))
    seen = rule.line.intercept + rule.line.slope * np.array(rule.values) - gains
    assert rule.line.error > np.abs(seen).mean()


def test_many_domains_are_sampled_and_the_same_seed_says_the_same():
    rng = np.random.default_rng(2)
    x = rng.normal(size=20)
    rows = _rows((x + 0.3 * rng.normal(size=20)).tolist(), told=x, noise=rng.normal(size=20))
    rule = fit_time_rule(rows, seed=4)
    assert rule == fit_time_rule(rows, seed=4)
    assert rule.best.statistic == "told"
    assert rule.best.family_p < 0.001
    assert rule.line.low[0] < rule.line.intercept + rule.line.slope * x.min() < rule.line.high[0]
    assert "More than chance, and better than the mean" in rule.paragraph()


def test_the_paragraph_is_honest_about_few_domains():
    rule = fit_time_rule(_rows([0.1, 0.2, 0.3, 0.4], told=[1, 2, 3, 4]))
    told, thumb, verdict = rule.paragraph().split("\n\n")
    assert told == (
        "Over 4 domains the gain from time goes most with **told** (Spearman's rho +1.00, "
        "p = 0.083; p = 0.083 as the strongest of 1 statistics)."
    )
    assert thumb.startswith("Rule of thumb: gain in NDCG@10 = +0.000 + 0.1 * told; on a domain")
    assert verdict.startswith("So few domains cannot tell this from chance")
    assert json.loads(json.dumps(rule.as_dict()))["line"]["slope"] == pytest.approx(0.1)


def test_the_rule_as_a_picture(tmp_path, monkeypatch):
    rule = fit_time_rule(_rows([0.1, 0.2, 0.3, 0.5], told=[1, 2, 3, 4]))
    asked = {}
    monkeypatch.setattr(
        "experiments.time_rule.draw_points", lambda *a, **k: asked.update(k, points=a)
    )
    draw_rule(rule, tmp_path / "rule.png")
    assert asked["points"][0][3] == ("world3", 4, _gain(0.5))
    x, fitted = asked["line"][-1]
    assert (x, fitted.value) == (4, pytest.approx(rule.line.intercept + 4 * rule.line.slope))
    assert (fitted.low, fitted.high) == (rule.line.low[-1], rule.line.high[-1])
    monkeypatch.undo()
    draw_rule(rule, tmp_path / "rule.png")
    with Image.open(tmp_path / "rule.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_too_little_to_fit():
    with pytest.raises(DataError, match=r"3 domains say nothing .* at least 4 are needed"):
        fit_time_rule(_rows([0.1, 0.2, 0.3], told=[1, 2, 3]))
    with pytest.raises(DataError, match="no statistic is known of all domains and differs"):
        fit_time_rule(_rows([0.1] * 4, told=[1] * 4))
    with pytest.raises(DataError, match="the gain from time of world2 is nan"):
        fit_time_rule(_rows([0.1, 0.2, math.nan, 0.3], told=[1, 2, 3, 4]))


def test_the_statistics_of_described_domains_go_in():
    rng = np.random.default_rng(0)

    def world(at):
        times = rng.integers(0, 10 ** (5 + at), (30, 6)).cumsum(1)
        rows = [(u, int(rng.integers(1, 9)), t) for u in range(30) for t in times[u].tolist()]
        table = pl.DataFrame(rows, schema=INTERACTION_SCHEMA, orient="row")
        found = describe_interactions(f"world{at}", table, has_time=True, max_len=20)
        assert isinstance(found, DomainStatistics)
        return TimeGain(found.domain, found, _gain(0.1 * at))

    rule = fit_time_rule([world(at) for at in range(5)])
    names = {found.statistic for found in rule.associations} | set(rule.left_out)
    assert {"gap entropy", "tie share", "burstiness", "last gap", "weekly rhythm"} <= names
    assert "longer than max_len" in rule.left_out  # nobody's is
    timeless = replace(world(1), statistics=replace(world(1).statistics, time=None))
    with pytest.raises(DataError, match="leave out the domains without timestamps"):
        fit_time_rule([timeless, *(world(at) for at in range(4))])
