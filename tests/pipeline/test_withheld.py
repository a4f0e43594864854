import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmm4rec.batch import ItemCatalogue, ModalityFeatures
from mmm4rec.config import DataConfig
from pipeline.sequences import FlatSequences
from pipeline.withheld import choose_cold, choose_items, drop_items, hide_modalities

PRESENT = torch.arange(41) % 4 > 0  # 30 of 40 items


@given(st.integers(0, 5), st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted))
def test_a_larger_share_takes_what_a_smaller_one_takes_and_the_numbers_are_exact(seed, shares):
    small, large = (choose_items(PRESENT, share, seed) for share in shares)
    assert [int(small.sum()), int(large.sum())] == [round(30 * share) for share in shares]
    assert not (small & ~large).any()
    assert not (large & ~PRESENT).any()


def test_the_choice_is_that_of_the_seed():
    chosen = choose_items(PRESENT, 0.5, 3, "image")
    assert choose_items(PRESENT, 0.5, 3, "image").equal(chosen)
    assert not choose_items(PRESENT, 0.5, 4, "image").equal(chosen)
    assert not choose_items(PRESENT, 0.5, 3, "text").equal(chosen)
    # Pinned: no version of a library may move it.
    first = choose_items(torch.arange(11) > 0, 0.3, 0).nonzero().flatten().tolist()
    assert first == [4, 6, 9]


def _catalogue():
    def features(present_I):
        values_IF = torch.arange(82.0).view(41, 2) * present_I[:, None]
        return ModalityFeatures(values_IF.half(), present_I, torch.tensor([7.0, 7.0]), "key")

    is_item = torch.arange(41) > 0
    return ItemCatalogue({"text": features(is_item), "image": features(PRESENT)}, "f")


def test_a_hidden_item_has_no_flag_and_no_values_and_nothing_else_changes():
    before = _catalogue()
    after = hide_modalities(before, DataConfig(hidden_modalities={"image": 0.2}))
    assert after.features["text"] is before.features["text"]
    image, old = after.features["image"], before.features["image"]
    lost = old.present_I & ~image.present_I
    assert int(lost.sum()) == 6
    assert not (image.present_I & ~old.present_I).any()
    assert image.values_IF[lost].abs().sum() == 0
    assert image.values_IF[~lost].equal(old.values_IF[~lost])
    assert (image.encoder_key, image.blank_F.tolist()) == ("key", [7, 7])
    assert (after.fingerprint, after.has_time) == ("f", True)
    assert old.present_I.sum() == 30  # the original is as it was


@pytest.mark.parametrize(("share", "left"), [(0, 30), (1, 0)])
def test_none_and_all(share, left):
    image = hide_modalities(_catalogue(), DataConfig(hidden_modalities={"image": share}))
    assert image.features["image"].present_I.sum() == left


def test_cold_items_are_a_share_of_all_items():
    cold = choose_cold(_catalogue(), DataConfig(cold_share=0.25))
    assert (int(cold.sum()), bool(cold[0])) == (10, False)


SEQUENCES = FlatSequences(
    torch.tensor([1, 2, 3, 2, 2, 5, 1]),
    torch.tensor([10, 20, 30, 40, 50, 60, 70]),
    torch.tensor([0, 4, 4, 5, 7]),
)
COLD = torch.tensor([False, False, True, False, False, True])  # items 2 and 5


def test_cold_items_stay_where_they_are_somebodys_last():
    left = drop_items(SEQUENCES, COLD, keep_last=True)
    assert left.items_N.tolist() == [1, 3, 2, 2, 1]
    assert left.timestamps_N.tolist() == [10, 30, 40, 50, 70]
    assert left.offsets_U.tolist() == [0, 3, 3, 4, 5]


def test_or_nowhere():
    left = drop_items(SEQUENCES, COLD, keep_last=False)
    assert left.items_N.tolist() == [1, 3, 1]
    assert left.offsets_U.tolist() == [0, 2, 2, 2, 3]
