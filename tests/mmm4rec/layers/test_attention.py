import math

import pytest
import torch

from mmm4rec.config import ModelConfig
from mmm4rec.layers.attention import GatedAttention, build_mixer
from mmm4rec.layers.gated_ssd import INITIAL_DECAY, INITIAL_STEP, GatedSSD

SIZES = {"d_model": 8, "max_len": 7, "mixer": "attention", "num_attention_heads": 4}


def build(*, use_time, **settings):
    torch.manual_seed(0)
    return GatedAttention(ModelConfig(**SIZES, **settings), use_time=use_time).double()


def inputs(*, use_time, width=16, length=5):
    torch.manual_seed(1)
    shape = (2, 3, length)  # modalities, batch
    x, B, C = (torch.randn(*shape, size, dtype=torch.float64) for size in (width, 8, 8))
    dt = torch.randn(*shape, 4, dtype=torch.float64)
    r = torch.rand(1, 3, 7, 4, dtype=torch.float64) * 3 if use_time else None
    return x, dt, B, C, r


def by_hand(block, x, dt, B, C, r):
    """One row, one head, one position at a time; without time the decay is 1."""
    out = torch.zeros_like(x)
    for m in range(x.shape[0]):
        for b in range(x.shape[1]):
            for h in range(4):
                key, value = slice(2 * h, 2 * h + 2), slice(4 * h, 4 * h + 4)
                for at in range(x.shape[2]):
                    weights = []
                    for k in range(at + 1):
                        decay = 1.0
                        for j in range(k + 1, at + 1) if r is not None else ():
                            step = torch.log1p(
                                torch.exp(dt[m, b, j, h] * r[0, b, j, h] + block.dt_bias[h])
                            )
                            decay = decay * torch.exp(-torch.exp(block.A_log[h]) * step)
                        affinity = (C[m, b, at, key] * B[m, b, k, key]).sum() / math.sqrt(2)
                        weights.append(decay * torch.exp(affinity))
                    for weight, answer in zip(weights, x[m, b, : at + 1, value], strict=True):
                        out[m, b, at, value] += weight / sum(weights) * answer
    return out


@pytest.mark.parametrize("use_time", [True, False])
def test_formula(use_time):
    block, given = build(use_time=use_time), inputs(use_time=use_time)
    expected = by_hand(block, *given).detach()
    torch.testing.assert_close(block.mix(*given), expected, rtol=1e-10, atol=1e-12)


