import numpy as np
import pytest

from mmm4rec.errors import ConfigError
from pipeline.synthetic.temporal import (
    DAY,
    FOLLOW,
    KINDS,
    LONG,
    LONGEST,
    NUM_CLUSTERS,
    PERIODS,
    SHORT,
    STEPS,
    draw_world,
)

USERS = 3_000
# Of a share over 3,000 users, four standard errors.
NEAR = 4 * np.sqrt(0.25 / USERS)
SEEING = FOLLOW + (1 - FOLLOW) / NUM_CLUSTERS


def users(world):
    """Clusters and gaps (seconds before each interaction) of every user."""
    clusters_N = world.clusters_I[world.items_N]
    for first, end in zip(world.offsets_U[:-1], world.offsets_U[1:], strict=True):
        yield clusters_N[first:end], np.diff(world.seconds_N[first:end], prepend=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["days", "seconds"])
def test_the_ceilings_are_those_of_the_rule(kind, unit):
    blind, seeing = draw_world(kind, unit=unit, num_users=USERS, seed=3).ceilings(USERS)
    assert seeing == pytest.approx(SEEING, abs=NEAR)
    by_chance = SEEING if kind == "nothing" else FOLLOW / 2 + (1 - FOLLOW) / NUM_CLUSTERS
    assert blind == pytest.approx(by_chance, abs=NEAR)


@pytest.mark.parametrize("unit", ["days", "seconds"])
@pytest.mark.parametrize(
    ("kind", "back"), [("gap", 1), ("query", 0), ("marked", None), ("nothing", None)]
)
def test_times_tell_the_answer(kind, back, unit):
    """Read from the interactions alone: the gap that decides, then the step from the last item."""
    world = draw_world(kind, unit=unit, num_users=USERS, seed=1)
    border, told = (SHORT[unit][1] + LONG[unit][0]) / 2, []
    for (clusters, gaps), bit in zip(users(world), world.bits_U, strict=True):
        if kind == "marked":
            (at,) = np.flatnonzero(clusters == 2 * NUM_CLUSTERS)
            assert 3 <= len(clusters) - 2 - at <= 5  # steps to the last one before the answer
        else:
            at = len(clusters) - 1 - (back or 0)
        read = 0 if kind == "nothing" else int(gaps[at] > border)
        assert read == bit
        told.append((clusters[-1] - clusters[-2]) % NUM_CLUSTERS == STEPS[read])
    assert np.mean(told) == pytest.approx(SEEING, abs=NEAR)


@pytest.mark.parametrize("kind", ["gap", "marked", "rhythm"])
def test_items_do_not_tell_the_bit(kind):
    world = draw_world(kind, unit="days", num_users=USERS, seed=2)
    lasts = np.array([clusters[-2] % NUM_CLUSTERS for clusters, _ in users(world)])
    for cluster in range(NUM_CLUSTERS):
        bits = world.bits_U[lasts == cluster]
        assert bits.mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / len(bits)))


def test_the_period_shows_in_the_spectrum():
    """An oracle that looks at the power at both frequencies finds nearly every period."""
    world = draw_world("rhythm", unit="seconds", num_users=500, seed=4)
    found = []
    for _, gaps in users(world):
        log_gaps = np.log(gaps[1:-1] + 1)
        log_gaps = log_gaps - log_gaps.mean()
        places = np.arange(len(log_gaps))
        powers = [abs(np.exp(-2j * np.pi * places / period) @ log_gaps) for period in PERIODS]
        found.append(int(np.argmax(powers)))
    assert np.mean(np.array(found) == world.bits_U) > 0.95


def test_times_are_ordered_whole_and_from_ties_to_years():
    for unit, step in (("days", DAY), ("seconds", 1)):
        world = draw_world("gap", unit=unit, num_users=500, seed=5)
        gaps = np.concatenate([gaps[1:] for _, gaps in users(world)])
        assert (world.seconds_N % step == 0).all()
        assert gaps.min() == 0
        assert 0.1 < (gaps == 0).mean() < 0.2
        assert 0.9 * LONGEST < gaps.max() <= LONGEST


def test_equal_arguments_give_equal_worlds():
    one, again, other = (draw_world("gap", unit="days", num_users=50, seed=s) for s in (7, 7, 8))
    assert (one.items_N == again.items_N).all()
    assert (one.seconds_N == again.seconds_N).all()
    assert one.items_N.tolist() != other.items_N.tolist()


def test_an_unknown_world_is_an_error():
    with pytest.raises(ConfigError, match=r"no planted world 'tides'\. Allowed: gap, query"):
        draw_world("tides", unit="days", num_users=1, seed=0)
