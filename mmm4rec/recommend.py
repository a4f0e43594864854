"""The best items for one history, through the scoring path of the evaluation.

Shape letters: B batch (here 1), L sequence length, D d_model, I items with the padding item 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmm4rec.batch import PADDING_ID, SequenceBatch
from mmm4rec.errors import DataError
from mmm4rec.lit_module import Recommender


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: its id and its score (a logit, comparable within one list)."""

    item_id: int
    score: float


@torch.inference_mode()
def recommend(
    model: Recommender,
    item_ids: list[int],
    timestamps: list[int],
    *,
    max_len: int,
    query_time: int | None = None,
    top_k: int = 10,
    exclude_history: bool = False,
) -> list[Recommendation]:
    """Return the `top_k` items with the highest scores, best first, ties by item id.

    Args:
        model: in eval mode.
        item_ids: the history, oldest first, ids from 1; only the last `max_len` are read.
        timestamps: Unix seconds of the history, as long as `item_ids`.
        max_len: most recent items read, L.
        query_time: the moment of recommending in Unix seconds, for a model that was trained with
            `data.query_time: now`.
        top_k: how many, at least 1.
        exclude_history: leave out every item of the history.

    Raises:
        DataError: the history is empty.
    """
    if not item_ids:
        raise DataError("the history is empty: give at least one item that the model knows")
    recent, times = item_ids[-max_len:], timestamps[-max_len:]
    padding = [PADDING_ID] * (max_len - len(recent))
    batch = SequenceBatch(
        items_BL=torch.tensor([recent + padding]),
        lengths_B=torch.tensor([len(recent)]),
        timestamps_BL=torch.tensor([times + padding]),
        targets_B=torch.tensor([PADDING_ID]),
        users_B=torch.tensor([0]),
        query_time_B=None if query_time is None else torch.tensor([query_time]),
    )
    scores_I = model.score(model(batch), model.item_matrix())[0].double()
    scores_I[PADDING_ID] = -torch.inf
    if exclude_history:
        scores_I[torch.tensor(item_ids)] = -torch.inf
    order = torch.argsort(scores_I, descending=True, stable=True)[:top_k].tolist()
    kept = [item for item in order if scores_I[item] > -torch.inf]
    return [Recommendation(item, float(scores_I[item])) for item in kept]
