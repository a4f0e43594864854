from typing import get_args

import pytest
import torch

from mmm4rec.architectures import ARCHITECTURES, build_model
from mmm4rec.checkpoint import read_checkpoint
from mmm4rec.config import ModelConfig
from mmm4rec.recommend import recommend
from mmm4rec.runner import evaluate, fit, load_model
from pipeline.sequences import FlatSequences

BASELINES = [name for name in ARCHITECTURES if name != "mmm4rec"]


@pytest.fixture
def cycle_data(tiny_data):
    """Users who walk through the items one by one, round and round."""

    def build(config):
        data = tiny_data(config)
        sequences, catalogue = data._loaded
        items_UL = (torch.arange(40)[:, None] + torch.arange(7)) % 30 + 1
        walks = FlatSequences(items_UL.flatten(), sequences.timestamps_N, sequences.offsets_U)
        data._loaded = (walks, catalogue)
        return data

    return build


def test_every_name_is_a_model():
    assert set(ARCHITECTURES) == set(get_args(ModelConfig.model_fields["name"].annotation))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_is_built_by_its_name(name, tiny_config, tiny_catalogue):
    config = tiny_config(f"model.name={name}")
    assert type(build_model(config.model, tiny_catalogue())) is ARCHITECTURES[name]


@pytest.mark.parametrize("inputs", ["ids", "features", "both"])
@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_learns_a_cycle_and_reads_back_whole(
    name, inputs, tiny_config, cycle_data, tmp_path
):
    config = tiny_config(
        f"model.name={name}",
        f"model.item_inputs={inputs}",
        "model.dropout=0",
        "model.item_dropout=0",
        "model.d_model=32",
        "model.max_len=3",  # what is asked in the test is then as long as what is learned from
        "trainer.max_epochs=60",
        "trainer.early_stopping_patience=15",
        "trainer.monitor=val/ndcg@1",
        "optimizer={lr: 0.02, weight_decay: 0}",
        "evaluation.cutoffs=[1]",
    )
    run = fit(config, cycle_data(config), stage="finetune", runs_dir=tmp_path, echo=lambda _: None)
    assert run.results["test"]["recall@1"]["value"] == 1.0
    data = cycle_data(config)
    model = load_model(read_checkpoint(run.folder), data.catalogue)
    assert type(model) is ARCHITECTURES[name]
    again = evaluate(config, model, data, tmp_path / "again", described={})
    assert again.results["test"] == run.results["test"]
    times = [1_400_000_000 + day * 86_400 for day in range(3)]
    assert recommend(model, [28, 29, 30], times, max_len=3, top_k=1)[0].item_id == 1


@pytest.mark.parametrize("name", BASELINES)
def test_an_interrupted_baseline_ends_as_the_uninterrupted_one(
    name, tiny_config, tiny_data, tmp_path
):
    config = tiny_config(f"model.name={name}", "model.dropout=0.3", "trainer.max_epochs=2")

    def run(folder, echo):
        return fit(config, tiny_data(config), stage="finetune", runs_dir=folder, echo=echo)

    def interrupt(line):
        if line.startswith("epoch 1 "):
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", interrupt)
    carried_on = run(tmp_path / "cut", lambda _: None)
    assert carried_on.results["test"] == whole.results["test"]
    expected = read_checkpoint(whole.folder).weights
    for part, weight in read_checkpoint(carried_on.folder).weights.items():
        assert weight.equal(expected[part]), part


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_watched_does_not_need_the_parts_of_mmm4rec(name, tiny_config, tiny_data, tmp_path):
    config = tiny_config(f"model.name={name}", "watch.alignment=true", "trainer.max_epochs=1")
    data = tiny_data(config, has_time=False)
    run = fit(config, data, stage="finetune", runs_dir=tmp_path, echo=lambda _: None)
    header = (run.folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"watch/pull/item_table", "watch/gradient/item_encoder"} <= set(header)
    assert not any("alignment" in column for column in header)
