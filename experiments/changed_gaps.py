"""The same histories with other times: what a model makes of them.

Shape letters: B batch, L sequence length, D user vector, N interactions, U users.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mmm4rec.batch import SequenceBatch
from mmm4rec.lit_module import Recommender
from pipeline.sequences import FlatSequences

Change = Literal["none", "shuffled", "others", "removed", "shortened", "lengthened", "query"]

CHANGES: dict[Change, str] = {
    "none": "true gaps",
    "shuffled": "shuffled within each history",
    "others": "drawn from all users",
    "removed": "removed: all 0",
    "shortened": "a tenth",
    "lengthened": "ten times",
    "query": "only the gap to the query drawn from all users",
}
FACTORS: dict[Change, float] = {"removed": 0.0, "shortened": 0.1, "lengthened": 10.0}


@dataclass
class Sensitivity:
    """How far the users' vectors moved; sums over the users seen so far.

    Attributes:
        users: seen.
        moved_times: whose times are others than before.
        moved_vectors: whose vector is not the same to the last bit.
        cosine_distance: 1 - cosine of the two vectors, 0..2.
        relative_change: length of the difference as a share of the true vector's length.
    """

    users: int = 0
    moved_times: int = 0
    moved_vectors: int = 0
    cosine_distance: float = 0.0
    relative_change: float = 0.0

    def add(
        self, batch: SequenceBatch, changed: SequenceBatch, true_BD: Tensor, BD: Tensor
    ) -> None:
        """Add the users of a batch: the batch and their vectors before and after the change."""
        moved_B = (batch.timestamps_BL != changed.timestamps_BL).any(1)
        if batch.query_time_B is not None and changed.query_time_B is not None:
            moved_B |= batch.query_time_B != changed.query_time_B
        one_BD, other_BD = true_BD.double(), BD.double()
        length_B = one_BD.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        cosine_B = nn.functional.cosine_similarity(one_BD, other_BD)
        self.users += len(batch)
        self.moved_times += int(moved_B.sum())
        self.moved_vectors += int((true_BD != BD).any(1).sum())
        self.cosine_distance += float((1 - cosine_B).clamp(min=0).sum())
        self.relative_change += float(((one_BD - other_BD).norm(dim=1) / length_B).sum())

    def means(self) -> dict[str, float]:
        """Return shares of users and means over them."""
        users = max(1, self.users)
        return {
            "moved_times_share": self.moved_times / users,
            "moved_vectors_share": self.moved_vectors / users,
            "cosine_distance": self.cosine_distance / users,
            "relative_change": self.relative_change / users,
        }


class ChangedGaps(nn.Module):
    """A Recommender that is told other times than the true ones.

    Items, targets and the time of each user's last interaction stay. What is drawn belongs to an
    interaction, not to a batch: batch size and order of the users change nothing.
    """

    offsets_U: Tensor
    drawn_N: Tensor
    keys_N: Tensor

    def __init__(
        self, model: nn.Module, sequences: FlatSequences, change: Change, *, seed: int
    ) -> None:
        """Change what `model` sees.

        Args:
            model: a Recommender (see `lit_module`).
            sequences: of the users whose last interaction is the target.
            change: a key of `CHANGES`.
            seed: of what is drawn.
        """
        super().__init__()
        self.model = model
        self.change: Change = change
        self.sensitivity = Sensitivity()
        generator = torch.Generator().manual_seed(seed)
        keys_N = torch.rand(len(sequences.items_N), generator=generator, dtype=torch.float64)
        self.register_buffer("offsets_U", sequences.offsets_U.cpu(), persistent=False)
        self.register_buffer("drawn_N", _permuted_gaps(sequences, generator), persistent=False)
        self.register_buffer("keys_N", keys_N, persistent=False)

    @property
    def recommender(self) -> Recommender:
        """The model, as what it can do."""
        return cast(Recommender, self.model)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Return user_BD of the changed histories."""
        changed = self.changed(batch)
        user_BD = self.recommender(changed)
        if self.change != "none":
            self.sensitivity.add(batch, changed, self.recommender(batch), user_BD)
        return user_BD

    def item_matrix(self) -> Tensor:
        """Return the model's items_ID."""
        return self.recommender.item_matrix()

    def encode_items(self, ids_N: Tensor) -> Tensor:
        """Return the model's rows of some items."""
        return self.recommender.encode_items(ids_N)

    def score(self, user_BD: Tensor, items_ID: Tensor) -> Tensor:
        """Return the model's scores_BI."""
        return self.recommender.score(user_BD, items_ID)

    def changed(self, batch: SequenceBatch) -> SequenceBatch:
        """Return the batch with other times; every target is its user's last interaction."""
        if self.change == "none":
            return batch
        length_B1 = batch.lengths_B[:, None]
        column_L = torch.arange(batch.items_BL.shape[1], device=batch.items_BL.device)
        real_BL = column_L < length_B1
        # Behind the last item stands the target's own time, if the config leaks it.
        ahead_BL = (column_L == length_B1) & (batch.timestamps_BL != 0)
        target_at_B = self.offsets_U[batch.users_B + 1] - 1
        at_BL = (target_at_B[:, None] - length_B1 + column_L).clamp(max=len(self.keys_N) - 1)
        gaps_BL = nn.functional.pad(batch.timestamps_BL.diff(dim=1), (1, 0))
        within_BL = real_BL & (column_L > 0)
        gaps_BL = self._other_gaps(gaps_BL * within_BL, at_BL, within_BL)
        last_B1 = batch.timestamps_BL.gather(1, length_B1 - 1)
        since_first_BL = gaps_BL.cumsum(1)
        times_BL = (last_B1 - since_first_BL[:, -1:] + since_first_BL) * real_BL
        target_at_B1, query_B = target_at_B[:, None], batch.query_time_B
        ahead_times_BL = self._other_query(batch.timestamps_BL, last_B1, target_at_B1)
        return replace(
            batch,
            timestamps_BL=torch.where(ahead_BL, ahead_times_BL, times_BL),
            query_time_B=None
            if query_B is None
            else self._other_query(query_B[:, None], last_B1, target_at_B1)[:, 0],
        )

    def _other_gaps(self, gaps_BL: Tensor, at_BL: Tensor, within_BL: Tensor) -> Tensor:
        if self.change in FACTORS:
            return _scaled(gaps_BL, FACTORS[self.change])
        if self.change == "others":
            return self.drawn_N[at_BL] * within_BL
        if self.change == "shuffled":
            # The first item has no gap before it: it and the padding keep their places.
            edge_BL = torch.where(within_BL.cumsum(1) > 0, 2.0, -1.0)
            keys_BL = torch.where(within_BL, self.keys_N[at_BL], edge_BL)
            return gaps_BL.gather(1, keys_BL.argsort(dim=1, stable=True))
        return gaps_BL

    def _other_query(self, times_BL: Tensor, last_B1: Tensor, target_at_B1: Tensor) -> Tensor:
        """Return other times than these, which come after the last interaction."""
        gaps_BL = times_BL - last_B1
        if self.change in FACTORS:
            gaps_BL = _scaled(gaps_BL, FACTORS[self.change])
        elif self.change in ("others", "query"):
            gaps_BL = self.drawn_N[target_at_B1].expand_as(gaps_BL)
        return last_B1 + gaps_BL


def _scaled(gaps: Tensor, factor: float) -> Tensor:
    return (gaps.double() * factor).round().long()


def _permuted_gaps(sequences: FlatSequences, generator: torch.Generator) -> Tensor:
    """Return the gap before each interaction, all users' together in random order, (N,).

    A user's first interaction has none before it, and 0 here.
    """
    gaps_N = nn.functional.pad(sequences.timestamps_N.cpu().diff(), (1, 0))
    has_gap_N = torch.ones(len(gaps_N), dtype=torch.bool)
    first_U = sequences.offsets_U[:-1].cpu()
    has_gap_N[first_U[first_U < len(gaps_N)]] = False
    pool_G = gaps_N[has_gap_N]
    drawn_N = torch.zeros_like(gaps_N)
    drawn_N[has_gap_N] = pool_G[torch.randperm(len(pool_G), generator=generator)]
    return drawn_N
