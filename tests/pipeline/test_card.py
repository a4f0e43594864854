import polars as pl

from pipeline.card import data_card, format_card
from pipeline.outcomes import OUTCOME_SCHEMA
from pipeline.schema import Count, FeatureSet
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
    "cut_users": 0,
}


def _compared(step, quantity, published, found):
    return {
        "step": step,
        "quantity": quantity,
        "published": published,
        "found": found,
        "difference": found - published,
    }


def test_the_card_by_hand():
    card = data_card("Tiny", COUNTS, TABLES, INTERACTIONS, ITEMS, OUTCOMES)
    assert card == {
        "domain": "Tiny",
        "counts": [count.model_dump() for count in COUNTS],
        "published": None,
        "bad_lines": {"a.csv": 3, "meta_a.json.gz": 0},
        "cut_users": 0,
        "interactions_per_user": {"min": 2, "median": 3.0, "max": 5},
        "ambiguous_order_share": 0.3333,
        "images": {
            "items": 4,
            "with_url": 3,
            "ok": 2,
            "coverage": 0.5,
            "placeholder": 0,
            "urls": {"ok": 2, "gone": 1, "not_found": 1},
        },
        "text_characters": {"min": 7, "median": 11.5, "max": 1_500},
        "features": {},
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
    none = {"with_url": 0, "ok": 0, "coverage": 0.0, "placeholder": 0, "urls": {}}
    assert card["images"] == {"items": 4, **none}
    lines = format_card(card).splitlines()
    assert lines[-1] == "  time                     no timestamps: training turns time off"
    assert "  image URLs               none asked" in lines
    assert not any("ambiguous" in line or "set aside" in line for line in lines)


def test_the_step_where_a_difference_from_published_counts_begins():
    rows = [
        _compared("read", "interactions", 12_345, 12_345),
        _compared("5-core", "users", 4, 3),
        _compared("5-core", "items", 4, 4),
        _compared("5-core", "interactions", 9, 10),
    ]
    published = {"rows": rows, "first_difference": "5-core", "note": None}
    card = data_card("Tiny", COUNTS, TABLES, INTERACTIONS, ITEMS, OUTCOMES, published)
    assert card["published"] == published
    line = "  published counts         a difference begins at '5-core': users 3 (-1 against 4), "
    assert line + "interactions 10 (+1 against 9)" in format_card(card).splitlines()
    equal = {"rows": rows[:1], "first_difference": None, "note": None}
    card = data_card("Tiny", COUNTS, TABLES, INTERACTIONS, ITEMS, OUTCOMES, equal)
    assert "  published counts         equal: read" in format_card(card).splitlines()
    incomparable = {"rows": [], "first_difference": None, "note": "not comparable: k_core is 3"}
    card = data_card("Tiny", COUNTS, TABLES, INTERACTIONS, ITEMS, OUTCOMES, incomparable)
    assert not any("published" in line for line in format_card(card).splitlines())


def test_features_are_counted():
    made = FeatureSet(modality="image", key="pixels-1", encoder="pixels", width=3, present=2)
    card = data_card("Tiny", COUNTS, TABLES, INTERACTIONS, ITEMS, OUTCOMES, None, [made])
    assert card["features"] == {"image": {"pixels-1": 2}}
    assert "  image features           2 of 4 items (pixels-1)" in format_card(card).splitlines()


def test_placeholders_and_cut_sequences_are_said():
    items = ITEMS.with_columns(image_status=pl.Series(["ok", "placeholder", "ok", "placeholder"]))
    card = data_card("Tiny", COUNTS, TABLES | {"cut_users": 3}, INTERACTIONS, items, OUTCOMES)
    assert (card["images"]["placeholder"], card["images"]["ok"], card["cut_users"]) == (2, 2, 3)
    lines = format_card(card).splitlines()
    images = "2 of 4 items (50.0%); 3 have a URL, 2 a placeholder"
    assert f"  images                   {images}" in lines
    assert any(line.startswith("  cut sequences            3 users: as long") for line in lines)
