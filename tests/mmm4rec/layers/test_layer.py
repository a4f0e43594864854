import pytest
import torch

from mmm4rec.config import ModelConfig
from mmm4rec.layers.layer import Layer
from mmm4rec.layers.time import TimeEncoder

CONFIG = ModelConfig(d_model=8, d_feed_forward=8, head_dim=4, num_groups=2, d_state=4, max_len=6)
NAMES = ("text", "image", "audio")
VARIANTS = [{}, {"share_ti_ssd": False}, {"mixer": "attention", "num_attention_heads": 4}]


def build(num_modalities, *, use_time=True, is_last=False, **settings):
    torch.manual_seed(0)
    config = CONFIG.model_copy(update=settings)
    layer = Layer(config, NAMES[:num_modalities], use_time=use_time, is_last=is_last)
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
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_last_position_alone_is_the_same(variant, num_modalities, use_time):
    layer = build(num_modalities, use_time=use_time, **variant)
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


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
@pytest.mark.parametrize("use_time", [True, False])
def test_separate_blocks_of_equal_weights_are_a_shared_one(num_modalities, use_time):
    shared = build(num_modalities, use_time=use_time)
    separate = build(num_modalities, use_time=use_time, share_ti_ssd=False)
    weights = shared.ti_ssd.state_dict()
    for name in NAMES[:num_modalities]:
        separate.ti_ssd.blocks[name].load_state_dict(weights)
    rest = {k: v for k, v in shared.state_dict().items() if not k.startswith("ti_ssd.")}
    assert all("ti_ssd" in k for k in separate.load_state_dict(rest, strict=False).missing_keys)
    streams, time, lengths = inputs(num_modalities)
    time = time if use_time else None
    for last_B in (None, lengths - 1):
        (found, found_time), (expected, after) = (
            layer(streams, time, last_B) for layer in (separate, shared)
        )
        torch.testing.assert_close(found, expected)
        for index in range(num_modalities) if use_time else ():
            signals = (found_time.of_modality(index), after.of_modality(index))
            torch.testing.assert_close(*signals)
    mixed, _ = separate.ti_ssd(torch.stack(streams), time)
    torch.testing.assert_close(mixed, shared.ti_ssd(torch.stack(streams), time)[0])


def test_separate_blocks_see_their_own_stream():
    layer = build(3, share_ti_ssd=False)
    streams, time, _ = inputs(3)
    before, _ = layer.ti_ssd(torch.stack(streams), time)
    with torch.no_grad():
        layer.ti_ssd.blocks["image"].ssd.D.add_(1)
    after, _ = layer.ti_ssd(torch.stack(streams), time)
    changed = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert changed == [False, True, False]
    for name, stream, mixed in zip(NAMES, streams, after, strict=True):
        torch.testing.assert_close(layer.ti_ssd.blocks[name](stream[None], time)[0][0], mixed)


@pytest.mark.parametrize(
    ("time_filter", "read"),
    [
        ("full", NAMES),
        ("none", NAMES),
        ("gate", NAMES),
        ("source_only", ("text",)),
        ("query_only", ("image", "audio")),
    ],
)
def test_the_time_of_a_stream_is_updated_only_where_it_is_read(time_filter, read):
    def updating(layer):
        return tuple(name for name in NAMES if layer.ti_ssd.blocks[name].time_gate is not None)

    settings = {"share_ti_ssd": False, "time_filter": time_filter}
    assert updating(build(3, **settings, is_last=True)) == read
    assert updating(build(3, **settings)) == NAMES
    assert build(2, time_filter=time_filter, is_last=True).ti_ssd.time_gate is not None
    assert build(1, **settings, is_last=True).ti_ssd.blocks["text"].time_gate is None


@pytest.mark.parametrize("use_time", [True, False])
def test_the_asking_stream_attends_to_the_answering_one(use_time):
    """TiCoSSD with attention: values and keys of the source, queries of the asking stream."""
    co = (
        build(2, use_time=use_time, mixer="attention", num_attention_heads=4)
        .fusions["image"]
        .co_ssd
    )
    query, source = torch.randn(2, 2, 6, 8, dtype=torch.float64)
    time = torch.randn(2, 4, 6, dtype=torch.float64) if use_time else None
    E, S = 16, 8

    def convolved(x, projection, conv, rows):
        channels = torch.nn.functional.linear(x, projection.weight[rows], projection.bias[rows])
        padded = torch.nn.functional.pad(channels.mT, (3, 0))
        weight, bias = conv.weight[rows], conv.bias[rows]
        convolved = torch.nn.functional.conv1d(padded, weight, bias, groups=len(weight))
        return torch.nn.functional.silu(convolved.mT)

    x = convolved(source, co.source_proj, co.source_conv, slice(E))
    B = convolved(source, co.source_proj, co.source_conv, slice(E, E + S))
    C = convolved(query, co.query_proj, co.query_conv, slice(S))
    dt, r = co.source_proj(source)[2], co.time_scale(time) if use_time else None
    z = co.gate_proj(query + source)
    expected = co.ssd(co.ssd.mix(x, dt, B, C, r), z)
    torch.testing.assert_close(co(query, source, time), expected)


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


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_streams_are_causal_and_time_is_not(variant):
    """Changing item t leaves earlier outputs alone; the time path mixes all positions."""
    layer = build(2, **variant)
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
