"""The planted rule, by hand and as it shows in the purchases."""

import numpy as np
import pytest

from pipeline.synthetic.behaviour import (
    NUM_LOOKS,
    NUM_THEMES,
    Latents,
    Rule,
    context,
    draw_days,
    draw_rule,
    next_item_probabilities,
    rank_metrics,
)


def test_no_item_is_bought_twice_on_one_day():
    days = draw_days(np.random.default_rng(0), np.zeros(200, dtype=np.int64))
    assert (np.diff(days) > 0).all()
    mixed = draw_days(np.random.default_rng(0), np.arange(2000))
    assert (np.diff(mixed) >= 0).all()
    assert 0.17 < (np.diff(mixed) == 0).mean() < 0.23


def test_successors_are_one_cycle():
    rule = draw_rule(np.random.default_rng(0), 0.8)
    for successor, size in ((rule.look_successor, NUM_LOOKS), (rule.theme_successor, NUM_THEMES)):
        seen, at = [], 0
        for _ in range(size):
            seen.append(at)
            at = int(successor[at])
        assert at == 0
        assert sorted(seen) == list(range(size))


def test_next_item_probabilities_by_hand():
    cells = np.arange(NUM_LOOKS * NUM_THEMES)
    latents = Latents(
        np.append(cells // NUM_THEMES, 0), np.append(cells % NUM_THEMES, 0), np.ones(41)
    )
    latents.weights[40] = 3.0  # shares the cell (0, 0) with item 0
    rule = Rule(np.roll(np.arange(NUM_LOOKS), -1), np.roll(np.arange(NUM_THEMES), -1), 0.8)
    table = next_item_probabilities(rule, latents)
    np.testing.assert_allclose(table.sum(-1), 1.0)
    obeyed_look, obeyed_theme = 0.8 + 0.2 / NUM_LOOKS, 0.8 + 0.2 / NUM_THEMES
    assert table[1, 2, 2 * NUM_THEMES + 3] == pytest.approx(obeyed_look * obeyed_theme)
    assert table[1, 2, 2 * NUM_THEMES + 4] == pytest.approx(obeyed_look * 0.2 / NUM_THEMES)
    assert table[4, 7, 0] == pytest.approx(obeyed_look * obeyed_theme / 4)
    assert table[4, 7, 40] == pytest.approx(obeyed_look * obeyed_theme * 3 / 4)
    assert context(latents, np.array([9, 17])) == (2, 1)
    assert context(latents, np.array([17])) == (2, 1)


def test_purchases_follow_one_rule_in_every_domain(miniature):
    rule = draw_rule(np.random.default_rng([0, 0]), 0.8)
    for domain in miniature.domains.values():
        looks, themes = domain.latents.looks, domain.latents.themes
        triples = np.concatenate(
            [np.lib.stride_tricks.sliding_window_view(s, 3) for s in domain.sequences]
        )
        by_look = looks[triples[:, 2]] == rule.look_successor[looks[triples[:, 1]]]
        by_theme = themes[triples[:, 2]] == rule.theme_successor[themes[triples[:, 0]]]
        assert by_look.mean() == pytest.approx(0.8 + 0.2 / NUM_LOOKS, abs=0.04)
        assert by_theme.mean() == pytest.approx(0.8 + 0.2 / NUM_THEMES, abs=0.04)
        both = (by_look & by_theme).mean()
        assert both == pytest.approx(by_look.mean() * by_theme.mean(), abs=0.03)


def test_the_oracle_is_far_above_popularity(miniature):
    for domain in miniature.domains.values():
        assert domain.popularity()["ndcg@10"] < 0.12
        assert domain.ceiling()["ndcg@10"] > 0.4
        assert domain.ceiling()["recall@10"] > 0.65


def test_rank_metrics_give_ties_their_expected_rank():
    scores = np.array([[3.0, 1.0, 1.0, 1.0], [0.0, 9.0, 5.0, 4.0]])
    found = rank_metrics(scores, np.array([2, 1]), cutoff=3)
    assert found == {"recall@3": 1.0, "ndcg@3": pytest.approx((1 / np.log2(4) + 1) / 2)}
    assert rank_metrics(scores, np.array([2, 0]), cutoff=2)["recall@2"] == 0.0
