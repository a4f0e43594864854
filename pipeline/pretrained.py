"""Encoders made of pretrained transformer models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.encoders import (
    NAMED_POOLING,
    EncoderSpec,
    ImageEncoder,
    Modality,
    TextEncoder,
    unit_length,
)
from pipeline.image_transform import read_image_transform
from pipeline.model_files import Pretrained, load_pretrained, loading_errors

MAX_TOKENS = 256  # of a text, where the model would read more
TOKEN_STEP = 32  # texts are padded to a multiple of it

# Models of one tower whose `pooler_output` was trained for this; others are averaged (text) or
# read at their first token (image). Of two towers, `get_*_features` is what was trained.
POOLED = frozenset({"siglip_text_model", "siglip_vision_model", "clip_vision_model"})
# Trained with every text padded to the end and the padding attended to.
PADDED_TO_THE_END = frozenset({"siglip", "siglip_text_model"})
TOWERS = {"text": "text_model", "image": "vision_model"}

Output = Literal["projected", "pooler", "mean", "cls"]


class PretrainedTextEncoder(TextEncoder):
    """A model over tokens; unit length.

    Without a word on pooling: SigLIP: the pooled output over 64 tokens, padding included. CLIP:
    its projected text embedding. `bert`: the first token. Any other: the mean of the last layer
    over the text's own tokens.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        """Load a model; errors are those of `load_encoder`."""
        self._loaded = loaded = load_pretrained(spec)
        self._output = _choose_output(loaded, spec)
        with loading_errors(spec.name, "text"):
            self._tokenizer = _load_tokenizer(loaded)
        self._is_padded_to_the_end = loaded.model_type in PADDED_TO_THE_END
        self._max_tokens = _max_tokens(loaded, self._tokenizer)
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        with loading_errors(spec.name, "text"):
            blank_1F = self._forward(self._tokenize([self.blank_input]), self._padded_length(1))
        super().__init__(
            loaded.name,
            width=blank_1F.shape[1],
            preprocessing={
                "max_tokens": self._max_tokens,
                "padding": "attended" if self._is_padded_to_the_end else "masked",
                "vocabulary": hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16],
                **_describe(loaded, self._output),
            },
            revision=loaded.revision,
            weights=loaded.weights,
            spec=spec,
        )

    def _encode(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        ids = self._tokenize(inputs)
        outputs_NF = np.empty((len(ids), self.width), np.float32)
        lengths_N = np.array([self._padded_length(len(text)) for text in ids])
        for rows in _batches_of_one_length(lengths_N, self.spec.batch_size):
            batch = _fill_up([ids[row] for row in rows], self.spec.batch_size)
            outputs_NF[rows] = self._forward(batch, lengths_N[rows[0]])[: len(rows)]
        return outputs_NF

    def _tokenize(self, inputs: Sequence[str]) -> list[list[int]]:
        tokens = self._tokenizer(list(inputs), truncation=True, max_length=self._max_tokens)
        return [ids or [self._padding_id] for ids in tokens["input_ids"]]

    @property
    def _padding_id(self) -> int:
        return int(self._tokenizer.pad_token_id or 0)  # what is masked can be anything

    def _padded_length(self, num_tokens: int) -> int:
        if self._is_padded_to_the_end:
            return self._max_tokens
        return min(self._max_tokens, -(-num_tokens // TOKEN_STEP) * TOKEN_STEP)

    @torch.inference_mode()
    def _forward(self, ids: Sequence[list[int]], length: int) -> NDArray[np.float32]:
        """Encode one batch, each text padded to the same length."""
        ids_BL = torch.full((len(ids), length), self._padding_id)
        mask_BL = torch.zeros_like(ids_BL)
        for row, text in enumerate(ids):
            ids_BL[row, : len(text)] = torch.tensor(text)
            mask_BL[row, : len(text)] = 1
        inputs = {"input_ids": ids_BL.to(self._loaded.device)}
        if self._is_padded_to_the_end:
            mask_BL = torch.ones_like(mask_BL)
        else:
            inputs["attention_mask"] = mask_BL.to(self._loaded.device)
        return _read_output(self._loaded, "text", self._output, inputs, mask_BL)


class PretrainedImageEncoder(ImageEncoder):
    """A model over pictures; unit length.

    Without a word on pooling: SigLIP: its pooled output. CLIP: its projected image embedding. Any
    other: the first token of the last layer.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        """Load a model; errors are those of `load_encoder`."""
        self._loaded = loaded = load_pretrained(spec)
        self._output = _choose_output(loaded, spec)
        self._transform = read_image_transform(loaded.folder)
        with loading_errors(spec.name, "image"):
            blank_1F = self._forward([self.shrink(self.blank_input)])
        super().__init__(
            loaded.name,
            width=blank_1F.shape[1],
            preprocessing={**asdict(self._transform), **_describe(loaded, self._output)},
            revision=loaded.revision,
            weights=loaded.weights,
            spec=spec,
        )

    def shrink(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the picture as the model was trained on it, (3, height, width)."""
        return self._transform(image)

    def encode_shrunk(self, pixels: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Encode shrunk pictures, batch by batch."""
        size = self.batch_size
        outputs_NF = np.empty((len(pixels), self.width), np.float32)
        for start in range(0, len(pixels), size):
            batch = pixels[start : start + size]
            vectors_BF = self._forward(_fill_up(batch, size))
            outputs_NF[start : start + size] = vectors_BF[: len(batch)]
        return outputs_NF

    @torch.inference_mode()
    def _forward(self, pixels: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        model = self._loaded.model
        pixels_BCHW = torch.from_numpy(np.stack(pixels))
        inputs = {"pixel_values": pixels_BCHW.to(self._loaded.device, model.dtype)}
        return _read_output(self._loaded, "image", self._output, inputs)


def _choose_output(loaded: Pretrained, spec: EncoderSpec) -> Output:
    pooling = spec.pooling
    if pooling == "auto":
        pooling = NAMED_POOLING.get(spec.name, "auto")
    if pooling != "auto":
        return pooling
    if hasattr(loaded.model, f"get_{spec.modality}_features"):
        return "projected"
    if loaded.model_type in POOLED:
        return "pooler"
    return "mean" if spec.modality == "text" else "cls"


def _describe(loaded: Pretrained, output: Output) -> dict[str, Any]:
    is_half = loaded.model.dtype == torch.bfloat16
    return {"pooling": output, **({"precision": "bf16-true"} if is_half else {})}


def _read_output(
    loaded: Pretrained,
    modality: Modality,
    output: Output,
    inputs: dict[str, Tensor],
    mask_BL: Tensor | None = None,
) -> NDArray[np.float32]:
    """Run the model and return one vector (B, F) of unit length per input.

    mask_BL: 1 where a token counts in the mean; None: all do.
    """
    model = loaded.model
    if output == "projected":
        return _to_unit_length(getattr(model, f"get_{modality}_features")(**inputs).pooler_output)
    outputs = getattr(model, TOWERS[modality], model)(**inputs)
    if output == "pooler":
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is None or not loaded.has_pooler:
            raise ValueError("pooling is pooler, and its files have none: use mean or cls.")
        return _to_unit_length(pooled.flatten(1))
    hidden_BLF = outputs.last_hidden_state
    if hidden_BLF.ndim != 3:
        raise ValueError(f"pooling is {output}, and its last layer has no tokens: use pooler.")
    if output == "cls":
        return _to_unit_length(hidden_BLF[:, 0])
    if mask_BL is None:
        return _to_unit_length(hidden_BLF.float().mean(dim=1))
    mask_BL1 = mask_BL.to(hidden_BLF.device)[..., None]
    return _to_unit_length((hidden_BLF.float() * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1))


def _batches_of_one_length(
    lengths_N: NDArray[np.int64], batch_size: int
) -> Iterator[NDArray[np.int64]]:
    for length in np.unique(lengths_N):
        rows = np.flatnonzero(lengths_N == length)
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


def _fill_up(batch: Sequence[Any], size: int) -> list[Any]:
    """Repeat the first input: another number of rows can mean other rounding."""
    return [*batch, *[batch[0]] * (size - len(batch))]


def _to_unit_length(vectors_BF: Tensor) -> NDArray[np.float32]:
    return unit_length(vectors_BF.float().cpu().numpy())


def _load_tokenizer(loaded: Pretrained) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        loaded.folder, trust_remote_code=False, local_files_only=True
    )


def _max_tokens(loaded: Pretrained, tokenizer: Any) -> int:
    config = loaded.model.config
    config = getattr(config, "text_config", config)
    limits = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", MAX_TOKENS))
    return min(MAX_TOKENS, *map(int, limits))
