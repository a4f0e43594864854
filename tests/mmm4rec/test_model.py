from dataclasses import replace

import pytest
import torch

from mmm4rec.batch import ItemCatalogue, ModalityFeatures, SequenceBatch
from mmm4rec.config import OFFICIAL, ModelConfig
from mmm4rec.errors import DataError
from mmm4rec.loss import full_catalogue_loss, in_batch_loss
from mmm4rec.model import MMM4Rec, weight_decay_parameters

DAY = 86_400
SIZES = {
    "d_model": 8,
    "d_feed_forward": 12,
    "head_dim": 4,
    "num_groups": 2,
    "d_state": 4,
    "max_len": 6,
}
WIDTHS = {"text": 5, "image": 3, "audio": 4}
NUM_ITEMS = 9
POLICIES = ["learned", "zero", "white"]
SWITCHES = [
    *({"time_filter": kind} for kind in ("none", "source_only", "query_only")),
    *({"time_filter": kind} for kind in ("not_adaptive", "not_learnable")),
    {"share_ti_ssd": False},
    {"share_ti_ssd": False, "time_filter": "gate"},
    {"mixer": "attention"},
    {"mixer": "attention", "use_time": False},
    {"mixer": "attention", "share_ti_ssd": False, "time_filter": "query_only"},
    {"share_ti_ssd": False, "time_filter": "source_only"},
]
each_switch = pytest.mark.parametrize(
    "switch", SWITCHES, ids=lambda switch: ",".join(f"{k}={v}" for k, v in switch.items())
)


def build_catalogue(num_modalities=2, *, has_time=True, missing_images=(2, 3)):
    random = torch.Generator().manual_seed(1)
    features = {}
    for name, width in list(WIDTHS.items())[:num_modalities]:
        present_I = torch.arange(NUM_ITEMS + 1) > 0
        if name == "image":
            present_I[list(missing_images)] = False
        values_IF = torch.randn(NUM_ITEMS + 1, width, generator=random) * present_I[:, None]
        features[name] = ModalityFeatures(values_IF, present_I, torch.ones(width))
    return ItemCatalogue(features, "fingerprint", has_time)


def build_model(num_modalities=2, *, catalogue=None, randomise=True, **settings):
    torch.manual_seed(0)
    config = ModelConfig(**{**SIZES, **settings})
    model = MMM4Rec(config, catalogue or build_catalogue(num_modalities))
    if randomise:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def build_batch(length=6):
    lengths_B = torch.tensor([1, 2, 3, 4]).clamp(max=length)
    mask_BL = torch.arange(length) < lengths_B[:, None]
    random = torch.Generator().manual_seed(2)
    items_BL = torch.randint(1, NUM_ITEMS + 1, (4, length), generator=random) * mask_BL
    gaps_BL = torch.randint(0, 50 * DAY, (4, length), generator=random)
    stamps_BL = (1_400_000_000 + gaps_BL.cumsum(1)) * mask_BL
    return SequenceBatch(items_BL, lengths_B, stamps_BL, torch.tensor([1, 5, 5, 9]), lengths_B)


def losses(model, batch):
    user_BD = model(batch)
    scores_BI = model.score(user_BD, model.item_matrix())
    in_batch_BB = model.score(user_BD, model.encode_items(batch.targets_B))
    return full_catalogue_loss(scores_BI, batch.targets_B) + in_batch_loss(
        in_batch_BB, batch.targets_B
    )


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
@pytest.mark.parametrize("quirks", [{}, OFFICIAL["model"]], ids=["corrected", "official"])
def test_padding_more_changes_nothing(num_modalities, quirks):
    model = build_model(num_modalities, num_layers=2, **quirks).double()
    torch.testing.assert_close(
        model(build_batch(4)), model(pad(build_batch(4), 6)), rtol=1e-12, atol=1e-12
    )


@each_switch
@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_with_every_switch_padding_and_other_rows_change_nothing(switch, num_modalities):
    model = build_model(num_modalities, num_layers=2, **switch).double()
    batch = build_batch(4)
    user_BD = model(batch)
    exactly = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(model(pad(batch, 6)), user_BD, **exactly)
    padding_BL = torch.arange(4) >= batch.lengths_B[:, None]
    other = replace(
        batch,
        items_BL=batch.items_BL + padding_BL * 3,
        timestamps_BL=batch.timestamps_BL + padding_BL * 1_500_000_000,
    )
    torch.testing.assert_close(model(other), user_BD, **exactly)
    order = torch.tensor([2, 0, 3, 1])
    fields = ("items_BL", "lengths_B", "timestamps_BL")
    shuffled = replace(batch, **{name: getattr(batch, name)[order] for name in fields})
    torch.testing.assert_close(model(shuffled), user_BD[order], **exactly)


