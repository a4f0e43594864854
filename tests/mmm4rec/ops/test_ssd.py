import importlib.util
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmm4rec.errors import ConfigError
from mmm4rec.ops import pieces
from mmm4rec.ops import ssd as module
from mmm4rec.ops.ssd import available_backends, ssd

SIZES = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 4),
        "length": st.integers(1, 9),
        "groups": st.integers(1, 3),
        "heads_per_group": st.integers(1, 3),
        "width": st.integers(1, 5),
        "state": st.integers(1, 5),
        "seed": st.integers(0, 1000),
    }
)


def draw(batch, length, groups, heads_per_group, width, state, seed, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=dtype).requires_grad_()

    heads = groups * heads_per_group
    return [
        normal(batch, length, heads, width),
        normal(batch, length, heads),
        (-torch.rand(heads, generator=random, dtype=dtype) * 5).requires_grad_(),
        normal(batch, length, groups, state),
        normal(batch, length, groups, state),
        normal(heads),
        normal(heads),
    ]


def with_gradients(inputs, weight, **options):
    y_BLHP = ssd(*inputs, **options)
    return [y_BLHP, *torch.autograd.grad((y_BLHP * weight).sum(), inputs)]


@given(sizes=SIZES, skip=st.sampled_from(["unscaled", "scaled_by_step"]), rows=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_quadratic_agrees_with_recurrent(sizes, skip, rows):
    inputs = draw(**sizes)
    weight = torch.randn_like(inputs[0])
    expected = with_gradients(inputs, weight, skip=skip, backend="recurrent")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "CACHED_ELEMENTS", rows * inputs[0][0].numel())
        found = with_gradients(inputs, weight, skip=skip, backend="quadratic")
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["recurrent", "quadratic"])
def test_one_step_by_hand(backend):
    """One head, one state: h = step B x, y = C h + D x."""
    step = torch.nn.functional.softplus(torch.tensor(0.3 + 0.2))
    one = torch.ones(1, 1, 1, 1)
    inputs = [3 * one, torch.tensor([[[0.3]]]), torch.tensor([-1.0]), 2 * one, 5 * one]
    weights = [torch.tensor([7.0]), torch.tensor([0.2])]
    y = ssd(*inputs, *weights, skip="unscaled", backend=backend)
    torch.testing.assert_close(y.squeeze(), 5 * 2 * step * 3 + 7 * 3)
    y = ssd(*inputs, *weights, skip="scaled_by_step", backend=backend)
    torch.testing.assert_close(y.squeeze(), 5 * 2 * step * 3 + 7 * step * 3)


@pytest.mark.parametrize("backend", ["recurrent", "quadratic"])
def test_causal(backend):
    inputs = draw(2, 6, 2, 1, 3, 3, seed=0)
    before = ssd(*inputs, backend=backend)
    changed = [x.detach().clone() for x in inputs]
    for index in (0, 1, 3, 4):
        changed[index][:, 4] += 1
    after = ssd(*changed, backend=backend)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("backend", ["recurrent", "quadratic"])
@pytest.mark.parametrize("dt", [-1e4, 1e4])
def test_extreme_steps_stay_finite(backend, dt):
    inputs = draw(1, 8, 1, 2, 2, 2, seed=0, dtype=torch.float32)
    inputs[1] = torch.full_like(inputs[1], dt).requires_grad_()
    for value in with_gradients(inputs, torch.ones(()), backend=backend):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("backend", ["recurrent", "quadratic"])
def test_bfloat16_keeps_decay_in_float32(backend):
    inputs = [x.detach() for x in draw(2, 20, 2, 2, 8, 8, seed=1, dtype=torch.float32)]
    exact = ssd(*inputs, backend="recurrent")
    narrow = [x.bfloat16() if i in (0, 3, 4) else x for i, x in enumerate(inputs)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ssd(*narrow, backend=backend)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() < 0.02 * exact.norm()


def test_auto_is_quadratic_on_cpu_and_says_so_once(caplog):
    module._log_choice.cache_clear()
    inputs = draw(1, 3, 1, 1, 2, 2, seed=0)
    with caplog.at_level(logging.INFO, logger="mmm4rec.ops.ssd"):
        first = ssd(*inputs, backend="auto")
        ssd(*inputs, backend="auto")
    assert torch.equal(first, ssd(*inputs, backend="quadratic"))
    assert caplog.messages == ["ssd_backend auto: quadratic on cpu"]


def test_mamba_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert available_backends() == ("recurrent", "quadratic")
    with pytest.raises(ConfigError, match=r"not installed .*Next: .*pip install"):
        ssd(*draw(1, 3, 1, 1, 2, 2, seed=0), backend="mamba")


def test_mamba_needs_cuda(monkeypatch):
    monkeypatch.setattr(module, "available_backends", lambda: ("mamba",))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"needs CUDA, but the data is on cpu"):
        ssd(*draw(1, 3, 1, 1, 2, 2, seed=0), backend="mamba")


@given(sizes=SIZES, skip=st.sampled_from(["unscaled", "scaled_by_step"]), width=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("backend", ["recurrent", "quadratic"])
def test_reading_at_some_positions_only(backend, sizes, skip, width):
    inputs = draw(**sizes)
    batch, length = inputs[1].shape[:2]
    order = torch.stack([torch.randperm(length) for _ in range(batch)])[:, :width]
    C_BWGN = inputs[4].take_along_dim(order[:, :, None, None], 1)
    whole = ssd(*inputs, skip=skip, backend="recurrent")
    expected = whole.take_along_dim(order[:, :, None, None], 1)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weight).sum(), inputs)
    y_BWHP = ssd(*inputs[:4], C_BWGN, *inputs[5:], skip=skip, backend=backend, read_at_BW=order)
    torch.testing.assert_close(y_BWHP, expected, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad((y_BWHP * weight).sum(), inputs)
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
