import pytest
import yaml

from mmm4rec.config import OFFICIAL, Config, architecture, config_hash
from mmm4rec.errors import ConfigError
from mmm4rec.settings import build_config, load_config


def _set(*overrides: str) -> Config:
    return load_config(None, overrides)


def test_official_changes_every_quirk_and_nothing_else():
    corrected, official = _set().as_dict(), _set("fidelity=official").as_dict()
    changed = {
        (section, key)
        for section, values in corrected.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if official[section][key] != value
    }
    assert changed == {(section, key) for section, keys in OFFICIAL.items() for key in keys}


def test_a_quirk_set_by_hand_wins_over_the_fidelity():
    config = _set("fidelity=official", "model.skip=unscaled")
    assert config.model.skip == "unscaled"
    assert config.model.time_scale == "tanhshrink"


def test_the_resolved_configuration_reads_back_as_itself():
    config = _set("fidelity=official", "model.skip=unscaled", "trainer.seed=7")
    assert build_config(yaml.safe_load(yaml.safe_dump(config.as_dict())), "copy") == config


def test_hash_names_the_configuration_and_its_company():
    assert config_hash(_set()) == config_hash(_set())
    assert config_hash(_set()) != config_hash(_set("trainer.seed=1"))
    assert config_hash(_set(), "a") != config_hash(_set(), "b")


def test_architecture_holds_what_shapes_weights_and_leaves_the_rest_free():
    shared = architecture(_set("fidelity=official", "model.num_layers=2"))
    assert shared["fidelity"] == "official"
    assert shared["model"]["num_layers"] == 2
    assert "use_item_bias" not in shared["model"]
    assert "dropout" not in shared["model"]


def test_machines_are_counted_by_ray_or_by_hand():
    assert _set("features.engine=ray", "features.devices=4").features.devices == 4
    with pytest.raises(ConfigError, match=r"num_nodes is 2: a Ray cluster .*\.num_nodes=1"):
        _set("features.engine=ray", "features.num_nodes=2")


def test_what_is_hidden_is_known_and_a_share():
    assert _set("data.hidden_modalities={image: 0.5}").data.hidden_modalities == {"image": 0.5}
    for value in ("{sound: 0.5}", "{image: 1.01}", "{image: -0.1}"):
        message = (
            r"data\.hidden_modalities: found \S+ of '\w+', allowed are shares of 0 to 1 of text, "
            r"image \(data\.modalities\)\. Next: --set 'data\.hidden_modalities=\{image: 0\.5\}'"
        )
        with pytest.raises(ConfigError, match=message):
            _set(f"data.hidden_modalities={value}")


def test_raw_seconds_are_read_through_a_norm():
    with pytest.raises(ConfigError, match=r"model\.time_gaps is seconds and model\.time_norm none"):
        _set("model.time_gaps=seconds")
    assert _set("model.time_gaps=seconds", "model.use_time=false").model.time_gaps == "seconds"
    assert _set("model.time_gaps=seconds", "model.time_norm=real_positions").model.use_time
