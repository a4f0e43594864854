import itertools
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from experiments import statistics
from experiments.statistics import FLIPS, compare, estimate, holm, user_metrics
from mmm4rec.errors import DataError


def write_ranks(folder, **columns):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "ranks.parquet")
    return folder


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def test_user_metrics_counted_by_hand_and_in_the_order_of_users(tmp_path):
    folder = write_ranks(tmp_path, user_id=[7, 2, 5], better=[0, 2, 10], tied=[0, 0, 0])
    metrics = user_metrics(folder, (1, 10))
    by_hand = {
        "recall@1": [0, 0, 1],
        "recall@10": [1, 0, 1],
        "ndcg@1": [0, 0, 1],
        "ndcg@10": [0.5, 0, 1],  # users 2, 5, 7: 1 / log2(3 + 1), outside, first
    }
    assert metrics.keys() == by_hand.keys()
    for name, values in by_hand.items():
        assert metrics[name].tolist() == pytest.approx(values), name
    assert metrics["ndcg@10"].dtype == torch.float64


def test_user_metrics_of_a_run_without_ranks(tmp_path):
    with pytest.raises(
        DataError, match=r"ranks.parquet is not there: the run was not tested. Next"
    ):
        user_metrics(tmp_path, (10,))


def test_an_estimate_of_one_seed_agrees_with_the_normal_approximation():
    values = normal(0, 2_000) + 3
    found = estimate([values])
    half = 1.96 * float(values.std()) / math.sqrt(2_000)
    assert found.value == pytest.approx(float(values.mean()), abs=1e-12)
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)
    assert found.seeds == 1


def test_the_interval_of_seeds_alone_has_the_spread_of_their_mean():
    """All users agree within a seed: only the seeds vary, by the unbiased variance."""
    means = normal(1, 12)
    found = estimate([torch.full((3,), mean) for mean in means.double()])
    half = 1.96 * float(means.std()) / math.sqrt(12)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_one_seed_less_is_drawn_than_there_are():
    """Of three draws from 0, 0, 0, 1 in 4 two or more are 1 in 16 %, all three in 1.6 %."""
    found = estimate([torch.full((2,), float(mean)) for mean in (0, 0, 0, 1)])
    assert (found.value, found.low) == (0.25, 0)
    assert found.high == pytest.approx(2 / 3)


def test_an_estimate_without_any_spread_is_a_point():
    found = estimate([torch.full((5,), 0.25)] * 3)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    """Users and seeds vary: of 400 worlds, 95 % within 3 standard errors are 367 to 393.

    Were seeds not resampled it would be 356.
    """
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    statistics._draws.cache_clear()
    covered = 0
    for world in range(400):
        users, seeds = normal(3 * world, 60), 0.2 * normal(3 * world + 1, 5)
        noise = 0.5 * normal(3 * world + 2, 5, 60)
        found = estimate(list(users + seeds[:, None] + noise))
        covered += found.low <= 0 <= found.high
    statistics._draws.cache_clear()
    assert 367 <= covered <= 393


def test_all_metrics_see_the_same_resamples_and_twice_gives_the_same():
    values = [normal(seed, 50) for seed in range(3)]
    found, doubled = estimate(values), estimate([2 * seed for seed in values])
    assert (doubled.low, doubled.high) == pytest.approx((2 * found.low, 2 * found.high), abs=1e-12)
    statistics._draws.cache_clear()
    assert estimate(values) == found


def test_users_and_seeds_are_drawn_from_different_streams_though_there_are_as_many():
    users, seeds = statistics._draws(5, 5), statistics._draws(5, 4)
    assert users.sum(1).unique().tolist() == [5]
    assert seeds.sum(1).unique().tolist() == [4]
    correlation = np.corrcoef(users[:, 0].numpy(), seeds[:, 0].numpy())[0, 1]
    assert abs(correlation) < 0.1


@pytest.mark.parametrize("seeds", [[], [torch.zeros(0)], [torch.zeros(2), torch.zeros(3)]])
def test_seeds_without_the_same_users_are_refused(seeds):
    with pytest.raises(DataError, match=r"the same users, found \d seeds .* Next"):
        estimate(seeds)


def test_equal_rows_do_not_differ():
    values = [normal(seed, 40) for seed in range(2)]
    found = compare(values, values)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_strong_shift_has_the_smallest_p():
    values = [normal(seed, 40) for seed in range(2)]
    found = compare(values, [seed + 1 for seed in values])
    assert found.difference == pytest.approx(1)
    assert (found.low, found.high) == pytest.approx((1, 1))
    assert found.p == 1 / (FLIPS + 1)


def test_the_difference_is_other_minus_reference():
    reference = [torch.tensor([0.0, 1.0, 0.0, 0.0])]
    other = [torch.tensor([1.0, 1.0, 0.0, 1.0])]
    assert compare(reference, other).difference == 0.5
    assert compare(other, reference).difference == -0.5
    assert compare(other, reference).p == compare(reference, other).p


@pytest.mark.parametrize("seed", range(3))
def test_p_of_eight_users_agrees_with_all_sign_flips(seed):
    differences = normal(seed, 8) + 0.4
    flips = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8))).double()
    sums = (flips @ differences).abs()
    exact = float((sums >= differences.sum().abs() - 1e-12).double().mean())
    found = compare([torch.zeros(8)], [differences]).p
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / FLIPS) + 1e-4)


def test_users_without_a_difference_change_no_p_and_ties_count_as_extreme():
    """Three of three in one direction: 2 of 8 flips are as extreme."""
    differences = torch.tensor([0.1, 0.1, 0.1])
    found = compare([torch.zeros(300)], [torch.cat([differences, torch.zeros(297)])]).p
    assert found == pytest.approx(0.25, abs=0.02)


def test_p_agrees_with_scipy_on_averages_over_seeds():
    stats = pytest.importorskip("scipy.stats")
    reference = [normal(seed, 60) for seed in range(3)]
    other = [values + 0.3 * normal(10 + at, 60) + 0.04 for at, values in enumerate(reference)]
    means = [torch.stack(row).mean(0).numpy() for row in (reference, other)]
    oracle = stats.permutation_test(
        means,
        lambda x, y: np.mean(x) - np.mean(y),
        permutation_type="samples",
        n_resamples=9_999,
        rng=np.random.default_rng(1),
    ).pvalue
    found = compare(reference, other).p
    assert 0.01 < oracle < 0.5
    assert found == pytest.approx(oracle, abs=6 * math.sqrt(oracle / FLIPS))


def test_pieces_do_not_change_a_result(monkeypatch):
    reference, other = [normal(0, 100)], [normal(1, 100)]
    whole = compare(reference, other)
    monkeypatch.setattr(statistics, "PIECE", 800)
    pieces = compare(reference, other)
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high), abs=1e-12)
    assert pieces.p == pytest.approx(whole.p, abs=0.03)


def test_other_users_or_seeds_cannot_be_compared():
    with pytest.raises(DataError, match="2 seeds and 4 users and of 1 seeds and 4 users"):
        compare([torch.zeros(4)] * 2, [torch.zeros(4)])
    with pytest.raises(DataError, match="Next: test both on the same data"):
        compare([torch.zeros(4)], [torch.zeros(5)])


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([], []),
        ([0.04], [0.04]),
        # By hand: 4 * .01, 3 * .03 and 3 * .03 again as 2 * .04 is below it, then .2.
        ([0.2, 0.01, 0.04, 0.03], [0.2, 0.04, 0.09, 0.09]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
    ],
)
def test_holm_by_hand(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)
