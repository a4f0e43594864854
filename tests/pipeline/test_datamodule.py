import hashlib
import shutil
from itertools import pairwise

import pytest
import torch

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.config import DataConfig
from mmm4rec.errors import ConfigError, DataError
from pipeline.datamodule import SequenceDataModule, join_domains
from pipeline.prepared import PreparedDomain, load_domain
from pipeline.schema import read_manifest
from pipeline.sequences import FlatSequences

DOMAIN = "MiniOffice"
MODALITIES = ("text", "image")


def _features(values, key="text-1", width=2):
    """Features of items from 1; None: the item has none."""
    rows = [[0.0] * width, *(value or [0.0] * width for value in values)]
    present = [False, *(value is not None for value in values)]
    blank = torch.full((width,), 9.0)
    return ModalityFeatures(torch.tensor(rows).half(), torch.tensor(present), blank, key)


def _absent(num_items):
    return ModalityFeatures(torch.zeros(num_items + 1, 0), torch.zeros(num_items + 1).bool())


def _domain(name, items, lengths, has_time=True, **features):
    sequences = FlatSequences(
        torch.tensor(items),
        torch.arange(len(items)) + 100,
        torch.tensor([0, *lengths]).cumsum(0),
    )
    return PreparedDomain(name, None, sequences, ItemCatalogue(features, name, has_time))


ONE = _domain("One", [1, 2, 1, 2], [1, 3], text=_features([[1, 2], None]), image=_absent(2))
OTHER = _domain(
    "Other",
    [3, 1, 2, 2, 3],
    [2, 3],
    text=_features([None, [3, 4], [5, 6]]),
    image=_features([[7], None, [8]], "image-1", 1),
)


def test_joined_domains_have_disjoint_ids():
    sequences, catalogue = join_domains([ONE, OTHER])
    assert sequences.items_N.tolist() == [1, 2, 1, 2, 5, 3, 4, 4, 5]
    assert sequences.offsets_U.tolist() == [0, 1, 4, 6, 9]
    assert sequences.timestamps_N.tolist() == [100, 101, 102, 103, 100, 101, 102, 103, 104]
    assert catalogue.num_items == 5
    assert catalogue.has_time
    assert catalogue.fingerprint == hashlib.sha256(b"One+Other").hexdigest()[:16]


def test_joined_features_stand_at_the_joined_ids():
    _, catalogue = join_domains([ONE, OTHER])
    text, image = catalogue.features["text"], catalogue.features["image"]
    assert text.values_IF.tolist() == [[0, 0], [1, 2], [0, 0], [0, 0], [3, 4], [5, 6]]
    assert text.present_I.tolist() == [False, True, False, False, True, True]
    assert (text.encoder_key, text.blank_F.tolist()) == ("text-1", [9, 9])
    assert image.values_IF.tolist() == [[0], [0], [0], [7], [0], [8]]
    assert image.present_I.tolist() == [False, False, False, True, False, True]
    assert (image.encoder_key, image.blank_F.tolist()) == ("image-1", [9])


def test_the_order_of_joining_does_not_matter_for_the_values():
    _, catalogue = join_domains([OTHER, ONE])
    assert catalogue.features["image"].values_IF.tolist() == [[0], [7], [0], [8], [0], [0]]
    assert catalogue.features["text"].values_IF[1:].tolist() == [
        [0, 0],
        [3, 4],
        [5, 6],
        [1, 2],
        [0, 0],
    ]


def test_a_modality_that_no_domain_has():
    one, two = (_domain(n, [1], [1], text=_features([[1, 2]]), image=_absent(1)) for n in "AB")
    image = join_domains([one, two])[1].features["image"]
    assert (image.values_IF.shape, image.encoder_key, image.blank_F) == ((3, 0), None, None)
    assert not image.present_I.any()


def test_one_domain_is_not_changed():
    assert join_domains([ONE]) == (ONE.sequences, ONE.catalogue)


def test_features_of_two_encoders_are_not_joined():
    third = _domain("Third", [1], [1], text=_features([[1, 2]], "text-2"), image=_absent(1))
    message = (
        "text features of Other come from text-1, those of Third from text-2. "
        "Next: mmm4rec prepare both with the same --text-encoder"
    )
    with pytest.raises(DataError, match=message):
        join_domains([ONE, OTHER, third])


