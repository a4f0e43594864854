"""Stored features against their encoder, and every way in which they can differ."""

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmm4rec.config import FeaturesConfig
from mmm4rec.errors import DataError
from pipeline.audit import Audit, audit_features
from pipeline.encoders import HashingTextEncoder, PixelImageEncoder
from pipeline.features import encode_images, encode_texts

CONFIG = FeaturesConfig(shard_size=32)
TEXTS = [None if n % 10 == 3 else f"word{n} and word{n + 1}" for n in range(100)]
ITEMS = pl.DataFrame(
    {"item_id": range(1, 101), "text": TEXTS}, schema={"item_id": pl.UInt32, "text": pl.String}
)


@pytest.fixture
def folder(tmp_path):
    encode_texts(ITEMS, tmp_path / "text", HashingTextEncoder(), CONFIG, "feed")
    return tmp_path / "text"


def audit(folder, encoder=None, items=ITEMS, **options):
    return audit_features(items, folder, encoder or HashingTextEncoder(), "feed", **options)


def rewrite(folder, change):
    """Change the columns of the first shard, of items 1 to 32."""
    path = folder / "part-00000.parquet"
    table = pq.read_table(path)
    values = table["values"].combine_chunks().flatten().to_numpy().reshape(32, -1).copy()
    present = table["present"].to_numpy().copy()
    change(present, values)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    table = table.set_column(1, "present", pa.array(present)).set_column(3, "values", rows)
    pq.write_table(table, path)


def test_what_the_encoder_wrote_passes(folder):
    found = audit(folder)
    assert (found.items, found.missing) == (64, 10)
    assert found.worst_cosine > 0.999999
    assert 0 < found.worst_difference < 2**-12  # of float16
    assert audit(folder, sample_size=1000).items == 90
    assert audit(folder, sample_size=0) == Audit(0, 10, 1.0, 0.0)


def test_the_sample_is_seeded(folder):
    class Recording(HashingTextEncoder):
        def __init__(self):
            super().__init__()
            self.seen = []

        def _encode(self, inputs):
            self.seen.extend(inputs)
            return super()._encode(inputs)

    encoders = [Recording() for _ in range(3)]
    for encoder, seed in zip(encoders, (0, 0, 1), strict=True):
        audit(folder, encoder, sample_size=5, seed=seed)
    assert len(set(encoders[0].seen)) == 5
    assert encoders[0].seen == encoders[1].seen != encoders[2].seen


def test_another_vector_is_found(folder):
    def swap(present, values):
        values[[5, 6]] = values[[6, 5]]

    rewrite(folder, swap)
    with pytest.raises(
        DataError,
        match=r"2 of 90 items are not what .*: item 6 \(cosine 0\.\d+, difference 0\.\d+\), item 7 "
        r".*; expected a cosine of at least 0\.9999 and a difference of at most 0\.001\. Next: del",
    ):
        audit(folder, sample_size=100)


def test_a_small_error_of_one_value_is_found(folder):
    def nudge(present, values):
        values[9, 17] += 0.002

    rewrite(folder, nudge)
    with pytest.raises(DataError, match=r"1 of 90 items .* item 10 \(cosine 1\.0000, difference"):
        audit(folder, sample_size=100)


def test_bfloat16_is_forgiven_more(folder):
    def nudge(present, values):
        values[9, 17] += 0.002

    rewrite(folder, nudge)
    encoder = HashingTextEncoder()
    encoder.preprocessing = {"precision": "bf16-true"}
    assert audit(folder, encoder, sample_size=100).worst_difference == pytest.approx(0.002, rel=0.1)


def test_an_item_with_nothing_to_encode_has_no_features(folder):
    def invent(present, values):
        present[[3, 13]], values[[3, 13]] = True, 1

    rewrite(folder, invent)
    with pytest.raises(DataError, match=r"item 4 has nothing to encode, found present=true.* 2 it"):
        audit(folder)


def test_what_is_not_present_is_zero(folder):
    def fill(present, values):
        values[3, 0] = 0.5

    rewrite(folder, fill)
    with pytest.raises(DataError, match=r"item 4 is not present, found values other than 0"):
        audit(folder)


def test_another_encoder_is_named(folder):
    encoder = HashingTextEncoder()
    encoder.key = "other-0"
    with pytest.raises(DataError, match=r"features of hashing-\w+, the encoder is other-0"):
        audit(folder, encoder)


def test_images(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for n in range(4):
        Image.linear_gradient("L").rotate(90 * n).save(images / f"{n}.png")
    (images / "broken.png").write_bytes(b"")
    files = ["0.png", None, "1.png", "broken.png", "2.png", "3.png"]
    items = pl.DataFrame({"item_id": range(1, 7), "file": files}).cast({"item_id": pl.UInt32})
    encoder, folder = PixelImageEncoder(), tmp_path / "image"
    encode_images(items, images, folder, encoder, CONFIG, "feed")
    found = audit(folder, encoder, items, image_folder=images)
    assert (found.items, found.missing) == (4, 2)
    Image.new("RGB", (9, 9), "white").save(images / "1.png")
    with pytest.raises(DataError, match=r"1 of 4 items .* item 3 \(cosine 0\.0000"):
        audit(folder, encoder, items, image_folder=images)
    (images / "1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 items .* item 3 \(cosine 0\.0000"):
        audit(folder, encoder, items, image_folder=images)


def test_a_grey_picture_is_like_itself(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (9, 9), "grey").save(images / "grey.png")
    items = pl.DataFrame({"item_id": [1], "file": ["grey.png"]}).cast({"item_id": pl.UInt32})
    encoder, folder = PixelImageEncoder(), tmp_path / "image"
    encode_images(items, images, folder, encoder, CONFIG, "feed")
    assert audit(folder, encoder, items, image_folder=images) == Audit(1, 0, 1.0, 0.0)
    assert not np.any(encoder.encode([Image.open(images / "grey.png")]))
