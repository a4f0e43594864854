import math

import torch
from torch.testing import assert_close

from mmm4rec.baselines.selective_scan import selective_scan


def _inputs(batch=3, length=5, channels=4, states=2):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (
        draw(batch, length, channels),
        draw(batch, length, channels).exp(),
        -draw(channels, states).exp(),
        draw(batch, length, states),
        draw(batch, length, states),
        draw(channels),
    )


def _one_number_at_a_time(x, step, A, B, C, D):
    output = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for channel in range(x.shape[2]):
            state = [0.0] * A.shape[1]
            for t in range(x.shape[1]):
                entering, width = float(x[row, t, channel]), float(step[row, t, channel])
                for n in range(A.shape[1]):
                    decay = math.exp(width * float(A[channel, n]))
                    state[n] = decay * state[n] + width * float(B[row, t, n]) * entering
                read = sum(float(C[row, t, n]) * state[n] for n in range(A.shape[1]))
                output[row, t, channel] = read + float(D[channel]) * entering
    return output


def test_the_scan_is_the_recurrence(monkeypatch):
    inputs = _inputs()
    expected = _one_number_at_a_time(*inputs)
    assert_close(selective_scan(*inputs), expected, rtol=0, atol=1e-12)
    monkeypatch.setattr("mmm4rec.ops.pieces.CACHED_ELEMENTS", 20)  # one row at a time
    assert_close(selective_scan(*inputs), expected, rtol=0, atol=1e-12)


def test_its_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr("mmm4rec.ops.pieces.CACHED_ELEMENTS", 6)
    inputs = tuple(x.requires_grad_() for x in _inputs(batch=2, length=3, channels=2))
    assert torch.autograd.gradcheck(selective_scan, inputs)


def test_long_steps_forget_and_do_not_overflow():
    x, step, A, B, C, D = _inputs()
    found = selective_scan(x, step * 1e4, A, B, C, D)
    # Nothing but the present input is left of the state.
    present = (step * 1e4 * x) * (B * C).sum(-1, keepdim=True) + D * x
    assert_close(found, present)


def test_narrow_inputs_are_summed_in_float32():
    inputs = [x.bfloat16() for x in _inputs()]
    expected = selective_scan(*(x.double() for x in inputs))
    found = selective_scan(*inputs)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
