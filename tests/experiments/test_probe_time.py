import json
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.changed_gaps import CHANGES, ChangedGaps
from experiments.probe_time import probe_model, probe_time
from mmm4rec.checkpoint import read_checkpoint
from mmm4rec.errors import ConfigError, DataError
from mmm4rec.settings import load_config
from pipeline.sequences import FlatSequences

DAY = 86_400
BORDER = 5 * DAY
USERS, LENGTH = 60, 5


class _Reader(nn.Module):
    """Recommends item 1 after a short gap and item 2 after a long one."""

    def __init__(self, num_items, read):
        super().__init__()
        self.num_items, self.read = num_items, read

    def forward(self, batch):
        items_B = 1 + (self.read(batch) >= BORDER).long()
        return nn.functional.one_hot(items_B, self.num_items + 1).float()

    def item_matrix(self):
        return torch.eye(self.num_items + 1)


def _last_gap(batch):
    last_B1 = batch.lengths_B[:, None] - 1
    times = [batch.timestamps_BL.gather(1, at_B1)[:, 0] for at_B1 in (last_B1, last_B1 - 1)]
    return times[0] - times[1]


def _query_gap(batch):
    return batch.query_time_B - batch.timestamps_BL.gather(1, batch.lengths_B[:, None] - 1)[:, 0]


def _first_item(batch):
    return batch.items_BL[:, 0] % 2 * DAY  # short, whatever the times


class _Scaled(_Reader):
    """The same ranking whatever the times, by vectors that are not the same."""

    def forward(self, batch):
        return super().forward(batch) * (1 + _last_gap(batch)[:, None] / DAY)


@pytest.fixture
def planted(tiny_config, tiny_data):
    """A domain whose last item is 2 after a long gap and 1 after a short one, and its settings."""

    def build(*overrides, decides=-2, wrong=False, still=False):
        config = tiny_config("evaluation.cutoffs=[1, 10]", *overrides)
        data = tiny_data(config)
        generator = torch.Generator().manual_seed(5)
        gaps_UL = torch.randint(1, 4, (USERS, LENGTH), generator=generator) * DAY
        long_U = torch.rand(USERS, generator=generator) < 0.5
        gaps_UL[:, decides] = torch.where(long_U, 30 * DAY, DAY)
        items_UL = torch.randint(3, 31, (USERS, LENGTH), generator=generator)
        items_UL[:, -1] = 1 + (long_U ^ wrong).long()
        sequences = FlatSequences(
            items_UL.flatten(),
            (10**9 + gaps_UL.cumsum(1) * (not still)).flatten(),
            torch.arange(0, USERS * LENGTH + 1, LENGTH),
        )
        data._loaded = (sequences, data.catalogue)
        return config, data, long_U

    return build


def _probe(config, data, folder, read=_last_gap, reader=_Reader, seed=0):
    model = reader(data.catalogue.num_items, read)
    lines = []
    probe = probe_model(
        config, model, data, folder, seed=seed, echo=lines.append, described={"model": "stub"}
    )
    return probe, lines


def _recall(probe):
    return {
        name: row["test"]["recall@1"]["value"] for name, row in probe.results["changes"].items()
    }


def test_a_model_that_reads_the_last_gap_loses_exactly_what_the_others_hide(planted, tmp_path):
    config, data, long_U = planted()
    probe, _ = _probe(config, data, tmp_path)
    found, long = _recall(probe), float(long_U.double().mean())
    assert found["none"] == 1
    assert found["removed"] == found["shortened"] == pytest.approx(1 - long)  # all are short
    assert found["lengthened"] == pytest.approx(long)  # all are long
    for change in ("shuffled", "others"):
        changed = ChangedGaps(nn.Identity(), data.sequences, change, seed=0)
        batches = [changed.changed(batch) for batch in data.test_dataloader()]
        gap_U = torch.cat([_last_gap(batch) for batch in batches])
        hits = ((gap_U >= BORDER) == long_U).double().mean()
        assert found[change] == pytest.approx(float(hits))
        assert 0.3 < found[change] < 0.9
    loss = probe.results["changes"]["others"]["loss"]["recall@1"]
    assert loss["value"] == pytest.approx(1 - found["others"])
    assert 0 < loss["interval"][0] < loss["value"] < loss["interval"][1]
    assert loss["p"] < 0.01
    assert probe.verdict.startswith(f"uses time, worth {1 - found['others']:+.4f} ndcg@1 [")
    removed = probe.results["changes"]["removed"]["sensitivity"]
    assert removed["moved_times_share"] == 1
    assert removed["moved_vectors_share"] == pytest.approx(long)
    assert removed["cosine_distance"] == pytest.approx(long)  # from one axis to another


