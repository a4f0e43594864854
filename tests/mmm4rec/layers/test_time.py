import pytest
import torch
from torch.nn import functional as F

from mmm4rec.config import OFFICIAL, ModelConfig
from mmm4rec.layers.time import (
    DAY,
    TimeEncoder,
    TimeGate,
    TimeScale,
    TimeSignal,
    gaps_to_next,
    head_units,
    log_gaps,
    second_gaps,
)

SMALL = {
    "d_model": 8,
    "head_dim": 4,
    "num_groups": 2,
    "d_state": 4,
    "d_feed_forward": 8,
    "max_len": 6,
}
STAMPS = torch.tensor([[10 * DAY, 10 * DAY, 13 * DAY, 0, 0, 0], [5, 6, 7, 8, 9, 10]])
LENGTHS = torch.tensor([3, 6])
MASK = torch.arange(6) < LENGTHS[:, None]


def randomised(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.double().eval()


def test_log_gaps_from_a_tie_to_ten_years():
    seconds = torch.tensor([[0, 1, DAY, 3650 * DAY]])
    units_H = torch.tensor([1, DAY], dtype=torch.float64)
    fine, coarse = log_gaps(seconds, units_H)[0]
    expected = torch.tensor([1, 2, 1 + DAY, 1 + 3650 * DAY], dtype=torch.float64).log()
    torch.testing.assert_close(fine, 4 * expected / expected[-1] - 2)
    expected = torch.tensor([1, 1 + 1 / DAY, 2, 3651], dtype=torch.float64).log()
    torch.testing.assert_close(coarse, 4 * expected / expected[-1] - 2)


@pytest.mark.parametrize(("kind", "unit"), [("log_days", DAY), ("log_seconds", 1)])
def test_one_unit_for_all_heads(kind, unit):
    assert head_units(kind, 3).tolist() == [unit] * 3


def test_gaps_to_the_next_item_and_from_the_last_to_the_query():
    queries = torch.tensor([20 * DAY, 10])
    assert gaps_to_next(STAMPS, LENGTHS, queries)[0, :3].tolist() == [0, 3 * DAY, 7 * DAY]
    assert gaps_to_next(STAMPS, LENGTHS, queries)[1].tolist() == [1, 1, 1, 1, 1, 0]


def test_the_query_reaches_the_last_position_alone():
    encoder = TimeEncoder(ModelConfig(**SMALL), num_modalities=1)
    soon, late = (
        encoder(STAMPS, LENGTHS, torch.tensor([14 * DAY, 10]) + extra).values_SBHL[0, :, 0]
        for extra in (0, 9 * DAY)
    )
    assert (soon != late).int().tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]


def test_seconds_let_padding_take_part():
    assert second_gaps(STAMPS)[0].tolist() == [0, 0, 3 * DAY, -13 * DAY, 0, 0]


def test_differences_are_taken_as_integers():
    """In float32, stamps of today are 128 seconds apart."""
    stamps = torch.tensor([[1_700_000_000, 1_700_000_001, 1_700_000_003]])
    assert second_gaps(stamps).tolist() == [[0, 1, 2]]


def test_unordered_history_has_no_negative_gap():
    gaps = log_gaps(second_gaps(torch.tensor([[9 * DAY, 0]])), torch.ones(1))
    assert gaps.tolist() == [[[-2, -2]]]


def test_encoder_gives_gaps_as_they_are():
    encoder = TimeEncoder(ModelConfig(**SMALL), num_modalities=2).double()
    signal = encoder(STAMPS, LENGTHS)
    assert signal.values_SBHL.shape == (1, 2, 4, 6)
    expected = log_gaps(second_gaps(STAMPS), head_units("log_units", 4).double()) * MASK[:, None]
    torch.testing.assert_close(signal.values_SBHL[0], expected)
    assert torch.equal(signal.mask_BHL, MASK[:, None])


def test_normalising_encoder_ignores_padding():
    config = ModelConfig(**SMALL, time_norm="real_positions", time_gaps="log_days")
    encoder = randomised(TimeEncoder(config, num_modalities=2))
    signal = encoder(STAMPS, LENGTHS)
    assert signal.values_SBHL.shape == (1, 2, 4, 6)
    assert torch.equal(signal.of_modality(0), signal.of_modality(1))
    assert torch.equal(signal.mask_BHL, MASK[:, None])
    gaps = log_gaps(second_gaps(STAMPS), torch.tensor([float(DAY)]).double())[0, 0, :3]
    weight, bias = encoder.norm.weight[:3], encoder.norm.bias[:3]
    # An affine change of scale only weighs against the epsilon of the norm.
    expected = F.layer_norm(gaps, (3,), weight, bias, 1e-5)
    torch.testing.assert_close(signal.values_SBHL[0, 0, 1, :3], expected)
    assert not signal.values_SBHL[0, 0, :, 3:].any()
    short = encoder(STAMPS[:1, :3], LENGTHS[:1])
    assert torch.equal(short.values_SBHL, signal.values_SBHL[:, :1])


