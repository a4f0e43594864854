"""Batches formulated plainly: every prefix a row of its own, a dataset of rows, a collate function.

What the batches of `pipeline.sequences` are measured against. Rows are kept in memory, which is
kinder than the files of JSON lines that such code reads from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

Row = tuple[int, list[tuple[int, int]]]  # user; item and timestamp of each event, target last


def materialise_prefixes(users: Sequence[Sequence[tuple[int, int]]], held_out: int) -> list[Row]:
    """Return one row per training target: its user's events up to and with it.

    Args:
        users: every user's events (item, timestamp), oldest first.
        held_out: how many of each user's last events are no targets.
    """
    return [
        (user, list(events[:end]))
        for user, events in enumerate(users)
        for end in range(2, len(events) + 1 - held_out)
    ]


class PrefixDataset(Dataset[dict[str, Tensor]]):
    """Cuts and pads one row at a time; the target's own time stays in, where there is room."""

    def __init__(self, rows: list[Row], max_len: int) -> None:
        self.rows, self.max_len = rows, max_len

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        user, events = self.rows[index]
        items = [item for item, _ in events]
        timestamps = [timestamp for _, timestamp in events]
        target = items.pop()
        if len(items) > self.max_len:
            items, timestamps = items[-self.max_len :], timestamps[-self.max_len - 1 : -1]
        timestamps = timestamps[: self.max_len]
        length = len(items)
        items = items + [0] * (self.max_len - length)
        timestamps = timestamps + [0] * (self.max_len - len(timestamps))
        return {
            "items": torch.tensor(items),
            "timestamps": torch.tensor(timestamps),
            "length": torch.tensor(length),
            "target": torch.tensor(target),
            "user": torch.tensor(user),
        }
