"""One chunk of inputs to one file."""

import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from mmm4rec.errors import DataError
from pipeline import encoding
from pipeline.encoders import EncoderSpec, HashingTextEncoder, PixelImageEncoder
from pipeline.encoding import Chunk, encode_chunk, encode_inputs
from pipeline.feature_store import input_hash, read_inputs, read_shard


class SmallBatches(PixelImageEncoder):
    def __init__(self, batch_size):
        super().__init__()
        self.spec = EncoderSpec("image", "pixels", batch_size=batch_size)
        self.batches = []

    def encode_shrunk(self, pixels):
        self.batches.append(len(pixels))
        return super().encode_shrunk(pixels)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(11):
        Image.linear_gradient("L").rotate(30 * n).save(folder / f"{n}.png")
    (folder / "4.png").write_bytes(b"<html>")
    (folder / "8.png").unlink()
    return folder


def test_a_chunk_of_texts(tmp_path):
    chunk = Chunk(tmp_path / "encoding" / "abc.parquet", [7, 2], ["red chair", "lamp"])
    encoder, seen = HashingTextEncoder(), []
    encode_chunk(pickle.loads(pickle.dumps(chunk)), encoder, seen.append)
    ids, present, values = read_shard(chunk.path, 256)
    assert (ids.tolist(), present.tolist(), seen) == ([7, 2], [True, True], [2])
    expected = encoder.encode(["red chair", "lamp"]).astype(np.float16)
    np.testing.assert_array_equal(values, expected)
    inputs = read_inputs(chunk.path, encoder.key)["input"].to_pylist()
    assert inputs == [input_hash("red chair"), input_hash("lamp")]
    before = chunk.path.read_bytes()
    encode_chunk(chunk, encoder)
    assert chunk.path.read_bytes() == before


def test_a_chunk_of_images(tmp_path, images):
    names = [f"{n}.png" for n in range(11)]
    chunk = Chunk(tmp_path / "abc.parquet", list(range(1, 12)), names, images)
    encoder, seen = SmallBatches(3), []
    encode_chunk(chunk, encoder, seen.append)
    _, present, values = read_shard(chunk.path, 768)
    assert present.tolist() == [n not in (4, 8) for n in range(11)]
    assert seen == [3, 3, 3, 2]
    assert encoder.batches == [3, 2, 2, 2]  # what cannot be read takes part in none
    for n in range(11):
        expected = np.zeros(768)
        if n not in (4, 8):
            expected = encoder.encode([Image.open(images / f"{n}.png").convert("RGB")])[0]
        np.testing.assert_array_equal(values[n], expected.astype(np.float16))


def test_pictures_are_read_ahead_but_not_far(images):
    encoder, lock, read = SmallBatches(1), threading.Lock(), []
    shrink, encode = encoder.shrink, encoder.encode_shrunk
    ahead = []

    def count(image):
        with lock:
            read.append(image.size)
        return shrink(image)

    def note(pixels):
        ahead.append(len(read) - len(encoder.batches))
        return encode(pixels)

    encoder.shrink, encoder.encode_shrunk = count, note
    names = [f"{n}.png" for n in range(11) if n not in (4, 8)]
    encode_inputs(names, encoder, images)
    assert len(encoder.batches) == len(read) == 9
    assert max(ahead) <= encoding.BATCHES_AHEAD + 1


def test_no_inputs(images):
    for encoder, folder in ((HashingTextEncoder(), None), (PixelImageEncoder(), images)):
        present, values = encode_inputs([], encoder, folder)
        assert (present.shape, values.shape) == ((0,), (0, encoder.width))


def test_an_output_that_float16_cannot_hold_names_the_item(tmp_path):
    class Large(HashingTextEncoder):
        def _encode(self, inputs):
            return 1e6 * super()._encode(inputs)

    chunk = Chunk(tmp_path / "abc.parquet", [7], ["lamp"])
    with pytest.raises(DataError, match=r"output for item 7 is not finite in float16"):
        encode_chunk(chunk, Large())
    assert list(tmp_path.iterdir()) == []
