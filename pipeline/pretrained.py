"""Encoders made of pretrained transformer models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.encoders import ImageEncoder, Modality, TextEncoder, unit_length
from pipeline.image_transform import read_image_transform
from pipeline.model_files import Pretrained, load_pretrained, loading_errors

MAX_TOKENS = 256  # of a text, where the model would read more

# Models of one tower whose `pooler_output` was trained for this; others are averaged (text) or
# read at their first token (image). Of two towers, `get_*_features` is what was trained.
POOLED = frozenset({"siglip_text_model", "siglip_vision_model", "clip_vision_model"})
# Trained with every text padded to the end and the padding attended to.
PADDED_TO_THE_END = frozenset({"siglip", "siglip_text_model"})


class PretrainedTextEncoder(TextEncoder):
    """A model over tokens; unit length.

    SigLIP: the pooled output over 64 tokens, padding included. CLIP: its projected
    text embedding. Any other: the mean of the last layer over the text's own tokens.
    """

    def __init__(self, name: str, device: str) -> None:
        """Load a model; arguments and errors are those of `load_text_encoder`."""
        self._loaded = loaded = load_pretrained(name, "text", device)
        with loading_errors(name, "text"):
            self._tokenizer = _load_tokenizer(loaded)
        self._is_padded_to_the_end = loaded.model_type in PADDED_TO_THE_END
        self._max_tokens = _max_tokens(loaded, self._tokenizer)
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        with loading_errors(name, "text"):
            width = self._encode([self.blank_input]).shape[1]
        super().__init__(
            loaded.name,
            width=width,
            preprocessing={
                "max_tokens": self._max_tokens,
                "padding": "attended" if self._is_padded_to_the_end else "masked",
                "vocabulary": hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16],
            },
            revision=loaded.revision,
            weights=loaded.weights,
        )

    @torch.inference_mode()
    def _encode(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        tokens = self._tokenizer(
            list(inputs),
            padding="max_length" if self._is_padded_to_the_end else True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self._loaded.device)
        ids_BL = tokens["input_ids"]
        if self._is_padded_to_the_end:
            return _to_unit_length(_pooled(self._loaded, "text", input_ids=ids_BL))
        inputs_BL = {"input_ids": ids_BL, "attention_mask": tokens["attention_mask"]}
        if _is_pooled(self._loaded, "text"):
            return _to_unit_length(_pooled(self._loaded, "text", **inputs_BL))
        hidden_BLF = self._loaded.model(**inputs_BL).last_hidden_state.float()
        mask_BL1 = inputs_BL["attention_mask"][..., None]
        return _to_unit_length((hidden_BLF * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1))


class PretrainedImageEncoder(ImageEncoder):
    """A model over pictures; unit length.

    SigLIP: its pooled output. CLIP: its projected image embedding. Any other: the
    first token of the last layer.
    """

    def __init__(self, name: str, device: str) -> None:
        """Load a model; arguments and errors are those of `load_image_encoder`."""
        self._loaded = loaded = load_pretrained(name, "image", device)
        self._transform = read_image_transform(loaded.folder)
        with loading_errors(name, "image"):
            width = self._encode([self.blank_input]).shape[1]
        super().__init__(
            loaded.name,
            width=width,
            preprocessing=asdict(self._transform),
            revision=loaded.revision,
            weights=loaded.weights,
        )

    @torch.inference_mode()
    def _encode(self, inputs: Sequence[Image.Image]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(np.stack([self._transform(image) for image in inputs]))
        model = self._loaded.model
        pixels = pixels.to(device=self._loaded.device, dtype=model.dtype)
        if _is_pooled(self._loaded, "image"):
            return _to_unit_length(_pooled(self._loaded, "image", pixel_values=pixels))
        return _to_unit_length(model(pixel_values=pixels).last_hidden_state[:, 0])


def _is_pooled(loaded: Pretrained, modality: Modality) -> bool:
    return hasattr(loaded.model, f"get_{modality}_features") or loaded.model_type in POOLED


def _pooled(loaded: Pretrained, modality: Modality, **inputs: Tensor) -> Tensor:
    tower = getattr(loaded.model, f"get_{modality}_features", loaded.model)
    pooled_BF: Tensor = tower(**inputs).pooler_output
    return pooled_BF


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
