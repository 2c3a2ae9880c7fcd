"""Metrics and their comparison, checked against ir-measures and scipy."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, Success
from scipy import stats

from clickloop.evaluation import (
    NOT_FOUND,
    RESAMPLES,
    Floats,
    Ranks,
    compare,
    per_query_metrics,
    recall,
    reciprocal_rank,
    tail_of,
)


def ranked(ranks: list[int | None], depth: int = 20) -> tuple[list[ir_measures.Qrel], list[ir_measures.ScoredDoc]]:
    """Judgements and runs in which query i has its relevant document at ranks[i] (None: nowhere)."""
    qrels, run = [], []
    for q, rank in enumerate(ranks):
        qrels.append(ir_measures.Qrel(f"q{q}", "relevant", 1))
        for place in range(1, depth + 1):
            doc = "relevant" if place == rank else f"other-{place}"
            run.append(ir_measures.ScoredDoc(f"q{q}", doc, 100.0 - place))
    return qrels, run


@settings(max_examples=30, deadline=None)
@given(st.lists(st.none() | st.integers(1, 20), min_size=1, max_size=30))
def test_metrics_equal_those_of_ir_measures(ranks: list[int | None]) -> None:
    wanted = {
        (m.query_id, str(m.measure)): m.value
        for m in ir_measures.iter_calc([RR @ 10, Success @ 1, Success @ 5], *ranked(ranks))
    }
    ours = per_query_metrics(np.array([NOT_FOUND if r is None else r for r in ranks], dtype=np.int64))
    for q in range(len(ranks)):
        assert ours["mrr_at_10"][q] == pytest.approx(wanted[f"q{q}", "RR@10"])
        assert ours["recall_at_1"][q] == pytest.approx(wanted[f"q{q}", "Success@1"])
        assert ours["recall_at_5"][q] == pytest.approx(wanted[f"q{q}", "Success@5"])


def test_what_is_below_the_cut_counts_nothing() -> None:
    ranks: Ranks = np.array([1, 10, 11, NOT_FOUND])
    assert reciprocal_rank(ranks, 10).tolist() == [1.0, 0.1, 0.0, 0.0]
    assert recall(ranks, 10).tolist() == [1.0, 1.0, 0.0, 0.0]


def sample(n: int = 300, seed: int = 3) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    before: Ranks = rng.integers(1, 15, n)
    after: Ranks = np.maximum(before - rng.integers(-1, 3, n), 1)
    return reciprocal_rank(before), reciprocal_rank(after)


def test_interval_agrees_with_scipys_paired_bootstrap() -> None:
    before, after = sample()
    ours = compare(before, after)
    theirs = stats.bootstrap(
        (before, after),
        lambda b, a, axis: a.mean(axis=axis) / b.mean(axis=axis) - 1.0,
        paired=True,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.change == pytest.approx(after.mean() / before.mean() - 1.0)
    assert ours.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.1 * width)


def test_interval_covers_the_true_change_about_95_times_in_100() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(60):
        before = rng.random(80)
        after = before * 1.1 + rng.normal(0, 0.1, 80)
        found = compare(before, after)
        hits += found.low <= 0.1 <= found.high
    assert hits >= 52  # below that has a chance of less than 1 in 100 for a true 95 % interval


def test_what_a_few_heavy_queries_decide_is_beyond_chance_hardly_more_often_than_it_says() -> None:
    """The plain percentile interval calls 4.5 of 100 level candidates better here, where it says 2.5."""
    rng, better = np.random.default_rng(11), 0
    weights = 100.0 / np.arange(1.0, 101.0)
    for _ in range(600):
        before, after = (reciprocal_rank(rng.integers(1, 15, 100)) for _ in range(2))
        better += compare(before, after, weights=weights).low > 0.0
    assert better <= 21  # 3.5 of 100


@pytest.mark.parametrize(("queries", "least", "most"), [(1, 0.0, 0.0), (5, 0.0, 0.002), (100, 0.022, 0.024)])
def test_the_interval_of_fewer_queries_is_wider_and_that_of_many_the_percentiles(
    queries: int, least: float, most: float
) -> None:
    assert least <= tail_of(np.ones(queries), 0.95) <= most
    assert tail_of(np.array([1.0, 1e-6]), 0.95) == pytest.approx(0.0)
    assert tail_of(np.ones(10**6), 0.95) == pytest.approx(0.025, rel=1e-3)


def test_equal_systems_have_a_change_of_zero_and_no_width() -> None:
    before, _ = sample()
    assert compare(before, before).change == 0.0
    assert compare(before, before).low == compare(before, before).high == 0.0


def test_weights_count_as_repetitions_do_in_the_means() -> None:
    before, after = np.array([0.5, 1.0, 0.2]), np.array([1.0, 1.0, 0.1])
    weighted = compare(before, after, weights=np.array([2.0, 1.0, 3.0]))
    repeated = compare(np.repeat(before, [2, 1, 3]), np.repeat(after, [2, 1, 3]))
    assert weighted.before == pytest.approx(repeated.before)
    assert weighted.after == pytest.approx(repeated.after)
    assert weighted.change == pytest.approx(repeated.change)


def test_comparison_is_the_same_each_time_and_another_with_another_seed() -> None:
    before, after = sample()
    assert compare(before, after) == compare(before, after)
    assert compare(before, after, seed=1) != compare(before, after, seed=2)


@pytest.mark.parametrize(
    ("before", "after"),
    [([], []), ([0.0, 0.0], [1.0, 1.0]), ([0.0], [0.0]), ([0.0, 0.0, 1.0], [1.0, 1.0, 1.0])],
)
def test_no_figure_is_ever_infinite_or_missing(before: list[float], after: list[float]) -> None:
    found = compare(np.array(before), np.array(after))
    assert np.isfinite([found.before, found.after, found.change, found.low, found.high]).all()


def test_samples_of_different_queries_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="paired"):
        compare(np.zeros(3), np.zeros(4))


def test_where_something_was_found_before_the_figures_are_those_of_the_ratio() -> None:
    before, after = sample()
    weights = np.random.default_rng(1).uniform(0.1, 3.0, len(before))
    found, rng = compare(before, after, weights=weights), np.random.default_rng(0)
    changes = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, len(before), len(before)), minlength=len(before))
        base, new = times @ np.stack([before * weights, after * weights], axis=1)
        changes.append(new / base - 1.0)
    tail = tail_of(weights, 0.95)
    assert [found.low, found.high] == np.quantile(changes, [tail, 1.0 - tail]).tolist()


@pytest.mark.parametrize("known", [0, 1, 3])
def test_what_is_found_where_next_to_nothing_was_is_better_beyond_chance(known: int) -> None:
    before, after = np.zeros(400), np.full(400, 0.9)
    before[:known] = 1.0
    for one, sign in ((compare(before, after), 1.0), (compare(after, before), -1.0)):
        assert np.sign([one.change, one.low, one.high]).tolist() == [sign] * 3
        assert np.isfinite([one.change, one.low, one.high]).all()


def test_two_that_find_nothing_are_level() -> None:
    nothing = np.zeros(50)
    found = compare(nothing, nothing)
    assert (found.change, found.low, found.high) == (0.0, 0.0, 0.0)
