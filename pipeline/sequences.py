"""Flat interaction arrays to batches: truncation and padding live here, and nowhere else.

A sample is the position of its target in the flat arrays; no prefix is ever written out. A batch
is one vectorised gather, on whatever device the arrays live.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmm4rec.batch import SequenceBatch
from mmm4rec.errors import DataError

TargetTime = Literal["hidden", "leaked"]
QueryTime = Literal["none", "now"]


@dataclass(frozen=True)
class FlatSequences:
    """All users' interactions, one after the other.

    Attributes:
        items_N: item ids, int64, every user's in their total order.
        timestamps_N: Unix seconds, int64.
        offsets_U: first position of each user and, last, N: int64, (users + 1,).
    """

    items_N: Tensor
    timestamps_N: Tensor
    offsets_U: Tensor

    @property
    def num_users(self) -> int:
        """Number of users; user ids are 0..num_users-1."""
        return len(self.offsets_U) - 1

    def to(self, device: torch.device | str) -> FlatSequences:
        """Return the arrays on `device`."""
        return FlatSequences(
            self.items_N.to(device), self.timestamps_N.to(device), self.offsets_U.to(device)
        )

    def gather(
        self,
        targets_at_B: Tensor,
        max_len: int,
        target_time: TargetTime = "hidden",
        query_time: QueryTime = "none",
        last_items: int | None = None,
    ) -> SequenceBatch:
        """Build the batch whose targets stand at the given flat positions.

        Args:
            targets_at_B: flat positions, int64; none may be a user's first.
            max_len: most recent items kept, L.
            target_time: `leaked` leaves the target's timestamp behind the last item where there
                is room, as the authors' loader does.
            query_time: `now` gives the target's timestamp as the moment of recommending, to every
                row alike.
            last_items: as if every history began so many items before its target; None: as it is.
        """
        users_B = torch.searchsorted(self.offsets_U, targets_at_B, right=True) - 1
        longest = min(max_len, last_items or max_len)
        lengths_B = (targets_at_B - self.offsets_U[users_B]).clamp(max=longest)
        column_L = torch.arange(max_len, device=self.items_N.device)
        at_BL = (targets_at_B - lengths_B)[:, None] + column_L
        real_BL = column_L < lengths_B[:, None]
        timed_BL = column_L <= lengths_B[:, None] if target_time == "leaked" else real_BL
        at_BL = at_BL.clamp(max=len(self.items_N) - 1)
        return SequenceBatch(
            items_BL=self.items_N[at_BL] * real_BL,
            lengths_B=lengths_B,
            timestamps_BL=self.timestamps_N[at_BL] * timed_BL,
            targets_B=self.items_N[targets_at_B],
            users_B=users_B,
            query_time_B=self.timestamps_N[targets_at_B] if query_time == "now" else None,
        )


def training_targets(offsets_U: Tensor, held_out_U: Tensor) -> Tensor:
    """Return the flat positions of all training targets.

    Every interaction with at least one before it is a target, the last `held_out` of each user
    excepted.

    >>> training_targets(torch.tensor([0, 5, 8]), torch.tensor([2, 0])).tolist()
    [1, 2, 6, 7]
    """
    total = int(offsets_U[-1])
    is_target_N = torch.ones(total, dtype=torch.bool)
    lengths_U = offsets_U.diff()
    is_target_N[offsets_U[:-1][lengths_U > 0]] = False
    for back in range(1, int(held_out_U.max()) + 1 if len(held_out_U) else 1):
        hidden_U = (held_out_U >= back) & (lengths_U >= back)
        is_target_N[offsets_U[1:][hidden_U] - back] = False
    return is_target_N.nonzero().squeeze(1)


def held_out_targets(offsets_U: Tensor, back: int) -> Tensor:
    """Return the position of each user's last (`back` 1) or last but one (2) interaction.

    Users for whom it would be the first are left out.

    >>> held_out_targets(torch.tensor([0, 5, 6]), 1).tolist()
    [4]
    """
    return (offsets_U[1:] - back)[offsets_U.diff() > back]


class BatchLoader:
    """Iterates over batches; the order is a function of (seed, epoch) and of nothing else.

    Lightning calls `set_epoch` on a loader's `sampler`, so the loader is its own, and looks at
    `batch_sampler`, of which it has none. Its position is three whole numbers, so that an epoch
    can be carried on in its middle.
    """

    def __init__(
        self,
        sequences: FlatSequences,
        targets_at: Tensor,
        *,
        batch_size: int,
        max_len: int,
        target_time: TargetTime = "hidden",
        query_time: QueryTime = "none",
        last_items: int | None = None,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Batch the targets at flat positions `targets_at` (int64).

        Args:
            sequences: the arrays to gather from.
            targets_at: flat positions of the targets.
            batch_size: rows per batch on this process; the last batch may be shorter.
            max_len: most recent items kept.
            target_time: see `FlatSequences.gather`.
            query_time: likewise.
            last_items: likewise.
            shuffle_seed: None keeps the order and gives every target to exactly one process.
                Otherwise the order is shuffled per epoch, and up to `world_size` - 1 targets
                rest in an epoch so that all processes make equally many steps.
            rank: this process.
            world_size: number of processes.
        """
        self.sampler = self
        self.batch_sampler = None
        self.epoch = 0
        self._sequences = sequences
        self._targets_at = targets_at.to(sequences.items_N.device)
        self._batch_size = batch_size
        self._max_len = max_len
        self._target_time: TargetTime = target_time
        self._query_time: QueryTime = query_time
        self._last_items = last_items
        self._shuffle_seed = shuffle_seed
        self._rank = rank
        self._world_size = world_size
        self._batch = 0
        self._carry_on = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches on this process."""
        mine = self._used() // self._world_size + (self._rank < self._used() % self._world_size)
        return -(-mine // self._batch_size)

    def __iter__(self) -> Iterator[SequenceBatch]:
        """Yield the batches of the epoch, once without those before a loaded position."""
        mine = self._targets_at[self._order()[self._rank : self._used() : self._world_size]]
        for batch in range(self._first_batch(), len(self)):
            self._batch = batch + 1
            first = batch * self._batch_size
            targets_at_B = mine[first : first + self._batch_size]
            yield self._sequences.gather(
                targets_at_B,
                self._max_len,
                self._target_time,
                self._query_time,
                self._last_items,
            )

    def state_dict(self) -> dict[str, int | None]:
        """Return the position: the seed of the order, the epoch, and its batches yielded so far."""
        return {"seed": self._shuffle_seed, "epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next iteration, if it is of the same epoch, begin behind a position.

        Raises:
            DataError: the position is one in another order.
        """
        if state_dict["seed"] != self._shuffle_seed:
            raise DataError(
                f"the position is one in the order of seed {state_dict['seed']}, the batches come "
                f"in that of seed {self._shuffle_seed}. Next: --set trainer.seed="
                f"{state_dict['seed']}"
            )
        self._carry_on = (state_dict["epoch"], state_dict["batch"])
        self.epoch, self._batch = self._carry_on

    def _first_batch(self) -> int:
        epoch, batch = self._carry_on
        self._carry_on = (0, 0)
        return batch if epoch == self.epoch else 0

    def _used(self) -> int:
        total = len(self._targets_at)
        return total if self._shuffle_seed is None else total - total % self._world_size

    def _order(self) -> Tensor:
        if self._shuffle_seed is None:
            return torch.arange(len(self._targets_at), device=self._targets_at.device)
        generator = torch.Generator().manual_seed(self._shuffle_seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self._targets_at), generator=generator)
        return order.to(self._targets_at.device)
