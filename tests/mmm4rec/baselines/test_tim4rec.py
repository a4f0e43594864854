from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mmm4rec.layers.time import TimeEncoder


def _by_decay_matrix(block, x_BLD, r_BLH):
    """Run the block with its decay matrix written out, position by position and head by head."""
    z, x, B, C, dt = block.in_proj(x_BLD)
    x, B, C = block.conv(x, B, C)
    ssd = block.ssd
    heads, length = ssd.A_log.numel(), x_BLD.shape[1]
    step = F.softplus(dt * r_BLH[:, :length] + ssd.dt_bias)
    A = -ssd.A_log.exp()
    x = x.unflatten(-1, (heads, -1))
    B, C = (part.unflatten(-1, (-1, ssd.d_state)) for part in (B, C))
    per_group = heads // B.shape[2]
    y = torch.zeros_like(x)
    for row in range(len(x)):
        for head in range(heads):
            group = head // per_group
            for at in range(length):
                for source in range(at + 1):
                    between = step[row, source + 1 : at + 1, head].sum()
                    mask = torch.exp(A[head] * between)
                    affinity = C[row, at, group] @ B[row, source, group]
                    entering = step[row, source, head] * x[row, source, head]
                    y[row, at, head] += mask * affinity * entering
                scale = step[row, at, head] if ssd.skip == "scaled_by_step" else 1
                y[row, at, head] += ssd.D[head] * scale * x[row, at, head]
    return ssd(y.flatten(-2), z)


@pytest.mark.parametrize("skip", ["unscaled", "scaled_by_step"])
def test_time_scales_the_steps_of_the_decay_matrix(build, batch, skip):
    model = build("tim4rec", "model.item_inputs=ids", f"model.skip={skip}")
    (layer,) = model.layers
    x_BLD = model.norm(model.item_encoder(batch.items_BL))
    signal = model.time_encoder(batch.timestamps_BL, batch.lengths_B)
    (r_BLH,) = layer.ti_ssd.time_scale(signal.values_SBHL)
    mixed_BLD = _by_decay_matrix(layer.ti_ssd, x_BLD, r_BLH)
    expected = layer.feed_forward(layer.norm(mixed_BLD))
    last_BD = expected[torch.arange(7), batch.lengths_B - 1]
    assert_close(model(batch), last_BD, rtol=0, atol=1e-10)


@pytest.mark.parametrize("off", ["setting", "domain"])
def test_without_time_it_is_a_plain_ssd(build, tiny_catalogue, batch, off):
    overrides = ["model.use_time=false"] if off == "setting" else []
    catalogue = tiny_catalogue(has_time=off == "setting")
    model = build("tim4rec", *overrides, catalogue=catalogue)
    assert not any("time" in name for name, _ in model.named_parameters())
    (layer,) = model.layers
    x_BLD = model.norm(model.item_encoder(batch.items_BL))
    ones = torch.ones(7, 6, layer.ti_ssd.ssd.A_log.numel(), dtype=torch.float64)
    expected = layer.feed_forward(layer.norm(_by_decay_matrix(layer.ti_ssd, x_BLD, ones)))
    last_BD = expected[torch.arange(7), batch.lengths_B - 1]
    assert_close(model(batch), last_BD, rtol=0, atol=1e-10)
    other_times = replace(batch, timestamps_BL=batch.timestamps_BL * 3)
    assert model(other_times).equal(model(batch))


def test_several_layers_hand_time_and_residuals_on(build, batch):
    model = build("tim4rec", "model.num_layers=2")
    assert isinstance(model.time_encoder, TimeEncoder)
    x_BLD = model.norm(model.item_encoder(batch.items_BL))
    time = model.time_encoder(batch.timestamps_BL, batch.lengths_B)
    for layer in model.layers:
        mixed_MBLD, time = layer.ti_ssd(x_BLD[None], time)
        x_BLD = layer.feed_forward(layer.norm(mixed_MBLD[0] + x_BLD))
    assert_close(model(batch), x_BLD[torch.arange(7), batch.lengths_B - 1])
    assert model.layers[0].ti_ssd.time_gate is not None
    assert model.layers[1].ti_ssd.time_gate is None


def test_the_moment_of_recommending_matters_where_it_is_given(build, batch):
    model = build("tim4rec")
    last_B = batch.timestamps_BL[torch.arange(7), batch.lengths_B - 1]
    soon, late = (replace(batch, query_time_B=last_B + days * 86_400) for days in (1, 400))
    assert ((model(late) - model(soon)).abs().amax(1) > 1e-6).all()


def test_the_gaps_matter(build, batch):
    model = build("tim4rec")
    other = replace(batch, timestamps_BL=batch.timestamps_BL.clone())
    other.timestamps_BL[0, 3:] += 400 * 86_400
    moved_B = (model(other) - model(batch)).abs().amax(1)
    assert moved_B[0] > 1e-6
    assert moved_B[1:].max() == 0
