import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities.types import _Stateful

from mmm4rec.errors import DataError
from pipeline.sequences import BatchLoader, FlatSequences, held_out_targets, training_targets


def _sequences(lengths: list[int]) -> FlatSequences:
    total = sum(lengths)
    offsets_U = torch.tensor([0, *lengths]).cumsum(0)
    return FlatSequences(torch.arange(1, total + 1), 1000 + torch.arange(total), offsets_U)


def test_a_batch_holds_the_most_recent_items_before_the_target():
    batch = _sequences([5, 3]).gather(torch.tensor([4, 6, 2]), max_len=3)
    assert batch.items_BL.tolist() == [[2, 3, 4], [6, 0, 0], [1, 2, 0]]
    assert batch.timestamps_BL.tolist() == [[1001, 1002, 1003], [1005, 0, 0], [1000, 1001, 0]]
    assert batch.lengths_B.tolist() == [3, 1, 2]
    assert batch.targets_B.tolist() == [5, 7, 3]
    assert batch.users_B.tolist() == [0, 1, 0]


def test_leaked_target_time_stands_behind_the_last_item_where_there_is_room():
    batch = _sequences([5, 3]).gather(torch.tensor([4, 7]), max_len=3, target_time="leaked")
    assert batch.timestamps_BL.tolist() == [[1001, 1002, 1003], [1005, 1006, 1007]]
    assert batch.items_BL.tolist() == [[2, 3, 4], [6, 7, 0]]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(2, 25), st.data())
def test_gather_equals_a_python_loop_and_never_sees_the_target(lengths, max_len, data):
    sequences = _sequences(lengths)
    targets_at = training_targets(sequences.offsets_U, torch.zeros(len(lengths), dtype=torch.long))
    if len(targets_at) == 0:
        return
    at = targets_at[data.draw(st.integers(0, len(targets_at) - 1))]
    batch = sequences.gather(at[None], max_len)
    user = max(u for u in range(len(lengths)) if sequences.offsets_U[u] <= at)
    history = sequences.items_N[int(sequences.offsets_U[user]) : int(at)][-max_len:].tolist()
    assert batch.items_BL[0].tolist() == history + [0] * (max_len - len(history))
    changed = FlatSequences(
        sequences.items_N.index_fill(0, at[None], 999),
        sequences.timestamps_N.index_fill(0, at[None], 5),
        sequences.offsets_U,
    ).gather(at[None], max_len)
    assert changed.items_BL.equal(batch.items_BL)
    assert changed.timestamps_BL.equal(batch.timestamps_BL)


def test_leave_one_out_split_is_that_of_the_paper():
    offsets_U = _sequences([5, 3, 1, 2]).offsets_U
    held_out_U = torch.full((4,), 2)
    assert training_targets(offsets_U, held_out_U).tolist() == [1, 2]  # n - 3 rows a user
    assert held_out_targets(offsets_U, 2).tolist() == [3, 6]
    assert held_out_targets(offsets_U, 1).tolist() == [4, 7, 10]


def _epoch(loader: BatchLoader, epoch: int) -> list[int]:
    loader.set_epoch(epoch)
    batches = list(loader)
    assert len(batches) == len(loader)
    return [target for batch in batches for target in batch.targets_B.tolist()]


def test_the_order_is_a_function_of_seed_and_epoch():
    def loader(seed: int) -> BatchLoader:
        return BatchLoader(
            _sequences([40, 40]), torch.arange(1, 40), batch_size=16, max_len=5, shuffle_seed=seed
        )

    one = loader(7)
    first, second = _epoch(one, 0), _epoch(one, 1)
    assert sorted(first) == sorted(second) == list(range(2, 41))
    assert first != second
    assert _epoch(loader(7), 1) == second
    assert _epoch(loader(8), 1) != second


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_processes_share_the_targets(shuffle_seed):
    parts = [
        _epoch(
            BatchLoader(
                _sequences([40]),
                torch.arange(1, 40),
                batch_size=4,
                max_len=5,
                shuffle_seed=shuffle_seed,
                rank=rank,
                world_size=2,
            ),
            0,
        )
        for rank in range(2)
    ]
    together = sorted(parts[0] + parts[1])
    assert len(together) == len(set(together)) == (39 if shuffle_seed is None else 38)


def _loader(seed: int | None = 7, **options) -> BatchLoader:
    return BatchLoader(
        _sequences([40, 40]),
        torch.arange(1, 40),
        batch_size=16,
        max_len=5,
        shuffle_seed=seed,
        **options,
    )


@pytest.mark.parametrize("seed", [7, None])
@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_an_epoch_is_carried_on_behind_any_batch(seed, done):
    whole = _epoch(_loader(seed), 4)
    first = _loader(seed)
    first.set_epoch(4)
    batches = iter(first)
    begun = [target for _ in range(done) for target in next(batches).targets_B.tolist()]
    state = json.loads(json.dumps(first.state_dict()))
    assert state == {"seed": seed, "epoch": 4, "batch": done}
    second = _loader(seed)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert len(second) == 3
    rest = [target for batch in second for target in batch.targets_B.tolist()]
    assert begun + rest == whole
    assert second.state_dict() == {"seed": seed, "epoch": 4, "batch": 3}
    assert _epoch(second, 4) == whole  # once only
    assert _epoch(second, 5) == _epoch(_loader(seed), 5)


def test_a_position_of_another_epoch_is_not_used():
    loader = _loader()
    loader.load_state_dict({"seed": 7, "epoch": 2, "batch": 2})
    assert _epoch(loader, 3) == _epoch(_loader(), 3)


def test_processes_carry_on_their_own_shares():
    for rank in range(2):
        loader = _loader(rank=rank, world_size=2)
        whole = _epoch(loader, 1)
        loader.load_state_dict({"seed": 7, "epoch": 1, "batch": 1})
        assert [t for batch in loader for t in batch.targets_B.tolist()] == whole[16:]


def test_lightning_takes_a_loader_for_one_that_can_be_carried_on():
    assert isinstance(_loader(), _Stateful)


def test_a_position_in_another_order_is_refused():
    message = (
        "the position is one in the order of seed 8, the batches come in that of seed 7. "
        "Next: --set trainer.seed=8"
    )
    with pytest.raises(DataError, match=message):
        _loader().load_state_dict({"seed": 8, "epoch": 0, "batch": 1})


@given(st.integers(1, 9), st.sampled_from(["hidden", "leaked"]))
def test_the_last_items_are_a_history_whose_earlier_items_were_cut_off(last_items, target_time):
    whole, start = _sequences([9]), max(0, 8 - last_items)
    cut = FlatSequences(
        whole.items_N[start:], whole.timestamps_N[start:], torch.tensor([0, 9 - start])
    )
    read = whole.gather(torch.tensor([8]), 6, target_time, last_items=last_items)
    expected = cut.gather(torch.tensor([8 - start]), 6, target_time)
    for field in ("items_BL", "lengths_B", "timestamps_BL", "targets_B", "users_B"):
        assert getattr(read, field).equal(getattr(expected, field))
