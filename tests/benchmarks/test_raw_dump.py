import gzip
import json
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from benchmarks.raw_dump import (
    LINES_AT_ONCE,
    METADATA_FILE,
    RATINGS_FILE,
    item_names,
    measure_shape,
    write_raw_dump,
)

COLUMNS = ["item", "user", "rating", "timestamp"]
RATINGS, LINES = 100_000, 4_000


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dump") / "new"
    write_raw_dump(folder, RATINGS, LINES, seed=1)
    return folder


@pytest.fixture(scope="module")
def rows(dump):
    return pl.read_csv(dump / RATINGS_FILE, has_header=False, new_columns=COLUMNS)


@pytest.fixture(scope="module")
def records(dump):
    with gzip.open(dump / METADATA_FILE) as file:
        return [json.loads(line) for line in file]


def test_the_shape_is_that_of_amazon(dump):
    shape = measure_shape(dump)
    assert shape["ratings"] == RATINGS
    assert 0.55 <= shape["users"] / RATINGS <= 0.65
    assert 0.7 <= shape["one_rating_share"] <= 0.85
    assert 0.9 * RATINGS / 25 <= shape["items"] <= RATINGS / 25
    assert shape["duplicate_share"] == pytest.approx(0.02, abs=0.002)
    assert 0.1 <= shape["core_share"] <= 0.17


def test_the_shape_agrees_with_a_count_by_hand(dump, rows):
    shape = measure_shape(dump)
    distinct = set(rows.iter_rows())
    assert shape["duplicate_share"] == round(1 - len(distinct) / RATINGS, 4)
    assert shape["users"] == len({row[1] for row in distinct})
    assert shape["items"] == len({row[0] for row in distinct})


def test_ratings_are_lines_as_in_the_release(dump, rows):
    first = (dump / RATINGS_FILE).read_text().splitlines()[0].split(",")
    assert first == [rows["item"][0], rows["user"][0], str(rows["rating"][0]), first[3]]
    assert set(rows["rating"]) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert rows["item"].str.contains(r"^B[0-9A-Z]{9}$").all()
    assert rows["user"].str.contains(r"^A[0-9A-Z]{12}$").all()
    assert (rows["timestamp"] % 86_400 == 0).all()
    assert rows["timestamp"].min() >= datetime(1998, 1, 1, tzinfo=UTC).timestamp()
    assert rows["timestamp"].max() <= datetime(2018, 10, 1, tzinfo=UTC).timestamp()
    assert datetime.fromtimestamp(rows["timestamp"].median(), UTC).year == 2015


def test_a_few_items_have_most_ratings_and_rows_of_an_item_lie_together(rows):
    counts = rows.group_by("item").len()["len"].sort(descending=True)
    assert counts.head(len(counts) // 10).sum() > RATINGS / 2
    assert len(rows["item"].rle()) == len(counts)


def test_metadata_describes_most_rated_items_once_and_others(rows, records):
    assert len(records) == LINES
    described = {record["asin"] for record in records}
    assert len(described) == LINES
    rated = set(rows["item"])
    assert len(rated & described) / len(rated) == pytest.approx(0.9, abs=0.01)
    assert len(described - rated) > 0.1 * LINES * 0.9


def test_metadata_lines_look_like_those_of_the_release(records):
    sizes = [len(json.dumps(record)) + 1 for record in records]
    assert 1_600 <= np.mean(sizes) <= 2_000
    assert all(record["title"] and record["brand"] for record in records)
    with_image = np.mean([bool(record["imageURL"]) for record in records])
    assert 0.4 <= with_image <= 0.8
    assert any("&amp;" in record["brand"] for record in records)
    assert any("<b>" in part for record in records for part in record["description"])
    assert any(record["title"].startswith("<span") for record in records)
    high = records[0]["imageURLHighRes"]
    assert len(high) == len(records[0]["imageURL"])
    assert all(url.startswith("https://images-na.ssl-images-amazon.com/") for url in high)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    contents = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_raw_dump(tmp_path / name, 2_000, LINES_AT_ONCE + 1, seed)
        files = (tmp_path / name / file for file in (RATINGS_FILE, METADATA_FILE))
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[2][0]
    assert contents[0][1] != contents[2][1]


def test_fewer_lines_than_items_describe_as_many(tmp_path):
    write_raw_dump(tmp_path, 5_000, 30)
    with gzip.open(tmp_path / METADATA_FILE, "rt") as file:
        assert len({json.loads(line)["asin"] for line in file}) == 30


def test_names_differ():
    numbers = np.arange(0, 4_000_000, 37)
    assert len(set(item_names(numbers))) == len(numbers)


def test_a_dump_without_a_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ratings \(999\) must be at least 1000"):
        write_raw_dump(tmp_path, 999, 10)
