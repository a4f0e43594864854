from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmm4rec.errors import ConfigError


def _torch_layer(attention, feed_forward):
    """Return torch's own layer with the same weights."""
    width = attention.out_proj.weight.shape[0]
    layer = nn.TransformerEncoderLayer(
        width,
        attention.num_heads,
        feed_forward.fc1.out_features,
        activation="gelu",
        batch_first=True,
        dtype=torch.float64,
    )
    pairs = {
        "self_attn.in_proj_": attention.in_proj,
        "self_attn.out_proj.": attention.out_proj,
        "linear1.": feed_forward.fc1,
        "linear2.": feed_forward.fc2,
        "norm1.": attention.norm,
        "norm2.": feed_forward.norm,
    }
    layer.load_state_dict(
        {
            prefix + part: weight
            for prefix, module in pairs.items()
            for part, weight in module.state_dict().items()
        }
    )
    return layer.eval()


def test_user_vectors_are_those_of_torch_s_encoder_with_the_same_weights(build, batch):
    model = build("sasrec", "model.num_layers=2", "model.num_attention_heads=2")
    positions_L = model.positioned.positions.weight[: batch.items_BL.shape[1]]
    x_BLD = model.positioned.norm(model.item_encoder(batch.items_BL) + positions_L)
    later_LL = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for attention, feed_forward in model.layers:
        x_BLD = _torch_layer(attention, feed_forward)(x_BLD, src_mask=later_LL)
    expected = x_BLD[torch.arange(7), batch.lengths_B - 1]
    assert_close(model(batch), expected, rtol=0, atol=1e-10)


def test_order_matters(build, batch):
    model = build("sasrec")
    turned = batch.items_BL.clone()
    turned[0, :5] = turned[0, :5].flip(0)
    moved_B = (model(replace(batch, items_BL=turned)) - model(batch)).abs().amax(1)
    assert moved_B[0] > 1e-3
    assert moved_B[1:].max() < 1e-12


def test_heads_that_do_not_divide_the_width(build):
    with pytest.raises(ConfigError, match=r"num_attention_heads \(3\) must divide d_model \(16\)"):
        build("sasrec", "model.num_attention_heads=3")
