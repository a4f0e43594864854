import pytest
import torch
from torch.nn import functional as F

from mmm4rec.ops import pieces
from mmm4rec.ops.conv import causal_conv_silu


def reference(x_BLC, weight_C1K, bias_C):
    width = weight_C1K.shape[-1]
    padded_BCL = F.pad(x_BLC.mT, (width - 1, 0))
    return F.silu(F.conv1d(padded_BCL, weight_C1K, bias_C, groups=len(bias_C))).mT


@pytest.mark.parametrize(("length", "width"), [(7, 4), (1, 4), (3, 4), (5, 1), (6, 2)])
@pytest.mark.parametrize("elements", [1, 70, 10**6])
def test_agrees_with_conv1d(monkeypatch, length, width, elements):
    monkeypatch.setattr(pieces, "CACHED_ELEMENTS", elements)
    torch.manual_seed(0)
    inputs = [
        torch.randn(5, length, 6, dtype=torch.float64, requires_grad=True),
        torch.randn(6, 1, width, dtype=torch.float64, requires_grad=True),
        torch.randn(6, dtype=torch.float64, requires_grad=True),
    ]
    weight = torch.randn(5, length, 6, dtype=torch.float64)
    found, expected = causal_conv_silu(*inputs), reference(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((found * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_reads_a_view_and_keeps_a_narrow_type():
    wide = torch.randn(2, 5, 9)
    weight, bias = torch.randn(3, 1, 4), torch.randn(3)
    view = wide[..., 4:7]
    torch.testing.assert_close(
        causal_conv_silu(view, weight, bias), reference(view.contiguous(), weight, bias)
    )
    narrow = causal_conv_silu(view.bfloat16(), weight, bias)
    assert narrow.dtype == torch.bfloat16
    expected = reference(view.bfloat16().float(), weight, bias)
    torch.testing.assert_close(narrow, expected.bfloat16())


def test_causal():
    x = torch.randn(1, 6, 2)
    weight, bias = torch.randn(2, 1, 4), torch.randn(2)
    before = causal_conv_silu(x, weight, bias)
    x[:, 3] += 1
    after = causal_conv_silu(x, weight, bias)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])
