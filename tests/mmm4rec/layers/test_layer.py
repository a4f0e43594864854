import pytest
import torch

from mmm4rec.config import ModelConfig
from mmm4rec.layers.layer import Layer
from mmm4rec.layers.time import TimeEncoder

CONFIG = ModelConfig(d_model=8, d_feed_forward=8, head_dim=4, num_groups=2, d_state=4, max_len=6)
NAMES = ("text", "image", "audio")


def build(num_modalities, *, use_time=True, is_last=False):
    torch.manual_seed(0)
    layer = Layer(CONFIG, NAMES[:num_modalities], use_time=use_time, is_last=is_last)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.double().eval()


def inputs(num_modalities):
    streams = [torch.randn(2, 6, 8, dtype=torch.float64) for _ in range(num_modalities)]
    stamps = torch.tensor([[0, 5, 90_000, 0, 0, 0], [1, 2, 3, 4, 5, 10**8]])
    lengths = torch.tensor([3, 6])
    time = TimeEncoder(CONFIG, num_modalities=num_modalities).double().eval()(stamps, lengths)
    return streams, time, lengths


@pytest.mark.parametrize("use_time", [True, False])
@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_last_position_alone_is_the_same(num_modalities, use_time):
    layer = build(num_modalities, use_time=use_time)
    streams, time, lengths = inputs(num_modalities)
    time = time if use_time else None
    everywhere, _ = layer(streams, time)
    alone, _ = layer(streams, time, lengths - 1)
    torch.testing.assert_close(alone[-1], everywhere[-1][torch.arange(2), lengths - 1])


def test_each_stream_alone_equals_all_in_one_pass():
    """The shared block sees the streams stacked along the batch."""
    layer = build(3)
    streams, time, _ = inputs(3)
    together, _ = layer.ti_ssd(torch.stack(streams), time)
    for stream, mixed in zip(streams, together, strict=True):
        torch.testing.assert_close(layer.ti_ssd(stream[None], time)[0][0], mixed)


def test_fusion_is_a_chain():
    layer = build(3)
    streams, time, _ = inputs(3)
    mixed, after = layer.ti_ssd(torch.stack(streams), time)
    hidden = [
        norm(one + stream)
        for norm, one, stream in zip(layer.norms.values(), mixed, streams, strict=True)
    ]
    signal = after.of_modality(0)
    fused = [layer.feed_forward(hidden[0])]
    for index, name in ((1, "image"), (2, "audio")):
        fusion = layer.fusions[name]
        signal = fusion.filter(after.of_modality(index), signal, after.mask_BHL)
        answer = fusion.co_ssd(hidden[index], fused[-1], signal)
        fused.append(fusion.feed_forward(fusion.norm(answer + hidden[index] + fused[-1])))
    outputs, _ = layer(streams, time)
    for found, expected in zip(outputs, fused, strict=True):
        torch.testing.assert_close(found, expected)


def test_text_alone_has_no_fusion_and_an_idle_gate_is_not_built():
    assert not build(1).fusions
    assert build(1).ti_ssd.time_gate is not None
    assert build(1, is_last=True).ti_ssd.time_gate is None
    assert build(2, is_last=True).ti_ssd.time_gate is not None


def test_streams_are_causal_and_time_is_not():
    """Changing item t leaves earlier outputs alone; the time path mixes all positions."""
    layer = build(2)
    streams, time, _ = inputs(2)
    before, _ = layer(streams, time)
    changed = [stream.clone() for stream in streams]
    for stream in changed:
        stream[:, 4] += 1
    after, _ = layer(changed, time)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one[:, :4], other[:, :4], rtol=0, atol=0)
        assert not torch.allclose(one[:, 4], other[:, 4])
    later = time.values_SBHL.clone()
    later[..., 5] += 1
    moved, _ = layer(streams, type(time)(later, time.mask_BHL))
    assert not torch.allclose(before[1][1, :5], moved[1][1, :5])