def test_a_model_that_ignores_time_does_not_use_it_bit_for_bit(planted, tmp_path):
    config, data, _ = planted()
    probe, _ = _probe(config, data, tmp_path, read=_first_item)
    assert probe.verdict == (
        "does not use time: whatever the gaps, the users' vectors are the same to the bit"
    )
    for name, row in probe.results["changes"].items():
        assert row["test"] == probe.results["changes"]["none"]["test"]
        if name != "none":
            assert row["sensitivity"]["moved_vectors_share"] == 0
            assert {loss["value"] for loss in row["loss"].values()} == {0}


def test_vectors_that_move_without_another_ranking_are_not_worth_it(planted, tmp_path):
    config, data, _ = planted()
    probe, _ = _probe(config, data, tmp_path, read=_first_item, reader=_Scaled)
    assert probe.verdict.startswith("uses time, not worth it: +0.0000 ndcg@1 [")
    assert probe.verdict.endswith("includes 0")
    sensitivity = probe.results["changes"]["removed"]["sensitivity"]
    assert sensitivity["moved_vectors_share"] == 1
    assert sensitivity["cosine_distance"] == pytest.approx(0, abs=1e-9)
    assert 0.3 < sensitivity["relative_change"] < 1


def test_a_model_that_reads_time_the_wrong_way_is_harmed(planted, tmp_path):
    config, data, _ = planted(wrong=True)
    probe, _ = _probe(config, data, tmp_path)
    assert _recall(probe)["none"] == 0
    assert probe.verdict.startswith("uses time, to its harm: -")


def test_the_moment_of_recommending_is_changed_along(planted, tmp_path):
    config, data, long_U = planted("data.query_time=now", decides=-1)
    probe, _ = _probe(config, data, tmp_path, read=_query_gap)
    found, long = _recall(probe), float(long_U.double().mean())
    assert list(found) == list(CHANGES)
    assert found["none"] == found["shuffled"] == 1  # the gap to the query is kept
    assert found["removed"] == pytest.approx(1 - long)
    assert found["query"] == found["others"] < 0.9
    assert probe.results["query_time"] == "now"


def test_without_gaps_nothing_can_be_told(planted, tmp_path):
    config, data, _ = planted(still=True)
    probe, _ = _probe(config, data, tmp_path)
    assert probe.verdict == "cannot be told: no history has a gap that could be changed"


def test_what_is_written_is_what_is_returned_and_follows_from_the_seed(planted, tmp_path):
    config, data, _ = planted()
    probe, lines = _probe(config, data, tmp_path / "one")
    assert json.loads((tmp_path / "one" / "results.json").read_text()) == probe.results
    assert (tmp_path / "one" / "report.txt").read_text() == probe.text + "\n"
    assert probe.text.splitlines()[-1] == f"verdict: {probe.verdict}"
    assert len(lines) == len(probe.results["changes"]) == len(CHANGES) - 1
    assert probe.results["model"] == "stub"
    for label in (CHANGES["none"], CHANGES["shuffled"], CHANGES["lengthened"]):
        assert sum(line.startswith(label) for line in probe.text.splitlines()) == 1
    again, _ = _probe(config, data, tmp_path / "two")
    assert again.results == probe.results
    other, _ = _probe(config, data, tmp_path / "three", seed=1)
    assert _recall(other)["others"] != _recall(probe)["others"]
    assert _recall(other)["removed"] == _recall(probe)["removed"]


def test_a_model_or_a_domain_without_time_is_not_probed(planted, tiny_data, tmp_path):
    config, data, _ = planted("model.use_time=false")
    with pytest.raises(ConfigError, match=r"made without time .*Next: mmm4rec finetune"):
        _probe(config, data, tmp_path)
    config, _, _ = planted()
    with pytest.raises(DataError, match="Tiny has no timestamps"):
        _probe(config, tiny_data(config, has_time=False), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_trained_model_is_probed_from_its_checkpoint(trained, data_dir, tmp_path):
    checkpoint = read_checkpoint(Path(trained["finetune"]["folder"]))
    config = load_config(None, [f"data.data_dir={data_dir}"], base=checkpoint.config.as_dict())
    probe = probe_time(checkpoint, config, "MiniOffice", tmp_path, 0, lambda line: None)
    true = probe.results["changes"]["none"]["test"]
    assert true == trained["finetune"]["test"]
    assert probe.results["users"] == 60
    moved = probe.results["changes"]["others"]["sensitivity"]["moved_vectors_share"]
    assert moved > 0.9  # its time path is alive
    assert probe.verdict.startswith("uses time, ")
