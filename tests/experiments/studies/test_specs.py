"""What each study asks for: which setting changes, and in which stage."""

from dataclasses import replace

import pytest
import torch

from experiments.runs import settings_of
from experiments.studies import STUDIES, cold_items, fidelity, gate, missing_images
from experiments.studies import shorter_histories as truncation
from experiments.studies.missing_images import FINETUNING, PRETRAINING
from mmm4rec.config import OFFICIAL, architecture
from mmm4rec.settings import load_config

DOMAIN = "MiniOffice"


@pytest.fixture
def workspace(make_workspace, tmp_path):
    return make_workspace(tmp_path)


def _config(spec, workspace):
    """The settings of a run, as if its source had been trained."""

    class Source:
        config = settings_of(spec.source, workspace) if spec.source else None

    return settings_of(spec, workspace, Source if spec.source else None)


def _changed(config, other):
    one, two = config.as_dict(), other.as_dict()
    return {
        f"{section}.{field}"
        for section, values in one.items()
        if isinstance(values, dict)
        for field, value in values.items()
        if two[section][field] != value
    }


@pytest.mark.parametrize("name", STUDIES)
def test_every_spec_is_allowed_and_seeds_go_through_all_stages(name, workspace):
    specs = STUDIES[name].specs(workspace, 2)
    assert {spec.seed for spec in specs} >= {0}
    for spec in specs:
        assert spec.domains == (DOMAIN,)
        assert _config(spec, workspace).trainer.seed == spec.seed
        if spec.source:
            assert (spec.source.stage, spec.source.seed) == ("pretrain", spec.seed)
            assert spec.source.domains == ("MiniFood", "MiniHome")
    assert {spec.seed for spec in specs if spec.stage == "finetune"} == {0, 1}


@pytest.mark.parametrize("name", STUDIES)
def test_without_domains_to_pretrain_on_everything_is_from_scratch(name, workspace):
    alone = replace(workspace, pretraining=("Nowhere",))
    specs = STUDIES[name].specs(alone, 1)
    assert specs
    assert all(spec.source is None for spec in specs)


def test_images_are_hidden_in_one_stage_only(workspace):
    ways = missing_images.ways(workspace, DOMAIN, 1)
    assert len(ways) == 2 * 3 * 5
    for (place, policy, share), way in ways.items():
        [spec] = way.specs
        before, after = settings_of(spec.source, workspace), _config(spec, workspace)
        assert before.model.missing_modality == after.model.missing_modality == policy
        hidden = {"image": share} if share else {}
        assert before.data.hidden_modalities == (hidden if place == PRETRAINING else {})
        assert after.data.hidden_modalities == (hidden if place == FINETUNING else {})


def test_a_switch_changes_one_field_in_both_stages(workspace):
    whole = _changed(load_config(None, ["fidelity=official"]), load_config())
    prepared = {f"prepare.{field}" for field in OFFICIAL["prepare"]}
    fields = whole - prepared
    assert len(fields) > 8
    assert set(fidelity.switches()) == fields
    corrected, *rows, official, accumulated = fidelity.ways(workspace, DOMAIN, 1, pretrained=True)
    assert len(rows) == len(fields)
    references = {
        way.name: [_config(way.specs[0], workspace), settings_of(way.specs[0].source, workspace)]
        for way in (corrected, accumulated)
    }
    for field, way in zip(fidelity.switches(), rows, strict=True):
        name = fidelity.ACCUMULATED if field == fidelity.ACCUMULATION else fidelity.CORRECTED
        [spec] = way.specs
        for config, reference in zip(
            [_config(spec, workspace), settings_of(spec.source, workspace)],
            references[name],
            strict=True,
        ):
            with_it = {"model.time_norm"} if field == "model.time_gaps" else set()
            assert _changed(config, reference) == {field} | with_it
            section, key = field.split(".")
            assert config.as_dict()[section][key] == OFFICIAL[section][key]
    config = _config(official.specs[0], workspace)
    assert _changed(config, references[fidelity.CORRECTED][0]) == whole
    assert architecture(config)["fidelity"] == "official"


def test_the_gate_changes_how_signals_are_mixed_and_nothing_else(workspace):
    reference, *others = gate.ways(workspace, DOMAIN, 1)
    configs = {way.name: _config(way.specs[0], workspace) for way in others}
    base = _config(reference.specs[0], workspace)
    assert {name: _changed(config, base) for name, config in configs.items()} == {
        "gate, one TiSSD": {"model.time_filter"},
        "mean, one TiSSD": {"model.time_filter"},
        "filter, a TiSSD for each modality": {"model.share_ti_ssd"},
        "gate, a TiSSD for each modality": {"model.share_ti_ssd", "model.time_filter"},
        "mean, a TiSSD for each modality": {"model.share_ti_ssd", "model.time_filter"},
        "without time": {"model.use_time"},
    }
    assert configs["gate, one TiSSD"].model.time_filter == "gate"
    assert configs["mean, one TiSSD"].model.time_filter == "none"


def test_items_are_cold_for_every_model_of_a_split(workspace):
    assert list(cold_items.SPLITS.values()) == [0, 0.2]
    for share in (0, 0.2):
        ways = cold_items.ways(workspace, DOMAIN, 1, share)
        configs = {way.name: _config(way.specs[0], workspace) for way in ways}
        assert {config.data.cold_share for config in configs.values()} == {share}
        assert configs["SASRec, ids"].model.name == "sasrec"
        assert configs["pre-trained"].model.use_item_bias
        assert not configs["pre-trained, without item bias"].model.use_item_bias
        assert [way.specs[0].source is not None for way in ways] == [False] * 4 + [True] * 2


def test_histories_are_cut_for_fine_tuning_where_that_is_asked(workspace):
    ways = truncation._ways(workspace, DOMAIN, 1, retrain=True)
    lengths = {k: _config(way.specs[0], workspace).data.last_items for k, way in ways.items()}
    assert lengths == {None: None, 1: 1, 2: 2, 5: 5}  # the tiny model reads 6 items
    assert list(truncation._ways(workspace, DOMAIN, 1, retrain=False)) == [None]


def test_seeds_are_averaged_before_the_share_is_taken():
    whole = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    [found] = truncation._kept([[torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.0])]], whole)
    assert (found.value, found.seeds) == (0.25, 2)