@pytest.mark.parametrize("timeless_first", [True, False])
def test_times_on_one_side_only(timeless_first):
    timeless = _domain("Timeless", [1], [1], False, text=_features([[1, 2]]), image=_absent(1))
    parts = [timeless, ONE] if timeless_first else [ONE, timeless]
    message = "One has timestamps and Timeless has none: .* Next: leave one out"
    with pytest.raises(DataError, match=message):
        join_domains(parts)


@pytest.fixture
def build(data_dir):
    def run(domains=(DOMAIN,), stage="finetune", seed=0, folder=data_dir, **settings):
        config = DataConfig(data_dir=folder, **settings)
        return SequenceDataModule(config, list(domains), stage=stage, max_len=20, seed=seed)

    return run


def _targets(loader):
    """Map each (user, length of the history) to the target."""
    return {
        (int(user), int(length)): int(target)
        for batch in loader
        for user, length, target in zip(
            batch.users_B, batch.lengths_B, batch.targets_B, strict=True
        )
    }


def _sequences(data):
    offsets = data.sequences.offsets_U.tolist()
    items = data.sequences.items_N.tolist()
    return [items[first:end] for first, end in pairwise(offsets)]


def test_leave_one_out(build):
    data = build(batch_size=32, eval_batch_size=50)
    users = list(enumerate(_sequences(data)))
    expected_train = {(u, t): s[t] for u, s in users for t in range(1, len(s) - 2)}
    assert _targets(data.train_dataloader()) == expected_train
    assert _targets(data.val_dataloader()) == {(u, len(s) - 2): s[-2] for u, s in users}
    assert _targets(data.test_dataloader()) == {(u, len(s) - 1): s[-1] for u, s in users}
    assert [len(batch) for batch in data.test_dataloader()] == [50, 10]
    kept = [item for _, sequence in users for item in sequence[:-2]]
    assert data.train_items().tolist() == kept


def test_pretraining_holds_out_the_last_item_of_some_users(build):
    data = build(("MiniFood", "MiniHome"), "pretrain", validation_share=0.2, batch_size=32)
    users = list(enumerate(_sequences(data)))
    validation = _targets(data.val_dataloader())
    chosen = {user for user, _ in validation}
    assert len(chosen) == len(validation)
    assert 0.1 * 140 < len(chosen) < 0.3 * 140
    assert validation == {(u, len(s) - 1): s[-1] for u, s in users if u in chosen}
    assert _targets(data.train_dataloader()) == {
        (u, t): s[t] for u, s in users for t in range(1, len(s) - (u in chosen))
    }
    again = build(("MiniFood", "MiniHome"), "pretrain", validation_share=0.2)
    assert _targets(again.val_dataloader()) == validation
    other = build(("MiniFood", "MiniHome"), "pretrain", seed=1, validation_share=0.2)
    assert _targets(other.val_dataloader()) != validation


def test_pretraining_validates_on_one_user_at_least(build):
    data = build(stage="pretrain", validation_share=1e-9)
    assert list(_targets(data.val_dataloader())) == [(0, len(_sequences(data)[0]) - 1)]


def test_only_training_is_shuffled(build):
    def order(loader):
        return [int(user) for batch in loader for user in batch.users_B]

    data = build(batch_size=16)
    assert order(data.test_dataloader()) == list(range(60))
    first, second = data.train_dataloader(), data.train_dataloader()
    assert order(first) == order(second) != sorted(order(first))
    second.set_epoch(1)
    assert order(first) != order(second)
    assert order(build(seed=1, batch_size=16).train_dataloader()) != order(first)


def test_the_joined_domains_are_those_on_disk(build, data_dir):
    data = build(("MiniFood", "MiniHome"), "pretrain")
    data.setup("fit")
    parts = [load_domain(data_dir, name, MODALITIES, {}) for name in ("MiniFood", "MiniHome")]
    expected, catalogue = join_domains(parts)
    assert data.sequences.items_N.equal(expected.items_N)
    assert data.catalogue.num_items == catalogue.num_items == 90
    assert data.sequences.num_users == 140
    assert data.sequences is data.sequences  # read once


