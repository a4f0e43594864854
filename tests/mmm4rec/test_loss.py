import math

import pytest
import torch

from mmm4rec.loss import full_catalogue_loss, in_batch_loss

SCORES_BI = torch.tensor([[5.0, 0.0, 1.0, 2.0], [7.0, 3.0, 0.0, 1.0]], dtype=torch.float64)
TARGETS_B = torch.tensor([3, 2])


def _cross_entropy(row: list[float], target: int) -> float:
    return math.log(sum(math.exp(v) for v in row)) - row[target]


def test_padding_is_no_class_unless_asked():
    without = (_cross_entropy([0, 1, 2], 2) + _cross_entropy([3, 0, 1], 1)) / 2
    with_padding = (_cross_entropy([5, 0, 1, 2], 3) + _cross_entropy([7, 3, 0, 1], 2)) / 2
    assert full_catalogue_loss(SCORES_BI, TARGETS_B).item() == pytest.approx(without)
    official = full_catalogue_loss(SCORES_BI, TARGETS_B, padding_candidate=True)
    assert official.item() == pytest.approx(with_padding)


def test_equal_targets_are_no_negatives_of_each_other():
    scores_BB = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 0.0], [3.0, 3.0, 1.0]])
    targets_B = torch.tensor([8, 8, 9])
    masked = (
        _cross_entropy([1, 2], 0) + _cross_entropy([1, 0], 0) + _cross_entropy([3, 3, 1], 2)
    ) / 3
    kept = sum(_cross_entropy(scores_BB[row].tolist(), row) for row in range(3)) / 3
    assert in_batch_loss(scores_BB, targets_B).item() == pytest.approx(masked)
    assert in_batch_loss(scores_BB, targets_B, mask_duplicates=False).item() == pytest.approx(kept)


def test_two_equal_targets_cost_ln_2_in_the_authors_loss():
    loss = in_batch_loss(torch.ones(2, 2), torch.tensor([4, 4]), mask_duplicates=False)
    assert loss.item() == pytest.approx(math.log(2))


def test_half_precision_scores_are_summed_in_float32():
    scores_BI = torch.zeros(1, 4097, dtype=torch.bfloat16)
    loss = full_catalogue_loss(scores_BI, torch.tensor([1]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(4096), rel=1e-6)
