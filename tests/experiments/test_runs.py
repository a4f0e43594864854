import io
import json
from dataclasses import replace

import pytest

from experiments import runs
from experiments.runs import (
    FAILED,
    Job,
    Outcome,
    Spec,
    data_of,
    execute,
    find_finished,
    in_order,
    pretraining,
    settings_of,
)
from mmm4rec.checkpoint import read_checkpoint
from mmm4rec.errors import Mmm4RecError
from mmm4rec.lit_module import LitRecommender

OFFICE = ("MiniOffice",)


def silent(line):
    pass


def finetuning(name="x", **options):
    return Spec(name, "finetune", OFFICE, **options)


def forbid_training(monkeypatch):
    def step(self, batch, batch_idx):
        raise AssertionError("a training step was made")

    monkeypatch.setattr(LitRecommender, "training_step", step)
    monkeypatch.setattr(LitRecommender, "test_step", step)


def folders(workspace):
    return sorted(workspace.runs_dir.glob("*/*/*"))


def test_what_was_done_is_not_done_again(workspace, monkeypatch):
    source = pretraining(workspace, "pre-training", 1)
    specs = [
        finetuning("from it", source=source),
        finetuning("scratch"),
        Spec("popularity", "evaluate", OFFICE, untrained="popularity"),
        Spec("content", "evaluate", OFFICE, untrained="content"),
    ]
    first = execute(specs, workspace, echo=silent)
    before = folders(workspace)
    assert len(before) == 5
    forbid_training(monkeypatch)
    again = execute(specs, workspace, echo=silent)
    assert again == first
    assert folders(workspace) == before
    for outcome in again.values():
        written = json.loads((outcome.run.folder / "results.json").read_text())
        assert written == outcome.run.results


def test_tables_share_runs_that_are_equal(workspace):
    source = pretraining(workspace, "pre-training", 0)
    other_name = pretraining(workspace, "another name", 0)
    one, two = finetuning("one", source=source), finetuning("two", source=other_name)
    assert one == two
    biased = finetuning("biased", source=other_name, settings=("model.use_item_bias=true",))
    outcomes = execute([one, two, biased], workspace, echo=silent)
    stages = [folder.parts[-3] for folder in folders(workspace)]
    assert sorted(stages) == ["finetune", "finetune", "pretrain"]
    assert outcomes[one] is outcomes[two]
    checkpoint = outcomes[source].run.folder / "checkpoints" / "best.safetensors"
    assert outcomes[biased].run.results["from_checkpoint"] == str(checkpoint)


def test_a_run_comes_behind_what_it_starts_from_and_once(workspace):
    source = pretraining(workspace, "pre-training", 0)
    early, late = finetuning("early", source=source), finetuning("late", seed=1)
    assert in_order([late, early, source, late]) == [late, source, early]


def test_settings_are_those_of_the_stage_the_preset_the_world_and_the_run(workspace):
    own = replace(workspace, settings=("trainer.max_epochs=7",))
    config = settings_of(finetuning(presets=("sasrec",), seed=5), own)
    assert (config.model.name, config.model.num_layers) == ("sasrec", 2)  # sasrec.yaml
    assert (config.model.d_model, config.optimizer.lr) == (64, 0.001)  # demo.yaml
    assert config.loss.candidates == "full"  # finetune.yaml
    assert (config.trainer.seed, config.trainer.devices) == (5, 1)
    assert (config.trainer.max_epochs, config.data.data_dir) == (7, workspace.data_dir)
    assert settings_of(pretraining(own, "", 0), own).loss.candidates == "in_batch"
    plain = replace(own, presets={}, settings=())
    assert settings_of(finetuning(presets=("sasrec",)), plain).model.d_model == 256
    biased = settings_of(finetuning(settings=("model.use_item_bias=true",)), own)
    assert biased.model.use_item_bias


def test_a_variant_is_fine_tuned_as_it_was_pre_trained(workspace):
    source = pretraining(workspace, "pre-training", 0, ("two-layers",))
    outcomes = execute([source], workspace, echo=silent)
    checkpoint = read_checkpoint(outcomes[source].run.folder)
    assert settings_of(finetuning(source=source), workspace, checkpoint).model.num_layers == 2


