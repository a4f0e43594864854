"""Feature shards on disk, and everything that can be wrong with them."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmm4rec.errors import DataError
from pipeline.feature_store import (
    EncoderRecord,
    count_present,
    holds,
    input_hash,
    read_features,
    read_inputs,
    read_shard,
    write_shard,
)
from pipeline.schema import ENCODER_FILE, write_json

RECORD = EncoderRecord(
    encoder="pixels",
    revision=None,
    preprocessing={"resize": 16},
    key="pixels-0",
    width=3,
    blank=[0.5, 0.25, 0.0],
    fingerprint="feed",
    num_items=5,
)
VALUES = np.arange(15, dtype=np.float32).reshape(5, 3) / 8


@pytest.fixture
def folder(tmp_path):
    present = np.array([True, False, True, True, True])
    values = VALUES * present[:, None]
    write_shard(tmp_path / "part-00000.parquet", [2, 1, 3], present[:3], values[:3], "x")
    write_shard(tmp_path / "part-00001.parquet", [4, 5], present[3:], values[3:], "y")
    write_json(RECORD.model_dump(), tmp_path / ENCODER_FILE)
    return tmp_path


def test_features_are_placed_by_item_id(folder):
    stored = read_features(folder, 5, "feed")
    assert stored.values.dtype == np.float16
    assert stored.values.tolist() == [
        [0, 0, 0], [0, 0, 0], *VALUES[[0, 2, 3, 4]].tolist(),
    ]  # fmt: skip
    assert stored.present.tolist() == [False, False, True, True, True, True]
    assert stored.blank.dtype == np.float32
    assert stored.blank.tolist() == [0.5, 0.25, 0]
    assert stored.key == "pixels-0"
    assert count_present(folder) == 4


def test_shards_are_fixed_size_lists_of_float16(folder):
    schema = pq.read_schema(folder / "part-00000.parquet")
    assert schema.types == [pa.uint32(), pa.bool_(), pa.binary(16), pa.list_(pa.float16(), 3)]
    assert schema.names == ["item_id", "present", "input", "values"]


def test_a_shard_knows_its_inputs(folder):
    assert holds(folder / "part-00000.parquet", "x")
    assert not holds(folder / "part-00000.parquet", "y")
    assert not holds(folder / "part-00007.parquet", "x")
    whole = (folder / "part-00000.parquet").read_bytes()
    (folder / "part-00000.parquet").write_bytes(whole[:-10])
    assert not holds(folder / "part-00000.parquet", "x")


def test_a_shard_says_what_it_has_vectors_of(tmp_path):
    path, inputs = tmp_path / "part-00000.parquet", [input_hash("red"), None, input_hash("blue")]
    present, values = np.array([True, False, False]), np.zeros((3, 2))
    write_shard(path, [1, 2, 3], present, values, "x", inputs_N=inputs, key="hashing-0")
    table = read_inputs(path, "hashing-0")
    assert table.to_pydict() == {"input": inputs, "present": [True, False, False]}
    assert read_inputs(path, "hashing-1") is None
    path.write_bytes(path.read_bytes()[:-10])
    assert read_inputs(path, "hashing-0") is None
    assert read_inputs(tmp_path / "part-00001.parquet", "hashing-0") is None


def test_a_shard_from_before_inputs_were_kept(folder):
    path = folder / "part-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns("input"), path)
    assert read_inputs(path, "") is None
    assert read_features(folder, 5, "feed").present.sum() == 4


def test_inputs_are_told_apart():
    texts = ["", " ", "red", "Red", "red\0", "rouge é"]
    assert len({input_hash(text) for text in texts}) == len(texts)
    assert input_hash("red").hex() == hashlib.blake2b(b"red", digest_size=16).hexdigest()


def test_another_item_set_is_refused(folder):
    with pytest.raises(DataError, match=r"5 items with fingerprint feed, the domain has 5 with be"):
        read_features(folder, 5, "beef")
    with pytest.raises(DataError, match=r"features of 5 items .* the domain has 6 with feed"):
        read_features(folder, 6, "feed")


def test_a_missing_record(folder):
    (folder / ENCODER_FILE).unlink()
    with pytest.raises(DataError, match=r"no finished features: no encoder\.json\. Next: run"):
        read_features(folder, 5, "feed")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"width": "many"}'])
def test_a_malformed_record(folder, text):
    (folder / ENCODER_FILE).write_text(text)
    with pytest.raises(DataError, match=r"encoder\.json is not a record of an encoder"):
        read_features(folder, 5, "feed")


def test_a_record_that_contradicts_itself(folder):
    write_json({**RECORD.model_dump(), "blank": [1.0]}, folder / ENCODER_FILE)
    with pytest.raises(DataError, match="blank has 1 values, width is 3"):
        read_features(folder, 5, "feed")


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([4], r"1 of 5 items do not have exactly one row; item 5 has 0"),
        ([4, 3], r"2 of 5 items .* item 3 has 2"),
        ([4, 4], r"2 of 5 items .* item 4 has 2"),
        ([4, 6], r"item id 6 is not in 1\.\.5"),
        ([4, 0], r"item id 0 is not in 1\.\.5"),
    ],
)
def test_every_item_has_one_row(folder, ids, problem):
    values = np.zeros((len(ids), 3), np.float32)
    write_shard(folder / "part-00001.parquet", ids, np.ones(len(ids), bool), values, "y")
    with pytest.raises(DataError, match=problem):
        read_features(folder, 5, "feed")


def test_a_shard_of_another_width(folder):
    write_shard(folder / "part-00001.parquet", [4, 5], np.ones(2, bool), np.zeros((2, 4)), "y")
    with pytest.raises(DataError, match=r"part-00001\.parquet: expected .*\[3\].* found .*\[4\]"):
        read_features(folder, 5, "feed")


def test_a_shard_of_another_type(folder):
    table = pa.table({"item_id": [4, 5], "present": [True, True], "values": [[1.0], [2.0]]})
    pq.write_table(table, folder / "part-00001.parquet")
    with pytest.raises(DataError, match=r"expected .*uint32.* found .*int64"):
        read_shard(folder / "part-00001.parquet", 3)


def test_a_shard_with_nulls(folder):
    path = folder / "part-00001.parquet"
    table = pq.read_table(path)
    table = table.set_column(1, "present", pa.array([True, None]))
    pq.write_table(table, path)
    with pytest.raises(DataError, match="with 1 nulls"):
        read_features(folder, 5, "feed")


def test_a_shard_that_is_no_parquet(folder):
    (folder / "part-00001.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(DataError, match=r"part-00001\.parquet does not read as Parquet"):
        read_features(folder, 5, "feed")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_must_be_finite_in_float16(tmp_path, value):
    values = np.array([[0, 1], [0, value]], np.float32)
    with pytest.raises(DataError, match="item 9 is not finite"):
        write_shard(tmp_path / "part-00000.parquet", [8, 9], np.ones(2, bool), values, "x")
    assert list(tmp_path.iterdir()) == []


def test_reading_needs_no_encoder():
    code = (
        "import sys, pipeline.feature_store; print([m for m in sys.argv[1:] if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, "torch", "transformers", "PIL", "requests"]
    assert subprocess.check_output(command, text=True).strip() == "[]"


def test_the_record_is_plain_json(folder):
    assert json.loads((folder / ENCODER_FILE).read_text()) == RECORD.model_dump()
