"""Texts and images to shards."""

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mmm4rec.config import FeaturesConfig
from pipeline.encoders import HashingTextEncoder, PixelImageEncoder
from pipeline.feature_store import read_features, read_record
from pipeline.features import encode_images, encode_texts
from pipeline.schema import ENCODER_FILE

TEXTS = [
    "red wooden chair",
    "",
    "blue steel lamp with a long arm",
    None,
    "   ",
    "red chair",
    "desk",
]
CONFIG = FeaturesConfig(batch_size=2, shard_size=3)


def text_items(texts=TEXTS):
    return pl.DataFrame(
        {"item_id": range(1, len(texts) + 1), "text": texts},
        schema={"item_id": pl.UInt32, "text": pl.String},
    )


class CountingText(HashingTextEncoder):
    def __init__(self):
        super().__init__()
        self.batches = []

    def _encode(self, inputs):
        self.batches.append(list(inputs))
        return super()._encode(inputs)

    @property
    def texts(self):
        return sorted(text for batch in self.batches for text in batch if text)


def test_texts_become_features(tmp_path):
    seen = []
    features = encode_texts(
        text_items(), tmp_path, HashingTextEncoder(), CONFIG, "feed",
        lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    stored = read_features(tmp_path, 7, "feed")
    encoder = HashingTextEncoder()
    expected = [encoder.encode([text])[0] if text and text.strip() else None for text in TEXTS]
    assert stored.present.tolist() == [False, *(value is not None for value in expected)]
    for row, value in zip(stored.values[1:], expected, strict=True):
        wanted = np.zeros(256) if value is None else value.astype(np.float16)
        np.testing.assert_array_equal(row, wanted)
    assert stored.key == encoder.key
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert features.model_dump() == {
        "modality": "text",
        "key": encoder.key,
        "encoder": "hashing",
        "width": 256,
        "present": 4,
    }
    record = read_record(tmp_path)
    assert (record.encoder, record.num_items, record.fingerprint) == ("hashing", 7, "feed")
    assert record.blank == encoder.blank.tolist()


def test_batches_hold_texts_of_like_length(tmp_path):
    encoder = CountingText()
    texts = ["a" * n for n in (9, 1, 7, 3, 8, 2)]
    encode_texts(text_items(texts), tmp_path, encoder, FeaturesConfig(batch_size=2), "feed")
    lengths = [[len(text) for text in batch] for batch in encoder.batches]
    assert lengths == [[1, 2], [3, 7], [8, 9], [0]]  # the last one asks for the blank vector


def test_a_second_run_computes_nothing(tmp_path):
    encode_texts(text_items(), tmp_path, HashingTextEncoder(), CONFIG, "feed")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    encoder = CountingText()
    features = encode_texts(text_items(), tmp_path, encoder, CONFIG, "feed")
    assert encoder.texts == []
    assert features.present == 4
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_run_is_carried_on(tmp_path):
    def interrupt(done, total):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_texts(text_items(), tmp_path, HashingTextEncoder(), CONFIG, "feed", interrupt)
    assert not (tmp_path / ENCODER_FILE).exists()
    encoder = CountingText()
    encode_texts(text_items(), tmp_path, encoder, CONFIG, "feed")
    assert encoder.texts == ["desk"]
    assert read_features(tmp_path, 7, "feed").present.sum() == 4


def test_only_changed_shards_are_computed(tmp_path):
    encode_texts(text_items(), tmp_path, HashingTextEncoder(), CONFIG, "feed")
    encoder = CountingText()
    changed = [*TEXTS[:3], "a green mat", *TEXTS[4:]]
    encode_texts(text_items(changed), tmp_path, encoder, CONFIG, "feed")
    assert encoder.texts == ["a green mat", "red chair"]
    stored = read_features(tmp_path, 7, "feed")
    wanted = encoder.encode(["a green mat"])[0].astype(np.float16)
    np.testing.assert_array_equal(stored.values[4], wanted)


@pytest.mark.parametrize("change", ["fingerprint", "encoder", "shard_size", "num_items"])
def test_nothing_stale_stays(tmp_path, change):
    encode_texts(text_items(), tmp_path, HashingTextEncoder(), CONFIG, "feed")
    encoder = CountingText()
    if change == "encoder":
        encoder.key = "hashing-of-another-kind"
    texts = TEXTS[:2] if change == "num_items" else TEXTS
    size = 4 if change == "shard_size" else 3
    fingerprint = "beef" if change == "fingerprint" else "feed"
    config = FeaturesConfig(batch_size=2, shard_size=size)
    encode_texts(text_items(texts), tmp_path, encoder, config, fingerprint)
    assert encoder.texts == sorted(text for text in texts if text and text.strip())
    assert read_features(tmp_path, len(texts), fingerprint).key == encoder.key


def test_a_damaged_shard_is_computed_again(tmp_path):
    encode_texts(text_items(), tmp_path, HashingTextEncoder(), CONFIG, "feed")
    (tmp_path / "part-00002.parquet").write_bytes(b"PAR1")
    encoder = CountingText()
    encode_texts(text_items(), tmp_path, encoder, CONFIG, "feed")
    assert encoder.texts == ["desk"]


def test_images_become_features(tmp_path, caplog):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (40, 30), "red").save(images / "red.jpg")
    Image.new("L", (40, 30), 90).save(images / "grey.png")
    (images / "broken.jpg").write_bytes((images / "red.jpg").read_bytes()[:200])
    files = ["red.jpg", None, "broken.jpg", "gone.png", "grey.png", None]
    items = pl.DataFrame(
        {"item_id": range(1, 7), "file": files}, schema={"item_id": pl.UInt32, "file": pl.String}
    )
    encoder = PixelImageEncoder()
    features = encode_images(items, images, tmp_path / "features", encoder, CONFIG, "feed")
    assert (features.modality, features.present, features.width) == ("image", 2, 768)
    assert "2 image files" in caplog.text
    stored = read_features(tmp_path / "features", 6, "feed")
    assert stored.present.tolist() == [False, True, False, False, False, True, False]
    red = encoder.encode([Image.open(images / "red.jpg")])[0].astype(np.float16)
    np.testing.assert_array_equal(stored.values[1], red)
    assert not stored.values[[0, 2, 3, 4, 6]].any()


def test_no_items_at_all(tmp_path):
    features = encode_texts(text_items([]), tmp_path, HashingTextEncoder(), CONFIG, "feed")
    assert features.present == 0
    assert read_features(tmp_path, 0, "feed").values.shape == (1, 256)
