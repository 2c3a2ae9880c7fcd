"""Where people look, learnt from swaps: what is swapped how often, and what the clicks on it tell."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from clickloop.propensity import Examination, propensities, swap_chance, swapped_pair
from streams.partition import Partition
from tests.unit.streams_facts import NOON, click, partition, query

SHOWN = 10


def log_of(curve: NDArray[np.float64], *, impressions: int, exploration: float, seed: int = 0) -> Examination:
    """What people do who look at position k with the chance ``curve[k - 1]``: the wanted one lies rather high."""
    rng = np.random.default_rng(seed)
    like = np.full((impressions, SHOWN), 0.055)
    wanted = rng.geometric(0.25, impressions) - 1
    seen = np.flatnonzero(wanted < SHOWN)
    like[seen, wanted[seen]] = 0.95
    pair = np.where(rng.random(impressions) < exploration, rng.integers(1, SHOWN, impressions), 0)
    rows = np.flatnonzero(pair)
    upper = pair[rows] - 1
    like[rows, upper], like[rows, upper + 1] = like[rows, upper + 1].copy(), like[rows, upper].copy()
    clicked = rng.random((impressions, SHOWN)) < curve * like
    log = Examination()
    for swapped in range(SHOWN):
        chances = propensities(SHOWN, exploration, swapped or None)
        counts = clicked[pair == swapped].sum(axis=0)
        for position, (chance, times) in enumerate(zip(chances, counts, strict=True), start=1):
            log.click(position, propensity=chance, swapped=swapped or None, times=int(times))
    return log


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_a_curve_that_people_have_is_found_within_ten_percent(exponent: float) -> None:
    truth = 1.0 / np.arange(1, SHOWN + 1) ** exponent
    log = log_of(truth, impressions=400_000, exploration=0.3)
    assert np.abs(np.asarray(log.curve(SHOWN)) / truth - 1.0).max() < 0.1


def test_without_evidence_people_look_at_one_over_the_position() -> None:
    assert Examination().curve(4) == pytest.approx([1.0, 1 / 2, 1 / 3, 1 / 4])
    assert Examination().curve(1) == [1.0]
    unexplored = Examination()
    unexplored.click(1, propensity=1.0, swapped=None, times=1000)
    assert unexplored.curve(3) == pytest.approx([1.0, 1 / 2, 1 / 3])
    assert unexplored.swapped_clicks == 0


def test_a_dozen_clicks_on_swapped_results_do_not_carry_the_curve_away() -> None:
    truth = 1.0 / np.arange(1, SHOWN + 1)
    logs = [log_of(truth, impressions=5_000, exploration=0.03, seed=seed) for seed in range(20)]
    assert 5 < np.mean([log.swapped_clicks for log in logs]) < 20
    exponents = [-np.log2(log.curve(2)[1]) for log in logs]
    assert np.std(exponents) < 0.2


@pytest.mark.parametrize(("exponent", "error"), [(1.0, 0.12), (1.5, 0.48)])
def test_whatever_few_clicks_say_the_curve_stays_near_what_is_known(exponent: float, error: float) -> None:
    """Before they tell where people look, they tell chance, and clicks are weighed by it."""
    truth = 1.0 / np.arange(1, SHOWN + 1) ** exponent
    logs = [log_of(truth, impressions=7_000, exploration=0.02, seed=seed) for seed in range(100)]
    found = np.asarray([-np.log(log.curve(SHOWN)[4]) / np.log(5) for log in logs])
    assert 6 < np.mean([log.swapped_clicks for log in logs]) < 15
    assert np.sqrt(((found - exponent) ** 2).mean()) < error
    assert (np.abs(found - 1.0) < 0.8).all()


@pytest.mark.parametrize(("upper", "stays"), [(1, 0.9), (2, 0.8)])
def test_a_swap_without_a_click_says_something_too(upper: int, stays: float) -> None:
    """No one clicks what exploration has put down a place: so people look there less than 1/k has it. How many
    would have been put there is known from how often the upper one stays."""
    log = Examination()
    log.click(upper, propensity=stays, swapped=None, times=1000)
    log.click(upper, propensity=0.1, swapped=upper, times=60)
    known, curve = Examination().curve(3), log.curve(3)
    assert curve[upper] / curve[upper - 1] < 0.8 * known[upper] / known[upper - 1]
    log.click(upper + 1, propensity=0.1, swapped=upper, times=1e-9)  # type: ignore[arg-type]
    assert log.curve(3) == pytest.approx(curve), "as little of a click tells that chance, and changes nothing"


def test_little_evidence_moves_the_curve_a_little_and_much_moves_it_all_the_way() -> None:
    truth = np.ones(SHOWN)
    distance = [
        float(np.abs(np.asarray(log_of(truth, impressions=n, exploration=0.2).curve(SHOWN)) - truth).max())
        for n in (100, 3_000, 100_000)
    ]
    assert distance[0] > distance[1] > distance[2]
    assert distance[2] < 0.1


def test_sums_of_two_logs_are_the_sums_of_one_log_of_both() -> None:
    truth = 1.0 / np.arange(1, SHOWN + 1)
    one = log_of(truth, impressions=5_000, exploration=0.2, seed=1)
    two = log_of(truth, impressions=5_000, exploration=0.2, seed=2)
    alone = one.swapped_clicks + two.swapped_clicks
    one.merge(two)
    assert one.swapped_clicks == alone
    again = log_of(truth, impressions=5_000, exploration=0.2, seed=2)
    again.merge(log_of(truth, impressions=5_000, exploration=0.2, seed=1))
    assert one.curve(SHOWN) == pytest.approx(again.curve(SHOWN))


def test_the_budget_is_kept_and_every_pair_has_its_turn() -> None:
    pairs = [swapped_pair(f"query-{n}", SHOWN, 0.02) for n in range(50_000)]
    chosen = [pair for pair in pairs if pair is not None]
    assert 850 <= len(chosen) <= 1150
    assert set(chosen) == set(range(1, SHOWN))
    assert swapped_pair("query", 1, 0.5) is None
    assert pairs[:100] == [swapped_pair(f"query-{n}", SHOWN, 0.02) for n in range(100)]


def test_propensities_are_how_often_it_happens() -> None:
    exploration, count = 0.4, 4
    shown = [swapped_pair(f"query-{n}", count, exploration) for n in range(40_000)]
    for place in range(1, count + 1):
        unmoved = sum(pair is None or place not in (pair, pair + 1) for pair in shown) / len(shown)
        assert unmoved == pytest.approx(propensities(count, exploration, None)[place - 1], abs=0.01)
    moved = sum(pair == 2 for pair in shown) / len(shown)
    assert moved == pytest.approx(propensities(count, exploration, 2)[1], abs=0.01)


def explored(part: Partition, query_id: str, *, swapped: int | None, offset: int) -> None:
    from msgspec.structs import replace

    plain = query(query_id)
    chances = propensities(len(plain.results), 0.3, swapped)
    results = [replace(r, propensity=c) for r, c in zip(plain.results, chances, strict=True)]
    event = replace(plain, results=results, swapped=swapped)
    assert swap_chance(event) == pytest.approx(0.1)
    part.query(event, offset=offset, log_time=NOON, now=NOON)


def test_examples_carry_the_propensity_that_the_node_logged_and_the_swap() -> None:
    part = partition()
    for offset, swapped in enumerate((None, 1, 2, 3)):
        explored(part, f"q{offset}", swapped=swapped, offset=offset)
        made = [
            part.feedback(click(doc, f"q{offset}", when=2.0 + n), offset=n, log_time=NOON, now=NOON).examples[0]
            for n, doc in enumerate("dcba")
        ][::-1]
        assert [e.propensity for e in made] == pytest.approx(propensities(4, 0.3, swapped))
        assert {e.swapped for e in made} == {swapped}


def test_an_impression_without_exploration_has_no_chance_of_a_swap() -> None:
    assert swap_chance(query()) is None
