"""The `mamba` backend on a CPU, through Triton's interpreter.

The interpreter is chosen when Triton is imported and the kernels ask for a GPU on the way, so the
shims hold for the whole process: run this folder alone, `TRITON_INTERPRET=1 pytest -m kernels
tests/kernels`. It is float32 only: bfloat16 is wrong in the interpreter.
"""

import contextlib
import importlib
import os
import types

import pytest
import torch

from mmm4rec.ops import ssd as module
from mmm4rec.ops.ssd import available_backends, ssd

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif("mamba" not in available_backends(), reason="mamba-ssm is not installed"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="TRITON_INTERPRET=1 is not set"
    ),
    pytest.mark.filterwarnings("ignore"),  # Triton's and mamba-ssm's own
]


@pytest.fixture(scope="module", autouse=True)
def _pretend_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
        patch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda device: types.SimpleNamespace(multi_processor_count=1),
        )
        autotuner = importlib.import_module("triton.runtime.autotuner").Autotuner
        run = autotuner.run

        def run_first_config(self, *args, **kwargs):
            self.configs = self.configs[:1]  # nothing to time, so nothing to tune
            return run(self, *args, **kwargs)

        patch.setattr(autotuner, "run", run_first_config)
        yield


def draw(batch, length, groups, heads, width, state):
    random = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, generator=random).requires_grad_()

    return [
        normal(batch, length, heads, width),
        normal(batch, length, heads),
        (-1 - 4 * torch.rand(heads, generator=random)).requires_grad_(),
        normal(batch, length, groups, state),
        normal(batch, length, groups, state),
        normal(heads),
        normal(heads),
    ]


@pytest.mark.parametrize("skip", ["unscaled", "scaled_by_step"])
@pytest.mark.parametrize(("length", "groups"), [(20, 1), (20, 2), (5, 2)])
def test_agrees_with_recurrent(skip, length, groups):
    inputs = draw(2, length, groups, 2, 16, 16)
    weight = torch.randn_like(inputs[0])
    found = ssd(*inputs, skip=skip, backend="mamba")
    expected = ssd(*[x.double() for x in inputs], skip=skip, backend="recurrent").float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad((found * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_large_batches_are_split(monkeypatch):
    inputs = draw(3, 4, 1, 1, 16, 16)
    whole = ssd(*inputs, backend="mamba")
    monkeypatch.setattr(module, "MAX_KERNEL_GRID", 2)
    torch.testing.assert_close(ssd(*inputs, backend="mamba"), whole)
