"""Product pictures of the miniature Amazon.

The look is the colour of the product and the pattern on it. Everything else varies without
meaning: silhouette, position, size, shades, background, a badge of any colour, sensor noise, file
format and compression.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.synthetic.behaviour import NUM_LOOKS

THUMBNAIL_SIDE = 48  # pixels
HUE_JITTER = 0.02  # standard deviation, as a share of the colour circle
NOT_AN_IMAGE = b"<!DOCTYPE html><html><body><h1>We are sorry</h1></body></html>\n"

FloatImage = NDArray[np.float64]
Box = tuple[float, float, float, float]
Pattern = Callable[[FloatImage, FloatImage], FloatImage]

# One per look: brightness waves over the product, x and y in periods.
PATTERNS: tuple[Pattern, ...] = (
    lambda x, y: np.zeros_like(x),
    lambda x, y: np.sign(np.sin(2 * np.pi * x)),
    lambda x, y: np.sign(np.sin(2 * np.pi * y)),
    lambda x, y: np.sign(np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y)),
    lambda x, y: np.sign(np.cos(2 * np.pi * x) + np.cos(2 * np.pi * y) - 1),
)
assert len(PATTERNS) == NUM_LOOKS


def draw_product(rng: np.random.Generator, look: int, silhouette: str) -> Image.Image:
    """Draw a product of the given look.

    Args:
        rng: source of everything that does not matter.
        look: 0..NUM_LOOKS-1.
        silhouette: a key of `SILHOUETTES`.

    Returns:
        An RGB picture, square, 72 to 128 pixels a side.
    """
    side = int(rng.integers(72, 129))
    canvas = _background(rng, side)
    mask = Image.new("L", (side, side), 0)
    box = _place(rng, side)
    SILHOUETTES[silhouette](ImageDraw.Draw(mask), box)
    alpha = np.asarray(mask, dtype=np.float64)[..., None] / 255
    canvas = canvas * (1 - alpha) + _surface(rng, look, side) * alpha
    canvas = _add_badge(rng, canvas, box)
    canvas += rng.normal(0, rng.uniform(2, 8), canvas.shape)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def encode_picture(picture: Image.Image, file_format: str, quality: int) -> bytes:
    """Encode as "JPEG" (at `quality`, 1..95) or "PNG"."""
    buffer = io.BytesIO()
    picture.save(buffer, file_format, quality=quality)
    return buffer.getvalue()


def thumbnail(picture: Image.Image) -> Image.Image:
    """Return the small version that a shop lists beside the large one."""
    return picture.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR)


def _background(rng: np.random.Generator, side: int) -> FloatImage:
    shade = rng.uniform(225, 255) + rng.uniform(-4, 4, 3)
    slope = rng.uniform(-15, 15) * np.linspace(-0.5, 0.5, side)
    return np.asarray(np.broadcast_to(shade + slope[:, None, None], (side, side, 3)))


def _place(rng: np.random.Generator, side: int) -> Box:
    width, height = rng.uniform(0.75, 0.95, 2) * side
    left, top = rng.random(2) * (side - width, side - height)
    return float(left), float(top), float(left + width), float(top + height)


def _surface(rng: np.random.Generator, look: int, side: int) -> FloatImage:
    hue = look / NUM_LOOKS + rng.normal(0, HUE_JITTER)
    colour = colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.75, 1.0), rng.uniform(0.75, 1.0))
    y, x = np.mgrid[0:side, 0:side] / (side * rng.uniform(0.12, 0.25))
    waves = PATTERNS[look](x + rng.random(), y + rng.random())
    brightness = 1 + rng.uniform(0.1, 0.2) * waves
    return np.asarray(255 * np.array(colour) * brightness[..., None]).clip(0, 255)


def _add_badge(rng: np.random.Generator, canvas: FloatImage, box: Box) -> FloatImage:
    left, top, right, bottom = box
    size = rng.uniform(0.1, 0.2) * min(right - left, bottom - top)
    x, y = rng.uniform(left, right - size), rng.uniform(top, bottom - size)
    colour = 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.random(), rng.random()))
    canvas[int(y) : int(y + size), int(x) : int(x + size)] = colour
    return canvas


def _bottle(draw: ImageDraw.ImageDraw, box: Box) -> None:
    left, top, right, bottom = box
    third, shoulder = (right - left) / 3, top + (bottom - top) / 4
    draw.rectangle((left + third, top, right - third, shoulder), fill=255)
    draw.rounded_rectangle((left, shoulder, right, bottom), radius=6, fill=255)


def _triangle(draw: ImageDraw.ImageDraw, box: Box) -> None:
    left, top, right, bottom = box
    draw.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=255)


SILHOUETTES: dict[str, Callable[[ImageDraw.ImageDraw, Box], None]] = {
    "box": lambda draw, box: draw.rectangle(box, fill=255),
    "round": lambda draw, box: draw.ellipse(box, fill=255),
    "pouch": lambda draw, box: draw.rounded_rectangle(box, radius=12, fill=255),
    "bottle": _bottle,
    "tent": _triangle,
}
