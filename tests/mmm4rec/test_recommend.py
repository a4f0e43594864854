import pytest
import torch
from torch import nn

from mmm4rec.errors import DataError
from mmm4rec.metrics import target_rank
from mmm4rec.model import MMM4Rec
from mmm4rec.recommend import recommend


class _Fixed(nn.Module):
    """Scores items by a given row."""

    def __init__(self, scores_I):
        super().__init__()
        self.scores_I = torch.tensor(scores_I)

    def forward(self, batch):
        return torch.ones(len(batch), 1)

    def item_matrix(self):
        return self.scores_I[:, None]

    def score(self, user_BD, items_ID):
        return user_BD @ items_ID.T


SCORES_I = [9.0, 1.0, 4.0, 2.0, 4.0]


def test_the_best_come_first_ties_by_id_and_never_the_padding_item():
    found = recommend(_Fixed(SCORES_I), [1], [0], max_len=5, top_k=10)
    assert [(r.item_id, r.score) for r in found] == [(2, 4.0), (4, 4.0), (3, 2.0), (1, 1.0)]


def test_the_history_can_be_left_out():
    found = recommend(_Fixed(SCORES_I), [2, 3], [0, 0], max_len=1, top_k=2, exclude_history=True)
    assert [r.item_id for r in found] == [4, 1]


def test_an_empty_history_is_an_error():
    with pytest.raises(DataError, match="the history is empty"):
        recommend(_Fixed(SCORES_I), [], [], max_len=5)


def test_the_moment_of_recommending_reaches_the_model():
    class Asked(_Fixed):
        def forward(self, batch):
            self.query_time_B = batch.query_time_B
            return super().forward(batch)

    model = Asked(SCORES_I)
    recommend(model, [1], [0], max_len=5)
    assert model.query_time_B is None
    recommend(model, [1], [0], max_len=5, query_time=1_600_000_000)
    assert model.query_time_B.tolist() == [1_600_000_000]


def test_recommendations_agree_with_the_ranks_of_the_evaluation(
    tiny_config, tiny_data, tiny_catalogue
):
    config = tiny_config()
    model = MMM4Rec(config.model, tiny_catalogue()).eval()
    data = tiny_data(config)
    batch = next(iter(data.test_dataloader()))
    rank = target_rank(model.score(model(batch), model.item_matrix()), batch.targets_B)
    for row in range(5):
        first, end = data.sequences.offsets_U[row : row + 2].tolist()
        found = recommend(
            model,
            data.sequences.items_N[first : end - 1].tolist(),
            data.sequences.timestamps_N[first : end - 1].tolist(),
            max_len=config.model.max_len,
            top_k=30,
        )
        order = [r.item_id for r in found]
        assert order.index(int(batch.targets_B[row])) == int(rank.better_B[row])
