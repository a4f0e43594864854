import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import R, calc_aggregate, nDCG
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_recall

from mmm4rec import batch as sizes
from mmm4rec.errors import DivergenceError
from mmm4rec.metrics import (
    RankingMetrics,
    TargetRank,
    bootstrap_intervals,
    catalogue_rank,
    ndcg,
    recall,
    target_rank,
)


def _oracle(scores: list[float], target: int, cutoff: int) -> tuple[float, float]:
    """Average recall and NDCG over every ordering that agrees with the scores."""
    hits, gains = [], []
    for order in itertools.permutations(range(len(scores))):
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
            continue
        place = order.index(target)
        hits.append(float(place < cutoff))
        gains.append(1 / np.log2(place + 2) if place < cutoff else 0.0)
    return float(np.mean(hits)), float(np.mean(gains))


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=6),
    st.integers(0, 5),
    st.integers(1, 7),
)
def test_metrics_equal_the_mean_over_all_orderings(values, target, cutoff):
    target %= len(values)
    scores_BI = torch.tensor([[100.0, *map(float, values)]])  # the padding item has the top score
    rank = target_rank(scores_BI, torch.tensor([target + 1]))
    expected_recall, expected_ndcg = _oracle([float(v) for v in values], target, cutoff)
    assert recall(rank, cutoff).item() == pytest.approx(expected_recall, abs=1e-12)
    assert ndcg(rank, cutoff).item() == pytest.approx(expected_ndcg, abs=1e-12)


def test_padding_takes_part_only_when_asked():
    scores_BI = torch.tensor([[9.0, 1.0, 5.0]])
    target_B = torch.tensor([2])
    assert target_rank(scores_BI, target_B).better_B.tolist() == [0]
    assert target_rank(scores_BI, target_B, padding_candidate=True).better_B.tolist() == [1]


def test_ndcg_agrees_with_torchmetrics_on_random_and_tied_scores():
    generator = torch.Generator().manual_seed(0)
    random_BI = torch.rand(8, 41, generator=generator)
    tied_BI = torch.randint(0, 6, (8, 41), generator=generator).float()
    targets_B = torch.randint(1, 41, (8,), generator=generator)
    for scores_BI in (random_BI, tied_BI):
        ours_B = ndcg(target_rank(scores_BI, targets_B), 40)
        for row in range(8):
            relevance_I = torch.zeros(40, dtype=torch.long)
            relevance_I[targets_B[row] - 1] = 1
            theirs = retrieval_normalized_dcg(scores_BI[row, 1:], relevance_I)
            assert ours_B[row].item() == pytest.approx(theirs.item(), rel=1e-5)


def _by_trec_eval(scores_I, target, cutoff):
    """Return recall and NDCG by trec_eval, the mean over every place of the target among its ties.

    It breaks ties by name: each run names the tied items so that another number precedes.
    """
    tied = [item for item, score in enumerate(scores_I) if score == scores_I[target]]
    others = [item for item in tied if item != target]
    runs = []
    for place in range(len(tied)):
        order = [*others[:place], target, *others[place:]]
        names = {item: f"tied{order.index(item):03}" for item in order}
        scored = {names.get(i, f"item{i:03}"): float(s) for i, s in enumerate(scores_I)}
        qrels = {"user": {names[target]: 1}}
        runs.append(calc_aggregate([R @ cutoff, nDCG @ cutoff], qrels, {"user": scored}))
    return [sum(run[m] for run in runs) / len(runs) for m in (R @ cutoff, nDCG @ cutoff)]


@pytest.mark.parametrize("num_values", [1000, 6, 1], ids=["random", "tied", "all equal"])
def test_recall_and_ndcg_agree_with_trec_eval(num_values):
    generator = torch.Generator().manual_seed(2)
    scores_BI = torch.randint(0, num_values, (12, 31), generator=generator).float()
    targets_B = torch.randint(1, 31, (12,), generator=generator)
    rank = target_rank(scores_BI, targets_B)
    for cutoff in (1, 5, 10, 20):
        for row, target in enumerate(targets_B.tolist()):
            theirs = _by_trec_eval(scores_BI[row, 1:].tolist(), target - 1, cutoff)
            ours = recall(rank, cutoff)[row].item(), ndcg(rank, cutoff)[row].item()
            assert ours == pytest.approx(theirs, abs=1e-9)


