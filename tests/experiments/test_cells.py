import pyarrow.parquet as pq
import pytest
import torch

from experiments.cells import Way, failures, metric_rows, mmm4rec, quoted_rows, specs_of
from experiments.expected import Published
from experiments.runs import Outcome, Spec
from experiments.statistics import compare, holm
from mmm4rec.metrics import TargetRank, per_user_metrics

USERS = 60
METRICS = ("recall@10", "ndcg@10")


@pytest.fixture
def results(finished):
    """Three ways of two seeds each: a good one, one like it, a bad one; and one that failed."""
    generator = torch.Generator().manual_seed(0)

    def draw(worst):
        return torch.randint(0, worst, (USERS,), generator=generator).tolist()

    ways, outcomes = [], {}
    for name, worst in (("bad", 200), ("good", 30), ("like it", 32)):
        specs = tuple(Spec(name, "finetune", (name,), seed=seed) for seed in (0, 1))
        for spec in specs:
            outcomes[spec] = Outcome(finished(f"{name}-{spec.seed}", draw(worst)))
        ways.append(Way(name, specs))
    failed = Spec("failed", "finetune", ("failed",))
    outcomes[failed] = Outcome(failure="it diverged")
    return [*ways, Way("failed", (failed, failed))], outcomes


def ndcg(run):
    better = torch.tensor(pq.read_table(run.folder / "ranks.parquet")["better"].to_pylist())
    return per_user_metrics(TargetRank(better, torch.zeros_like(better)), (10,))["ndcg@10"]


def nothing(way, metric):
    return None


def test_a_cell_is_the_mean_over_users_and_seeds(results):
    ways, outcomes = results
    rows = metric_rows(ways, outcomes, METRICS, reference="good", published=nothing)
    assert [row.name for row in rows] == ["bad", "good", "like it", "failed"]
    assert [row.is_reference for row in rows] == [False, True, False, False]
    for way, row in zip(ways[:3], rows[:3], strict=True):
        seeds = [ndcg(outcomes[spec].run) for spec in way.specs]
        cell = row.cells[1]
        assert cell.estimate.value == pytest.approx(torch.cat(seeds).mean().item(), abs=1e-12)
        assert cell.estimate.low < cell.estimate.value < cell.estimate.high
        assert cell.estimate.seeds == 2
        assert cell.text.startswith(f"{cell.estimate.value:.4f} [{cell.estimate.low:.4f}, ")


def test_rows_are_compared_with_the_reference_and_corrected_over_the_column(results):
    ways, outcomes = results
    rows = metric_rows(ways, outcomes, METRICS, reference="good", published=nothing)
    bad, good, like_it, failed = (row.cells[1] for row in rows)
    assert good.comparison is good.adjusted_p is failed.comparison is None
    seeds = {way.name: [ndcg(outcomes[spec].run) for spec in way.specs] for way in ways[:3]}
    alone = [compare(seeds["good"], seeds[name]) for name in ("bad", "like it")]
    assert [bad.comparison, like_it.comparison] == alone
    expected = holm([comparison.p for comparison in alone])
    assert [bad.adjusted_p, like_it.adjusted_p] == expected
    assert bad.adjusted_p == pytest.approx(2 * bad.comparison.p)  # the smaller of two
    assert bad.adjusted_p < 0.05 < like_it.adjusted_p
    assert bad.comparison.difference < 0


def test_a_failed_run_leaves_its_cell_empty_and_a_note(results):
    ways, outcomes = results
    rows = metric_rows(ways, outcomes, METRICS, reference="good", published=nothing)
    assert [cell.text for cell in rows[3].cells] == ["-", "-"]
    assert failures(ways, outcomes) == ["Failed: failed: failed, seed 0: it diverged"]


def test_without_the_reference_nothing_is_compared(results):
    ways, outcomes = results
    rows = metric_rows(ways, outcomes, METRICS, reference="failed", published=nothing)
    assert all(cell.comparison is None for row in rows for cell in row.cells)


def test_a_seed_that_failed_is_left_out_of_both_sides(results):
    ways, outcomes = results
    lost = dict(outcomes)
    lost[ways[0].specs[0]] = Outcome(failure="it diverged")
    rows = metric_rows(ways, lost, METRICS, reference="good", published=nothing)
    cell = rows[0].cells[1]
    bad, good = (ndcg(outcomes[way.specs[1]].run) for way in ways[:2])
    assert cell.estimate.value == pytest.approx(bad.mean().item())
    assert cell.estimate.seeds == 1
    assert cell.comparison == compare([good], [bad])


def test_what_has_no_seeds_is_one_run_and_is_compared_with_every_seed(results, finished):
    ways, outcomes = results
    popular = Spec("popularity", "evaluate", ("x",), untrained="popularity")
    outcomes[popular] = Outcome(finished("popular", list(range(USERS))))
    way = Way("popularity", (popular, popular))
    rows = metric_rows([ways[1], way], outcomes, METRICS, reference="good", published=nothing)
    cell = rows[1].cells[1]
    own = ndcg(outcomes[popular].run)
    good = [ndcg(outcomes[spec].run) for spec in ways[1].specs]
    assert cell.estimate.seeds == 1
    assert cell.comparison == compare(good, [own, own])


def test_a_cell_stands_beside_what_was_published(results):
    ways, outcomes = results

    def published(way, metric):
        return (
            Published(0.9, 0.01, "a table", "v3") if (way, metric) == ("bad", "ndcg@10") else None
        )

    rows = metric_rows(ways, outcomes, METRICS, reference="good", published=published)
    assert rows[0].cells[1].published.value == 0.9
    assert rows[0].cells[1].verdict == "not reproduced"
    assert rows[0].cells[0].verdict == rows[1].cells[1].verdict == ""


def test_published_rows_are_quoted_where_they_are_not_measured(monkeypatch):
    published = {
        "A": {"ndcg@10": Published(0.072, 0.002, "a table", "v3")},
        "measured": {"ndcg@10": Published(0.07, 0.002, "a table", "v3")},
        "above the best other, %": {"ndcg@10": Published(31.78, None, "a table", "v4")},
        "of other columns": {"epochs": Published(13, None, "a table", "v3")},
    }
    known = {("main", "Office"): published}
    monkeypatch.setattr(
        "experiments.cells.published_rows", lambda table, domain: known.get((table, domain), {})
    )
    (row,) = quoted_rows("main", "Office", METRICS, besides=["measured"])
    assert (row.name, row.source) == ("A", "published")
    assert [cell.text for cell in row.cells] == ["-", "0.0720"]
    assert row.cells[1].published is published["A"]["ndcg@10"]
    assert quoted_rows("main", "MiniOffice", METRICS) == []


def test_seeds_of_the_model_start_from_pre_trainings_of_the_same_seed(workspace):
    way = mmm4rec(
        "x",
        workspace,
        "MiniOffice",
        2,
        item_bias=True,
        pretrained=True,
        presets=("attention",),
    )
    assert specs_of([way]) == list(way.specs)
    assert [(spec.seed, spec.source.seed) for spec in way.specs] == [(0, 0), (1, 1)]
    assert {spec.presets + spec.source.presets for spec in way.specs} == {("attention",) * 2}
    scratch = mmm4rec("x", workspace, "MiniOffice", 1, item_bias=False, pretrained=False)
    assert scratch.specs[0].source is None
    assert scratch.specs[0].settings == ("model.use_item_bias=false",)
