import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from experiments.groups import check_users, group_users, range_names
from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.config import DataConfig
from mmm4rec.errors import DataError
from pipeline.datamodule import SequenceDataModule
from pipeline.sequences import FlatSequences

#             user 0           user 1     user 2, 3: one item, and none    user 4
SEQUENCES = [[1, 1, 2, 1, 3], [2, 1, 4], [4], [], [2, 3]]
HAS_IMAGE = [False, True, True, False, True]


@pytest.fixture
def data():
    features = ModalityFeatures(torch.zeros(5, 1), torch.tensor(HAS_IMAGE))
    module = SequenceDataModule(
        DataConfig(modalities=["image"]), ["Tiny"], stage="finetune", max_len=3, seed=0
    )
    items = torch.tensor([item for sequence in SEQUENCES for item in sequence])
    offsets = torch.tensor([0, *(len(sequence) for sequence in SEQUENCES)]).cumsum(0)
    sequences = FlatSequences(items, torch.zeros_like(items), offsets)
    module._loaded = (sequences, ItemCatalogue({"image": features}, "f"))
    return module


def test_groups_counted_by_hand(data):
    # In training: 1, 1, 2 of user 0; 2 of user 1; 4 of user 2. Of two items of user 4 the first
    # could be no validation target: it stays.
    assert sorted(data.train_items().tolist()) == [1, 1, 2, 2, 2, 4]
    groups = group_users(data)
    assert list(groups) == ["popularity", "history", "image"]
    for grouping in groups.values():
        assert grouping.users_U.tolist() == [0, 1, 4]  # targets 3, 4, 3
    named = {key: [g.names[at] for at in g.group_U] for key, g in groups.items()}
    assert named == {
        "popularity": ["0", "1-4", "0"],
        "history": ["3-4", "1-2", "1-2"],
        "image": ["without image", "with image", "without image"],
    }


def test_values_are_split_by_group_and_empty_groups_are_left_out(data):
    parts = group_users(data)["popularity"].split(torch.tensor([0.5, 1.0, 0.25]))
    assert {name: part.tolist() for name, part in parts.items()} == {"0": [0.5, 0.25], "1-4": [1]}


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "0"), (1, "1-4"), (4, "1-4"), (5, "5-9"), (99, "50-99"), (100, "100+"), (10**6, "100+")],
)
def test_a_range_begins_at_its_first_number(data, number, name):
    items = torch.tensor([2] * number + [1, 1, 3, 2])
    offsets = torch.tensor([0, number + 2, number + 4])
    data._loaded = FlatSequences(items, torch.zeros_like(items), offsets), data.catalogue
    grouping = group_users(data)["popularity"]
    assert grouping.names[grouping.group_U[1]] == name


def test_ranges_have_names():
    assert range_names((1, 3, 4, 10)) == ("1-2", "3", "4-9", "10+")
    assert range_names((0,)) == ("0+",)


def _write_ranks(folder, users):
    pq.write_table(pa.table({"user_id": pa.array(users, pa.uint32())}), folder / "ranks.parquet")


def test_ranks_are_those_of_the_users_that_were_grouped(data, tmp_path):
    grouping = group_users(data)["history"]
    _write_ranks(tmp_path, [0, 1, 4])
    check_users(tmp_path, grouping)
    for users in ([0, 1], [0, 1, 3]):
        _write_ranks(tmp_path, users)
        with pytest.raises(DataError, match=rf"ranks of {len(users)} users, the domain has 3 to"):
            check_users(tmp_path, grouping)
