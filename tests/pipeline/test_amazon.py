import gzip
import json
import threading

import polars as pl
import pytest

from mmm4rec.errors import DataError
from pipeline import rawfile
from pipeline.amazon import InteractionScan, read_interactions
from pipeline.tables import RAW_INTERACTION_SCHEMA

REVIEW = {"reviewerID": "u1", "asin": "B1", "overall": 4, "unixReviewTime": 86_400}


@pytest.fixture
def ratings(tmp_path, monkeypatch):
    """A file of 500 ratings that is read in many blocks; its line 101 is malformed."""
    monkeypatch.setattr(rawfile, "BLOCK_BYTES", 1000)
    lines = [f"B{n % 7},u{n},5.0,{n}" for n in range(500)]
    lines[100] = "B1,u1,5.0"
    path = tmp_path / "X.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_a_scan_yields_blocks_in_the_order_of_the_file(ratings):
    scan = InteractionScan(ratings, max_bad_lines=1)
    blocks = list(scan)
    assert len(blocks) > 5
    assert all(block.schema == RAW_INTERACTION_SCHEMA for block in blocks)
    rows = pl.concat(blocks)
    expected = [(f"u{n}", f"B{n % 7}", 5.0, n, n) for n in range(500) if n != 100]
    assert rows.rows() == expected
    assert scan.lines == 500
    assert scan.bad_lines["line"].to_list() == [101]
    assert read_interactions(ratings, max_bad_lines=1).rows.equals(rows)


def test_a_scan_can_be_repeated(ratings):
    scan = InteractionScan(ratings, max_bad_lines=1)
    assert pl.concat(scan).equals(pl.concat(scan))
    assert (scan.lines, scan.bad_lines.height) == (500, 1)


def test_a_scan_that_is_broken_off_leaves_no_thread(ratings):
    before = threading.active_count()
    for _ in InteractionScan(ratings):
        break
    assert threading.active_count() == before
    with pytest.raises(DataError, match=r"X\.csv\.gz:101: 3 fields instead of 4"):
        read_interactions(ratings)
    assert threading.active_count() == before


@pytest.mark.parametrize("name", ["X.json", "X_5.json", "X.json.gz", "X.jsonl", "X.jsonl.gz"])
def test_a_name_that_says_json_is_of_reviews(tmp_path, name):
    data = json.dumps(REVIEW).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_interactions(tmp_path / name).rows.rows() == [("u1", "B1", 4.0, 86_400, 0)]


@pytest.mark.parametrize("name", ["X.csv", "X.csv.gz", "X"])
def test_any_other_name_is_of_ratings(tmp_path, name):
    (tmp_path / name).write_bytes(b"B1,u1,4,86400\n")
    assert read_interactions(tmp_path / name).rows.rows() == [("u1", "B1", 4.0, 86_400, 0)]


def test_the_names_of_reviews_and_ratings_mixed_up_are_named(tmp_path):
    (tmp_path / "X.csv").write_text(json.dumps(REVIEW) + "\n")
    with pytest.raises(DataError, match="expected CSV, but this looks like JSON lines"):
        read_interactions(tmp_path / "X.csv")
    (tmp_path / "X.json").write_text("B1,u1,4,86400\nB1,u1,4,86400\n")
    with pytest.raises(DataError, match="expected JSON lines, but this looks like CSV"):
        read_interactions(tmp_path / "X.json")
