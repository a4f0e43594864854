import pytest
import torch
from torch.nn import functional as F

from mmm4rec.layers.norm import GatedRMSNorm, LayerNorm, PositionNorm
from mmm4rec.ops import pieces


def test_layer_norm_computes_bfloat16_in_float32():
    norm = LayerNorm(8, eps=1e-5)
    x = torch.randn(3, 8).bfloat16()
    assert norm(x).dtype == torch.float32
    torch.testing.assert_close(norm(x), F.layer_norm(x.float(), (8,), eps=1e-5))


@pytest.mark.parametrize("elements", [1, 10**6])
def test_gate_comes_before_the_norm(monkeypatch, elements):
    monkeypatch.setattr(pieces, "CACHED_ELEMENTS", elements)
    norm = GatedRMSNorm(6, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    y, z = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    gated = y * z * torch.sigmoid(z)
    expected = gated / (gated.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(y, z), expected)


def position_norm(length, eps=1e-5):
    norm = PositionNorm(length, eps=eps).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


def test_all_positions_is_layer_norm():
    norm = position_norm(5)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(norm(x, None), F.layer_norm(x, (5,), norm.weight, norm.bias, 1e-5))


def test_masked_is_layer_norm_of_the_real_positions():
    """`time_norm: real_positions`."""
    norm = position_norm(5)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None]
    out = norm(x, mask)
    real = F.layer_norm(x[0, :, :3], (3,), norm.weight[:3], norm.bias[:3], 1e-5)
    torch.testing.assert_close(out[0, :, :3], real)
    assert not out[0, :, 3:].any()
    torch.testing.assert_close(out[1], norm(x[1], None))


def test_constant_has_finite_gradients():
    norm = PositionNorm(4, eps=1e-12)
    x = torch.full((1, 4), 7.0, requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    for given in (mask, None):
        out = norm(x, given)
        assert not out.any()
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert torch.isfinite(grad).all()
