from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from mmm4rec.architectures import build_model
from mmm4rec.checkpoint import load_weights, read_checkpoint, save_checkpoint, transfer_weights
from mmm4rec.errors import CheckpointError
from mmm4rec.model import MMM4Rec

TRAINING = {"stage": "pretrain", "domains": ["Food", "Home"], "epoch": 3, "seed": 0}


@pytest.fixture
def saved(tiny_config, tiny_catalogue, tmp_path):
    """Write a model of `tiny_catalogue` and read it back."""

    def save(*overrides, catalogue=None):
        config = tiny_config(*overrides)
        catalogue = catalogue or tiny_catalogue()
        model = build_model(config.model, catalogue)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        path = tmp_path / "checkpoints" / "best.safetensors"
        save_checkpoint(path, model.state_dict(), config, catalogue, TRAINING)
        return model, read_checkpoint(path)

    return save


def test_a_checkpoint_reads_back_whole_from_its_file_and_its_run_folder(saved, tmp_path):
    model, checkpoint = saved()
    assert checkpoint.training == TRAINING
    assert (checkpoint.fingerprint, checkpoint.has_time) == ("tiny", True)
    assert checkpoint.encoder_keys == {"text": "key12", "image": "key10"}
    assert checkpoint.weights.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert weight.equal(checkpoint.weights[name])
    assert read_checkpoint(tmp_path).sha256 == checkpoint.sha256
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["best.safetensors"]


def test_transfer_moves_all_but_the_item_bias_and_says_so(saved, tiny_config, tiny_catalogue):
    source, checkpoint = saved()
    catalogue = tiny_catalogue(num_items=8, fingerprint="new")
    model = MMM4Rec(tiny_config().model, catalogue)
    report = transfer_weights(model, checkpoint, catalogue)
    assert report.reset == ["item_encoder.item_bias.image", "item_encoder.item_bias.text"]
    assert report.refused == []
    own, theirs = model.state_dict(), source.state_dict()
    for name in report.moved:
        assert own[name].equal(theirs[name]), name
    for name in report.reset:
        assert not own[name].any(), name
    assert "reset 2: item_encoder.item_bias.image, item_encoder.item_bias.text" in str(report)


def test_what_one_side_cannot_have_is_reset_or_refused_by_name(saved, tiny_config, tiny_catalogue):
    _, checkpoint = saved()
    timeless = tiny_catalogue(fingerprint="new", has_time=False)
    report = transfer_weights(MMM4Rec(tiny_config().model, timeless), checkpoint, timeless)
    assert report.refused
    assert all("time" in name or "filter" in name for name in report.refused)

    images = timeless.features["image"]
    imageless = replace(
        tiny_catalogue(fingerprint="new"),
        features={
            "text": tiny_catalogue().features["text"],
            "image": replace(
                images,
                values_IF=torch.zeros(31, 0),
                present_I=torch.zeros(31, dtype=torch.bool),
                encoder_key=None,
            ),
        },
    )
    report = transfer_weights(MMM4Rec(tiny_config().model, imageless), checkpoint, imageless)
    assert report.refused == [
        "item_encoder.modalities.image.adapter.bias",
        "item_encoder.modalities.image.adapter.weight",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.d_state=8", r"does not fit the model: .* in the checkpoint, .* in the model"),
        ("model.num_layers=2", r"layers\.1\..* and \d+ more only on one side"),
    ],
)
def test_another_architecture_is_refused(saved, tiny_config, tiny_catalogue, override, message):
    _, checkpoint = saved()
    catalogue = tiny_catalogue(fingerprint="new")
    model = MMM4Rec(tiny_config(override).model, catalogue)
    with pytest.raises(CheckpointError, match=message):
        transfer_weights(model, checkpoint, catalogue)


