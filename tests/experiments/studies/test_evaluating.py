import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from experiments.studies.evaluating import evaluate_cached, with_settings
from experiments.studies.truncation import truncation_curve
from mmm4rec.batch import SequenceBatch
from mmm4rec.checkpoint import read_checkpoint
from mmm4rec.errors import ConfigError
from mmm4rec.metrics import target_rank
from mmm4rec.runner import load_model
from pipeline.datamodule import SequenceDataModule

DOMAIN = "MiniOffice"


@pytest.fixture
def checkpoint(trained):
    return read_checkpoint(Path(trained["finetune"]["folder"]))


@pytest.fixture
def data(checkpoint):
    return SequenceDataModule.from_config(checkpoint.config, [DOMAIN], "finetune")


def _ranks(folder):
    table = pq.read_table(folder / "ranks.parquet")
    return table["better"].to_pylist(), table["tied"].to_pylist()


def test_the_settings_of_training_give_the_results_of_training(checkpoint, trained, tmp_path):
    run = evaluate_cached(checkpoint.config, checkpoint, DOMAIN, tmp_path)
    assert run.results["test"] == trained["finetune"]["test"]
    assert _ranks(run.folder) == _ranks(Path(trained["finetune"]["folder"]))


def test_an_equal_evaluation_is_not_made_again(checkpoint, tmp_path, monkeypatch):
    config = with_settings(checkpoint.config, hidden_modalities={"image": 0.5})
    first = evaluate_cached(config, checkpoint, DOMAIN, tmp_path)
    monkeypatch.setattr("experiments.studies.evaluating.evaluate", None)
    again = evaluate_cached(config, checkpoint, DOMAIN, tmp_path)
    assert (again.folder, again.results) == (first.folder, first.results)
    other = with_settings(checkpoint.config, hidden_modalities={"image": 0.6})
    with pytest.raises(TypeError):
        evaluate_cached(other, checkpoint, DOMAIN, tmp_path)


def test_with_other_settings_of_the_data_only(checkpoint):
    config = with_settings(checkpoint.config, last_items=2)
    assert config.data.last_items == 2
    assert with_settings(config, last_items=None) == checkpoint.config
    with pytest.raises(ConfigError, match=r"data\.last_items.*greater than or equal to 1"):
        with_settings(checkpoint.config, last_items=0)


def test_the_last_items_rank_like_histories_that_were_cut_by_hand(checkpoint, data, tmp_path):
    config = with_settings(checkpoint.config, last_items=2)
    run = evaluate_cached(config, checkpoint, DOMAIN, tmp_path)
    model = load_model(checkpoint, data.catalogue)
    sequences, rows = data.sequences, []
    for start, end in zip(sequences.offsets_U, sequences.offsets_U[1:], strict=False):
        start = max(int(start), int(end) - 3)
        rows.append((sequences.items_N[start:end], sequences.timestamps_N[start:end]))
    batch = SequenceBatch(
        items_BL=torch.stack([items[:-1] for items, _ in rows]),
        lengths_B=torch.full((len(rows),), 2),
        timestamps_BL=torch.stack([times[:-1] for _, times in rows]),
        targets_B=torch.stack([items[-1] for items, _ in rows]),
        users_B=torch.arange(len(rows)),
    )
    with torch.no_grad():
        rank = target_rank(model.score(model(batch), model.item_matrix()), batch.targets_B)
    assert _ranks(run.folder) == (rank.better_B.tolist(), rank.tied_B.tolist())


def test_hidden_images_change_what_a_trained_model_reads(checkpoint, data, tmp_path):
    config = with_settings(checkpoint.config, hidden_modalities={"image": 1.0})
    run = evaluate_cached(config, checkpoint, DOMAIN, tmp_path)
    features = data.catalogue.features["image"]
    features.present_I[:] = False
    features.values_IF[:] = 0
    model = load_model(checkpoint, data.catalogue)
    with torch.no_grad():
        ranks = [
            target_rank(model.score(model(batch), model.item_matrix()), batch.targets_B).better_B
            for batch in data.test_dataloader()
        ]
    assert _ranks(run.folder)[0] == torch.cat(ranks).tolist()
    assert _ranks(run.folder) != _ranks(checkpoint.path.parents[1])


def test_a_truncation_curve(checkpoint, trained, tmp_path, monkeypatch):
    lines = []
    arguments = (checkpoint.config, checkpoint, DOMAIN, [6, 1, 3, 1], tmp_path / "t")
    found = truncation_curve(*arguments, lines.append)
    results = json.loads((tmp_path / "t/results.json").read_text())
    assert results == found.results
    assert (list(results["lengths"]), results["max_len"]) == (["1", "3", "6"], 6)
    test = trained["finetune"]["test"]
    assert list(results["whole"]) == ["recall@10", "ndcg@10"]
    for name, value in results["whole"].items():
        assert value == test[name]["value"]
        assert results["lengths"]["6"][name] == {
            "value": value,
            "kept": 1.0,
            "interval": [1.0, 1.0],
        }
        one = results["lengths"]["1"][name]
        assert one["kept"] == pytest.approx(one["value"] / value)
        assert one["interval"][0] <= one["kept"] <= one["interval"][1]
    assert len(found.text.splitlines()) == 5
    assert found.text.splitlines()[-1].startswith("   6   100.0% [100.0%, 100.0%]")
    assert found.picture.read_bytes().startswith(b"\x89PNG")
    assert lines[0].startswith("last 1 items: recall@10 0.")
    monkeypatch.setattr("experiments.studies.evaluating.evaluate", None)
    assert truncation_curve(*arguments, lines.append).results == results


@pytest.mark.parametrize("ks", [[], [0], [7], [3, -1]])
def test_lengths_that_are_not_allowed(checkpoint, tmp_path, ks):
    with pytest.raises(ConfigError, match=r"allowed are 1 to 6 \(model\.max_len of the checkpoint"):
        truncation_curve(checkpoint.config, checkpoint, DOMAIN, ks, tmp_path, print)
    assert list(tmp_path.iterdir()) == []