def test_the_lock_identifies_the_data(build, data_dir):
    domains = ("MiniFood", DOMAIN)
    locked = build(domains, "pretrain").lock()
    assert list(locked) == list(domains)
    for name, entry in locked.items():
        folder = data_dir / "prepared" / name
        final = read_manifest(folder).counts[-1]
        assert entry == {
            "manifest_sha256": hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest(),
            "users": final.users,
            "items": final.items,
            "interactions": final.interactions,
        }


def test_full_names_stand_for_short_ones(build):
    assert build(("Office_Products", "CDs")).domains == ["Office", "CDs"]


@pytest.mark.parametrize("domains", [[], ["Office", "Office"], ["Office", "Office_Products"]])
def test_each_domain_is_given_once(build, domains):
    with pytest.raises(DataError, match="give each domain once, at least one: found"):
        build(domains)


def test_a_name_that_no_folder_can_have(build):
    with pytest.raises(ConfigError, match=r"domain '\.\./Office': a name is"):
        build(("../Office",))


def test_a_domain_that_is_not_prepared(build):
    data = build((DOMAIN, "MiniArts"))
    for step in (data.prepare_data, data.setup, data.lock):
        with pytest.raises(DataError, match=r"MiniArts is not a prepared domain.*mmm4rec prepare"):
            step()


@pytest.mark.parametrize(("stage", "least"), [("finetune", 4), ("pretrain", 2)])
def test_nothing_to_train_on(build, stage, least):
    data = build(stage=stage)
    length = least - 1
    sequences = FlatSequences(
        torch.ones(2 * length, dtype=torch.int64),
        torch.zeros(2 * length, dtype=torch.int64),
        torch.tensor([0, length, 2 * length]),
    )
    data._loaded = (sequences, data.catalogue)
    with pytest.raises(DataError, match=f"{DOMAIN}: no training sample; .* at least {least}"):
        data.train_dataloader()


def test_a_data_folder_may_move(build, data_dir, tmp_path):
    shutil.copytree(data_dir / "prepared", tmp_path / "prepared")
    assert build(folder=tmp_path).lock() == build().lock()


def test_only_the_last_items_of_every_history_are_read(build):
    whole, cut = build(batch_size=50), build(batch_size=50, last_items=3)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        batches = zip(getattr(whole, name)(), getattr(cut, name)(), strict=True)
        for one, other in batches:
            assert other.items_BL.shape == one.items_BL.shape  # max_len is the model's
            assert other.lengths_B.equal(one.lengths_B.clamp(max=3))
            assert other.targets_B.equal(one.targets_B)
            rows = zip(one.items_BL, one.lengths_B, other.items_BL, other.lengths_B, strict=True)
            for items_L, length, kept_L, kept in rows:
                assert kept_L[:kept].equal(items_L[:length][-3:])
                assert not kept_L[kept:].any()


def test_hidden_images_are_hidden_in_each_of_the_joined_domains(build):
    domains = ("MiniFood", "MiniHome")
    before = build(domains, "pretrain").catalogue.features["image"].present_I
    data = build(domains, "pretrain", hidden_modalities={"image": 0.5})
    after = data.catalogue.features["image"].present_I
    for part in (slice(1, 46), slice(46, 91)):
        assert int(after[part].sum()) == round(int(before[part].sum()) * 0.5)
    assert data.lock() == build(domains, "pretrain").lock()


def test_cold_items_are_met_as_test_targets_only(build):
    whole, cold = build(), build(cold_share=0.3)
    tested = _targets(whole.test_dataloader())
    met = set(cold.train_items().tolist()) | set(_targets(cold.val_dataloader()).values())
    for batch in [*cold.train_dataloader(), *cold.test_dataloader()]:
        met |= set(batch.items_BL.flatten().tolist())
    assert len(set(range(1, 41)) - met) == 12
    users = {user: target for (user, _), target in tested.items()}
    left = {user: target for (user, _), target in _targets(cold.test_dataloader()).items()}
    assert left.items() <= users.items()
    assert sum(target not in met for target in left.values()) > 5
    pretrained = build(stage="pretrain", cold_share=0.3)
    assert len(set(pretrained.sequences.items_N.tolist())) == 28
