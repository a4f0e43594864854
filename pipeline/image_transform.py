"""From a picture to the numbers an image model was trained on, as its repository describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmm4rec.errors import DataError

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ImageTransform:
    """Resize, cut out the middle, scale, standardise.

    Attributes:
        height, width: pixels after resizing; 0 where `shortest_edge` says it.
        shortest_edge: pixels of the shorter side after resizing, keeping the proportions.
        crop: height and width of the middle that is kept; None: everything.
        resample: Pillow's number of the filter (2 bilinear, 3 bicubic).
        scale: factor on values 0..255.
        mean: per colour, subtracted after scaling.
        std: per colour, divided by.
    """

    height: int = 0
    width: int = 0
    shortest_edge: int = 0
    crop: tuple[int, int] | None = None
    resample: int = int(Image.Resampling.BILINEAR)
    scale: float = 1 / 255
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an RGB picture as (3, height, width) float32."""
        resized = image.resize(self._size(image), Image.Resampling(self.resample))
        if self.crop:
            height, width = self.crop
            left, top = (resized.width - width) // 2, (resized.height - height) // 2
            resized = resized.crop((left, top, left + width, top + height))
        mean_C, std_C = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        pixels_HWC = np.asarray(resized, np.float32) * np.float32(self.scale)
        return np.ascontiguousarray(((pixels_HWC - mean_C) / std_C).transpose(2, 0, 1))

    def _size(self, image: Image.Image) -> tuple[int, int]:
        if not self.shortest_edge:
            return self.width, self.height
        short = min(image.size)
        return (
            int(self.shortest_edge * image.width / short),
            int(self.shortest_edge * image.height / short),
        )


def read_image_transform(folder: Path) -> ImageTransform:
    """Read `preprocessor_config.json` (or `processor_config.json`) of a model.

    Raises:
        DataError: there is none, or it asks for what is not done here.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(str(folder))
        transform = _parse(settings)
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder}: no usable preprocessor_config.json for pictures "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Next: name a model of images, or --image-encoder pixels"
        ) from None
    return transform


def _parse(settings: Mapping[str, Any]) -> ImageTransform:
    is_cropped = bool(settings.get("do_center_crop", False))
    size = settings["size"]
    if isinstance(size, int):  # older files; those that crop mean the shorter side
        size = {"shortest_edge": size} if is_cropped else {"height": size, "width": size}
    edges = {name: int(size.get(name) or 0) for name in ("height", "width", "shortest_edge")}
    crop = _parse_crop(settings["crop_size"]) if is_cropped else None
    is_fixed = edges["height"] > 0 and edges["width"] > 0
    if not settings.get("do_resize", True) or not (is_fixed or (edges["shortest_edge"] and crop)):
        raise ValueError(f"size {size} without crop does not give pictures of one size")
    is_scaled, is_normal = settings.get("do_rescale", True), settings.get("do_normalize", True)
    default = Image.Resampling.BICUBIC if is_cropped else Image.Resampling.BILINEAR
    return ImageTransform(
        **edges,
        crop=crop,
        resample=int(settings.get("resample", default)),
        scale=float(settings.get("rescale_factor", 1 / 255)) if is_scaled else 1.0,
        mean=_parse_colour(settings.get("image_mean", HALF)) if is_normal else (0.0, 0.0, 0.0),
        std=_parse_colour(settings.get("image_std", HALF)) if is_normal else (1.0, 1.0, 1.0),
    )


def _parse_crop(size: int | Mapping[str, int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return int(size["height"]), int(size["width"])


def _parse_colour(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
