"""Encoders that need no training, and the names of all."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmm4rec.errors import ConfigError
from pipeline import model_files
from pipeline.encoders import (
    EncoderSpec,
    HashingTextEncoder,
    PixelImageEncoder,
    load_encoder,
)


def test_hashing_says_the_same_in_every_process():
    code = (
        "from pipeline.encoders import HashingTextEncoder as E; e = E();"
        "print(e.key, e.encode(['a red wooden chair'])[0].nonzero()[0].tolist())"
    )
    said = {
        subprocess.check_output([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed})
        for seed in ("0", "1")
    }
    encoder = HashingTextEncoder()
    places = encoder.encode(["a red wooden chair"])[0].nonzero()[0].tolist()
    assert said == {f"{encoder.key} {places}\n".encode()}
    assert len(places) == 7  # four words, three pairs


def test_hashing_makes_like_texts_close():
    encoder = HashingTextEncoder()
    texts = [" ".join(f"word{8 * n + k}" for k in range(8)) for n in range(40)]
    vectors = encoder.encode(texts)
    swapped = encoder.encode([text.replace("word", "WORD", 6)[:-1] + "x" for text in texts])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    cosines = vectors @ swapped.T
    assert np.diag(cosines).min() > 0.6
    unrelated = cosines[~np.eye(40, dtype=bool)]
    assert abs(unrelated.mean()) < 0.01  # signs: collisions cancel on average
    assert np.abs(unrelated).mean() < 0.1


def test_hashing_of_nothing_is_zero():
    encoder = HashingTextEncoder()
    assert not encoder.encode(["", "!?"]).any()
    assert not encoder.blank.any()


def test_hashing_counts_sublinearly():
    encoder = HashingTextEncoder()
    once, thrice = encoder.encode(["red chair", "red. red. red chair"])
    place, sign = encoder._place("red")
    pair, pair_sign = encoder._place("red red")
    expected = once * np.sqrt(3)  # three terms of weight 1
    expected[place] += sign * np.log(3)
    expected[pair] += pair_sign * (1 + np.log(2))
    np.testing.assert_allclose(thrice, expected / np.linalg.norm(expected), rtol=1e-5)
    np.testing.assert_array_equal(encoder.encode(["RED Chair"])[0], once)


def test_pixels_see_colour_and_place():
    encoder = PixelImageEncoder()
    left, right = Image.new("RGB", (64, 48), "white"), Image.new("RGB", (64, 48), "white")
    left.paste("red", (0, 0, 32, 48))
    right.paste("red", (32, 0, 64, 48))
    smaller = Image.new("RGB", (32, 16), "white")
    smaller.paste("red", (0, 0, 16, 16))
    dark = Image.new("RGB", (64, 48), "white")
    dark.paste("navy", (0, 0, 32, 48))
    first, same, mirrored, other = encoder.encode([left, smaller, right, dark])
    np.testing.assert_allclose(first, same, atol=1e-6)
    assert first.shape == (768,)
    assert first @ mirrored < first @ other < 0.999
    np.testing.assert_allclose(first.mean(), 0, atol=1e-7)
    assert not encoder.blank.any()


def test_pixels_by_hand():
    image = Image.new("RGB", (16, 16), "black")
    image.putpixel((3, 2), (255, 0, 0))
    values = np.zeros(768)
    values[3 * (2 * 16 + 3)] = 255
    values -= values.mean()
    expected = values / np.linalg.norm(values)
    np.testing.assert_allclose(PixelImageEncoder().encode([image])[0], expected, rtol=1e-5)


def test_no_inputs_give_no_rows():
    assert HashingTextEncoder().encode([]).shape == (0, 256)
    assert PixelImageEncoder().encode([]).shape == (0, 768)


def test_training_free_encoders_need_no_model_library():
    code = (
        "import sys; from pipeline.encoders import *;"
        "load_encoder(EncoderSpec('text', 'hashing'));"
        "load_encoder(EncoderSpec('image', 'pixels'));"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False False\n"


def test_none_is_no_encoder():
    assert load_encoder(EncoderSpec("text", "none")) is None
    assert load_encoder(EncoderSpec("image", "none")) is None


@pytest.mark.parametrize("name", ["minilm2", "", "/no/such/folder", "a/b/c"])
def test_a_name_that_means_nothing(name):
    with pytest.raises(ConfigError, match=r"no text encoder .*minilm, clip, bert, hashing, none"):
        load_encoder(EncoderSpec("text", name))


def test_minilm_is_no_image_encoder(monkeypatch):
    monkeypatch.setattr(model_files, "_packaged_minilm", lambda: None)
    with pytest.raises(ConfigError, match=r"no image encoder 'minilm'.*--image-encoder pixels"):
        load_encoder(EncoderSpec("image", "minilm"))


def test_an_encoder_says_how_to_load_it_again():
    for encoder in (HashingTextEncoder(), PixelImageEncoder()):
        again = load_encoder(encoder.spec)
        assert type(again) is type(encoder)
        assert again.key == encoder.key
    assert load_encoder(EncoderSpec("image", "none")) is None
    with pytest.raises(ConfigError, match="no image encoder 'hashing'"):
        load_encoder(EncoderSpec("image", "hashing"))


def test_pixels_in_two_steps():
    encoder = PixelImageEncoder()
    image = Image.linear_gradient("L").convert("RGB")
    shrunk = encoder.shrink(image)
    assert (shrunk.shape, shrunk.dtype) == ((768,), np.uint8)
    np.testing.assert_array_equal(encoder.encode_shrunk([shrunk]), encoder.encode([image]))
    assert encoder.encode_shrunk([]).shape == (0, 768)
