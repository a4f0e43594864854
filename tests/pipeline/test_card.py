import polars as pl

from pipeline.card import data_card, format_card
from pipeline.outcomes import OUTCOME_SCHEMA
from pipeline.schema import Count
from pipeline.tables import INTERACTION_SCHEMA, ITEM_SCHEMA

DAY = 86_400
COUNTS = [
    Count(step="read", users=1_200, items=50, interactions=12_345),
    Count(step="5-core", users=3, items=4, interactions=10),
]
# Users with 2, 3 and 5 interactions, from 2014-05-13 to 2014-05-23.
INTERACTIONS = pl.DataFrame(
    {
        "user_id": [0] * 2 + [1] * 3 + [2] * 5,
        "item_id": [1, 2, 3, 4, 1, 2, 3, 4, 1, 2],
        "timestamp": [1_400_000_000 + n * DAY for n in (3, 4, 0, 1, 2, 5, 6, 7, 8, 10)],
    },
    schema=INTERACTION_SCHEMA,
)
ITEMS = pl.DataFrame(
    {
        "item_id": [1, 2, 3, 4],
        "asin": ["A", "B", "C", "D"],
        "title": [""] * 4,
        "brand": [""] * 4,
        "text": ["x" * 7, "x" * 1_500, "x" * 10, "x" * 13],
        "image_urls": [["u1"], ["u2", "u3"], ["u4"], []],
        "image_status": ["ok", "gone", "ok", "missing"],
    },
    schema=ITEM_SCHEMA,
)
OUTCOMES = pl.DataFrame(
    {
        "item_id": [1, 2, 2, 3],
        "url": ["u1", "u2", "u3", "u4"],
        "status": ["ok", "permanent", "permanent", "ok"],
        "error": [None, "not_found", "gone", None],
    },
    schema={name: OUTCOME_SCHEMA[name] for name in ("item_id", "url", "status", "error")},
)
TABLES = {
    "bad_lines": {"a.csv": 3, "meta_a.json.gz": 0},
    "ambiguous_order_share": 0.3333,
    "has_time": True,
}


def test_the_card_by_hand():
    card = data_card("Tiny", COUNTS, TABLES, INTERACTIONS, ITEMS, OUTCOMES)
    assert card == {
        "domain": "Tiny",
        "counts": [count.model_dump() for count in COUNTS],
        "bad_lines": {"a.csv": 3, "meta_a.json.gz": 0},
        "interactions_per_user": {"min": 2, "median": 3.0, "max": 5},
        "ambiguous_order_share": 0.3333,
        "images": {
            "items": 4,
            "with_url": 3,
            "ok": 2,
            "coverage": 0.5,
            "urls": {"ok": 2, "gone": 1, "not_found": 1},
        },
        "text_characters": {"min": 7, "median": 11.5, "max": 1_500},
        "time": {"first": "2014-05-13", "last": "2014-05-23"},
    }


def test_the_card_as_lines():
    card = data_card("Tiny", COUNTS, TABLES, INTERACTIONS, ITEMS, OUTCOMES)
    assert format_card(card).splitlines() == [
        "Tiny",
        "                               users     items  interactions",
        "  read                         1,200        50        12,345",
        "  5-core                           3         4            10",
        "  set aside                3 malformed lines of a.csv",
        "  interactions a user      median 3, most 5",
        "  images                   2 of 4 items (50.0%); 3 have a URL",
        "  image URLs               ok 2, gone 1, not_found 1",
        "  text                     characters: least 7, median 11.5, most 1,500",
        "  time                     2014-05-13 to 2014-05-23",
        "  ambiguous order          33.3% of users: their last two items share a timestamp, "
        "file order decides",
    ]


def test_a_set_without_times_or_images():
    tables = TABLES | {"has_time": False, "ambiguous_order_share": None, "bad_lines": {}}
    timeless = INTERACTIONS.with_columns(timestamp=pl.lit(0, pl.Int64))
    items = ITEMS.with_columns(
        image_urls=pl.lit([], pl.List(pl.String)), image_status=pl.lit("missing")
    )
    card = data_card("Tiny", COUNTS, tables, timeless, items, OUTCOMES.clear())
    assert (card["time"], card["ambiguous_order_share"]) == (None, None)
    assert card["images"] == {"items": 4, "with_url": 0, "ok": 0, "coverage": 0.0, "urls": {}}
    lines = format_card(card).splitlines()
    assert lines[-1] == "  time                     no timestamps: training turns time off"
    assert "  image URLs               none asked" in lines
    assert not any("ambiguous" in line or "set aside" in line for line in lines)
