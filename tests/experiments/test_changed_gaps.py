import pytest
import torch
from torch import nn

from experiments.changed_gaps import CHANGES, ChangedGaps, Sensitivity
from pipeline.sequences import FlatSequences, held_out_targets

MAX_LEN = 5
CUT = [name for name in CHANGES if name != "none"]


class _LastGap(nn.Module):
    """A user's vector is the last gap of the history, and 1."""

    def forward(self, batch):
        last_B1 = batch.lengths_B[:, None] - 1
        one_B1, other_B1 = (
            batch.timestamps_BL.gather(1, at.clamp(min=0)) for at in (last_B1, last_B1 - 1)
        )
        gap_B1 = (one_B1 - other_B1).double()
        return torch.cat([gap_B1, torch.ones_like(gap_B1)], dim=1)

    def item_matrix(self):
        return torch.eye(2)


@pytest.fixture
def sequences():
    """Users with 2 to 8 interactions and gaps that are all different."""
    lengths_U = torch.tensor([8, 2, 3, 5, 6, 7])
    offsets_U = torch.cat([torch.zeros(1, dtype=torch.int64), lengths_U.cumsum(0)])
    total = int(offsets_U[-1])
    times_N = 10**9 + (torch.arange(total) ** 2 * 1_000 + 7).cumsum(0)
    return FlatSequences(torch.arange(total) % 9 + 1, times_N, offsets_U)


def _batch(sequences, query_time="now", target_time="hidden", users=slice(None)):
    targets_at = held_out_targets(sequences.offsets_U, 1)[users]
    return sequences.gather(targets_at, MAX_LEN, target_time, query_time)


def _gaps(batch):
    """Gaps within each history, and to the query."""
    rows = zip(batch.timestamps_BL, batch.lengths_B.tolist(), strict=True)
    within = [times[:length].diff().tolist() for times, length in rows]
    last_B = batch.timestamps_BL.gather(1, batch.lengths_B[:, None] - 1)[:, 0]
    return within, (batch.query_time_B - last_B).tolist()


def _change(sequences, change, batch=None, seed=0):
    changed = ChangedGaps(_LastGap(), sequences, change, seed=seed)
    return changed.changed(_batch(sequences) if batch is None else batch)


@pytest.mark.parametrize("change", CHANGES)
def test_only_times_change_and_never_that_of_the_last_interaction(sequences, change):
    batch = _batch(sequences)
    changed = _change(sequences, change)
    for name in ("items_BL", "lengths_B", "targets_B", "users_B"):
        assert getattr(changed, name) is getattr(batch, name) or torch.equal(
            getattr(changed, name), getattr(batch, name)
        )
    last_B1 = batch.lengths_B[:, None] - 1
    assert changed.timestamps_BL.gather(1, last_B1).equal(batch.timestamps_BL.gather(1, last_B1))
    padding_BL = torch.arange(MAX_LEN) >= batch.lengths_B[:, None]
    assert (changed.timestamps_BL[padding_BL] == 0).all()
    within, query = _gaps(changed)
    assert min(gap for gaps in [*within, query] for gap in gaps) >= 0


def test_true_gaps_are_the_batch_itself(sequences):
    batch = _batch(sequences)
    assert _change(sequences, "none", batch) is batch


@pytest.mark.parametrize(
    ("change", "factor"), [("removed", 0), ("shortened", 0.1), ("lengthened", 10)]
)
def test_gaps_are_scaled_the_one_to_the_query_too(sequences, change, factor):
    within, query = _gaps(_batch(sequences))
    scaled_within, scaled_query = _gaps(_change(sequences, change))
    assert scaled_within == [[round(gap * factor) for gap in gaps] for gaps in within]
    assert scaled_query == [round(gap * factor) for gap in query]


def test_shuffling_keeps_each_history_its_gaps_and_the_one_to_the_query(sequences):
    within, query = _gaps(_batch(sequences))
    shuffled, shuffled_query = _gaps(_change(sequences, "shuffled"))
    assert [sorted(gaps) for gaps in shuffled] == [sorted(gaps) for gaps in within]
    assert shuffled != within
    assert shuffled_query == query
    orders = {tuple(_gaps(_change(sequences, "shuffled", seed=seed))[0][0]) for seed in range(60)}
    assert len(orders) == 24  # all of the first history's four gaps


