import torch

from mmm4rec.ops.precision import at_least_float32, full_precision


def test_wide_types_are_untouched():
    x = torch.zeros(2, dtype=torch.float64)
    assert at_least_float32(x) is x
    assert at_least_float32(torch.zeros(2, dtype=torch.float16)).dtype == torch.float32


def test_full_precision_suspends_autocast():
    x = torch.randn(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(x):
            assert (x @ x).dtype == torch.float32