def test_official_encoder_reads_padding():
    encoder = randomised(TimeEncoder(ModelConfig(**SMALL, **OFFICIAL["model"]), num_modalities=2))
    signal = encoder(STAMPS, LENGTHS)
    gaps = second_gaps(STAMPS).double()
    expected = F.layer_norm(gaps, (6,), encoder.norm.weight, encoder.norm.bias, 1e-12)
    torch.testing.assert_close(signal.values_SBHL[0, :, 3], expected)
    assert signal.mask_BHL is None


def test_dropout_draws_one_mask_per_modality():
    torch.manual_seed(0)
    config = ModelConfig(**SMALL, time_dropout=0.5)
    encoder = TimeEncoder(config, num_modalities=3).train()
    signal = encoder(STAMPS, LENGTHS)
    assert len(signal.values_SBHL) == 3
    assert not torch.equal(signal.of_modality(1), signal.of_modality(2))
    assert len(encoder.eval()(STAMPS, LENGTHS).values_SBHL) == 1


@pytest.mark.parametrize("convolution", ["residual", "plain"])
@pytest.mark.parametrize("kind", ["one_plus", "tanhshrink"])
def test_scale_formula(kind, convolution):
    config = ModelConfig(**SMALL, time_scale=kind, time_convolution=convolution)
    module = randomised(TimeScale(config))
    signal = torch.randn(2, 4, 6, dtype=torch.float64)
    change = module.fc2(F.silu(module.fc1(signal)))
    scale = 1 + change if kind == "one_plus" else change - change.tanh()
    expected = scaled = (signal * scale).mT
    for conv in (module.conv1, module.conv2):
        (expected,) = conv(expected)
    if convolution == "residual":
        expected = expected + scaled
    torch.testing.assert_close(module(signal), expected)


@pytest.mark.parametrize(("kind", "alive"), [("one_plus", True), ("tanhshrink", False)])
def test_only_the_corrected_scale_is_alive_at_the_start(kind, alive):
    torch.manual_seed(0)
    module = TimeScale(ModelConfig(**SMALL, time_scale=kind))
    signal = torch.randn(2, 4, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(module(signal).sum(), signal)
    assert (grad.abs().max() > 1e-2) == alive
    assert (grad.abs().max() < 1e-4) != alive


@pytest.mark.parametrize("per_position", [False, True])
def test_gate_formula(per_position):
    config = ModelConfig(**SMALL, per_position_time_gate=per_position, time_norm="real_positions")
    module = randomised(TimeGate(config))
    signal, r = (torch.randn(2, 4, 6, dtype=torch.float64) for _ in range(2))
    gate = torch.sigmoid(module.fc(signal))
    assert gate.shape[-1] == (6 if per_position else 1)
    expected = module.norm(gate * signal + (1 - gate) * r, MASK[:, None])
    torch.testing.assert_close(module(signal, r.mT, MASK[:, None]), expected)


def test_gate_without_a_norm_masks_padding():
    module = randomised(TimeGate(ModelConfig(**SMALL)))
    signal, r = (torch.randn(2, 4, 6, dtype=torch.float64) for _ in range(2))
    gate = torch.sigmoid(module.fc(signal))
    expected = (gate * signal + (1 - gate) * r) * MASK[:, None]
    torch.testing.assert_close(module(signal, r.mT, MASK[:, None]), expected)


def test_time_stays_in_float32_under_autocast():
    config = ModelConfig(**SMALL)
    scale, gate = TimeScale(config), TimeGate(config)
    signal = TimeEncoder(config, num_modalities=1)(STAMPS, LENGTHS).values_SBHL
    exact = scale(signal)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scale(signal), exact)
        assert gate(signal, exact, None).dtype == torch.float32


def test_signal_of_each_modality():
    values = torch.arange(3.0).view(3, 1, 1, 1)
    assert TimeSignal(values, None).of_modality(2).item() == 2
    assert TimeSignal(values[:1], None).of_modality(2).item() == 0
