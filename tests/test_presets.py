import re
from pathlib import Path

import pytest
import yaml

import cli
from experiments.presets import find_preset
from mmm4rec.checkpoint import read_checkpoint, save_checkpoint, transfer_weights
from mmm4rec.config import Config, architecture
from mmm4rec.errors import CheckpointError, ConfigError
from mmm4rec.model import MMM4Rec
from mmm4rec.runner import fit
from mmm4rec.settings import load_config

FOLDER = Path(__file__).parents[1] / "experiments" / "presets"
PRESETS = sorted(FOLDER.glob("*.yaml"))
VERBS = ("prepare", "pretrain", "finetune")
# Setting by setting, so that the rest of a section is the preset's.
TINY = [
    *("model.d_model=16", "model.d_feed_forward=16", "model.d_state=4", "model.head_dim=8"),
    *("model.num_groups=2", "model.max_len=6", "data.batch_size=32"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "evaluation.bootstrap_samples=100"),
]
ABLATIONS = {
    "without-time": ("use_time", False),
    "without-shared-weights": ("share_ti_ssd", False),
    "without-learnable-filter": ("time_filter", "not_learnable"),
    "without-adaptive-filter": ("time_filter", "not_adaptive"),
    "gate-instead-of-filter": ("time_filter", "gate"),
    "two-layers": ("num_layers", 2),
    "without-item-bias": ("use_item_bias", False),
    "attention": ("mixer", "attention"),
}


def test_there_are_presets():
    assert {path.stem for path in PRESETS} >= {*VERBS, *ABLATIONS, "demo"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid_and_says_only_what_differs(path):
    config = load_config(path)
    values = yaml.safe_load(path.read_text()) or {}
    parent = values.pop("extends", None)
    below = load_config(path.parent / parent) if parent else Config()
    for section, given in values.items():
        before = getattr(below, section)
        if not isinstance(given, dict):
            assert getattr(config, section) == given
            continue
        for key, value in given.items():
            assert config.as_dict()[section][key] == value
            assert key in type(before).model_fields


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_found_by_its_name_and_by_its_path(path, monkeypatch, tmp_path):
    assert find_preset(path.stem) == find_preset(str(path)) == path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("trainer: {seed: 3}")
    assert load_config(find_preset("own.yaml")).trainer.seed == 3


def test_pretraining_differs_from_fine_tuning_where_it_must():
    pretrain, finetune = (load_config(find_preset(verb)) for verb in ("pretrain", "finetune"))
    assert (pretrain.loss.candidates, finetune.loss.candidates) == ("in_batch", "full")
    assert (pretrain.model.use_item_bias, finetune.model.use_item_bias) == (False, True)


def settings(verb, preset=None, base=None, given=()):
    """The configuration of a command, as the command line puts it together."""
    return cli._load(verb, preset, [*TINY, *given], base)


def differing(one, other):
    one, other = one.as_dict(), other.as_dict()
    return {
        (section, key, value)
        for section, values in one.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if other[section][key] != value
    } | {key for key, value in one.items() if not isinstance(value, dict) and other[key] != value}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_one_line_that_changes_one_setting(name):
    lines = find_preset(name).read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) == 1
    key, value = ABLATIONS[name]
    changed = {("model", key, value)}
    assert differing(settings("finetune", name), settings("finetune")) == changed
    # Pre-training has no item bias to begin with.
    expected = set() if name == "without-item-bias" else changed
    assert differing(settings("pretrain", name), settings("pretrain")) == expected


@pytest.mark.parametrize("name", ["without-shared-weights", "attention", "gate-instead-of-filter"])
def test_a_variant_that_was_pre_trained_is_fine_tuned_as_that_variant(name, tiny_data, tmp_path):
    def run(config, stage, domain, checkpoint=None):
        data = tiny_data(config, stage=stage, domain=domain, fingerprint=domain)
        runs = {"runs_dir": tmp_path, "echo": lambda line: None}
        return fit(config, data, stage=stage, checkpoint=checkpoint, **runs)

    brief = ["trainer.max_epochs=1", "data.validation_share=0.3"]
    pretraining = settings("pretrain", name, given=brief)
    checkpoint = read_checkpoint(run(pretraining, "pretrain", "Other").folder)
    config = settings("finetune", base=architecture(checkpoint.config), given=brief)
    assert architecture(config) == architecture(settings("finetune", name))
    finetuned = run(config, "finetune", "Tiny", checkpoint)
    report = finetuned.results["transfer"]
    assert report["refused"] == []
    assert all("item_bias" in weight for weight in report["reset"])
    assert set(report["moved"]) == set(checkpoint.weights)
    weights = read_checkpoint(finetuned.folder).weights
    own = MMM4Rec(config.model, tiny_data(config).catalogue).state_dict()
    assert weights.keys() == own.keys()
    full = MMM4Rec(settings("finetune").model, tiny_data(config).catalogue).state_dict()
    shapes = {key: weight.shape for key, weight in weights.items()}
    assert shapes != {key: weight.shape for key, weight in full.items()}
    with pytest.raises(CheckpointError, match=r"does not fit the model: layers\.0\."):
        run(settings("finetune", given=brief), "finetune", "Full", checkpoint)


@pytest.mark.parametrize("name", ["without-shared-weights", "attention", "gate-instead-of-filter"])
def test_a_variant_moves_to_a_domain_without_timestamps(name, tiny_catalogue, tmp_path):
    catalogue, timeless = (tiny_catalogue(has_time=has_time) for has_time in (True, False))
    config = settings("pretrain", name)
    model = MMM4Rec(config.model, catalogue)
    training = {"domains": ["Other"]}
    save_checkpoint(tmp_path / "x.safetensors", model.state_dict(), config, catalogue, training)
    checkpoint = read_checkpoint(tmp_path / "x.safetensors")
    report = transfer_weights(MMM4Rec(config.model, timeless), checkpoint, timeless)
    assert report.reset == []
    time_path = (".time_", "time_encoder", ".filter.")
    decay = (".A_log", ".dt_bias") if name == "attention" else ()
    assert all(any(part in weight for part in time_path + decay) for weight in report.refused)
    assert len(report.moved) + len(report.refused) == len(model.state_dict())


@pytest.mark.parametrize("name", ["dem", "../presets/demo", "own.yaml", "demo.json", ""])
def test_a_preset_that_is_none(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    known = ", ".join(sorted(path.stem for path in PRESETS))
    message = f"no preset {name!r}: give a YAML file or one of {known}"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        find_preset(name)