def pad(batch, length):
    missing = (0, length - batch.items_BL.shape[1])
    return replace(
        batch,
        items_BL=torch.nn.functional.pad(batch.items_BL, missing),
        timestamps_BL=torch.nn.functional.pad(batch.timestamps_BL, missing),
    )


def test_nothing_about_the_target_reaches_the_user():
    """The target's id, and stamps from its position on (leaked or not), change nothing."""
    model, batch = build_model(num_layers=2), build_batch()
    user_BD = model(batch)
    assert torch.equal(model(replace(batch, targets_B=batch.targets_B + 1)), user_BD)
    padding_BL = torch.arange(6) >= batch.lengths_B[:, None]
    leaked_BL = batch.timestamps_BL + padding_BL * 1_500_000_000
    assert torch.equal(model(replace(batch, timestamps_BL=leaked_BL)), user_BD)


def test_official_reads_the_stamp_after_the_last_item():
    """The released code's leak needs the loader's `target_time: leaked` and `time_norm`."""
    model, batch = build_model(**OFFICIAL["model"]), build_batch()
    stamps_BL = batch.timestamps_BL.clone()
    stamps_BL[1, 2] = stamps_BL[1, 1] + DAY
    assert not torch.allclose(model(replace(batch, timestamps_BL=stamps_BL))[1], model(batch)[1])


def test_time_matters():
    model, batch = build_model(), build_batch()
    stamps_BL = batch.timestamps_BL.clone()
    stamps_BL[2, 2] += 1000 * DAY
    changed_BD = model(replace(batch, timestamps_BL=stamps_BL)) - model(batch)
    assert changed_BD[2].abs().max() > 1e-3
    assert not changed_BD[[0, 1, 3]].any()


@pytest.mark.parametrize("switch", ["config", "catalogue"])
def test_without_time_there_are_no_time_weights(switch):
    if switch == "config":
        model = build_model(use_time=False)
    else:
        model = build_model(catalogue=build_catalogue(has_time=False))
    names = [name for name, _ in model.named_parameters()]
    assert not any("time" in name or "filter" in name for name in names)
    batch = build_batch()
    other = replace(batch, timestamps_BL=batch.timestamps_BL * 0)
    assert torch.equal(model(other), model(batch))


def test_rows_do_not_see_each_other():
    model, batch = build_model(), build_batch()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = SequenceBatch(
        batch.items_BL[order],
        batch.lengths_B[order],
        batch.timestamps_BL[order],
        batch.targets_B[order],
        batch.users_B[order],
    )
    torch.testing.assert_close(model(shuffled), model(batch)[order])


