from collections import Counter

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import candidates
from pipeline.candidates import collect_candidates
from pipeline.schema import Count
from pipeline.tables import RAW_INTERACTION_SCHEMA

# Few users, items, ratings and days: many duplicates and ties.
EVENT = st.tuples(
    st.integers(0, 7), st.integers(0, 5), st.sampled_from((1.0, 5.0)), st.integers(0, 2)
)


def _blocks(events, size):
    rows = [(f"u{u}", f"A{i}", rating, day, p) for p, (u, i, rating, day) in enumerate(events)]
    table = pl.DataFrame(rows, schema=RAW_INTERACTION_SCHEMA, orient="row")
    return [table[start : start + size] for start in range(0, len(table), size)]


def _distinct(events, policy):
    """Return the positions that stay, by sets and dicts."""
    if policy == "keep":
        return list(range(len(events)))
    if policy == "exact":
        first = {}
        for position, event in enumerate(events):
            first.setdefault(event, position)
        return sorted(first.values())
    first = {}
    for _, position in sorted((event[3], p) for p, event in enumerate(events)):
        first.setdefault(events[position][:2], position)
    return sorted(first.values())


@pytest.fixture(params=[1, 7, 1000], ids=lambda rows: f"{rows} rows in memory")
def rows_in_memory(request, monkeypatch):
    monkeypatch.setattr(candidates, "ROWS_IN_MEMORY", request.param)
    monkeypatch.setattr(candidates, "NUM_PARTS", 3)


@given(
    st.lists(EVENT, max_size=40),
    st.integers(1, 9),
    st.sampled_from(("exact", "pair", "keep")),
    st.integers(1, 4),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_as_by_sets_and_dicts(rows_in_memory, tmp_path_factory, events, size, policy, k):
    folder = tmp_path_factory.mktemp("spilled")
    found = collect_candidates(_blocks(events, size), folder, duplicates=policy, k=k)
    kept = _distinct(events, policy)
    users, items = {u for u, *_ in events}, {i for _, i, *_ in events}
    assert found.read == Count(
        step="read", users=len(users), items=len(items), interactions=len(events)
    )
    assert found.distinct.interactions == len(kept)
    assert sorted(found.items) == sorted(f"A{i}" for i in items)
    per_user = Counter(events[p][0] for p in kept)
    expected = [
        (f"u{events[p][0]}", f"A{events[p][1]}", events[p][3], p)
        for p in kept
        if per_user[events[p][0]] >= k
    ]
    assert found.name(found.rows).rows() == expected
    assert sorted(found.users) == sorted({row[0] for row in expected})
    even = [p for p in kept if events[p][1] % 2 == 0]
    assert found.count_items("even", pl.Series([f"A{i}" for i in (0, 2, 4, 98)])) == Count(
        step="even",
        users=len({events[p][0] for p in even}),
        items=len({events[p][1] for p in even}),
        interactions=len(even),
    )


def test_what_was_spilled_is_read_back_part_by_part(rows_in_memory, tmp_path):
    events = [(u, u % 3, 5.0, 0) for u in range(50) for _ in range(2)]
    found = collect_candidates(_blocks(events, 10), tmp_path, duplicates="keep", k=2)
    assert len(found.rows) == 100
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in found.pairs}