def test_recall_agrees_with_torchmetrics():
    scores_BI = torch.rand(8, 41, generator=torch.Generator().manual_seed(3))
    targets_B = torch.arange(1, 9)
    for cutoff in (1, 10, 40):
        ours_B = recall(target_rank(scores_BI, targets_B), cutoff)
        for row in range(8):
            is_target_I = torch.arange(1, 41) == targets_B[row]
            theirs = retrieval_recall(scores_BI[row, 1:], is_target_I, top_k=cutoff)
            assert ours_B[row].item() == theirs.item()


@pytest.mark.parametrize("padding_candidate", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 50])
def test_rank_in_pieces_is_the_rank_of_all_scores(monkeypatch, rows, padding_candidate):
    monkeypatch.setattr(sizes, "LEAST_ROWS_AT_ONCE", rows)
    monkeypatch.setattr(sizes, "SCORES_AT_ONCE", {"cpu": 1})
    generator = torch.Generator().manual_seed(0)
    user_BD, items_ID = (
        torch.randint(-2, 3, (count, 2), generator=generator).float() for count in (11, 40)
    )
    targets_B = torch.randint(1, 40, (11,), generator=generator)
    options = {"padding_candidate": padding_candidate}
    expected = target_rank(user_BD @ items_ID.T, targets_B, **options)
    found = catalogue_rank(user_BD, items_ID, targets_B, **options)
    assert expected.tied_B.any()
    assert torch.equal(found.better_B, expected.better_B)
    assert torch.equal(found.tied_B, expected.tied_B)


def test_a_score_that_is_not_finite_is_an_error_in_pieces():
    with pytest.raises(DivergenceError, match="1 of 2 users have a score that is not finite"):
        catalogue_rank(
            torch.tensor([[1.0], [float("inf")]]), torch.ones(3, 1), torch.tensor([1, 1])
        )


def test_a_score_that_is_not_finite_is_an_error():
    scores_BI = torch.zeros(3, 4)
    scores_BI[1, 2] = float("nan")
    with pytest.raises(DivergenceError, match="1 of 3 users have a score that is not finite"):
        target_rank(scores_BI, torch.tensor([1, 1, 1]))


def test_result_does_not_depend_on_batches_or_order_and_counts_a_user_once():
    generator = torch.Generator().manual_seed(1)
    users = torch.arange(1000)
    rank = TargetRank(
        torch.randint(0, 60, (1000,), generator=generator),
        torch.randint(0, 3, (1000,), generator=generator),
    )
    whole, split = RankingMetrics(), RankingMetrics()
    whole.update(users, rank)
    for rows in torch.randperm(1000, generator=generator).split(77):
        split.update(users[rows], TargetRank(rank.better_B[rows], rank.tied_B[rows]))
    split.update(users[:5], TargetRank(rank.better_B[:5], rank.tied_B[:5]))
    assert {k: v.item() for k, v in whole.compute().items()} == {
        k: v.item() for k, v in split.compute().items()
    }
    assert whole.compute()["recall@10"].item() == pytest.approx(recall(rank, 10).mean().item())


def _rank_on_a_process(process: int, count: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=process, world_size=count
    )
    metric = RankingMetrics()
    generator = torch.Generator().manual_seed(2)
    users = torch.arange(101)
    better = torch.randint(0, 60, (101,), generator=generator)
    mine = slice(process, None, count)
    metric.update(users[mine], TargetRank(better[mine], torch.zeros_like(better[mine])))
    values = {name: value.item() for name, value in metric.compute().items()}
    torch.save([values, metric.ranks()[0].tolist()], f"{folder}/{count}-{process}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_result_of_one_to_the_last_digit(tmp_path):
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        torch.multiprocessing.spawn(_rank_on_a_process, args=(count, str(folder)), nprocs=count)
    one = torch.load(tmp_path / "1" / "1-0.pt")
    for process in (0, 1):
        assert torch.load(tmp_path / "2" / f"2-{process}.pt")[0] == one[0]


def test_bootstrap_interval_agrees_with_the_normal_approximation():
    hits = (torch.arange(4000) % 10 == 0).double()
    intervals = bootstrap_intervals({"recall@10": hits, "twice": 2 * hits}, samples=800)
    low, high = intervals["recall@10"]
    half_width = 1.96 * (0.1 * 0.9 / 4000) ** 0.5
    assert low == pytest.approx(0.1 - half_width, abs=0.0015)
    assert high == pytest.approx(0.1 + half_width, abs=0.0015)
    assert intervals["twice"] == pytest.approx((2 * low, 2 * high))