def test_drawn_gaps_are_those_of_all_users_in_another_order(sequences):
    changed = ChangedGaps(_LastGap(), sequences, "others", seed=0)
    first = sequences.offsets_U[:-1]
    has_gap = torch.ones(len(sequences.items_N), dtype=torch.bool)
    has_gap[first] = False
    gaps_N = torch.cat([torch.zeros(1, dtype=torch.int64), sequences.timestamps_N.diff()])
    assert changed.drawn_N[has_gap].sort().values.equal(gaps_N[has_gap].sort().values)
    assert (changed.drawn_N[first] == 0).all()
    within, query = _gaps(_change(sequences, "others"))
    known = set(gaps_N[has_gap].tolist())
    assert all(set(gaps) <= known for gaps in [*within, query])
    assert within != _gaps(_batch(sequences))[0]


def test_only_the_gap_to_the_query_is_drawn(sequences):
    within, query = _gaps(_batch(sequences))
    changed_within, changed_query = _gaps(_change(sequences, "query"))
    assert changed_within == within
    assert changed_query != query
    assert changed_query == _gaps(_change(sequences, "others"))[1]


@pytest.mark.parametrize("change", CUT)
def test_what_a_user_gets_depends_on_the_seed_and_not_on_the_batch(sequences, change):
    whole = _change(sequences, change, seed=3)
    users = torch.tensor([4, 0, 2])
    part = _change(sequences, change, _batch(sequences, users=users), seed=3)
    assert part.timestamps_BL.equal(whole.timestamps_BL[users])
    assert part.query_time_B.equal(whole.query_time_B[users])
    if change in ("shuffled", "others"):
        other = _change(sequences, change, seed=4)
        assert not other.timestamps_BL.equal(whole.timestamps_BL)


def test_without_a_query_time_there_is_none_after_a_change(sequences):
    assert _change(sequences, "others", _batch(sequences, "none")).query_time_B is None


@pytest.mark.parametrize("change", CUT)
def test_a_leaked_time_of_the_target_moves_like_the_query(sequences, change):
    changed = _change(sequences, change, _batch(sequences, "now", "leaked"))
    short_B = changed.lengths_B < MAX_LEN
    leaked_B = changed.timestamps_BL[short_B].gather(1, changed.lengths_B[short_B, None])[:, 0]
    assert short_B.sum() == 3
    assert leaked_B.equal(changed.query_time_B[short_B])


def test_sensitivity_by_hand(sequences):
    model = ChangedGaps(_LastGap(), sequences, "removed", seed=0)
    batch = _batch(sequences, "none")
    true_BD = _LastGap()(batch)
    user_BD = model(batch)
    assert user_BD.tolist() == [[0, 1]] * 6
    gap_B = true_BD[:, 0]
    length_B = (gap_B**2 + 1).sqrt()
    found = model.sensitivity.means()
    # The second user's history is a single item: nothing moves.
    assert found["moved_times_share"] == found["moved_vectors_share"] == pytest.approx(5 / 6)
    assert found["relative_change"] == pytest.approx(float((gap_B / length_B).mean()))
    assert found["cosine_distance"] == pytest.approx(float((1 - 1 / length_B).mean()))
    # A second batch is added to the first.
    model(batch)
    assert model.sensitivity.users == 12
    assert model.sensitivity.means() == pytest.approx(found)


def test_the_smallest_difference_moves_a_vector():
    batch = FlatSequences(torch.tensor([1, 2]), torch.tensor([0, 5]), torch.tensor([0, 2])).gather(
        torch.tensor([1]), 2
    )
    same, next_one = Sensitivity(), Sensitivity()
    one = torch.ones(1, 3)
    same.add(batch, batch, one, one.clone())
    next_one.add(batch, batch, one, torch.nextafter(one, 2 * one))
    assert (same.moved_vectors, next_one.moved_vectors) == (0, 1)
    assert same.means()["cosine_distance"] == same.means()["relative_change"] == 0
