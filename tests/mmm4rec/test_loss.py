import math

import pytest
import torch

from mmm4rec import batch as sizes
from mmm4rec.loss import catalogue_loss, full_catalogue_loss, in_batch_loss

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


def _draw_matrices(rows=11, items=29, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    user_BD, items_ID = (
        torch.randn(count, 6, generator=random, dtype=dtype).requires_grad_()
        for count in (rows, items)
    )
    return user_BD, items_ID, torch.randint(1, items, (rows,), generator=random)


@pytest.mark.parametrize("padding_candidate", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 11, 50])
def test_loss_in_pieces_is_the_loss_of_all_scores(monkeypatch, rows, padding_candidate):
    monkeypatch.setattr(sizes, "LEAST_ROWS_AT_ONCE", rows)
    monkeypatch.setattr(sizes, "SCORES_AT_ONCE", {"cpu": 1})
    user_BD, items_ID, targets_B = _draw_matrices()
    expected = full_catalogue_loss(
        user_BD @ items_ID.T, targets_B, padding_candidate=padding_candidate
    )
    found = catalogue_loss(user_BD, items_ID, targets_B, padding_candidate=padding_candidate)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(3 * x, (user_BD, items_ID)) for x in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_bias_per_item_is_a_column():
    user_BD, items_ID, targets_B = _draw_matrices()
    bias_I = torch.randn(len(items_ID), dtype=torch.float64, requires_grad=True)
    expected = full_catalogue_loss(user_BD @ items_ID.T + bias_I, targets_B)
    with_one_BD = torch.cat([user_BD, torch.ones_like(user_BD[:, :1])], dim=1)
    found = catalogue_loss(with_one_BD, torch.cat([items_ID, bias_I[:, None]], 1), targets_B)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(x, bias_I)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wanted", [0, 1])
def test_gradient_of_one_matrix_alone(wanted):
    *matrices, targets_B = _draw_matrices()
    expected = torch.autograd.grad(catalogue_loss(*matrices, targets_B), matrices[wanted])
    frozen = [m if i == wanted else m.detach() for i, m in enumerate(matrices)]
    found = torch.autograd.grad(catalogue_loss(*frozen, targets_B), matrices[wanted])
    assert torch.equal(found[0], expected[0])


def test_loss_without_gradients():
    user_BD, items_ID, targets_B = _draw_matrices()
    expected = catalogue_loss(user_BD, items_ID, targets_B)
    with torch.no_grad():
        assert torch.equal(catalogue_loss(user_BD, items_ID, targets_B), expected)


def test_scores_far_apart_keep_the_loss_finite():
    """The share of a target far below the top is 0 in float32; its loss is not infinite."""
    loss = catalogue_loss(
        torch.tensor([[1000.0]]), torch.tensor([[0.0], [0], [1]]), torch.tensor([1])
    )
    assert loss.item() == pytest.approx(1000)


def test_loss_in_pieces_stays_in_float32_under_autocast():
    user_BD, items_ID, targets_B = _draw_matrices(dtype=torch.float32)
    expected = catalogue_loss(user_BD, items_ID, targets_B)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(catalogue_loss(user_BD, items_ID, targets_B), expected)
