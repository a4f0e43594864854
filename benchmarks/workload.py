"""Made-up catalogues, histories and batches of the real sizes.

Features are random numbers of the real width: nothing that is timed here depends on their values.
Lengths of histories do matter. `full` rows have as many items as fit; `real` ones are drawn like
the training samples of a 5-core: five events and more per user, with a heavy tail and about eight
on average, and one sample per event that is not held out.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmm4rec.batch import ItemCatalogue, ModalityFeatures, SequenceBatch
from mmm4rec.config import OFFICIAL, ModelConfig

Lengths = Literal["full", "real"]

DAY = 86_400  # seconds
FEATURE_WIDTH = 768
# Published sizes: Scientific, Office, and the five domains of pre-training together.
CATALOGUES = {"Scientific": 4_385, "Office": 25_986, "merged": 446_975}
OFFICE_USERS = 87_346
_LEAST_EVENTS, _MEAN_MORE_EVENTS, _TAIL = 5, 2.84, 2.5


@dataclass(frozen=True)
class Size:
    """How large a measurement is."""

    num_items: int
    batch_size: int = 1024
    d_model: int = 256
    lengths: Lengths = "full"
    use_item_bias: bool = True

    @property
    def config(self) -> ModelConfig:
        """The paper's architecture, as the authors' code computes it."""
        return ModelConfig(
            **OFFICIAL["model"],
            d_model=self.d_model,
            d_feed_forward=self.d_model,
            num_groups=self.d_model // 32,
            use_item_bias=self.use_item_bias,
        )


def add_sizes(parser: ArgumentParser) -> None:
    """Add the options that choose sizes."""
    parser.add_argument("--items", type=int, nargs="*", help="sizes of the catalogue")
    parser.add_argument("--lengths", nargs="*", default=["full", "real"], choices=["full", "real"])
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each process")


def chosen_sizes(arguments: Namespace, catalogues: Iterable[int]) -> Iterator[Size]:
    """Yield the sizes that the options choose; `catalogues` where they say nothing of items."""
    small = {"batch_size": 64, "d_model": 64} if arguments.quick else {}
    for num_items in [500] if arguments.quick else arguments.items or catalogues:
        for lengths in arguments.lengths:
            yield Size(num_items=num_items, lengths=lengths, **small)


def build_catalogue(num_items: int) -> ItemCatalogue:
    """Return items that have both modalities, with features in the type that files hold."""
    present_I = torch.arange(num_items + 1) > 0
    features = {}
    for name in ("text", "image"):
        values_IF = torch.empty(num_items + 1, FEATURE_WIDTH, dtype=torch.float16)
        for rows in values_IF.split(1 << 14):
            rows.copy_(torch.randn(rows.shape) / FEATURE_WIDTH**0.5)
        values_IF[0] = 0
        features[name] = ModalityFeatures(values_IF, present_I)
    return ItemCatalogue(features, "made up")


def draw_events_per_user(num_users: int) -> Tensor:
    """Return how many events each user has, int64."""
    scale = (_MEAN_MORE_EVENTS + 0.5) * (_TAIL - 1)  # rounding down costs half an event
    more = scale * (torch.rand(num_users).clamp(min=1e-6) ** (-1 / _TAIL) - 1)
    return _LEAST_EVENTS + more.long()


def draw_training_lengths(count: int, max_len: int) -> Tensor:
    """Return the history lengths of `count` random training samples, int64, 1..max_len."""
    samples_U = draw_events_per_user(count) - 3
    lengths_N = torch.cat([torch.arange(1, n + 1) for n in samples_U.tolist()])
    return lengths_N[torch.randperm(len(lengths_N))[:count]].clamp(max=max_len)


def draw_batch(size: Size) -> SequenceBatch:
    """Return a batch; popular items occur more often, times are days apart."""
    rows, max_len = size.batch_size, size.config.max_len
    lengths_B = torch.full((rows,), max_len)
    if size.lengths == "real":
        lengths_B = draw_training_lengths(rows, max_len)
    mask_BL = torch.arange(max_len) < lengths_B[:, None]
    items_BL = 1 + (torch.rand(rows, max_len) ** 3 * size.num_items).long()
    stamps_BL = 10**9 + torch.randint(0, 90 * DAY, (rows, max_len)).cumsum(1)
    targets_B = torch.randint(1, size.num_items + 1, (rows,))
    return SequenceBatch(
        items_BL * mask_BL, lengths_B, stamps_BL * mask_BL, targets_B, torch.arange(rows)
    )
