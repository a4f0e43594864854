import pytest
import torch

from mmm4rec.layers.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.4, 0.5, 0.9])
def test_drops_its_share_everywhere_and_keeps_the_mean(p):
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(200, 4, 501))
    kept = out != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=5e-3)
    assert out.mean().item() == pytest.approx(1, rel=0.02)
    assert out.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)
    # Elements of one random number, and places in a row, are alike and independent.
    shares = kept.flatten()[: kept.numel() // 4 * 4].view(-1, 4).float()
    assert (shares.mean(0) - (1 - p)).abs().max() < 0.01
    assert (torch.corrcoef(shares.T) - torch.eye(4)).abs().max() < 0.02


def test_gradient_passes_where_the_input_does():
    x = torch.randn(7, 3, requires_grad=True)
    out = Dropout(0.4)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach() / x.detach())


def test_repeats_with_its_seed_and_differs_without():
    module, x = Dropout(0.4), torch.ones(50)
    torch.manual_seed(3)
    first = module(x)
    assert not torch.equal(module(x), first)
    torch.manual_seed(3)
    assert torch.equal(module(x), first)


@pytest.mark.parametrize("module", [Dropout(0.0), Dropout(0.4).eval()], ids=["p=0", "eval"])
def test_does_nothing(module):
    x = torch.randn(5)
    assert module(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keeps_the_type(dtype):
    assert Dropout(0.5)(torch.ones(9, dtype=dtype)).dtype == dtype


def test_empty():
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)
