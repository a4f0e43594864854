import torch

from mmm4rec.config import ModelConfig
from mmm4rec.layers.gated_ssd import GatedSSD
from mmm4rec.ops.ssd import ssd

SIZES = {"d_model": 8, "head_dim": 4, "num_groups": 2, "d_state": 3, "max_len": 6}


def test_initial_step_and_decay():
    torch.manual_seed(0)
    block = GatedSSD(ModelConfig(d_model=256, head_dim=1, num_groups=1))
    step = torch.nn.functional.softplus(block.dt_bias)
    assert step.min() >= 1e-3 * 0.999
    assert step.max() <= 0.1 * 1.001
    # log-uniform: half of them below the geometric mean
    assert abs((step < 1e-2).float().mean().item() - 0.5) < 0.1
    decay = block.A_log.exp()
    assert decay.min() >= 1
    assert decay.max() <= 16
    assert abs(decay.mean().item() - 8.5) < 0.8
    assert torch.equal(block.D, torch.ones(512))


def test_time_scales_the_step_before_bias_and_softplus():
    torch.manual_seed(0)
    block = GatedSSD(ModelConfig(**SIZES))
    x, B, C = torch.randn(2, 5, 16), torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    dt, r = torch.randn(2, 5, 4), torch.randn(2, 6, 4)
    inputs = [x.view(2, 5, 4, 4), dt * r[:, :5], -block.A_log.exp()]
    inputs += [B.view(2, 5, 2, 3), C.view(2, 5, 2, 3), block.D, block.dt_bias]
    expected = ssd(*inputs, skip="scaled_by_step", backend="recurrent").flatten(-2)
    torch.testing.assert_close(block.mix(x, dt, B, C, r), expected)
    torch.testing.assert_close(block.mix(x, dt * r[:, :5], B, C, None), expected)
