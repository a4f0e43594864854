import numpy as np
import pytest
import torch

from mmm4rec.config import ModelConfig
from mmm4rec.layers.fourier import ComplexLinear, FourierFilter, build_time_filter

SMALL = {"d_model": 8, "head_dim": 4, "num_groups": 2, "d_state": 4}
KINDS = ("full", "source_only", "query_only", "not_adaptive", "not_learnable")


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


def spectrum_by_hand(signal):
    """The ortho-normal discrete Fourier transform of a real signal, from its definition."""
    length = signal.shape[-1]
    bins, positions = np.arange(length // 2 + 1), np.arange(length)
    waves = np.exp(-2j * np.pi * np.outer(positions, bins) / length)
    return signal @ waves / np.sqrt(length)


def signal_by_hand(spectrum, length):
    """The real signal of a half spectrum: every bin but the first and the Nyquist one is twice."""
    bins, positions = np.arange(length // 2 + 1), np.arange(length)
    twice = np.where((bins == 0) | (2 * bins == length), 1, 2)
    waves = np.exp(2j * np.pi * np.outer(bins, positions) / length)
    return ((spectrum * twice) @ waves).real / np.sqrt(length)


@pytest.mark.parametrize("length", [6, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_each_filter_by_hand(kind, length):
    module = randomised(build_time_filter(ModelConfig(**SMALL, max_len=length, time_filter=kind)))
    query, source = (torch.randn(2, 4, length, dtype=torch.float64) for _ in range(2))

    def term(kernel, signal):
        spectrum = spectrum_by_hand(signal.numpy())
        if kind == "not_adaptive":
            values = kernel.real.detach().numpy() + 1j * kernel.imag.detach().numpy()
            return values * spectrum
        weight, bias = as_complex(kernel)
        return (spectrum @ weight.T + bias) * spectrum

    terms = []
    if kind != "source_only":
        terms.append(term(module.query_map, query))
    if kind != "query_only":
        terms.append(term(module.source_map, source))
    mixed = sum(terms)
    if kind != "not_learnable":
        weight, bias = as_complex(module.output_map)
        mixed = mixed @ weight.T + bias
    expected = signal_by_hand(mixed, length)
    np.testing.assert_allclose(module(query, source).detach().numpy(), expected, atol=1e-11)


def test_gate_by_hand():
    module = randomised(build_time_filter(ModelConfig(**SMALL, max_len=6, time_filter="gate")))
    query, source = (torch.randn(2, 4, 6, dtype=torch.float64) for _ in range(2))
    weight, bias = (p.detach().numpy() for p in (module.fc.weight, module.fc.bias))
    q, s = query.numpy(), source.numpy()
    gate = 1 / (1 + np.exp(-(q @ weight[:, :6].T + s @ weight[:, 6:].T + bias)))
    found = module(query, source).detach().numpy()
    np.testing.assert_allclose(found, gate * q + (1 - gate) * s, atol=1e-12)


def test_none_is_the_mean_and_has_nothing_to_learn():
    module = build_time_filter(ModelConfig(**SMALL, time_filter="none"))
    assert list(module.parameters()) == []
    found = module(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, -2.0]]]))
    assert found.tolist() == [[[2.0, 0.0]]]


def test_what_is_left_out_has_no_parameters():
    def parts(kind):
        module = build_time_filter(ModelConfig(**SMALL, time_filter=kind))
        return {name.partition(".")[0] for name, _ in module.named_parameters()}

    assert parts("full") == parts("not_adaptive") == {"query_map", "source_map", "output_map"}
    assert parts("source_only") == {"source_map", "output_map"}
    assert parts("query_only") == {"query_map", "output_map"}
    assert parts("not_learnable") == {"query_map", "source_map"}


def test_without_the_adaptive_kernel_the_filter_is_linear():
    query, source = torch.randn(2, 4, 20), torch.randn(2, 4, 20)
    for kind, is_linear in (("not_adaptive", True), ("full", False)):
        module = randomised(build_time_filter(ModelConfig(**SMALL, time_filter=kind))).float()
        at_0 = module(query * 0, source * 0)
        once, twice = (module(query * n, source * n) - at_0 for n in (1, 2))
        assert torch.allclose(twice, 2 * once, rtol=1e-3, atol=1e-3) == is_linear


@pytest.mark.parametrize("kind", [*KINDS, "none", "gate"])
def test_each_starts_near_the_signal_and_keeps_padding_at_zero(kind):
    torch.manual_seed(0)
    module = build_time_filter(ModelConfig(**SMALL, time_filter=kind))
    mask = torch.arange(20) < torch.tensor([7, 20])[:, None, None]
    query, source = torch.randn(2, 2, 4, 20) * mask
    start = {"source_only": source, "query_only": query}.get(kind, (query + source) / 2)
    found = module(query, source, mask)
    assert (found - start).norm() < 0.5 * start.norm()
    assert not found[0, :, 7:].any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(query, source, mask), found)


def test_a_signal_that_is_left_out_does_not_matter():
    query, source = torch.randn(2, 4, 20), torch.randn(2, 4, 20)
    only_source, only_query = (
        build_time_filter(ModelConfig(**SMALL, time_filter=kind))
        for kind in ("source_only", "query_only")
    )
    assert torch.equal(only_source(query, source), only_source(source, source))
    assert torch.equal(only_query(query, source), only_query(query, query))
