import pytest

from mmm4rec.config import Config
from mmm4rec.errors import ConfigError
from mmm4rec.settings import load_config


def _set(*overrides: str) -> Config:
    return load_config(None, overrides)


def test_override_wins_over_preset_over_parent_over_default(tmp_path):
    (tmp_path / "parent.yaml").write_text("optimizer: {lr: 0.1, weight_decay: 0.2, eps: 0.3}")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\noptimizer: {lr: 0.4, eps: 0.5}")
    optimizer = load_config(tmp_path / "child.yaml", ["optimizer.eps=0.6"]).optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.eps) == (0.4, 0.2, 0.6)
    assert optimizer.momentum_decay == 0.004


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.d_modl=3", "unknown key 'model.d_modl', did you mean 'model.d_model'?"),
        ("modle.d_model=3", "unknown key 'modle', did you mean 'model'?"),
        ("lr=3", "unknown key 'lr', did you mean optimizer.lr?"),
        ("model.zzz=3", r"unknown key 'model.zzz' \(known: d_model, "),
        ("model.d_model=x", r"model.d_model: .* \(found 'x'\)"),
        ("model.skip=none", r"model.skip: .*'unscaled' or 'scaled_by_step' \(found 'none'\)"),
        ("model.head_dim=60", r"head_dim \(60\) must divide d_model \* expand \(512\)"),
        ("model.num_groups=3", r"num_groups \(3\) must divide the number of heads .*\(8\)"),
        ("trainer.monitor=val/ndcg@5", r"needs 5 in evaluation.cutoffs"),
        ("evaluation.cutoffs=[0, 10]", "cutoffs are at least 1"),
        ("optimizer.lr=.nan", "optimizer.lr"),
        ("model.d_model", "expected section.key=value"),
        ("model.d_model=[", "is not a YAML value"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(override, message):
    with pytest.raises(ConfigError, match=message):
        _set(override)


def test_all_problems_are_listed_at_once():
    with pytest.raises(ConfigError, match=r"batch_sise.*d_modl"):
        _set("model.d_modl=1", "data.batch_sise=2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not valid YAML"),
        ("[1, 2]", "a preset is a mapping of sections, found list"),
        ("extends: circle.yaml", "extend each other in a circle: circle.yaml -> circle.yaml"),
        ("extends: nowhere.yaml", "cannot read the preset"),
    ],
)
def test_a_malformed_preset_is_named(tmp_path, text, message):
    (tmp_path / "circle.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "circle.yaml")


def test_defaults_shared_by_two_configurations_are_never_written_to():
    base = {"model": {"num_layers": 2}}
    load_config(None, ["model.num_layers=3"], base=base)
    assert base == {"model": {"num_layers": 2}}
