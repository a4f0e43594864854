import numpy as np
import pytest

from pipeline.time_statistics import (
    DAY,
    INFORMATION_SHUFFLES,
    OWN_GROUP,
    WEEK,
    burstiness,
    calendar_rhythm,
    entropy,
    gap_buckets,
    gap_information,
    item_groups,
    memory,
    periodicity,
    resolution,
)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def _users(num_users, length):
    return np.repeat(np.arange(num_users), length)


def test_every_edge_opens_the_next_bucket():
    edges = [1, 60, 3_600, DAY, WEEK, 30 * DAY, 365 * DAY]
    assert gap_buckets(np.array(edges)).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert gap_buckets(np.array(edges) - 1).tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("counts", "bits"),
    [([9, 0], 0.0), ([4, 4], 1.0), ([1] * 8, 3.0), ([2, 1, 1], 1.5), ([0, 0], 0.0)],
)
def test_entropy_of_known_histograms(counts, bits):
    assert entropy(np.array(counts)) == bits


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ([100, 100 + DAY], DAY),  # whole days in another time zone
        ([0, 3_600, 7_200], 3_600),
        ([5, 65], 60),
        ([0, 61], 1),
        ([], DAY),
    ],
)
def test_the_resolution_divides_all_times(times, seconds):
    assert resolution(np.array(times, dtype=np.int64)) == seconds


def test_regular_gaps_are_not_bursty_and_a_single_long_one_is_the_most():
    regular, single = np.full(10, 500), np.array([0] * 9 + [500])
    assert burstiness(regular, _users(1, 10)) == pytest.approx(-1)
    assert burstiness(single, _users(1, 10)) == pytest.approx(1)
    # Users count alike, however many gaps they have.
    both = burstiness(np.concatenate([single, regular[:3]]), np.repeat([0, 1], [10, 3]))
    assert both == pytest.approx(0)


@pytest.mark.parametrize("length", [4, 10, 200])
def test_events_at_random_have_burstiness_0_whatever_their_number(length, rng):
    gaps = rng.exponential(1e6, 400 * length).astype(np.int64)
    tolerance = {4: 0.08, 10: 0.03, 200: 0.02}[length]  # uncorrected: -.18, -.07
    assert burstiness(gaps, _users(400, length)) == pytest.approx(0, abs=tolerance)


def test_burstiness_needs_two_gaps_that_are_not_all_zero():
    assert burstiness(np.array([5, 0, 0]), np.array([0, 1, 1])) is None
    assert burstiness(np.array([], np.int64), np.array([], np.int64)) is None


def test_memory_by_hand():
    gaps = np.array([1.0, 2.0, 3.0, 4.0, 9.0, 7.0, 5.0, 3.0])
    user = np.repeat([0, 1], 4)
    one, other = [1, 2, 3, 9, 7, 5], [2, 3, 4, 7, 5, 3]
    expected = np.corrcoef(one, other)[0, 1]
    assert memory(gaps, user) == pytest.approx(expected)
    assert memory(np.full(9, 2.0), _users(1, 9)) is None
    assert memory(np.array([1.0, 2.0, 3.0]), _users(1, 3)) is None


def test_a_period_of_four_gaps_is_found():
    gaps = np.tile([1.0, 2.0, 3.0, 2.0], 30 * 3)
    found = periodicity(gaps, _users(30, 12))
    assert found.strength == pytest.approx(1)
    assert found.by_chance < 0.8
    assert found.p < 1e-6


def test_gaps_that_take_turns_are_a_rhythm_too():
    found = periodicity(np.tile([0.0, 5.0], 40), _users(8, 10))
    assert found.strength == pytest.approx(1)


def test_no_rhythm_is_found_in_noise_nor_in_a_drift(rng):
    noise = periodicity(rng.gamma(0.3, size=300 * 9), _users(300, 9))
    assert noise.p > 0.01
    assert noise.strength == pytest.approx(noise.by_chance, abs=0.03)
    slow = np.cos(2 * np.pi * np.arange(16) / 16) + 1e-3 * rng.normal(size=(300, 16))
    drift = periodicity(slow.ravel(), _users(300, 16))
    assert drift.strength < drift.by_chance


def test_periodicity_needs_two_users_with_gaps_that_differ():
    assert periodicity(np.arange(10.0), np.repeat([0, 1], 5)) is None
    assert periodicity(np.full(20, 3.0), _users(2, 10)) is None
    assert periodicity(np.arange(10.0), _users(1, 10)) is None


def test_weekday_rhythm(rng):
    weeks = rng.integers(2_000, size=600)
    tuesdays = calendar_rhythm(weeks * WEEK + 5 * DAY, np.arange(600), WEEK)
    assert tuesdays.strength == pytest.approx(1)
    assert tuesdays.by_chance == pytest.approx(600**-0.5)
    assert tuesdays.p < 1e-100
    every_day = calendar_rhythm(np.arange(700) * DAY, np.arange(700), WEEK)
    assert every_day.strength == pytest.approx(0, abs=1e-9)
    assert every_day.p == pytest.approx(1)


def test_one_user_at_one_moment_is_no_rhythm_of_the_domain():
    busy = calendar_rhythm(np.full(1_000, 5 * DAY), np.zeros(1_000, np.int64), WEEK)
    assert (busy.strength, busy.by_chance) == (pytest.approx(1), pytest.approx(1))
    assert busy.p == pytest.approx(np.exp(-1))


def test_often_bought_items_are_their_own_group():
    counts = np.concatenate([[0], np.full(OWN_GROUP, 100), [9, 8, 7, 1]])
    groups = item_groups(np.repeat(np.arange(len(counts)), counts))
    assert len(set(groups[1 : OWN_GROUP + 1])) == OWN_GROUP
    assert groups[-4:].tolist() == [OWN_GROUP + 3, OWN_GROUP + 3, OWN_GROUP + 2, OWN_GROUP]


def test_a_gap_that_decides_what_follows_tells_one_bit(rng):
    last = rng.integers(3, size=3_000)
    long = rng.integers(2, size=3_000)
    follows = (last + 1 + long) % 3
    found = gap_information(long * 10 * DAY, follows, last)
    assert found.bits == pytest.approx(1, abs=0.01)
    assert found.p == 1 / (1 + INFORMATION_SHUFFLES)
    assert found.users == 3_000
    # Given nothing, the same gap says nothing: the last item's group matters.
    alone = gap_information(long * 10 * DAY, follows, np.zeros(3_000, np.int64))
    assert alone.bits == pytest.approx(0, abs=0.005)


def test_a_gap_that_only_depends_on_the_last_item_tells_nothing(rng):
    last = rng.integers(3, size=3_000)
    follows = (last + (rng.random(3_000) < 0.2)) % 3
    found = gap_information((last + 1) * 5 * DAY, follows, last)
    assert found.bits == pytest.approx(0, abs=1e-9)
    assert found.p == 1
    assert gap_information(*np.zeros((3, 0), np.int64)) is None


def test_shuffling_pays_for_the_bias_of_small_samples(rng):
    seconds, follows, last = rng.integers(1, 10**7, 400), rng.integers(40, size=400), np.zeros(400)
    found = gap_information(seconds, follows, last.astype(np.int64))
    assert found.bits == pytest.approx(0, abs=0.05)  # without: 0.4 bits
    assert found.p > 0.01
