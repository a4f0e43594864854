import numpy as np
import pytest

from experiments import time_path
from experiments.planted import VALIDATION_USERS, PlantedData
from experiments.statistics import user_metrics
from experiments.time_path import (
    BLIND,
    FILTERS,
    LADDER,
    WAYS,
    interactions,
    main,
    measure,
    settings,
    train_on_domain,
)
from mmm4rec.config import Config
from mmm4rec.errors import DataError


def test_the_ladder_leads_from_the_official_to_the_corrected_time_path():
    first, *_ = LADDER
    assert settings(LADDER[first], "gap", 0).fidelity == "official"
    corrected = settings(LADDER["corrected"], "gap", 0)
    assert corrected == settings(WAYS["corrected"], "gap", 0) == settings(FILTERS["full"], "gap", 0)
    time_fields = [name for name in type(corrected.model).model_fields if "time" in name]
    last = settings(LADDER["+ residual convolutions"], "gap", 0)
    assert all(getattr(last.model, f) == getattr(corrected.model, f) for f in time_fields)
    for name, changes in LADDER.items():
        if name.startswith("corrected, "):
            assert settings(changes, "gap", 0) != corrected


def test_the_optimizer_is_that_of_fine_tuning():
    config = settings({}, "gap", 0)
    assert (config.model.d_model, config.optimizer.lr, config.optimizer.weight_decay) == (
        64,
        3e-4,
        Config().optimizer.weight_decay,
    )


def test_a_world_is_described_by_its_own_interactions():
    world = PlantedData(settings({}, "gap", 0), "gap", "days", batches=1).world
    table = interactions(world)
    assert table["user_id"].value_counts().height == len(world.bits_U)
    assert table["timestamp"].to_list() == world.seconds_N.tolist()
    assert np.bincount(table["user_id"]).tolist() == np.diff(world.offsets_U).tolist()


def test_the_way_is_measured_between_the_ceilings(tmp_path, monkeypatch):
    monkeypatch.setattr(time_path, "STEPS_PER_EPOCH", 3)
    config = {"trainer": {"max_epochs": 1}}
    found = measure(config, "gap", "days", 0, tmp_path)
    data = PlantedData(settings(config, "gap", 0), "gap", "days", batches=3)
    blind, seeing = data.world.ceilings(VALIDATION_USERS)
    assert [epoch for epoch, _ in found.curve] == [1]
    assert found.way == pytest.approx((found.curve[-1][1] - blind) / (seeing - blind))
    assert found.way < 0.1


@pytest.mark.slow
def test_prepared_domains_stand_beside_the_planted_worlds(data_dir, tmp_path, monkeypatch, capsys):
    brief = {"trainer": {"max_epochs": 1}}
    ways = {"corrected": brief, BLIND: {**brief, "model": {"use_time": False}}}
    monkeypatch.setattr(time_path, "STEPS_PER_EPOCH", 2)
    monkeypatch.setattr(time_path, "WAYS", ways)
    monkeypatch.setattr(
        time_path, "WORLDS", [("gap", "days"), ("query", "seconds"), ("nothing", "days")]
    )
    given = ["rule", "--seeds", "2", "--data-dir", str(data_dir), "--out", str(tmp_path)]
    main([*given, "--domain", "MiniOffice"])
    with_time, without = (
        np.stack(
            [
                user_metrics(
                    train_on_domain(ways[way], "MiniOffice", data_dir, seed, tmp_path).folder, (10,)
                )["ndcg@10"]
                for seed in (0, 1)
            ]
        )
        for way in ("corrected", BLIND)
    )
    gain = (with_time - without).mean()
    assert capsys.readouterr().out.splitlines()[0].startswith(f"MiniOffice: gain {gain:.4f} [")
    report = (tmp_path / "report.md").read_text()
    assert "Over 4 domains" in report
    assert "--seeds 2 --domain MiniOffice" in report
    with pytest.raises(DataError, match="mmm4rec prepare --domain Arts"):
        main([*given, "--domain", "Arts"])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "epochs"), [("gap", 6), ("query", 8), ("marked", 3)])
def test_time_is_used_where_the_official_model_stays_blind(kind, epochs, tmp_path):
    """In up to 1,000 steps the corrected model reaches the seeing ceiling, the official nowhere."""
    corrected, official = (
        {**WAYS[way], "trainer": {"max_epochs": number}}
        for way, number in (("corrected", epochs), ("official", 4))
    )
    assert measure(corrected, kind, "days", 0, tmp_path).way > 0.95
    assert abs(measure(official, kind, "days", 0, tmp_path).way) < 0.1
