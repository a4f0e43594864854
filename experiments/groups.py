"""Metrics by group of users: how popular the target was, how long the history, what is known of it.

Shape letters: U tested users, in the order of their ids; I items with the padding item 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from mmm4rec.errors import DataError
from mmm4rec.runner import RANKS
from pipeline.datamodule import SequenceDataModule
from pipeline.sequences import held_out_targets

# Where a new group begins.
POPULARITY = (0, 1, 5, 10, 20, 50, 100)  # times that the target stands in the training data
HISTORY = (1, 3, 5, 10, 20)  # interactions before the target


@dataclass(frozen=True)
class Grouping:
    """Which group each tested user is in.

    Attributes:
        title: what tells the groups apart.
        names: of the groups.
        users_U: user ids, ascending, int64.
        group_U: position of the user's group in `names`, int64.
    """

    title: str
    names: tuple[str, ...]
    users_U: Tensor
    group_U: Tensor

    def split(self, values_U: Tensor) -> dict[str, Tensor]:
        """Return the values of the users of each group that has any."""
        parts = {name: values_U[self.group_U == at] for at, name in enumerate(self.names)}
        return {name: part for name, part in parts.items() if len(part)}


def group_users(data: SequenceDataModule) -> dict[str, Grouping]:
    """Group the test users of a domain, `popularity`, `history`, and one grouping per modality.

    Args:
        data: of stage `finetune`; what it withholds counts as withheld: a cold item is one that
            stands nowhere in its training data.
    """
    sequences = data.sequences
    counts_I = torch.bincount(data.train_items(), minlength=data.catalogue.num_items + 1)
    at_U = held_out_targets(sequences.offsets_U, 1)
    targets_U = sequences.items_N[at_U]
    users_U = (sequences.offsets_U.diff() > 1).nonzero().flatten()
    lengths_U = at_U - sequences.offsets_U[users_U]
    groups = {
        "popularity": _by_number(
            "times that the target is in the training data",
            POPULARITY,
            users_U,
            counts_I[targets_U],
        ),
        "history": _by_number("interactions before the target", HISTORY, users_U, lengths_U),
    }
    for modality, features in data.catalogue.features.items():
        present_U = features.present_I[targets_U].long()
        names = (f"without {modality}", f"with {modality}")
        groups[modality] = Grouping(f"{modality} of the target", names, users_U, present_U)
    return groups


def check_users(run_folder: Path, grouping: Grouping) -> None:
    """Check that the ranks of a run are those of the users that were grouped.

    Raises:
        DataError: they are of others; the run was made with other data.
    """
    users_U = torch.from_numpy(pq.read_table(run_folder / RANKS)["user_id"].to_numpy().copy())
    if not users_U.long().equal(grouping.users_U):
        raise DataError(
            f"{run_folder / RANKS} has the ranks of {len(users_U)} users, the domain has "
            f"{len(grouping.users_U)} to test, or others. Next: train on the domain as it is now"
        )


def range_names(starts: tuple[int, ...]) -> tuple[str, ...]:
    """Name the ranges of whole numbers that begin at `starts`, in ascending order.

    >>> range_names((0, 1, 5))
    ('0', '1-4', '5+')
    """
    ends = [start - 1 for start in starts[1:]]
    closed = [
        str(start) if start == end else f"{start}-{end}"
        for start, end in zip(starts[:-1], ends, strict=True)
    ]
    return (*closed, f"{starts[-1]}+")


def _by_number(title: str, starts: tuple[int, ...], users_U: Tensor, numbers_U: Tensor) -> Grouping:
    group_U = torch.bucketize(numbers_U, torch.tensor(starts[1:]), right=True)
    return Grouping(title, range_names(starts), users_U, group_U)
