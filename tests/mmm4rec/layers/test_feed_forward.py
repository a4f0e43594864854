import torch
from torch.nn import functional as F

from mmm4rec.config import ModelConfig
from mmm4rec.layers.feed_forward import build_feed_forward

SIZES = {"d_model": 8, "d_feed_forward": 5, "head_dim": 4, "num_groups": 2}


def test_formula():
    torch.manual_seed(0)
    block = build_feed_forward(ModelConfig(**SIZES)).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 3, 8)
    hidden = x @ block.fc1.weight.T + block.fc1.bias
    hidden = hidden * (hidden + 3).clamp(0, 6) / 6
    out = hidden @ block.fc2.weight.T + block.fc2.bias + x
    expected = F.layer_norm(out, (8,), block.norm.weight, block.norm.bias, 1e-5)
    torch.testing.assert_close(block(x), expected)


def test_switched_off():
    block = build_feed_forward(ModelConfig(**SIZES, use_feed_forward=False))
    x = torch.randn(2, 8)
    assert block(x) is x
    assert not list(block.parameters())