def test_features_of_another_encoder_are_refused(saved, tiny_config, tiny_catalogue):
    _, checkpoint = saved()
    catalogue = tiny_catalogue(fingerprint="new")
    features = dict(catalogue.features)
    features["text"] = replace(features["text"], encoder_key="other")
    catalogue = replace(catalogue, features=features)
    with pytest.raises(CheckpointError, match=r"text features of key12, this domain has .*other"):
        transfer_weights(MMM4Rec(tiny_config().model, catalogue), checkpoint, catalogue)


def test_a_checkpoint_of_another_item_set_names_both(saved, tiny_config, tiny_catalogue):
    _, checkpoint = saved()
    catalogue = tiny_catalogue(fingerprint="new")
    model = MMM4Rec(tiny_config().model, catalogue)
    with pytest.raises(CheckpointError, match=r"item set tiny \(Food, Home\), this one is new"):
        load_weights(model, checkpoint, catalogue)


def test_without_item_bias_a_checkpoint_ranks_any_item_set(saved, tiny_config, tiny_catalogue):
    source, checkpoint = saved("model.use_item_bias=false")
    catalogue = tiny_catalogue(fingerprint="new")
    model = MMM4Rec(checkpoint.config.model, catalogue)
    load_weights(model, checkpoint, catalogue)
    assert model.item_matrix().equal(source.item_matrix())


def test_a_baseline_of_features_moves_whole_to_other_items(saved, tiny_config, tiny_catalogue):
    source, checkpoint = saved("model.name=sasrec", "model.item_inputs=features")
    assert checkpoint.domain_bound == []
    catalogue = tiny_catalogue(num_items=8, fingerprint="new")
    model = build_model(checkpoint.config.model, catalogue)
    report = transfer_weights(model, checkpoint, catalogue)
    assert report.reset == report.refused == []
    for name, weight in model.state_dict().items():
        assert weight.equal(source.state_dict()[name]), name


@pytest.mark.parametrize("inputs", ["ids", "both"])
def test_a_baseline_with_ids_starts_its_table_anew_and_says_so(saved, tiny_catalogue, inputs):
    source, checkpoint = saved("model.name=gru4rec", f"model.item_inputs={inputs}")
    catalogue = tiny_catalogue(num_items=8, fingerprint="new")
    model = build_model(checkpoint.config.model, catalogue)
    report = transfer_weights(model, checkpoint, catalogue)
    assert (report.reset, report.refused) == (["item_encoder.item_table.weight"], [])
    assert set(report.moved) == set(source.state_dict()) - set(report.reset)
    assert "reset 1: item_encoder.item_table.weight" in str(report)
    assert model.item_encoder.item_table.weight.abs().max() < 0.2  # the source's is N(0, 1)
    with pytest.raises(CheckpointError, match=r"item set tiny \(Food, Home\), this one is new"):
        load_weights(model, checkpoint, catalogue)


def test_another_model_is_refused(saved, tiny_config, tiny_catalogue):
    _, checkpoint = saved("model.name=sasrec")
    catalogue = tiny_catalogue(fingerprint="new")
    model = build_model(tiny_config("model.name=gru4rec").model, catalogue)
    with pytest.raises(CheckpointError, match=r"does not fit the model: .* more only on one side"):
        transfer_weights(model, checkpoint, catalogue)


def test_loading_is_strict(saved, tiny_config, tiny_catalogue):
    _, checkpoint = saved()
    model = MMM4Rec(tiny_config("model.num_layers=2").model, tiny_catalogue())
    with pytest.raises(CheckpointError, match=r"does not fit the model: layers\.1"):
        load_weights(model, checkpoint, tiny_catalogue())
    model = MMM4Rec(tiny_config("model.d_state=8").model, tiny_catalogue())
    with pytest.raises(CheckpointError, match="in the checkpoint"):
        load_weights(model, checkpoint, tiny_catalogue())


def test_no_file_and_no_model_file_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "nowhere")
    (tmp_path / "junk.safetensors").write_bytes(b"<html>not weights</html>" * 10)
    with pytest.raises(CheckpointError, match="is not a model file of this project"):
        read_checkpoint(tmp_path / "junk.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="is not a model file of this project"):
        read_checkpoint(tmp_path / "foreign.safetensors")
