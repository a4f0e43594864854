import pytest
import torch
from torch.nn import functional as F

from mmm4rec.ops import frozen
from mmm4rec.ops.frozen import frozen_linear

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def draw(dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    values_IF = torch.randn(9, 4, generator=random, dtype=dtype)
    weight_DF, bias_D = (
        torch.randn(shape, generator=random, dtype=dtype).requires_grad_() for shape in ((3, 4), 3)
    )
    return values_IF, weight_DF, bias_D


@pytest.mark.parametrize("ids_N", [None, torch.tensor([8, 0, 0, 5]), torch.tensor([], dtype=int)])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_is_the_affine_map_with_its_gradients(monkeypatch, rows, ids_N):
    monkeypatch.setattr(frozen, "ROWS_AT_ONCE", rows)
    values_IF, weight_DF, bias_D = draw()
    expected_ND = F.linear(values_IF if ids_N is None else values_IF[ids_N], weight_DF, bias_D)
    found_ND = frozen_linear(values_IF, ids_N, weight_DF, bias_D)
    torch.testing.assert_close(found_ND, expected_ND, **EXACT)
    weight_ND = torch.randn_like(expected_ND)
    for ours, theirs in zip(
        torch.autograd.grad((found_ND * weight_ND).sum(), (weight_DF, bias_D)),
        torch.autograd.grad((expected_ND * weight_ND).sum(), (weight_DF, bias_D)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_gradient_of_the_bias_alone():
    values_IF, weight_DF, bias_D = draw()
    found_ND = frozen_linear(values_IF, None, weight_DF.detach(), bias_D)
    (grad_D,) = torch.autograd.grad(found_ND.sum(), bias_D)
    assert grad_D.tolist() == [9, 9, 9]


def test_half_precision_features_are_cast_to_the_weights():
    values_IF, weight_DF, bias_D = draw(torch.float32)
    found_ND = frozen_linear(values_IF.half(), None, weight_DF, bias_D)
    assert found_ND.dtype == torch.float32
    torch.testing.assert_close(found_ND, F.linear(values_IF.half().float(), weight_DF, bias_D))


def test_autocast():
    values_IF, weight_DF, bias_D = draw(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found_ND = frozen_linear(values_IF, None, weight_DF, bias_D)
        expected_ND = F.linear(values_IF, weight_DF, bias_D)
    assert found_ND.dtype == torch.bfloat16
    torch.testing.assert_close(found_ND, expected_ND, rtol=0.02, atol=0.02)
    found_ND.float().sum().backward()
    assert weight_DF.grad.dtype == torch.float32
    torch.testing.assert_close(weight_DF.grad[0], values_IF.sum(0), rtol=0.02, atol=0.05)
