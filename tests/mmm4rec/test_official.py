import pytest
import torch

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.config import ModelConfig
from mmm4rec.errors import CheckpointError, ConfigError
from mmm4rec.model import MMM4Rec
from mmm4rec.official import from_official, official_model_config, to_official

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


def test_settings():
    assert official_model_config(SETTINGS) == ModelConfig(
        d_model=8,
        d_feed_forward=12,
        num_layers=2,
        d_state=4,
        num_groups=2,
        head_dim=4,
        max_len=6,
        item_dropout=0.1,
        dropout=0.2,
        time_dropout=0.3,
        temperature=0.5,
        norm_eps=1e-12,
        skip="scaled_by_step",
        time_gaps="seconds",
        time_norm="all_positions",
        time_scale="tanhshrink",
        missing_modality="white",
    )


def test_settings_that_are_missing_or_refused():
    with pytest.raises(ConfigError, match=r"lack hidden_size, max_len\. Next: add them"):
        official_model_config(
            {k: v for k, v in SETTINGS.items() if k not in ("hidden_size", "max_len")}
        )
    with pytest.raises(ConfigError, match=r"item_mm_fusion is 'dynamic_shared' \(allowed: static"):
        official_model_config({**SETTINGS, "item_mm_fusion": "dynamic_shared"})
    with pytest.raises(ConfigError, match=r"official settings: inner_size: Input should be"):
        official_model_config({**SETTINGS, "inner_size": 0})
    with pytest.raises(ConfigError, match=r"official settings: sizes: .*head_dim \(5\) must"):
        official_model_config({**SETTINGS, "head_dim": 5})


@pytest.mark.parametrize(
    "changes",
    [{}, {"is_time": False}, {"is_modality_bias": False}, {"is_ffn": False}, {"num_layers": 1}],
    ids=str,
)
def test_there_and_back(changes):
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
    with pytest.raises(CheckpointError, match=rf"{key} differs from its copy"):
        from_official({**theirs, key: theirs[key] + 1}, config)


def test_keys_without_a_place():
    model, config = build()
    theirs = to_official(model.state_dict(), config)
    one_layer = official_model_config({**SETTINGS, "num_layers": 1})
    with pytest.raises(
        CheckpointError,
        match=r"num_layers=1.* Without a place here: decoder_ssd_layers\.1\..* more",
    ):
        from_official(theirs, one_layer)
    del theirs["layer_norm_time.bias"]
    with pytest.raises(CheckpointError, match=r"place here: nothing\. Missing: layer_norm_time"):
        from_official(theirs, config)


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
