from pathlib import Path

import pytest
import yaml

from experiments.presets import find_preset
from mmm4rec.config import Config
from mmm4rec.errors import ConfigError
from mmm4rec.settings import load_config

FOLDER = Path(__file__).parents[1] / "experiments" / "presets"
PRESETS = sorted(FOLDER.glob("*.yaml"))
VERBS = ("prepare", "pretrain", "finetune")


def test_there_are_presets():
    assert {path.stem for path in PRESETS} >= {*VERBS, "demo"}


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


@pytest.mark.parametrize("name", ["dem", "../presets/demo", "own.yaml", "demo.json", ""])
def test_a_preset_that_is_none(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no preset '.*': give a YAML file or one of demo, "):
        find_preset(name)
