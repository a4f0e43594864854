from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filtering import drop_duplicates, encode, k_core, keep_items
from pipeline.tables import RAW_INTERACTION_SCHEMA

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60)


def _table(pairs):
    rows = [(f"u{u}", f"A{i}", 5.0, 100 + p, p) for p, (u, i) in enumerate(pairs)]
    return pl.DataFrame(rows, schema=RAW_INTERACTION_SCHEMA, orient="row")


def _naive_core(pairs, k):
    """Remove one user or item at a time."""
    rows = list(enumerate(pairs))
    while True:
        for side in (0, 1):
            counts = Counter(pair[side] for _, pair in rows)
            rare = next((name for name, count in counts.items() if count < k), None)
            if rare is not None:
                rows = [row for row in rows if row[1][side] != rare]
                break
        else:
            return [position for position, _ in rows]


@given(PAIRS, st.integers(1, 5))
def test_core_equals_one_removal_at_a_time(pairs, k):
    core = k_core(_table(pairs), k)
    assert core["position"].to_list() == _naive_core(pairs, k)
    assert core.schema == RAW_INTERACTION_SCHEMA


@given(PAIRS, st.integers(1, 5))
def test_core_is_idempotent_and_large_enough(pairs, k):
    core = k_core(_table(pairs), k)
    assert k_core(core, k).equals(core)
    for name in ("user", "asin"):
        assert (core[name].value_counts()["count"] >= k).all()


@given(PAIRS, st.integers(2, 4), st.data())
def test_core_is_the_largest(pairs, k, data):
    """Any subset in which all have k interactions lies inside the core."""
    subset = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    table = _table(pairs)
    inside = table.filter(pl.Series([pair in subset for pair in pairs], dtype=pl.Boolean))
    assert set(k_core(inside, k)["position"]) <= set(k_core(table, k)["position"])


@pytest.mark.parametrize("pairs", [[], [(0, 0)], [(0, 0), (0, 1), (1, 0)]])
def test_core_may_be_empty(pairs):
    assert k_core(_table(pairs), 3).is_empty()


def test_core_of_a_chain_unravels_to_nothing():
    pairs = [(step // 2, (step + 1) // 2) for step in range(200)]
    assert k_core(_table(pairs), 2).is_empty()


def test_repeat_purchases_count_in_the_core():
    assert k_core(_table([(0, 0), (0, 0), (1, 0)]), 2)["position"].to_list() == [0, 1]


REPEATED = [  # user, item, rating, timestamp
    (0, 7, 5.0, 10),
    (1, 7, 5.0, 10),
    (0, 7, 5.0, 10),
    (0, 7, 4.0, 10),
    (0, 7, 5.0, 9),
    (0, 8, 5.0, 10),
    (0, 7, 5.0, 10),
]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("exact", [0, 1, 3, 4, 5]),  # another time or rating stays
        ("pair", [1, 4, 5]),  # the earliest, wherever it is in the file
        ("keep", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_each_policy_of_duplicates_keeps_its_rows_in_order(policy, kept):
    rows = [(*row, position) for position, row in enumerate(REPEATED)]
    codes = {"user": pl.UInt32, "asin": pl.UInt32}
    table = pl.DataFrame(rows, schema=RAW_INTERACTION_SCHEMA | codes, orient="row")
    assert drop_duplicates(table, policy)["position"].to_list() == kept
    assert drop_duplicates(table, policy).schema == table.schema


def test_users_and_items_with_large_codes_are_told_apart():
    last = 2**32 - 1
    rows = [(0, last, 5.0, 1, 0), (last, 0, 5.0, 1, 1), (last, last, 5.0, 1, 2)]
    codes = {"user": pl.UInt32, "asin": pl.UInt32}
    table = pl.DataFrame(rows, schema=RAW_INTERACTION_SCHEMA | codes, orient="row")
    assert drop_duplicates(table, "exact").equals(table)


def test_codes_are_places_in_the_values():
    names = pl.Series("user", ["b", "a", "b", "c"])
    codes, values = encode(names)
    assert codes.tolist() == [0, 1, 0, 2]
    assert values.to_list() == ["b", "a", "c"]


@pytest.mark.parametrize("asins", [["A3", "A1", "A9"], pl.Series("x", ["A1", "A3"])])
def test_keep_items_keeps_rows_and_their_order(asins):
    table = _table([(0, 3), (1, 2), (2, 1), (0, 3)])
    assert keep_items(table, asins)["position"].to_list() == [0, 2, 3]
    assert keep_items(table, []).is_empty()
