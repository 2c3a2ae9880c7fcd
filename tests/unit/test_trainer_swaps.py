from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from clickloop.events import ExampleFormed
from clickloop.propensity import propensities
from tests.unit.trainer_facts import documents, example, in_slices
from trainer.dataset import Clicks, after_synthetic, prepare
from trainer.gate import Side, Thresholds, judge, measure
from trainer.swaps import Agreement, swap_result, vote_of

SHOWN = 6
KNOWN = {document.doc_id: number for number, document in enumerate(documents(SHOWN))}
RELEVANCE = np.linspace(0.5, 0.05, SHOWN)


def logged(queries: int, *, exploration: float, seed: int, relevance: np.ndarray = RELEVANCE) -> Clicks:
    """First clicks of people who look at place k with a chance of 1/k, on the documents in the order of their
    number but for one random swap in a share of the answers."""
    rng = np.random.default_rng(seed)
    found: list[ExampleFormed] = []
    for number in range(queries):
        order = list(range(SHOWN))
        swapped = int(rng.integers(1, SHOWN)) if rng.random() < exploration else None
        if swapped:
            order[swapped - 1 : swapped + 1] = order[swapped], order[swapped - 1]
        chances = propensities(SHOWN, exploration, swapped)
        for place, document in enumerate(order, start=1):
            if rng.random() < relevance[document] / place:
                found.append(
                    example(
                        f"query {number}",
                        f"d{document:04}",
                        number=number,
                        position=place,
                        negatives=tuple(f"d{d:04}" for d in order[: place - 1]),
                        propensity=chances[place - 1],
                        swapped=swapped,
                        trust=1.0,
                    )
                )
                break
    return prepare(found, documents(SHOWN)).clicks


def side(clicks: Clicks, scores: np.ndarray) -> Side:
    """A version that gives every query these scores."""
    queries = np.tile(scores.astype(np.float32), (len(clicks.queries), 1))
    return Side(queries, np.eye(SHOWN, dtype=np.float32))


def agreement(clicks: Clicks, before: np.ndarray, after: np.ndarray) -> Agreement:
    return Agreement.measured(clicks.votes, side(clicks, before), side(clicks, after))


def test_a_version_that_turns_a_right_order_round_is_worse_though_nearly_every_click_seems_to_ask_for_it():
    clicks = logged(6000, exploration=0.6, seed=0)
    found = agreement(clicks, RELEVANCE, -RELEVANCE)
    votes = [vote for of_it in clicks.votes.values() for vote in of_it]
    assert np.mean([vote.clicked > vote.other for vote in votes]) > 0.6, (
        "lower places are clicked below passed ones"
    )
    result = swap_result([found], seed=0)
    assert result is not None
    assert result.clicks == len(votes)
    assert result.agreement.high < 0.0


def test_a_version_that_puts_a_wrong_order_right_is_better():
    clicks = logged(6000, exploration=0.6, seed=1, relevance=RELEVANCE[::-1])
    result = swap_result([agreement(clicks, RELEVANCE, -RELEVANCE)], seed=0)
    assert result is not None
    assert result.agreement.low > 0.0


def test_documents_of_one_relevance_speak_for_neither_order():
    worse = better = 0
    for seed in range(25):
        clicks = logged(3000, exploration=0.5, seed=seed, relevance=np.full(SHOWN, 0.5))
        result = swap_result([agreement(clicks, RELEVANCE, -RELEVANCE)], seed=0)
        assert result is not None
        worse += result.agreement.high < 0.0
        better += result.agreement.low > 0.0
    assert worse <= 3
    assert better <= 3


def test_a_few_swaps_say_nothing_however_many_clicks_there_are():
    clicks = logged(3000, exploration=0.004, seed=0)
    assert sum(map(len, clicks.votes.values())) > 100
    assert swap_result([agreement(clicks, RELEVANCE, -RELEVANCE)], seed=0) is None


def test_the_gate_fails_a_version_that_swapped_traffic_speaks_against():
    clicks = logged(6000, exploration=0.6, seed=0)
    trial = measure(clicks, side(clicks, RELEVANCE), side(clicks, -RELEVANCE))
    result = judge([trial], thresholds=Thresholds(50, 1.0), seed=0)
    assert result.swaps is not None
    assert result.verdict == "fail"
    assert result.reasons[0].startswith("where neighbours were swapped at random")


@pytest.mark.parametrize(
    "change",
    [
        {"propensity": 1.0},
        {"rating": 5.0},
        {"clicks": 0},
        {"position": 1, "negatives": []},
        {"negatives": ["d0001"]},
        {"swapped": 1},
        {"swapped": 3},
        {"doc_id": "unknown"},
        {"negatives": ["d0001", "unknown"]},
        {"negatives": ["d0002", "d0001"], "worse": {"d0001": 1.0}},
        {"negatives": ["d0001", "d0004"], "worse": {"d0004": 0.0}},
    ],
    ids=str,
)
def test_an_example_that_does_not_tell_the_neighbour_or_its_chance_says_nothing(change: dict[str, object]):
    clear = example("q", "d0000", position=3, negatives=("d0001", "d0002"), propensity=0.99)
    assert vote_of(clear, KNOWN) == (0, 2, pytest.approx(1.0 / 0.985), pytest.approx(0.005 / 0.985))
    assert vote_of(msgspec.structs.replace(clear, swapped=2, propensity=0.005), KNOWN) == (0, 2, 200.0, 0.0)
    assert vote_of(msgspec.structs.replace(clear, **change), KNOWN) is None


def test_queries_keep_their_votes_and_labels_behind_synthetic_ones():
    told = prepare([example("made", "d0000", origin="synthetic")], documents(SHOWN)).synthetic
    told = replace(told, vectors=np.zeros((1, 2), np.float32))
    clicks = logged(50, exploration=0.3, seed=0)
    clicks = replace(clicks, vectors=np.zeros((len(clicks.queries), 2), np.float32))
    both = after_synthetic(told, in_slices(clicks, {0: {"domain shoes"}}))
    assert [both.slices.of_query(query) for query in range(3)] == [set(), {"domain shoes"}, set()]
    assert both.of_queries(range(1, len(both.queries))).votes == clicks.votes
    assert both.votes
