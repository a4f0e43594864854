import csv
import json

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mmm4rec.baselines.popularity import Popularity
from mmm4rec.checkpoint import read_checkpoint
from mmm4rec.errors import CheckpointError, DataError
from mmm4rec.lit_module import LitRecommender
from mmm4rec.metrics import TargetRank, per_user_metrics
from mmm4rec.runner import evaluate, fit, load_model
from mmm4rec.settings import build_config

TIMED = ("seconds", "_per_second", "memory_mib")


def _fit(config, data, folder, **options):
    lines = []
    stage = data.stage
    run = fit(config, data, stage=stage, runs_dir=folder, echo=lines.append, **options)
    return run, lines


def test_a_run_learns_and_its_folder_tells_what_happened(tiny_config, tiny_data, tmp_path):
    config = tiny_config("trainer.max_epochs=25", "model.dropout=0", "model.item_dropout=0")
    run, lines = _fit(config, tiny_data(config), tmp_path)
    assert run.results["test"]["recall@10"]["value"] > 0.8  # chance is 1 in 3
    assert run.folder.parent == tmp_path / "finetune" / "Tiny"
    assert build_config(yaml.safe_load((run.folder / "config.yaml").read_text()), "") == config
    assert json.loads((run.folder / "data.lock.json").read_text())["domains"]["Tiny"]["items"] == 30
    assert json.loads((run.folder / "results.json").read_text()) == run.results
    rows = (run.folder / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + run.results["epochs"]
    assert any(line.startswith("epoch 1 ") for line in lines)
    assert "epoch 1 " in (run.folder / "log.txt").read_text()


def test_every_metric_can_be_computed_again_from_the_ranks(tiny_config, tiny_data, tmp_path):
    config = tiny_config()
    run, _ = _fit(config, tiny_data(config), tmp_path)
    table = pq.read_table(run.folder / "ranks.parquet")
    assert table["user_id"].to_pylist() == list(range(40))
    better_U, tied_U = (torch.tensor(table[name].to_pylist()) for name in ("better", "tied"))
    for name, values in per_user_metrics(TargetRank(better_U, tied_U), (10, 20, 50)).items():
        measured = run.results["test"][name]
        assert measured["value"] == values.mean().item()
        assert measured["interval"][0] <= measured["value"] <= measured["interval"][1]


def test_a_saved_model_gives_the_same_results_again(tiny_config, tiny_data, tmp_path):
    config = tiny_config()
    data = tiny_data(config)
    run, _ = _fit(config, data, tmp_path)
    model = load_model(read_checkpoint(run.folder), data.catalogue)
    again = evaluate(config, model, tiny_data(config), tmp_path / "again", described={})
    assert again.results["test"] == run.results["test"]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    tiny_config, tiny_data, tmp_path
):
    def curve(name, *overrides):
        config = tiny_config(*overrides)
        run, _ = _fit(config, tiny_data(config), tmp_path / name)
        with (run.folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 3
        return [{k: row[k] for k in row if not k.endswith(TIMED)} for row in rows]

    assert curve("a") == curve("b")
    assert curve("a") != curve("c", "trainer.seed=1")


def test_an_interrupted_run_is_carried_on_and_ends_as_the_uninterrupted_one(
    tiny_config, tiny_data, tmp_path
):
    config = tiny_config("trainer.max_epochs=4", "model.dropout=0.3")
    whole, _ = _fit(config, tiny_data(config), tmp_path / "whole")
    data = tiny_data(config)

    def interrupt(line):
        if line.startswith("epoch 2 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, data, stage="finetune", runs_dir=tmp_path / "cut", echo=interrupt)
    run, lines = _fit(config, tiny_data(config), tmp_path / "cut")
    assert lines[0].startswith("carrying on")
    assert len(list((tmp_path / "cut" / "finetune" / "Tiny").iterdir())) == 1
    assert run.results["test"] == whole.results["test"]
    expected = read_checkpoint(whole.folder).weights
    for name, weight in read_checkpoint(run.folder).weights.items():
        assert weight.equal(expected[name]), name


def test_a_run_that_stopped_early_stays_stopped_when_carried_on(tiny_config, tiny_data, tmp_path):
    config = tiny_config(
        "trainer.max_epochs=30", "trainer.early_stopping_patience=2", "optimizer.lr=0.05"
    )
    run, _ = _fit(config, tiny_data(config), tmp_path)
    assert run.results["epochs"] == run.results["best_epoch"] + 2 < 30
    (run.folder / "results.json").unlink()  # as if it had been killed before the test
    again, _ = _fit(config, tiny_data(config), tmp_path)
    assert again.folder == run.folder
    timing = {"seconds_total"}
    assert {k: v for k, v in again.results.items() if k not in timing} == {
        k: v for k, v in run.results.items() if k not in timing
    }


def test_a_finished_run_is_taken_up_only_when_asked(tiny_config, tiny_data, tmp_path):
    config = tiny_config("trainer.max_epochs=1")
    first, _ = _fit(config, tiny_data(config), tmp_path)
    reused, lines = _fit(config, tiny_data(config), tmp_path, reuse=True)
    assert (reused.folder, reused.results, lines) == (first.folder, first.results, [])
    anew, _ = _fit(config, tiny_data(config), tmp_path)
    assert anew.folder != first.folder


def test_pretraining_moves_everything_but_the_items(tiny_config, tiny_data, tmp_path):
    pretraining = tiny_config("loss.candidates=in_batch", "data.validation_share=0.3")
    data = tiny_data(pretraining, stage="pretrain", domain="Other", fingerprint="other")
    pretrained, _ = _fit(pretraining, data, tmp_path)
    assert "test" not in pretrained.results
    checkpoint = read_checkpoint(pretrained.folder)
    config = tiny_config("trainer.max_epochs=1")
    run, lines = _fit(config, tiny_data(config), tmp_path, checkpoint=checkpoint)
    report = run.results["transfer"]
    assert report["refused"] == []
    assert {name.rpartition(".")[2] for name in report["reset"]} == {"text", "image"}
    assert all("item_bias" in name for name in report["reset"])
    assert len(report["moved"]) + len(report["reset"]) == len(checkpoint.weights)
    assert lines[0].startswith(f"moved {len(report['moved'])} weights")


def test_without_timestamps_time_is_off_and_said_to_be(tiny_config, tiny_data, tmp_path):
    config = tiny_config("trainer.max_epochs=1")
    run, lines = _fit(config, tiny_data(config, has_time=False), tmp_path)
    assert lines[0] == "Tiny has no timestamps: time is off (model.use_time=false)"
    assert not any("time" in name for name in read_checkpoint(run.folder).weights)


def test_a_model_with_item_bias_fits_its_own_items_only(
    tiny_config, tiny_data, tiny_catalogue, tmp_path
):
    config = tiny_config("trainer.max_epochs=1")
    run, _ = _fit(config, tiny_data(config), tmp_path)
    with pytest.raises(CheckpointError, match=r"item set tiny \(Tiny\), this one is other"):
        load_model(read_checkpoint(run.folder), tiny_catalogue(fingerprint="other"))


def test_popularity_is_ranked_through_the_same_path(tiny_config, tiny_data, tmp_path):
    config = tiny_config()
    data = tiny_data(config)
    counts_I = torch.bincount(data.train_items(), minlength=31)[1:]
    model = Popularity(data.train_items(), 30)
    run = evaluate(config, model, data, tmp_path / "popularity", described={"model": "popularity"})
    last_U = data.sequences.items_N[data.sequences.offsets_U[1:] - 1]
    better_U = (counts_I[None] > counts_I[last_U - 1][:, None]).sum(1)
    assert pq.read_table(run.folder / "ranks.parquet")["better"].to_pylist() == better_U.tolist()


def test_nothing_to_train_on_is_an_error(tiny_config, tiny_data, tmp_path):
    config = tiny_config()
    with pytest.raises(DataError, match="Tiny: no training sample; users need at least 4"):
        _fit(config, tiny_data(config, length=3), tmp_path)


def test_an_evaluation_that_breaks_off_leaves_no_folder(
    tiny_config, tiny_data, monkeypatch, tmp_path
):
    config = tiny_config()
    data = tiny_data(config)
    model = Popularity(data.train_items(), 30)

    def interrupt(*_):
        raise KeyboardInterrupt

    for broken in ("_rank_step", "on_test_epoch_end"):
        with monkeypatch.context() as patch:
            patch.setattr(LitRecommender, broken, interrupt)
            with pytest.raises(KeyboardInterrupt):
                evaluate(config, model, data, tmp_path / "runs" / "a", described={})
        assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr("mmm4rec.runner.write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, model, data, tmp_path / "runs" / "a", described={})
    assert list(tmp_path.rglob("*a*")) == []
    run = evaluate(config, model, data, tmp_path / "runs" / "a", described={})
    assert sorted(path.name for path in run.folder.iterdir()) == ["ranks.parquet", "results.json"]


def test_how_soon_a_run_came_near_its_best(tiny_config, tiny_data, tmp_path):
    config = tiny_config("trainer.max_epochs=6")
    run, _ = _fit(config, tiny_data(config), tmp_path)
    with (run.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = [float(row["val/ndcg@10"]) for row in rows]
    for percent in (90, 95, 99):
        reached = [value >= max(values) * percent / 100 for value in values].index(True)
        assert run.results["convergence"][f"{percent}%"] == {
            "epoch": reached + 1,
            "step": int(rows[reached]["step"]),
            "seconds": round(sum(float(row["seconds"]) for row in rows[: reached + 1]), 2),
        }


def test_what_is_watched_stands_beside_the_metrics_and_changes_none(
    tiny_config, tiny_data, tmp_path
):
    def rows(name, switched):
        watch = ("non_finite", "throughput", "dying_parameters", "alignment")
        config = tiny_config(*(f"watch.{part}={switched}" for part in watch))
        run, _ = _fit(config, tiny_data(config), tmp_path / name)
        assert list(run.folder.glob("tensorboard/events*"))
        with (run.folder / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    watched, bare = rows("watched", "true"), rows("bare", "false")
    names = {name for name in watched[0] if name.startswith("watch/")}
    assert {
        "watch/samples_per_second",
        "watch/train_seconds",
        "watch/peak_memory_mib",
        "watch/pull/item_encoder",
        "watch/gradient/layer0/time",
        "watch/weight/layer0/filter",
        "watch/alignment/layer0/text-image/cka",
    } <= names
    assert not any(name.startswith("watch/") for name in bare[0])
    for one, other in zip(watched, bare, strict=True):
        assert {k: one[k] for k in other if k != "seconds"} == {
            k: other[k] for k in other if k != "seconds"
        }


def test_double_precision_trains_in_double_and_reads_back_whole(tiny_config, tiny_data, tmp_path):
    config = tiny_config("trainer.precision=64-true")
    data = tiny_data(config)
    run, _ = _fit(config, data, tmp_path)
    model = load_model(read_checkpoint(run.folder), data.catalogue)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    again = evaluate(config, model, tiny_data(config), tmp_path / "again", described={})
    assert again.results["test"] == run.results["test"]
