"""Image preprocessing against the model library's own."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil, ViTImageProcessorPil

from mmm4rec.errors import DataError
from pipeline.image_transform import ImageTransform, read_image_transform

PROCESSORS = {
    "siglip": SiglipImageProcessorPil(),
    "vit": ViTImageProcessorPil(),
    "clip": CLIPImageProcessorPil(),
    "clip, odd margins": CLIPImageProcessorPil(
        size={"shortest_edge": 61}, crop_size={"height": 50, "width": 44}
    ),
    "not standardised": ViTImageProcessorPil(do_normalize=False),
    "not scaled": ViTImageProcessorPil(do_rescale=False, do_normalize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(300, 200), (97, 231), (224, 224), (30, 17)])
def test_equals_the_model_librarys(tmp_path, name, size):
    processor = PROCESSORS[name]
    processor.save_pretrained(tmp_path)
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(values)
    expected = processor(image, return_tensors="np")["pixel_values"][0]
    found = read_image_transform(tmp_path)(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def write(folder, **settings):
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_older_files_give_one_number(tmp_path):
    assert read_image_transform(write(tmp_path, size=32)) == ImageTransform(32, 32)
    clip = write(tmp_path, size=32, do_center_crop=True, crop_size=28, resample=3)
    assert read_image_transform(clip) == ImageTransform(shortest_edge=32, crop=(28, 28), resample=3)


def test_the_middle_is_kept():
    image = Image.new("RGB", (6, 2), "black")
    image.paste("white", (2, 0, 4, 2))
    transform = ImageTransform(shortest_edge=2, crop=(2, 2), resample=0)
    np.testing.assert_allclose(transform(image), np.ones((3, 2, 2)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"shortest_edge": 32}},
        {"size": {"longest_edge": 32}},
        {"size": 32, "do_resize": False},
        {"size": 32, "do_center_crop": True},
        {"size": 32, "image_mean": [0.5]},
        {"size": "large"},
        {"size": 32, "resample": "smooth"},
    ],
)
def test_what_is_not_done_here_is_refused(tmp_path, settings):
    with pytest.raises(DataError, match=r"no usable preprocessor_config\.json .*pixels"):
        read_image_transform(write(tmp_path, **settings))


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_file_that_is_no_description(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(DataError, match=r"no usable preprocessor_config\.json"):
        read_image_transform(tmp_path)


def test_no_file(tmp_path):
    with pytest.raises(DataError, match=r"no usable preprocessor_config\.json"):
        read_image_transform(tmp_path)
