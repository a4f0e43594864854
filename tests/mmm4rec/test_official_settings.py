import json

import pytest
import yaml

from mmm4rec.config import OFFICIAL, Config, ModelConfig
from mmm4rec.errors import CheckpointError, ConfigError
from mmm4rec.official_settings import (
    official_config,
    official_model_config,
    official_settings,
    read_settings,
    unknown_settings,
)
from mmm4rec.settings import load_config

# As the files of the released fine-tuning runs say it.
RELEASED = """
seed: 2020
logger: 'MMM4Rec-Scientific'
hidden_size: 256
inner_size: 256
num_layers: 1
embedding_drop_prob: 0.4
dropout_prob: 0.4
time_dropout_prob: 0.4
loss_type: 'CE'
d_state: 64
n_groups: 8
d_conv: 4
expand: 2
head_dim: 64
chunk_size: 32
norm_eps: 1e-12
float32_precise: 'high'
is_ffn: True
is_time: True
p2p_residual: False
is_modality_bias: True
item_mm_fusion: 'static'
batch_size: 1024
accumulation_steps: 8
max_len: 20
Epoch: 100
optimizer_lr: 0.0001
weight_decay: 0.005
stop_epoch: 10
temperature: 0.8
top_k: [10, 20, 50]
valid_metric: 'Hit@10'
"""


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "released.yaml").write_text(RELEASED)
    return read_settings(tmp_path / "released.yaml")


def test_the_released_settings_are_our_defaults_but_for_fidelity_and_metric(settings):
    expected = load_config(
        None, ["fidelity=official", "trainer={monitor: val/recall@10, matmul_precision: high}"]
    )
    assert official_config(settings) == expected
    assert official_model_config(settings) == ModelConfig(**OFFICIAL["model"])
    assert unknown_settings(settings) == []


@pytest.mark.parametrize(
    ("theirs", "ours", "found", "expected"),
    [
        ("hidden_size", "model.d_model", 512, 512),
        ("inner_size", "model.d_feed_forward", 12, 12),
        ("num_layers", "model.num_layers", 2, 2),
        ("embedding_drop_prob", "model.item_dropout", 0.1, 0.1),
        ("dropout_prob", "model.dropout", 0.2, 0.2),
        ("time_dropout_prob", "model.time_dropout", 0.3, 0.3),
        ("d_state", "model.d_state", 4, 4),
        ("n_groups", "model.num_groups", 2, 2),
        ("d_conv", "model.d_conv", 3, 3),
        ("expand", "model.expand", 4, 4),
        ("head_dim", "model.head_dim", 32, 32),
        ("norm_eps", "model.norm_eps", "1e-6", 1e-6),
        ("is_ffn", "model.use_feed_forward", False, False),
        ("is_time", "model.use_time", False, False),
        ("p2p_residual", "model.per_position_time_gate", True, True),
        ("is_modality_bias", "model.use_item_bias", False, False),
        ("temperature", "model.temperature", 0.5, 0.5),
        ("max_len", "model.max_len", 50, 50),
        ("seed", "trainer.seed", 1, 1),
        ("batch_size", "data.batch_size", 512, 512),
        ("accumulation_steps", "trainer.accumulate_grad_batches", 1, 1),
        ("Epoch", "trainer.max_epochs", 40, 40),
        ("stop_epoch", "trainer.early_stopping_patience", 3, 3),
        ("valid_metric", "trainer.monitor", "NDCG@20", "val/ndcg@20"),
        ("float32_precise", "trainer.matmul_precision", "none", "highest"),
        ("float32_precise", "trainer.matmul_precision", "medium", "medium"),
        ("optimizer_lr", "optimizer.lr", 0.5, 0.5),
        ("weight_decay", "optimizer.weight_decay", 0, 0),
        ("in_batch_loss", "loss.candidates", True, "in_batch"),
        ("in_batch_loss", "loss.candidates", False, "full"),
        ("top_k", "evaluation.cutoffs", [10, 5], (10, 5)),
    ],
)
def test_each_setting_has_its_field_and_goes_back(settings, theirs, ours, found, expected):
    config = official_config({**settings, theirs: found})
    section, key = ours.split(".")
    assert getattr(getattr(config, section), key) == expected
    assert official_config(official_settings(config)) == config
    assert str(official_settings(config)[theirs]) == str(
        float(found) if theirs == "norm_eps" else found if theirs != "weight_decay" else 0.0
    )


