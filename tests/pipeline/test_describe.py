import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmm4rec.config import PrepareConfig
from mmm4rec.errors import ConfigError, DataError
from pipeline.describe import describe_domain, describe_interactions, format_statistics
from pipeline.inputs import resolve_inputs
from pipeline.splitting import assign_ids
from pipeline.survivors import filter_amazon
from pipeline.synthetic.temporal import draw_world
from pipeline.tables import INTERACTION_SCHEMA
from pipeline.time_statistics import DAY, WEEK

REAL_DATA = os.environ.get("MMM4REC_REAL_DATA")


def _interactions(*users):
    """Each user is a list of (item, time)."""
    rows = [(user, item, time) for user, events in enumerate(users) for item, time in events]
    return pl.DataFrame(rows, schema=INTERACTION_SCHEMA, orient="row")


def _describe(*users, has_time=True, max_len=3):
    return describe_interactions("Tiny", _interactions(*users), has_time=has_time, max_len=max_len)


def test_a_tiny_domain_by_hand():
    found = _describe(
        [(1, 0), (2, 0), (3, 30), (1, WEEK)],
        [(2, 5), (4, 5 + 2 * DAY)],
        [(3, 9)],
    )
    assert (found.users, found.items, found.interactions) == (3, 4, 7)
    assert found.lengths["median"] == 2
    assert found.lengths["mean"] == pytest.approx(7 / 3)
    assert (found.lengths["min"], found.lengths["max"]) == (1, 4)
    assert found.longer_share == pytest.approx(1 / 3)
    time = found.time
    # Gaps: 0, 30 and WEEK - 30 seconds, and 2 days.
    assert {name: share for name, share in time.gap_shares.items() if share} == {
        "0 seconds": 0.25,
        "under a minute": 0.25,
        "under a week": 0.5,
    }
    assert (time.gap_entropy, time.gap_entropy_share) == (1.5, 0.5)
    assert (time.tie_share, time.same_day_share) == (0.25, 0.5)
    assert (time.ambiguous_order_share, time.resolution_s) == (0, 1)
    assert (time.last_gap.users, time.query_gap.users) == (1, 2)
    assert (time.memory, time.periodicity) == (None, None)


def test_nothing_depends_on_the_order_of_the_users():
    world = draw_world("gap", unit="seconds", num_users=200, seed=1)
    users = [
        list(zip(world.items_N[a:b], world.seconds_N[a:b], strict=True))
        for a, b in zip(world.offsets_U[:-1], world.offsets_U[1:], strict=True)
    ]
    order = np.random.default_rng(0).permutation(len(users))
    one, other = _describe(*users), _describe(*(users[index] for index in order))
    assert one.predictors() == pytest.approx(other.predictors())
    assert one.time.last_gap.p == other.time.last_gap.p
    assert one.time.periodicity.p == pytest.approx(other.time.periodicity.p)


@pytest.mark.parametrize(
    ("kind", "telling"),
    [("gap", "last gap"), ("query", "query gap"), ("rhythm", "periodicity"), ("nothing", None)],
)
def test_what_decides_in_a_planted_world_stands_out(kind, telling):
    world = draw_world(kind, unit="days", num_users=800, seed=2)
    table = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(800), np.diff(world.offsets_U)),
            "item_id": world.items_N,
            "timestamp": world.seconds_N,
        }
    )
    found = describe_interactions(kind, table, has_time=True, max_len=20)
    assert found.time.resolution_s == DAY
    ps = {
        "last gap": found.time.last_gap.p,
        "query gap": found.time.query_gap.p,
        "periodicity": found.time.periodicity.p,
    }
    assert {name for name, p in ps.items() if p < 0.005} == ({telling} - {None})
    assert telling is None or found.predictors()[telling] > 0.05


def test_without_times_nothing_is_said_of_them():
    found = _describe([(1, 0), (2, 0), (3, 0)], [(1, 0)], has_time=False)
    assert (found.has_time, found.time, found.predictors()) == (False, None, {})
    assert format_statistics(found).splitlines()[-1] == (
        "  time                   no timestamps: nothing can be said of time, and no model can "
        "use it"
    )


def test_users_with_a_single_interaction_have_no_gap():
    found = _describe([(1, 5)], [(2, 9)])
    assert (found.has_time, found.time) == (True, None)
    assert "no user has two interactions" in format_statistics(found)


def test_a_domain_needs_an_interaction():
    with pytest.raises(DataError, match=r"Tiny has no interaction\. Next: mmm4rec prepare"):
        _describe()


def test_the_lines_for_a_terminal():
    lines = format_statistics(
        _describe([(1, 0), (2, DAY), (3, 3 * DAY)], [(2, 0), (1, 0)], max_len=2)
    ).splitlines()
    assert lines[0] == "Tiny"
    assert "  longer than max_len    50.0% of users have more than 2 interactions" in lines
    assert "  resolution of times    days" in lines
    assert "  gaps                   0 seconds 33.3%, under a week 66.7%" in lines
    assert "  gap entropy            0.92 bits of 3" in lines
    assert "  periodicity            no two users have enough gaps" in lines
    assert "  memory                 no user has enough gaps" in lines
    assert any(line.startswith("  the last gap tells     0.000 bits") for line in lines)


def test_a_prepared_domain_is_described_and_serialises(data_dir):
    found = describe_domain(data_dir, "MiniOffice", 20)
    table = pl.read_parquet(data_dir / "prepared" / "MiniOffice" / "interactions.parquet")
    assert found == describe_interactions("MiniOffice", table, has_time=True, max_len=20)
    assert (found.users, found.interactions) == (60, len(table))
    assert json.loads(json.dumps(found.as_dict()))["time"]["resolution_s"] == DAY


def test_a_domain_that_is_not_there_or_broken(data_dir, tmp_path):
    with pytest.raises(DataError, match=r"not a prepared domain.*Next: mmm4rec prepare"):
        describe_domain(tmp_path, "MiniOffice", 20)
    with pytest.raises(ConfigError):
        describe_domain(tmp_path, "../x", 20)
    folder = tmp_path / "prepared" / "MiniOffice"
    folder.mkdir(parents=True)
    manifest = data_dir / "prepared" / "MiniOffice" / "manifest.json"
    (folder / "manifest.json").write_bytes(manifest.read_bytes())
    (folder / "interactions.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"does not read as Parquet.*Next: delete"):
        describe_domain(tmp_path, "MiniOffice", 20)


@pytest.mark.real
@pytest.mark.skipif(REAL_DATA is None, reason="MMM4REC_REAL_DATA names no folder")
def test_magazines_are_bought_in_bursts_on_whole_days(tmp_path):
    name = "Magazine_Subscriptions"
    files = resolve_inputs(name, str(Path(REAL_DATA) / "amazon2018" / name), Path("unused"))
    kept = filter_amazon(name, files, PrepareConfig(), tmp_path)
    table = assign_ids(kept.interactions, kept.metadata).interactions
    found = describe_interactions(name, table, has_time=True, max_len=20)
    assert (found.users, found.items, found.interactions) == (284, 126, 1_950)
    assert (found.lengths["min"], found.lengths["max"]) == (5, 28)
    time = found.time
    assert time.resolution_s == DAY
    assert time.ambiguous_order_share == pytest.approx(158 / 284)
    assert time.tie_share == time.same_day_share == pytest.approx(953 / 1_666)
    assert 0.3 < time.burstiness < 0.8
    assert time.memory > 0.2
    assert time.last_gap.users == 284
