import cmath

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmm4rec.baselines.bsarec import CUT_OFF, FrequencyRescaler, low_pass

LENGTH = 6


def _low_by_hand(signal: list[float], cut_off: int) -> list[float]:
    """Keep the frequencies -(c // 2)..c // 2 of a discrete Fourier transform written out."""
    n = len(signal)
    kept = [k for k in range(n) if min(k, n - k) <= cut_off // 2]
    spectrum = {
        k: sum(x * cmath.exp(-2j * cmath.pi * k * t / n) for t, x in enumerate(signal))
        for k in kept
    }
    return [
        (sum(spectrum[k] * cmath.exp(2j * cmath.pi * k * t / n) for k in kept) / n).real
        for t in range(n)
    ]


@pytest.mark.parametrize("length", [2, 5, 6, 20])
@pytest.mark.parametrize("cut_off", [1, 3, 5])
def test_the_filter_is_a_discrete_fourier_transform_cut_off(length, cut_off):
    signal_L = torch.randn(length, generator=torch.Generator().manual_seed(0))
    expected = _low_by_hand(signal_L.tolist(), cut_off)
    assert_close((low_pass(length, cut_off) @ signal_L).tolist(), expected, rtol=0, atol=1e-5)


def test_the_rescaler_gives_the_high_frequencies_their_weight(build, batch):
    rescaler = build("bsarec").layers[0].filter
    x_BLD = torch.randn(7, LENGTH, 16, generator=torch.Generator().manual_seed(0)).double()
    real_BL = torch.arange(LENGTH) < batch.lengths_B[:, None]
    filtered_BLD = torch.zeros_like(x_BLD)
    beta_D = rescaler.sqrt_beta.detach() ** 2
    for row in range(7):
        for channel in range(16):
            signal_L = x_BLD[row, :, channel] * real_BL[row]
            low_L = torch.tensor(_low_by_hand(signal_L.tolist(), CUT_OFF), dtype=torch.float64)
            filtered_BLD[row, :, channel] = low_L + beta_D[channel] * (signal_L - low_L)
    expected = rescaler.norm(filtered_BLD + x_BLD)
    assert_close(rescaler(x_BLD, real_BL), expected, rtol=0, atol=1e-5)


def test_without_learning_high_frequencies_weigh_one_in_the_mean(tiny_config):
    torch.manual_seed(0)
    rescaler = FrequencyRescaler(tiny_config("model.d_model=4096").model)
    assert abs(rescaler.sqrt_beta.square().mean().item() - 1) < 0.1


def test_the_attention_is_torch_s_with_the_same_weights(build):
    attention = build("bsarec", "model.num_attention_heads=4").layers[0].attention
    theirs = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(
        {
            "in_proj_weight": attention.in_proj.weight,
            "in_proj_bias": attention.in_proj.bias,
            "out_proj.weight": attention.out_proj.weight,
            "out_proj.bias": attention.out_proj.bias,
        }
    )
    x_BLD = torch.randn(3, LENGTH, 16, generator=torch.Generator().manual_seed(0)).double()
    later_LL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    attended_BLD, _ = theirs(x_BLD, x_BLD, x_BLD, attn_mask=later_LL)
    assert_close(attention(x_BLD), attention.norm(attended_BLD + x_BLD), rtol=0, atol=1e-10)


def test_a_layer_mixes_seven_parts_of_filter_with_three_of_attention(build, batch):
    layer = build("bsarec").layers[0]
    x_BLD = torch.randn(7, LENGTH, 16, generator=torch.Generator().manual_seed(0)).double()
    real_BL = torch.arange(LENGTH) < batch.lengths_B[:, None]
    mixed_BLD = 0.7 * layer.filter(x_BLD, real_BL) + 0.3 * layer.attention(x_BLD)
    expected = layer.feed_forward(mixed_BLD)
    assert_close(layer(x_BLD, real_BL), expected)
