import hashlib
import json
import logging
import re

import numpy as np
import pytest
import torch

from mmm4rec.errors import DataError
from pipeline.feature_store import read_features
from pipeline.foreign_features import import_features
from pipeline.schema import FeatureSet

WHITE = [0.5, -0.5, 0.25]
MATRIX = np.array([[1, 2, 3], WHITE, [4, 5, 6], WHITE, [7, 8, 9], [0, 0, 0]], np.float32)
ALL = np.ones(6, np.bool_)


def _import(folder, source=MATRIX, **options):
    options = {
        "modality": "image",
        "fingerprint": "f",
        "num_items": 6,
        "name": "released",
    } | options
    made = import_features(source, folder, **options)
    return made, read_features(folder / made.key, len(MATRIX), options["fingerprint"])


def test_rows_become_features_by_item_id_and_a_row_of_zeros_is_missing(tmp_path):
    made, stored = _import(tmp_path)
    assert made == FeatureSet(
        modality="image", key=made.key, encoder="released", width=3, present=5
    )
    assert stored.values[0].tolist() == [0, 0, 0]
    assert np.array_equal(stored.values[1:], MATRIX.astype(np.float16))
    assert stored.present.tolist() == [False, True, True, True, True, True, False]
    assert stored.blank.tolist() == [0, 0, 0]
    assert stored.key == made.key


def test_the_row_that_many_items_share_is_a_missing_image_and_its_blank(tmp_path, caplog):
    made, stored = _import(tmp_path, shared_by=2)
    assert made.present == 3
    assert stored.present.tolist() == [False, True, False, True, False, True, False]
    assert stored.values[[2, 4]].tolist() == [[0, 0, 0]] * 2
    assert stored.values[5].tolist() == [7, 8, 9]
    assert stored.blank.tolist() == WHITE
    assert caplog.messages == ["released: 2 items share one row, they count as missing"]


@pytest.mark.parametrize("shared_by", [0, 3])
def test_a_row_that_fewer_items_share_is_an_image(tmp_path, shared_by):
    assert _import(tmp_path, shared_by=shared_by)[0].present == 5


def test_a_single_row_is_never_shared(tmp_path):
    distinct = MATRIX + np.arange(1, 7)[:, None]
    assert _import(tmp_path, distinct, shared_by=1)[0].present == 6


def test_what_is_known_to_be_missing_is_not_guessed(tmp_path, caplog):
    known = [True, True, False, False, True, True]
    made, stored = _import(tmp_path, present=known, shared_by=2)
    assert stored.present.tolist() == [False, True, True, False, False, True, False]
    assert made.present == 3
    assert stored.blank.tolist() == [4, 5, 6]  # of two rows that stand once, the smaller hash's
    assert caplog.messages == []


def test_the_key_names_origin_and_content(tmp_path):
    made, _ = _import(tmp_path)
    assert re.fullmatch(r"released-[0-9a-f]{10}", made.key)
    same = _import(tmp_path / "same", torch.from_numpy(MATRIX).double())[0]
    again = _import(tmp_path, fingerprint="g", shard_size=4)[0]
    assert same.key == again.key == made.key
    assert sorted(path.name for path in (tmp_path / made.key).iterdir()) == [
        "encoder.json",
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    changed = MATRIX.copy()
    changed[0, 0] = 1.25
    others = [_import(tmp_path, changed), _import(tmp_path, shared_by=2)]
    assert len({made.key, *(other.key for other, _ in others)}) == 3


def test_matrices_of_one_encoder_have_one_key_and_their_content_is_on_record(tmp_path):
    keys, contents = set(), set()
    for number, matrix in enumerate([MATRIX, 2 * MATRIX]):
        made, _ = _import(tmp_path / str(number), matrix, is_one_encoder=True)
        record = json.loads((tmp_path / str(number) / made.key / "encoder.json").read_text())
        keys.add(made.key)
        contents.add(record["preprocessing"]["sha256"])
    assert keys == {"released-3"}
    assert len(contents) == 2


def test_the_record_says_that_nothing_was_encoded_here(tmp_path):
    made, _ = _import(tmp_path, name="atomic-feat1cls")
    record = json.loads((tmp_path / made.key / "encoder.json").read_text())
    content = hashlib.sha256(MATRIX.astype("<f4").tobytes()).hexdigest()
    assert record["encoder"] == "atomic-feat1cls"
    assert record["revision"] is None
    assert record["preprocessing"] == {"imported": True, "sha256": content}


def test_files_are_read_in_blocks_and_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.foreign_features._BLOCK_VALUES", 7)
    torch.save(torch.from_numpy(MATRIX), tmp_path / "image_feat.pth")
    MATRIX.tofile(tmp_path / "Set.feat3CLS")
    tensor = _import(tmp_path, tmp_path / "image_feat.pth", shard_size=4)
    floats = _import(tmp_path / "floats", tmp_path / "Set.feat3CLS", shard_size=5)
    assert tensor[0] == floats[0]
    for name in ("values", "present", "blank"):
        assert np.array_equal(getattr(tensor[1], name), getattr(floats[1], name))
    assert np.array_equal(tensor[1].values[1:], MATRIX.astype(np.float16))


def test_half_precision_arrives_unchanged(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        values = torch.from_numpy(MATRIX).to(dtype)
        assert np.array_equal(_import(tmp_path, values)[1].values[1:], values.half().numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65_536.0, 1e300])
def test_a_value_that_is_not_finite_is_an_error_that_names_the_item(tmp_path, value):
    matrix = MATRIX.astype(np.float64)
    matrix[4, 1] = value
    with pytest.raises(DataError, match=r"released: the row of item 5 .* not finite in float16"):
        _import(tmp_path, matrix)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", [MATRIX[:5], MATRIX[0], MATRIX.astype(int), MATRIX[:, :0]])
def test_a_matrix_of_other_items_is_an_error(tmp_path, source):
    message = rf"released: found shape \({', '.join(map(str, source.shape))},?\) of .*6, width"
    with pytest.raises(DataError, match=message):
        _import(tmp_path, source)


def test_an_interrupted_import_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    made, _ = _import(tmp_path)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.foreign_features.write_shard", fail)
    with pytest.raises(KeyboardInterrupt):
        _import(tmp_path)
    with pytest.raises(DataError, match="holds no finished features"):
        read_features(tmp_path / made.key, 6, "f")


def test_all_items_may_lack_the_modality(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    made, stored = _import(tmp_path, np.zeros((6, 3), np.float32), shared_by=2)
    assert made.present == 0
    assert not stored.present.any()
    assert caplog.messages == []
