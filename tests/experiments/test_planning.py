from dataclasses import replace

import pytest

from experiments.planning import (
    CACHED,
    TO_DO,
    PlannedRun,
    count_samples,
    format_hours,
    format_plan,
    measure_rate,
    plan_runs,
)
from experiments.runs import Spec, data_of, execute, pretraining, settings_of

OFFICE = ("MiniOffice",)


def silent(line):
    pass


@pytest.fixture
def specs(workspace):
    source = pretraining(workspace, "pre-training", 0)
    return [
        Spec("popularity", "evaluate", OFFICE, untrained="popularity"),
        Spec("pre-trained", "finetune", OFFICE, source=source),
        Spec("from scratch", "finetune", OFFICE),
        Spec("absent", "finetune", ("Nowhere",)),
    ]


def test_a_plan_writes_nothing_and_measures_each_architecture_once(workspace, specs, monkeypatch):
    measured = []

    def measure(config, data):
        measured.append(config.model.name)
        return measure_rate(config, data)

    monkeypatch.setattr("experiments.planning.measure_rate", measure)
    before = sorted(workspace.data_dir.rglob("*"))
    seeds = [replace(spec, seed=seed) for spec in specs[1:3] for seed in (0, 1)]
    plan = plan_runs(seeds, workspace)
    assert [run.state for run in plan] == [TO_DO] * 5  # with one pre-training
    assert all(run.hours > 0 for run in plan)
    assert measured == ["mmm4rec"] * 2  # pre-training, fine-tuning
    assert plan[1].hours / plan[1].samples == plan[3].hours / plan[3].samples
    assert not workspace.runs_dir.exists()
    assert sorted(workspace.data_dir.rglob("*")) == before


def test_a_plan_knows_what_is_done_and_what_cannot_begin(workspace, specs):
    execute(specs[2:3], workspace, echo=silent)
    states = {run.label: run.state for run in plan_runs(specs, workspace)}
    assert states["MiniOffice: popularity"] == TO_DO
    assert states["MiniOffice: from scratch, seed 0"] == CACHED
    assert states["MiniOffice: pre-trained, seed 0"] == TO_DO
    assert "mmm4rec prepare --domain Nowhere" in states["Nowhere: absent, seed 0"]
    execute(specs, workspace, echo=silent)
    states = {run.label: run.state for run in plan_runs(specs, workspace)}
    assert set(states.values()) == {CACHED, states.pop("Nowhere: absent, seed 0")}


def test_samples_are_those_of_all_epochs(workspace, specs):
    config = settings_of(specs[2], workspace)
    data = data_of(specs[2], config)
    per_epoch = sum(len(batch) for batch in data.train_dataloader())
    assert count_samples(specs[2], config) == per_epoch * 2
    assert count_samples(specs[0], config) == 0
    source = specs[1].source
    config = settings_of(source, workspace)
    per_epoch = sum(len(batch) for batch in data_of(source, config).train_dataloader())
    assert count_samples(source, config) == pytest.approx(per_epoch * 2, rel=0.05)


def test_a_rate_is_that_of_real_training_steps(workspace, specs, monkeypatch):
    now = [0.0]

    def tick():
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr("experiments.planning.time.perf_counter", tick)
    config = settings_of(specs[2], workspace)
    # Two batches are not counted, six are; an epoch may end among them.
    sizes = [len(batch) for batch in data_of(specs[2], config).train_dataloader()]
    counted = (sizes * 8)[2:8]
    assert measure_rate(config, data_of(specs[2], config)) == sum(counted) / 3.0


def test_a_plan_as_text():
    runs = [
        PlannedRun("A: x, seed 0", CACHED, 1000, 0.0),
        PlannedRun("A: longer name, seed 0", TO_DO, 2_000_000, 1.5),
        PlannedRun("B: x, seed 0", "B is not a prepared domain", 0, None),
    ]
    lines = format_plan(runs, ["B is left out"]).splitlines()
    assert lines[1].split() == ["A:", "x,", "seed", "0", "1,000", "0", "s", "done"]
    assert lines[2].split()[-5:] == ["2,000,000", "1.5", "h", "to", "do"]
    assert lines[3].endswith("-  B is not a prepared domain")
    assert lines[4].startswith(
        "3 runs: 1 done, 1 to do, 1 cannot begin. To do: 2,000,000 samples, 1.5 h on one"
    )
    assert lines[5] == "B is left out"


def test_a_time_is_written_in_a_unit_that_suits_it():
    assert [format_hours(hours) for hours in (0, 0.01, 0.5, 30)] == [
        "0 s",
        "36 s",
        "30 min",
        "30.0 h",
    ]
