"""What is to be encoded, and that nothing else is needed for the shards."""

import pickle

import numpy as np
import polars as pl
import pytest

from mmm4rec.errors import DataError
from pipeline.encoders import HashingTextEncoder
from pipeline.encoding import encode_chunk
from pipeline.feature_plan import finish_features, plan_features
from pipeline.feature_store import EncoderRecord, read_features, shard_paths

ENCODER = HashingTextEncoder()
TEXTS = ["lamp", None, "chair", "lamp", "desk", "rug", "chair"]


def record(num_items):
    return EncoderRecord(
        encoder="hashing", revision=None, preprocessing={}, key=ENCODER.key, width=256,
        blank=[0.0] * 256, fingerprint="feed", num_items=num_items,
    )  # fmt: skip


def plan(folder, texts=TEXTS, shard_size=3, **options):
    items = pl.DataFrame(
        {"item_id": range(1, len(texts) + 1), "input": texts},
        schema={"item_id": pl.UInt32, "input": pl.String},
    )
    return plan_features(folder, record(len(texts)), items, shard_size, **options)


def test_each_input_is_planned_once(tmp_path):
    made = plan(tmp_path)
    assert [chunk.inputs for chunk in made.chunks] == [["lamp", "chair", "desk"], ["rug"]]
    assert [chunk.item_ids for chunk in made.chunks] == [[1, 3, 5], [6]]
    assert [shard.item_ids for shard in made.shards] == [[1, 2, 3], [4, 5, 6], [7]]
    assert (made.num_items, made.num_new) == (7, 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("processes", "sizes"), [(1, [3, 1]), (2, [2, 2]), (9, [1, 1, 1, 1])])
def test_there_is_a_chunk_for_each_process(tmp_path, processes, sizes):
    made = plan(tmp_path, num_processes=processes)
    assert [len(chunk.inputs) for chunk in made.chunks] == sizes


def test_chunks_can_be_encoded_in_any_order_and_anywhere(tmp_path, read_tree):
    for name, step in (("forth", 1), ("back", -1)):
        made = plan(tmp_path / name, num_processes=4)
        for chunk in pickle.loads(pickle.dumps(made)).chunks[::step]:
            encode_chunk(chunk, ENCODER)
        finish_features(made)
    assert read_tree(tmp_path / "forth") == read_tree(tmp_path / "back")
    assert [path.name for path in shard_paths(tmp_path / "forth")] == [
        "part-00000.parquet", "part-00001.parquet", "part-00002.parquet",
    ]  # fmt: skip
    stored = read_features(tmp_path / "forth", 7, "feed")
    np.testing.assert_array_equal(stored.values[6], ENCODER.encode(["rug"])[0].astype(np.float16))


def test_what_has_been_encoded_is_not_planned_again(tmp_path):
    encode_chunk(plan(tmp_path).chunks[0], ENCODER)
    assert [chunk.inputs for chunk in plan(tmp_path).chunks] == [["rug"]]
    assert [chunk.inputs for chunk in plan(tmp_path, ["rug", "mat", "desk"]).chunks] == [
        ["rug", "mat"]
    ]


def test_a_vector_that_has_gone_is_missed(tmp_path):
    made = plan(tmp_path)
    for chunk in made.chunks:
        encode_chunk(chunk, ENCODER)
    made.chunks[1].path.unlink()
    with pytest.raises(DataError, match=r"1 inputs have no vector, the first that of item 6; its"):
        finish_features(made)


def test_files_of_another_encoder_are_no_source(tmp_path):
    made = plan(tmp_path)
    for chunk in made.chunks:
        encode_chunk(chunk, ENCODER)
    finish_features(made)
    other = record(7).model_copy(update={"key": "other-0"})
    items = pl.DataFrame(
        {"item_id": [1], "input": ["lamp"]}, schema_overrides={"item_id": pl.UInt32}
    )
    again = plan_features(tmp_path, other, items, 3)
    assert [chunk.inputs for chunk in again.chunks] == [["lamp"]]
