import re

import pytest
import torch

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.errors import CheckpointError
from mmm4rec.model import MMM4Rec
from mmm4rec.official import from_official, to_official
from mmm4rec.official_settings import official_model_config

SETTINGS = {
    "hidden_size": 8,
    "inner_size": 12,
    "num_layers": 2,
    "embedding_drop_prob": 0.1,
    "dropout_prob": 0.2,
    "time_dropout_prob": 0.3,
    "d_state": 4,
    "n_groups": 2,
    "d_conv": 4,
    "expand": 2,
    "head_dim": 4,
    "norm_eps": 1e-12,
    "is_ffn": True,
    "is_time": True,
    "p2p_residual": False,
    "is_modality_bias": True,
    "temperature": 0.5,
    "max_len": 6,
    "item_mm_fusion": "static",
    "item_num": 3,
}


def build(**changes):
    config = official_model_config({**SETTINGS, **changes})
    present_I = torch.tensor([False, True, True, True])
    features = {name: ModalityFeatures(torch.randn(4, 5), present_I) for name in ("text", "image")}
    model = MMM4Rec(config, ItemCatalogue(features, "x"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model, config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"is_time": False},
        {"is_modality_bias": False},
        {"is_ffn": False},
        {"num_layers": 1},
        {"num_layers": 3, "inner_size": 7},
        {"p2p_residual": True, "max_len": 9},
        {"n_groups": 1, "d_state": 5, "d_conv": 3},
        {"hidden_size": 12, "expand": 3, "head_dim": 6, "n_groups": 3},
    ],
    ids=str,
)
def test_there_and_back(changes):
    """Every name and shape that is expected is that of a real model."""
    model, config = build(**changes)
    theirs = to_official(model.state_dict(), config)
    ours = from_official(theirs, config)
    assert ours.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("has_bias", "count"), [(True, 113), (False, 111)])
def test_number_of_official_keys(has_bias, count):
    """The released state dict has 113 with item bias and the two feature tables' place, 1 layer."""
    model, config = build(num_layers=1, is_modality_bias=has_bias)
    assert len(to_official(model.state_dict(), config)) == count - 2


def test_shared_block_is_stored_twice_and_filters_are_crossed():
    model, config = build()
    theirs = to_official(model.state_dict(), config)
    for name in ("A_log", "in_proj.weight", "time_gate_residual.1.bias"):
        key = f"ssd_layers.1.ssd.{name}"
        assert torch.equal(theirs[f"encoder_{key}"], theirs[f"decoder_{key}"])
    asking = model.layers[0].fusions["image"].filter.query_map.real.weight
    assert torch.equal(theirs["decoder_ssd_layers.0.text_complex_weight.0.real.weight"], asking)


def test_copies_that_differ():
    model, config = build()
    theirs = to_official(model.state_dict(), config)
    key = "decoder_ssd_layers.1.ssd.D"
    with pytest.raises(
        CheckpointError,
        match=rf"Unlike its copy under encoder_ssd_layers, though .* shared: {key}\. Next",
    ):
        from_official({**theirs, key: theirs[key] + 1}, config)


@pytest.mark.parametrize("given", [1, 3])
def test_another_number_of_layers(given):
    model, config = build(num_layers=2)
    theirs = to_official(model.state_dict(), config)
    other = official_model_config({**SETTINGS, "num_layers": given})
    with pytest.raises(
        CheckpointError, match=rf"have 2 layers, num_layers is {given}\. .*\(num_layers: 2\)"
    ):
        from_official(theirs, other)


def test_a_number_of_layers_beyond_all_bounds():
    config = official_model_config({**SETTINGS, "num_layers": 10**12})
    with pytest.raises(CheckpointError, match="have 0 layers, num_layers is 1000000000000"):
        from_official({"x": torch.zeros(1)}, config)


def test_all_that_does_not_fit_is_named_at_once():
    model, config = build()
    theirs = to_official(model.state_dict(), config)
    del theirs["layer_norm_time.bias"]
    theirs["decoder_ssd_layers.0.more"] = torch.zeros(1)
    theirs["vision_in_layer_norm.bias"] = torch.zeros(9)
    theirs["vision_adapter.0.weight"] = torch.zeros(8, 0)
    with pytest.raises(
        CheckpointError,
        match=r"num_layers=2, is_time=True, is_modality_bias=True, is_ffn=True\. "
        r"Without a place here: decoder_ssd_layers\.0\.more\. Missing: layer_norm_time\.bias\. "
        r"Of another shape: vision_adapter\.0\.weight \[8, 0\], expected \[8, any\], "
        r"vision_in_layer_norm\.bias \[9\], expected \[8\]\. Next: give the settings",
    ):
        from_official(theirs, config)


def test_at_most_twenty_names_are_shown():
    model, config = build()
    theirs = to_official(model.state_dict(), config)
    without_time = official_model_config({**SETTINGS, "is_time": False})
    with pytest.raises(CheckpointError, match="Without a place here: ") as refused:
        from_official(theirs, without_time)
    message = str(refused.value)
    assert message.split("place here: ")[1].split(" and ")[0].count(",") == 19
    # Per layer: two copies of 12, 8 of the co-block, 12 of the filters; and the norm of the gaps.
    assert f"and {2 * (2 * 12 + 8 + 12) + 2 - 20} more" in message


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("vision_item_embedding_bias", (5, 8), "[4, 8]"),
        ("text_embedding", (5, 5), "[4, 5]"),
        ("vision_embedding", (4, 6), "[4, 5]"),
        ("vision_embedding", (4,), "[4, 5]"),
        ("text_item_embedding_bias", (4, 7), "[4, 8]"),
    ],
)
def test_tables_of_one_file_are_of_the_same_items_and_widths(name, shape, expected):
    model, config = build()
    theirs = to_official(model.state_dict(), config)
    with pytest.raises(
        CheckpointError, match=rf"another shape: {name} .* expected {re.escape(expected)}"
    ):
        from_official({**theirs, name: torch.zeros(shape)}, config)


def test_feature_tables_are_left_out():
    model, config = build()
    theirs = to_official(model.state_dict(), config)
    tables = {name: torch.zeros(4, 5) for name in ("text_embedding", "vision_embedding")}
    assert from_official(theirs | tables, config).keys() == model.state_dict().keys()


def test_learned_modality_weights():
    model, config = build()
    theirs = to_official(model.state_dict(), config)
    with pytest.raises(CheckpointError, match=r"fusion_factor is \(2,\), not the constant 1"):
        from_official({**theirs, "fusion_factor": torch.ones(2)}, config)


def test_our_keys_without_a_place():
    model, config = build()
    state = {**model.state_dict(), "item_encoder.modalities.text.missing": torch.zeros(8)}
    with pytest.raises(CheckpointError, match=r"no learned missing vector.*text\.missing"):
        to_official(state, config)
