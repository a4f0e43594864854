import torch

from mmm4rec.layers.linear import CausalConv, Linear, SplitLinear
from mmm4rec.ops.conv import causal_conv_silu


def test_linear_starts_at_002_and_zero():
    torch.manual_seed(0)
    linear = Linear(300, 400)
    assert abs(linear.weight.std().item() - 0.02) < 5e-4
    assert not linear.bias.any()


def test_split_linear_is_one_map():
    linear = SplitLinear(5, [3, 1, 2])
    torch.nn.init.normal_(linear.bias)
    x = torch.randn(2, 4, 5)
    parts = linear(x)
    assert [part.shape[-1] for part in parts] == [3, 1, 2]
    whole = torch.nn.functional.linear(x, linear.weight, linear.bias)
    torch.testing.assert_close(torch.cat(parts, -1), whole)


def test_convolution_of_parts_is_that_of_the_whole():
    conv = CausalConv(channels=5, width=4)
    assert conv.weight.abs().max() <= 0.5
    x = torch.randn(3, 2, 6, 5)
    parts = conv(x[..., :2], x[..., 2:])
    expected = causal_conv_silu(x.flatten(0, 1), conv.weight, conv.bias).view(x.shape)
    torch.testing.assert_close(torch.cat(parts, -1), expected)