def test_a_run_that_fails_stops_no_other_and_says_why(workspace):
    lines = []
    diverging = Spec("diverging", "pretrain", ("MiniFood",), settings=("optimizer.lr=1e30",))
    behind = finetuning("behind", source=diverging)
    absent = Spec("absent", "finetune", ("Nowhere",))
    fine = finetuning("fine")
    outcomes = execute([behind, absent, fine], workspace, echo=lines.append)
    assert "the loss is not finite" in outcomes[diverging].failure
    assert outcomes[behind].failure == f"its pre-training failed: {outcomes[diverging].failure}"
    assert "mmm4rec prepare --domain Nowhere" in outcomes[absent].failure
    assert outcomes[fine].run.results["test"]["ndcg@10"]["value"] > 0
    assert any(line.startswith("Nowhere: absent, seed 0: failed: ") for line in lines)
    with pytest.raises(Mmm4RecError, match="mmm4rec prepare --domain Nowhere"):
        outcomes[absent].finished()


def test_an_interrupted_run_is_carried_on(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "REPORT_SECONDS", 0.0)
    spec = finetuning()

    def interrupt(line):
        assert line.startswith("MiniOffice: x, seed 0: ")
        if "epoch 1 " in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute([spec], workspace, echo=interrupt)
    (begun,) = folders(workspace)
    assert not (begun / "results.json").exists()
    carried_on = execute([spec], workspace, echo=silent)[spec].run
    assert carried_on.folder == begun
    elsewhere = replace(workspace, runs_dir=tmp_path / "elsewhere")
    whole = execute([spec], elsewhere, echo=silent)[spec].run
    assert carried_on.results["test"] == whole.results["test"]


def test_a_long_run_says_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    lines = []
    say = runs._now_and_then(lines.append, "label")
    for second in range(0, 100, 10):
        now[0] = float(second)
        say(f"line {second}")
    assert lines == ["label: line 30", "label: line 60", "label: line 90"]


def test_a_finished_run_is_found_by_what_decides_its_results(workspace):
    spec = finetuning()
    config = settings_of(spec, workspace)
    assert find_finished(spec, config, workspace, None) is None
    run = execute([spec], workspace, echo=silent)[spec].run
    assert find_finished(spec, config, workspace, None) == run
    other = replace(spec, seed=1)
    assert find_finished(other, settings_of(other, workspace), workspace, None) is None


def test_untrained_models_are_ranked_on_the_test_users(workspace):
    popular = Spec("popularity", "evaluate", OFFICE, untrained="popularity")
    run = execute([popular], workspace, echo=silent)[popular].run
    data = data_of(popular, settings_of(popular, workspace))
    counts = data.train_items().bincount(minlength=data.catalogue.num_items + 1)
    hits = []
    for user in range(data.sequences.num_users):
        target = data.sequences.items_N[data.sequences.offsets_U[user + 1] - 1]
        better = int((counts[1:] > counts[target]).sum())
        tied = int((counts[1:] == counts[target]).sum())
        hits.append(min(max(10 - better, 0), tied) / tied)
    assert run.results["test"]["recall@10"]["value"] == pytest.approx(sum(hits) / len(hits))


def test_a_job_of_another_process_fails_with_a_reason(workspace, monkeypatch, capsys):
    spec = Spec("absent", "finetune", ("Nowhere",), source=pretraining(workspace, "p", 0))
    text = runs.JOB.dump_json(Job(replace(spec, source=None), workspace)).decode()
    monkeypatch.setattr(runs.sys, "stdin", io.StringIO(text))
    with pytest.raises(SystemExit) as ended:
        runs.main()
    assert ended.value.code == FAILED
    assert "mmm4rec prepare --domain Nowhere" in capsys.readouterr().err
    whole = Job(spec, workspace)
    assert runs.JOB.validate_json(runs.JOB.dump_json(whole)) == whole


@pytest.mark.slow
def test_runs_in_several_processes_are_those_of_one(workspace, tmp_path):
    source = pretraining(workspace, "pre-training", 0)
    absent = Spec("absent", "finetune", ("Nowhere",))
    specs = [finetuning("pre-trained", source=source), finetuning("scratch"), absent]
    spread = execute(specs, workspace, echo=silent, jobs=2)
    single = execute(specs, replace(workspace, runs_dir=tmp_path / "single"), echo=silent, jobs=1)
    assert list(spread) == list(single)
    assert spread[absent] == single[absent] == Outcome(failure=single[absent].failure)
    for spec in specs[:2]:
        assert spread[spec].run.results["test"] == single[spec].run.results["test"]
