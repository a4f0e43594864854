import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmm4rec.errors import DataError
from pipeline.splitting import ambiguous_order_share, assign_ids
from pipeline.tables import (
    INTERACTION_SCHEMA,
    ITEM_SCHEMA,
    METADATA_SCHEMA,
    RAW_INTERACTION_SCHEMA,
    USER_SCHEMA,
)


def _raw(rows):
    """Rows of user, asin, timestamp; the position is the row's place."""
    rows = [(u, a, 5.0, t, p) for p, (u, a, t) in enumerate(rows)]
    return pl.DataFrame(rows, schema=RAW_INTERACTION_SCHEMA, orient="row")


def _metadata(*asins):
    rows = [(a, f"title {a}", f"brand {a}", f"text {a}", [f"http://x/{a}"]) for a in asins]
    return pl.DataFrame(rows, schema=METADATA_SCHEMA, orient="row")


ROWS = [("v", "B", 30), ("u", "C", 20), ("v", "A", 10), ("u", "A", 20), ("u", "B", 10)]


TRIPLES = st.tuples(st.sampled_from("uvw"), st.sampled_from("ABC"), st.integers(0, 3))


@given(st.lists(TRIPLES, min_size=1), st.randoms(use_true_random=False))
def test_nothing_depends_on_the_order_of_the_rows_given(rows, random):
    table = _raw(rows)
    shuffled = table[random.sample(range(len(rows)), len(rows))]
    one, other = (assign_ids(given, _metadata("A", "B")) for given in (table, shuffled))
    assert one.interactions.equals(other.interactions)
    assert one.users.equals(other.users)
    assert one.items.equals(other.items)


def test_ids_are_sorted_by_name_items_from_1_users_from_0():
    numbered = assign_ids(_raw(ROWS), _metadata("C", "D", "A"))
    assert numbered.users.rows() == [(0, "u"), (1, "v")]
    assert numbered.interactions.rows() == [
        (0, 2, 10),
        (0, 3, 20),
        (0, 1, 20),
        (1, 1, 10),
        (1, 2, 30),
    ]
    assert numbered.items.rows() == [
        (1, "A", "title A", "brand A", "text A", ["http://x/A"]),
        (2, "B", "", "", "B", []),  # no metadata: the asin describes it
        (3, "C", "title C", "brand C", "text C", ["http://x/C"]),
    ]
    assert numbered.interactions.schema == INTERACTION_SCHEMA
    assert numbered.users.schema == USER_SCHEMA
    assert [*numbered.items.schema.items(), ("image_status", pl.String)] == list(
        ITEM_SCHEMA.items()
    )


def test_a_set_with_its_own_numbers_keeps_them_and_items_without_events():
    raw = _raw([("u", "B", None), ("u", "A", None), ("v", "C", None)])
    numbered = assign_ids(raw, _metadata(), items=["C", "X", "B", "A"], users=["v", "u"])
    assert numbered.interactions.rows() == [(0, 1, 0), (1, 3, 0), (1, 4, 0)]
    assert numbered.items["asin"].to_list() == ["C", "X", "B", "A"]
    assert numbered.items["item_id"].to_list() == [1, 2, 3, 4]
    assert numbered.users.rows() == [(0, "v"), (1, "u")]


def test_a_name_outside_the_index_is_an_error():
    raw = _raw([("u", "B", 1), ("v", "A", 2)])
    with pytest.raises(DataError, match=r"1 items .* no number in the item index, 'B' among them"):
        assign_ids(raw, _metadata(), items=["A"])
    with pytest.raises(DataError, match=r"1 users .* no number in the user index, 'v' among them"):
        assign_ids(raw, _metadata(), users=["u"])


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        ([("u", "A", 1), ("u", "B", 2)], 0.0),
        ([("u", "A", 2), ("u", "B", 2)], 1.0),
        ([("u", "A", 2), ("u", "A", 2)], 0.0),  # the same item: nothing depends on it
        ([("u", "A", 2), ("u", "B", 2), ("u", "B", 2)], 1.0),
        ([("u", "A", 1), ("u", "B", 1), ("u", "C", 2)], 0.0),  # the tie is not at the end
        ([("u", "A", 1), ("u", "B", 1), ("v", "A", 1), ("w", "A", 1), ("w", "B", 3)], 1 / 3),
        ([("u", "A", None), ("u", "B", None)], 0.0),
        ([], 0.0),
    ],
)
def test_ambiguous_order_share(rows, share):
    assert ambiguous_order_share(_raw(rows)) == pytest.approx(share)
