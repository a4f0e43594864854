import gzip
import json

import pytest

from mmm4rec.errors import DataError
from pipeline import rawfile
from pipeline.amazon import read_interactions
from pipeline.rawfile import LATEST
from pipeline.tables import RAW_INTERACTION_SCHEMA

REVIEW = {"reviewerID": "u1", "asin": "B1", "overall": 4, "unixReviewTime": 86_400, "x": [1]}
REVIEW_2023 = {
    "user_id": "u1",
    "asin": "B0",
    "parent_asin": "B1",
    "rating": 4.0,
    "timestamp": 86_400_999,
    "images": [{"small_image_url": "x", "attachment_type": "IMAGE"}],
}
HUGE = 10**4000  # Python reads it; no other type holds it


def _lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _read(tmp_path, data, name="X_5.json.gz", **kwargs):
    data = data if isinstance(data, bytes) else _lines(data)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return read_interactions(tmp_path / name, **kwargs)


def test_reviews_give_the_rows_that_ratings_give(tmp_path):
    reviews = [REVIEW, REVIEW | {"asin": "B2", "overall": 5.0, "unixReviewTime": 0}]
    read = _read(tmp_path, _lines(reviews).replace(b"\n", b"\n\n", 1))
    ratings = _read(tmp_path, b"B1,u1,4,86400\n\nB2,u1,5.0,0\n", "X.csv")
    assert read.rows.equals(ratings.rows)
    assert read.rows.schema == RAW_INTERACTION_SCHEMA
    assert read.rows["position"].to_list() == [0, 2]
    assert read.lines == 3


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [200, 1 << 23])
def test_reviews_of_2023_are_of_the_parent_item_with_times_in_seconds(
    tmp_path, monkeypatch, ending, size
):
    reviews = [REVIEW_2023 | {"user_id": f"u{n}", "timestamp": n * 1000 + n} for n in range(99)]
    monkeypatch.setattr(rawfile, "BLOCK_BYTES", size)
    data = _lines(reviews).replace(b"\n", ending)
    read = _read(tmp_path, data, "X.jsonl.gz", release="2023")
    assert read.rows.rows() == [(f"u{n}", "B1", 4.0, n, n) for n in range(99)]
    assert read.rows.schema == RAW_INTERACTION_SCHEMA


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reviewerID": ""}, "reviewerID '' is not a name"),
        ({"reviewerID": 7}, "reviewerID 7 is not a name"),
        ({"reviewerID": ["u"]}, r"reviewerID ['u'] is not a name"),
        ({"reviewerID": "\ud83d"}, r"reviewerID '\ud83d' is not a name"),
        ({"reviewerID": "u\ud83dx"}, r"reviewerID 'u\ud83dx' is not a name"),
        ({"asin": None}, "asin None is not 1 to 64 letters"),
        ({"asin": 5}, "asin 5 is not 1 to 64 letters"),
        ({"asin": "B1\n"}, r"asin 'B1\n' is not 1 to 64 letters"),
        ({"asin": "../B1"}, "asin '../B1' is not 1 to 64 letters"),
        ({"overall": "5"}, "overall '5' is not a finite number"),
        ({"overall": None}, "overall None is not a finite number"),
        ({"overall": True}, "overall True is not a finite number"),
        ({"overall": float("nan")}, "overall nan is not a finite number"),
        ({"overall": float("-inf")}, "overall -inf is not a finite number"),
        ({"overall": 1e39}, "overall 1e+39 is not a finite number"),
        ({"overall": HUGE}, "overall 1000"),
        ({"unixReviewTime": "01 2, 2012"}, "timestamp '01 2, 2012' is not an integer"),
        ({"unixReviewTime": "86400"}, "timestamp '86400' is not an integer"),
        ({"unixReviewTime": 86400.0}, "timestamp 86400.0 is not an integer"),
        ({"unixReviewTime": True}, "timestamp True is not an integer"),
        ({"unixReviewTime": None}, "timestamp None is not an integer"),
        ({"unixReviewTime": -1}, f"timestamp -1 is not in 0..{LATEST} (Unix seconds until 2100)"),
        ({"unixReviewTime": LATEST + 1}, f"timestamp {LATEST + 1} is not in 0..{LATEST}"),
        ({"unixReviewTime": HUGE}, "timestamp 1000"),
    ],
)
def test_a_malformed_review_is_an_error_with_file_line_and_reason(tmp_path, change, reason):
    with pytest.raises(
        DataError, match="expected a JSON object with reviewerID, asin, overall and"
    ) as error:
        _read(tmp_path, [REVIEW, REVIEW | change], "X.json")
    assert str(error.value).startswith(f"{tmp_path / 'X.json'}:2: {reason}")
    read = _read(tmp_path, [REVIEW, REVIEW | change, REVIEW], "X.json", max_bad_lines=1)
    assert read.rows["position"].to_list() == [0, 2]
    assert read.bad_lines["line"].to_list() == [2]


def test_a_malformed_review_of_2023_names_its_fields(tmp_path):
    records = [REVIEW_2023, REVIEW_2023 | {"timestamp": LATEST * 1000 + 1}]
    match = "not in 0..4102444800000 .*with user_id, parent_asin, rating and timestamp"
    with pytest.raises(DataError, match=match):
        _read(tmp_path, records, "X.jsonl", release="2023")


@pytest.mark.parametrize(
    ("record", "release", "message"),
    [
        (REVIEW_2023, "2018", "reviews of the 2018 .* reviews of the 2023 .*Next: --release 2023"),
        (REVIEW, "2023", "reviews of the 2023 .* reviews of the 2018 .*Next: --release 2018"),
        ({"asin": "B1", "title": ""}, "2018", "reviews of .* metadata of the 2018 .*its own name"),
        ({"parent_asin": "B1"}, "2023", "reviews of .* metadata of the 2023 .*its own name"),
    ],
)
def test_another_file_under_the_name_of_reviews_is_named(tmp_path, record, release, message):
    with pytest.raises(DataError, match=f"X.json: expected {message}"):
        _read(tmp_path, [record] * 3, "X.json", release=release, max_bad_lines=9)


@pytest.mark.parametrize(
    ("record", "release", "message"),
    [
        (
            REVIEW | {"unixReviewTime": 1_600_000_000_000},
            "2018",
            "are seconds, but these look like milliseconds .*--release 2023",
        ),
        (
            REVIEW_2023 | {"timestamp": 1_600_000_000},
            "2023",
            "are milliseconds, but these look like seconds .*--release 2018",
        ),
    ],
)
def test_times_in_another_unit_are_named(tmp_path, record, release, message):
    with pytest.raises(DataError, match=f"times of the {release} release {message}"):
        _read(tmp_path, [record] * 3, "X.json", release=release, max_bad_lines=9)
