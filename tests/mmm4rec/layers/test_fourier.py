import numpy as np
import pytest
import torch

from mmm4rec.config import ModelConfig
from mmm4rec.layers.fourier import ComplexLinear, FourierFilter

SMALL = {"d_model": 8, "head_dim": 4, "num_groups": 2, "d_state": 4}


def randomised(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.double()


def as_complex(linear):
    real_weight, imag_weight = (p.weight.detach().numpy() for p in (linear.real, linear.imag))
    real_bias, imag_bias = (p.bias.detach().numpy() for p in (linear.real, linear.imag))
    return real_weight + 1j * imag_weight, real_bias - imag_bias + 1j * (real_bias + imag_bias)


def test_complex_linear_is_complex_arithmetic():
    linear = randomised(ComplexLinear(4))
    x = torch.randn(3, 4, dtype=torch.complex128)
    weight, bias = as_complex(linear)
    np.testing.assert_allclose(linear(x).detach().numpy(), x.numpy() @ weight.T + bias)


@pytest.mark.parametrize("length", [6, 7])
def test_filter_formula(length):
    """Against NumPy's Fourier transform; an odd length has no Nyquist bin."""
    module = randomised(FourierFilter(ModelConfig(**SMALL, max_len=length)))
    query, source = (torch.randn(2, 4, length, dtype=torch.float64) for _ in range(2))

    def apply(linear, spectrum):
        weight, bias = as_complex(linear)
        return spectrum @ weight.T + bias

    of_query = np.fft.rfft(query.numpy(), norm="ortho")
    of_source = np.fft.rfft(source.numpy(), norm="ortho")
    mixed = apply(module.query_map, of_query) * of_query
    mixed = mixed + apply(module.source_map, of_source) * of_source
    expected = np.fft.irfft(apply(module.output_map, mixed), n=length, norm="ortho")
    np.testing.assert_allclose(module(query, source).detach().numpy(), expected, atol=1e-12)
    mask = torch.arange(length) < 3
    masked = module(query, source, mask).detach()
    np.testing.assert_allclose(masked[..., :3].numpy(), expected[..., :3], atol=1e-12)
    assert not masked[..., 3:].any()


def test_corrected_starts_near_the_mean_and_official_near_zero():
    """`time_scale`: the dead start."""
    torch.manual_seed(0)
    query, source = torch.randn(4, 4, 20), torch.randn(4, 4, 20)
    alive = FourierFilter(ModelConfig(**SMALL))(query, source)
    mean = (query + source) / 2
    assert (alive - mean).norm() < 0.5 * mean.norm()
    dead = FourierFilter(ModelConfig(**SMALL, time_scale="tanhshrink"))(query, source)
    assert dead.norm() < 0.05 * mean.norm()


def test_float32_under_autocast():
    module = FourierFilter(ModelConfig(**SMALL))
    query, source = torch.randn(2, 4, 20), torch.randn(2, 4, 20)
    exact = module(query, source)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(query, source), exact)