def test_items_after_the_last_do_not_matter():
    """The item path is causal: what stands at padding is never read."""
    model, batch = build_model(num_layers=2).double(), build_batch()
    padding_BL = torch.arange(6) >= batch.lengths_B[:, None]
    other = replace(batch, items_BL=batch.items_BL + padding_BL * 3)
    torch.testing.assert_close(model(other), model(batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
@pytest.mark.parametrize("quirks", [{}, OFFICIAL["model"]], ids=["corrected", "official"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_every_parameter_learns(num_modalities, quirks, num_layers):
    model = build_model(num_modalities, num_layers=num_layers, **quirks).train()
    losses(model, build_batch()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        unused = name.endswith(".missing") and "image" not in name  # only images are missing
        assert parameter.grad.any() != unused, name


@each_switch
@pytest.mark.parametrize("num_modalities", [1, 2, 3])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_with_every_switch_every_parameter_learns(switch, num_modalities, num_layers, precision):
    model = build_model(num_modalities, num_layers=num_layers, **switch).train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        check_finite(model, build_batch())
    idle = {name for name, parameter in model.named_parameters() if not parameter.grad.any()}
    assert idle == {name for name in idle if name.endswith(".missing") and "image" not in name}


def test_the_gate_of_a_shared_block_has_nothing_to_choose_between():
    """One block and the same gaps make equal signals; dropout on gaps or own blocks part them."""

    def gradient(**settings):
        torch.manual_seed(0)
        model = build_model(time_filter="gate", **settings).train()
        losses(model, build_batch()).backward()
        return model.layers[0].fusions["image"].filter.fc.weight.grad.abs().max()

    batch = build_batch()
    gate, mean = (build_model(time_filter=kind) for kind in ("gate", "none"))
    mean.load_state_dict({k: v for k, v in gate.state_dict().items() if ".filter." not in k})
    torch.testing.assert_close(gate(batch), mean(batch))
    assert gradient() == 0
    assert gradient(time_dropout=0.4) > 0
    assert gradient(share_ti_ssd=False) > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_all_images_missing(policy):
    catalogue = build_catalogue(missing_images=range(1, NUM_ITEMS + 1))
    model = build_model(catalogue=catalogue, missing_modality=policy, randomise=False).train()
    check_finite(model, build_batch())


@pytest.mark.parametrize("quirks", [{}, OFFICIAL["model"]], ids=["corrected", "official"])
@pytest.mark.parametrize(
    "gaps", [[0] * 6, [20 * 365 * DAY] * 6, [0, 20 * 365 * DAY, 0, 1, 0, DAY]], ids=str
)
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_extreme_gaps_stay_finite(quirks, gaps, precision):
    model = build_model(num_layers=2, **quirks).train()
    lengths_B = torch.arange(1, 7)
    mask_BL = torch.arange(6) < lengths_B[:, None]
    stamps_BL = torch.tensor(gaps).cumsum(0) * mask_BL
    items_BL = torch.arange(1, 7) * mask_BL
    batch = SequenceBatch(items_BL, lengths_B, stamps_BL, lengths_B, lengths_B)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        check_finite(model, batch)


def check_finite(model, batch):
    loss = losses(model, batch)
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_bfloat16_is_close_and_scores_are_float32():
    model, batch = build_model(randomise=False), build_batch()
    exact_BI = model.score(model(batch), model.item_matrix())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores_BI = model.score(model(batch), model.item_matrix())
    assert scores_BI.dtype == torch.float32
    torch.testing.assert_close(scores_BI, exact_BI, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("quirks", [{}, OFFICIAL["model"]], ids=["corrected", "official"])
@pytest.mark.parametrize("rows", [1, 3])
def test_rows_read_by_length_are_rows_read_together(monkeypatch, rows, quirks):
    model = build_model(num_layers=2, **quirks).double()
    # Not in the order of their lengths.
    order_B = torch.tensor([2, 0, 3, 1])
    whole = build_batch()
    batch = replace(
        whole, **{f: getattr(whole, f)[order_B] for f in ("items_BL", "lengths_B", "timestamps_BL")}
    )
    expected_BD = model(whole)[order_B]
    monkeypatch.setattr("mmm4rec.model.ROWS_AT_ONCE", rows)
    torch.testing.assert_close(model(batch), expected_BD, rtol=1e-12, atol=1e-12)
    loss = model(batch).square().sum()
    found = torch.autograd.grad(loss, tuple(model.layers.parameters()))
    monkeypatch.undo()
    expected = torch.autograd.grad(model(whole).square().sum(), tuple(model.layers.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mixer", ["ssd", "attention"])
def test_shared_outputs_are_those_of_each_layer(mixer):
    model, batch = build_model(num_layers=2, mixer=mixer), build_batch()
    seen = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda layer, args: seen.append((layer, args)))
    outputs = model.shared_outputs(batch)
    assert [len(x) for x in (outputs, seen)] == [2, 2]
    for output_MBLD, (layer, (streams, time)) in zip(outputs, seen, strict=True):
        assert output_MBLD.shape == (2, 4, 6, 8)
        for stream, mixed in zip(streams, output_MBLD, strict=True):
            torch.testing.assert_close(layer.ti_ssd(stream[None], time)[0][0], mixed)


def test_outputs_of_separate_blocks_are_those_of_each_layer():
    model, batch = build_model(num_layers=2, share_ti_ssd=False), build_batch()
    outputs = model.shared_outputs(batch)
    assert [output_MBLD.shape for output_MBLD in outputs] == [(2, 4, 6, 8)] * 2
    streams = model.item_encoder(batch.items_BL)
    time = model.time_encoder(batch.timestamps_BL, batch.lengths_B)
    for name, stream, mixed in zip(("text", "image"), streams, outputs[0], strict=True):
        block = model.layers[0].ti_ssd.blocks[name]
        torch.testing.assert_close(block(stream[None], time)[0][0], mixed)


def test_scoring_is_one_product():
    model, batch = build_model(), build_batch()
    user_BD, items_ID = model(batch), model.item_matrix()
    assert items_ID.shape == (NUM_ITEMS + 1, 8)
    torch.testing.assert_close(model.score(user_BD, items_ID), user_BD @ items_ID.T)
    ids = torch.tensor([9, 0, 4])
    torch.testing.assert_close(model.encode_items(ids), items_ID[ids])


def test_skip_field_changes_the_result():
    """`skip`: the official code lets D weigh the input after the step has scaled it."""
    batch = build_batch()
    user_BD = build_model(skip="unscaled")(batch)
    assert not torch.allclose(build_model(skip="scaled_by_step")(batch), user_BD, atol=1e-2)


def test_batch_longer_than_the_model():
    with pytest.raises(DataError, match=r"sequences of 7 items.* at most 6 .*max_len=7"):
        build_model()(build_batch(7))


def test_decayed_parameters():
    names = weight_decay_parameters(build_model(num_layers=1, use_feed_forward=False))
    assert names == {
        "item_encoder.item_bias.image",
        "item_encoder.item_bias.text",
        "item_encoder.modalities.image.adapter.weight",
        "item_encoder.modalities.text.adapter.weight",
        "layers.0.fusions.image.co_ssd.gate_proj.weight",
        "layers.0.fusions.image.co_ssd.query_proj.weight",
        "layers.0.fusions.image.co_ssd.source_proj.weight",
        "layers.0.fusions.image.co_ssd.ssd.out_proj.weight",
        "layers.0.ti_ssd.in_proj.weight",
        "layers.0.ti_ssd.ssd.out_proj.weight",
    }


@each_switch
def test_with_every_switch_time_and_filter_do_not_decay(switch):
    model = build_model(use_feed_forward=False, **switch)
    names = weight_decay_parameters(model)
    assert not any("time" in name or "filter" in name for name in names)
    own = "layers.0.ti_ssd"
    blocks = [own] if switch.get("share_ti_ssd", True) else [f"{own}.blocks.{x}" for x in WIDTHS]
    expected = {f"{block}.{x}.weight" for block in blocks[:2] for x in ("in_proj", "ssd.out_proj")}
    co_parts = ("gate_proj", "query_proj", "source_proj", "ssd.out_proj")
    expected |= {f"layers.0.fusions.image.co_ssd.{x}.weight" for x in co_parts}
    assert {name for name in names if name.startswith("layers.")} == expected


def test_state_dict_keys():
    """Checkpoints hold these names: a change here breaks those that exist."""
    affine = ("weight", "bias")
    ssd = ["ssd.A_log", "ssd.D", "ssd.dt_bias", "ssd.norm.weight"]
    ssd += [f"ssd.out_proj.{x}" for x in affine]
    scale = [f"time_scale.{part}.{x}" for part in ("fc1", "fc2", "conv1", "conv2") for x in affine]
    expected = set()
    for name in ("text", "image"):
        expected |= {f"item_encoder.norms.{name}.{x}" for x in affine}
        expected |= {f"item_encoder.modalities.{name}.adapter.{x}" for x in affine}
        expected |= {f"item_encoder.modalities.{name}.missing", f"item_encoder.item_bias.{name}"}
        expected |= {f"layers.0.norms.{name}.{x}" for x in affine}
    block = [f"{part}.{x}" for part in ("in_proj", "conv") for x in affine]
    block += [f"time_gate.fc.{x}" for x in affine]
    expected |= {f"layers.0.ti_ssd.{key}" for key in [*ssd, *scale, *block]}
    parts = ("source_proj", "query_proj", "gate_proj", "source_conv", "query_conv")
    co_block = [*ssd, *scale, *(f"{part}.{x}" for part in parts for x in affine)]
    expected |= {f"layers.0.fusions.image.co_ssd.{key}" for key in co_block}
    maps = [
        f"filter.{part}_map.{side}.{x}"
        for part in ("query", "source", "output")
        for side in ("real", "imag")
        for x in affine
    ]
    expected |= {f"layers.0.fusions.image.{key}" for key in [*maps, *(f"norm.{x}" for x in affine)]}
    for place in ("layers.0", "layers.0.fusions.image"):
        parts = ("fc1", "fc2", "norm")
        expected |= {f"{place}.feed_forward.{part}.{x}" for part in parts for x in affine}
    assert build_model().state_dict().keys() == expected


@pytest.mark.parametrize(("num_layers", "count"), [(1, 1_999_085), (2, 3_603_378)])
def test_paper_size(num_layers, count):
    """The unique parameters of the official model without item bias."""
    present_I = torch.tensor([False, True])
    features = {
        name: ModalityFeatures(torch.zeros(2, 768), present_I) for name in ("text", "image")
    }
    config = ModelConfig(num_layers=num_layers, use_item_bias=False, **OFFICIAL["model"])
    model = MMM4Rec(config, ItemCatalogue(features, "x"))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_seeded_numbers():
    """What the corrected model computes, pinned: a refactoring leaves it alone."""
    model = build_model(num_layers=2).double()
    scores_BI = model.score(model(build_batch()), model.item_matrix())
    expected_BI = torch.tensor(
        [
            [-0.4918, 0.5211, -0.0326],
            [-0.7927, 0.4937, -0.2618],
            [-0.5101, 0.1390, -0.3803],
            [-0.6839, -0.2757, -0.6721],
        ]
    )
    torch.testing.assert_close(scores_BI[:, 1:4].float(), expected_BI, rtol=0, atol=1e-4)