def test_lacking_settings_are_named_with_what_is_allowed(settings):
    for name in ("hidden_size", "dropout_prob", "is_time", "temperature"):
        del settings[name]
    with pytest.raises(
        ConfigError,
        match=r"lack hidden_size \(an integer >= 1\), dropout_prob \(a number >= 0 and < 1\), "
        r"is_time \(true or false\), temperature \(a number > 0\); not known are hiden_size\. Next",
    ):
        official_config({**settings, "hiden_size": 8})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_mm_fusion": "dynamic_shared"}, r"is 'dynamic_shared' \(allowed: static"),
        ({"inner_size": 0}, r"official settings: inner_size: Input .* \(found '0'\)"),
        ({"inner_size": 0, "seed": "x"}, r"inner_size: .*; seed: .* \(found 'x'\)"),
        ({"head_dim": 5}, r"official settings: sizes: head_dim \(5\) must divide"),
        ({"valid_metric": "MRR@10"}, r"valid_metric: String should match .*found 'val/MRR@10'"),
        (
            {"valid_metric": "Hit@7"},
            r"official settings: trainer.monitor .* needs 7 in evaluation.cutoffs",
        ),
        ({"top_k": [10, 0]}, r"official settings: cutoffs are at least 1"),
    ],
)
def test_settings_that_are_refused(settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        official_config({**settings, **changes})


def test_what_may_matter_and_is_not_carried_over_is_named(settings):
    extra = {"num_experts": 4, "is_scheduler": False, "dataset_path": "x"}
    assert unknown_settings({**settings, **extra}) == ["num_experts"]
    assert unknown_settings({**settings, "is_scheduler": True}) == ["is_scheduler"]


def test_a_model_that_no_setting_of_theirs_describes():
    with pytest.raises(
        CheckpointError,
        match=r"data\.target_time is 'hidden' \(there: 'leaked'\); model\.time_gaps is "
        r"'log_units' \(there: 'seconds'\); .*missing_modality is 'learned' .*Next: "
        r"train one with --set fidelity=official",
    ):
        official_settings(Config())


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.skip=unscaled", "model.skip"),
        ("model.time_gaps=log_days", "model.time_gaps"),
        ("model.time_norm=real_positions", "model.time_norm"),
        ("model.time_scale=one_plus", "model.time_scale"),
        ("model.missing_modality=zero", "model.missing_modality"),
        ("data.target_time=hidden", "data.target_time"),
        ("data.modalities=[image, text]", "data.modalities"),
        ("data.query_time=now", "data.query_time"),
        ("data.last_items=5", "data.last_items"),
        ("model.name=sasrec", "model.name"),
        ("model.mixer=attention", "model.mixer"),
        ("model.share_ti_ssd=false", "model.share_ti_ssd"),
        ("model.time_filter=gate", "model.time_filter"),
    ],
)
def test_each_field_that_differs_is_named_alone(override, named):
    with pytest.raises(CheckpointError, match=rf"this model: {named} is [^;]*\. Next"):
        official_settings(load_config(None, ["fidelity=official", override]))


def test_without_time_its_fields_do_not_matter():
    config = load_config(
        None,
        ["fidelity=official", "model={use_time: false, time_gaps: log_days, time_filter: none}"],
    )
    assert official_settings(config)["is_time"] is False


def test_json_is_read_as_well(tmp_path, settings):
    (tmp_path / "settings.json").write_text(json.dumps(settings, indent=2))
    assert read_settings(tmp_path / "settings.json") == settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "expected a mapping .* found list"),
        (b"a: [", "neither YAML nor JSON: "),
        (b"a: !!python/object/apply:os.getcwd []", "neither YAML nor JSON: could not determine"),
        (b"\xff\xfe\x00", "neither YAML nor JSON"),
        (b"[" * 20_000, "neither YAML nor JSON"),
        (b"a" * ((1 << 16) + 1), "more than 65536 bytes, not a configuration file"),
    ],
)
def test_a_file_that_holds_no_settings(tmp_path, content, message):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_settings(tmp_path / "x.yaml")


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*x\.yaml: No such file"):
        read_settings(tmp_path / "x.yaml")


def test_settings_survive_being_written(tmp_path):
    config = load_config(None, ["fidelity=official", "model.norm_eps=1.0e-12"])
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(official_settings(config)))
    assert official_config(read_settings(tmp_path / "x.yaml")) == config