def test_without_time_it_is_pytorch_s_multi_head_attention():
    """With the projections of an `nn.MultiheadAttention` in front and behind."""
    block = build(use_time=False, expand=1)
    theirs = torch.nn.MultiheadAttention(8, 4, batch_first=True, dtype=torch.float64)
    torch.nn.init.normal_(theirs.in_proj_bias)
    query, source = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    C, B, x = (
        torch.nn.functional.linear(stream, weight, bias)
        for stream, weight, bias in zip(
            (query, source, source),
            theirs.in_proj_weight.chunk(3),
            theirs.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected, _ = theirs(query, source, source, attn_mask=later)
    found = theirs.out_proj(block.mix(x, x[..., :4], B, C, None))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("use_time", [True, False])
def test_some_positions_alone_are_those_of_the_whole(use_time):
    block = build(use_time=use_time)
    x, dt, B, C, r = inputs(use_time=use_time)
    whole = block.mix(x, dt, B, C, r)
    at = torch.tensor([[0, 4], [3, 1], [2, 3]])
    asked = C.take_along_dim(at[None, ..., None], 2)
    # Both modalities ask at the positions of their row.
    found = block.mix(x, dt, B, asked, r, at.repeat(2, 1))
    expected = whole.take_along_dim(at[None, ..., None], 2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_decay_is_that_of_the_state_space():
    """Where every affinity is 0, the weights are the SSD's decay, normalised."""
    block = build(use_time=True)
    x, dt, B, C, r = inputs(use_time=True)
    ssd = GatedSSD(ModelConfig(d_model=8, head_dim=4, num_groups=1, d_state=1, max_len=7)).double()
    with torch.no_grad():
        ssd.A_log.copy_(block.A_log)
        ssd.dt_bias.copy_(block.dt_bias)
        ssd.D.zero_()
    step = torch.nn.functional.softplus(dt * r[:, :, :5] + block.dt_bias)
    one = torch.ones_like(B[..., :1])

    def decayed_sum(values):  # the SSD weighs what enters its state with the step
        return ssd.mix(values / step.repeat_interleave(4, -1), dt, one, one, r)

    expected = decayed_sum(x) / decayed_sum(torch.ones_like(x))
    torch.testing.assert_close(block.mix(x, dt, B * 0, C, r), expected, rtol=1e-9, atol=1e-11)


def test_a_long_gap_hides_what_lies_before_it():
    block = build(use_time=True)
    x, dt, B, C, r = inputs(use_time=True)
    dt, r = dt.abs() + 1, r.clone()
    r[:, :, 3] = 1e4
    torch.testing.assert_close(block.mix(x, dt, B, C, r)[:, :, 3], x[:, :, 3])
    alone = block.mix(*(part[:, :, 3:] for part in (x, dt, B, C, r)))
    torch.testing.assert_close(block.mix(x, dt, B, C, r)[:, :, 3:], alone)


def test_gradients():
    block = build(use_time=True)
    given = [part.detach().requires_grad_() for part in inputs(use_time=True)]
    parameters = [block.A_log, block.dt_bias, *given]
    found = torch.autograd.grad(block.mix(*given).square().sum(), parameters)
    expected = torch.autograd.grad(by_hand(block, *given).square().sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_bfloat16_in_and_out_computes_in_float32():
    block = build(use_time=True).float()
    given = [part.bfloat16().float() for part in inputs(use_time=True)]
    expected = block.mix(*given).bfloat16()
    x, dt, B, C, r = given
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = block.mix(x.bfloat16(), dt.bfloat16(), B.bfloat16(), C.bfloat16(), r)
    assert torch.equal(found, expected)


def test_only_time_brings_a_decay_and_it_starts_as_that_of_the_state_space():
    assert {name for name, _ in build(use_time=False).named_parameters()} == {
        "norm.weight",
        "out_proj.weight",
        "out_proj.bias",
    }
    block = GatedAttention(
        ModelConfig(d_model=512, mixer="attention", num_attention_heads=512), use_time=True
    )
    step = torch.nn.functional.softplus(block.dt_bias)
    assert INITIAL_STEP[0] * 0.999 <= step.min() < step.max() <= INITIAL_STEP[1] * 1.001
    decay = block.A_log.exp()
    assert INITIAL_DECAY[0] * 0.999 <= decay.min() < decay.max() <= INITIAL_DECAY[1] * 1.001


def test_gate_norm_and_projection_are_those_of_the_state_space():
    attention, ssd = (
        build_mixer(ModelConfig(**{**SIZES, **other}), use_time=True)
        for other in ({}, {"mixer": "ssd", "head_dim": 4, "num_groups": 1})
    )
    assert (type(attention), type(ssd)) == (GatedAttention, GatedSSD)
    torch.nn.init.normal_(ssd.norm.weight)
    attention.norm, attention.out_proj = ssd.norm, ssd.out_proj
    y, z = torch.randn(2, 3, 5, 16)
    assert torch.equal(attention(y, z), ssd(y, z))


def test_heads_must_divide_the_width():
    assert ModelConfig(**SIZES).num_heads == 4
    assert ModelConfig(d_model=8, head_dim=8, num_groups=2, num_attention_heads=3).num_heads == 2
    with pytest.raises(ValueError, match=r"num_attention_heads \(3\) must divide d_model \(8\)"):
        ModelConfig(**{**SIZES, "num_attention_heads": 3})
