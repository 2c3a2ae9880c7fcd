"""Which documents are held to be wanted beyond doubt, however often queries are asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from tests.unit.trainer_facts import documents, example
from trainer.belief import believed
from trainer.dataset import SHOWN, Clicks, prepare
from trainer.sharing import shared
from trainer.wanted import BY_MISTAKE, surely_wanted

LOOKS = 1.0 / np.arange(1, SHOWN + 1)


def asked(times: int, *, like: np.ndarray, queries: int = 400, seed: int = 0) -> Clicks:
    """All queries have one list; its document at place k is clicked with a chance of 1/k times ``like``."""
    rng = np.random.default_rng(seed)
    count = rng.binomial(times, np.clip(LOOKS * like, 0.0, 1.0), size=(queries, SHOWN))
    query, place = np.nonzero(count)
    evidence = count[query, place].astype(np.float32)
    looks = (LOOKS / LOOKS.sum())[place].astype(np.float32)
    return Clicks([f"q{n}" for n in range(queries)], query, place, evidence, evidence, looks=looks)


@pytest.mark.parametrize("times", [3, 10, 30, 100, 1000])
def test_where_all_clicks_are_mistakes_hardly_any_document_is_wanted_however_often_it_is_clicked(times: int):
    clicks = asked(times, like=np.full(SHOWN, 0.06))
    assert surely_wanted(clicks).sum() <= 1.2 * BY_MISTAKE * 400 * SHOWN
    by_count = clicks.evidence >= 2.0
    assert times < 100 or by_count.sum() > 400


@pytest.mark.parametrize("place", [0, 1, 4])
def test_the_wanted_one_is_sure_once_its_query_was_asked_often_enough_and_the_others_are_not(place: int):
    like = np.full(SHOWN, 0.055)
    like[place] = 0.95
    clicks = asked(40, like=like)
    sure, wanted = surely_wanted(clicks), clicks.document == place
    assert sure[wanted].mean() > 0.95
    assert sure[~wanted].sum() < 0.02 * sure.sum()
    assert (clicks.evidence >= 2.0)[~wanted].sum() > 0.5 * sure.sum()


def test_two_that_are_wanted_alike_are_both_sure():
    like = np.full(SHOWN, 0.03)
    like[[1, 2]] = 0.9
    clicks = asked(40, like=like)
    sure = surely_wanted(clicks)
    assert sure[np.isin(clicks.document, (1, 2))].mean() > 0.9


def test_two_clicks_tell_more_from_further_down():
    both = np.asarray([2.0, 2.0], dtype=np.float32)
    looks = np.asarray([0.34, 0.07], dtype=np.float32)
    clicks = Clicks(["a", "b"], np.arange(2), np.arange(2), both, both, looks=looks)
    assert surely_wanted(clicks).tolist() == [False, True]
    assert surely_wanted(replace(clicks, evidence=both + 3.0)).tolist() == [True, True]
    assert surely_wanted(replace(clicks, evidence=both / 2.0)).tolist() == [False, False]


def test_where_no_places_are_known_two_clicks_are_enough():
    evidence = np.asarray([2.0, 1.0], dtype=np.float32)
    clicks = Clicks(["a"], np.zeros(2, dtype=np.int64), np.arange(2), evidence, evidence)
    assert surely_wanted(clicks).tolist() == [True, False]
    found = [structs.replace(example("a", "d0000", number=number), position=None) for number in range(2)]
    assert not len(prepare(found, documents(1)).clicks.looks)


def test_a_pair_carries_the_share_of_looks_of_its_places_weighted_by_what_was_clicked_there():
    found = [
        example("a", "d0000", number=0, position=1),
        example("a", "d0000", number=1, position=1),
        example("a", "d0000", number=2, position=2),
        example("b", "d0001", number=3, position=4),
        example("b", "d0001", number=4, position=1, label="negative"),
    ]
    clicks = prepare(found, documents(2), bias="inverse_rank").clicks
    whole = 1 + 1 / 2 + 1 / 3 + 1 / 4
    assert clicks.looks == pytest.approx([(2 + 1 / 2) / 3 / whole, 1 / 4 / whole])
    assert prepare(found, documents(2), bias="off").clicks.looks == pytest.approx([1 / 4, 1 / 4])


def test_of_a_log_with_clicks_far_down_only_an_answers_first_ten_share_the_looks():
    found = [example("a", "d0000", number=0, position=1), example("b", "d0001", number=1, position=40)]
    clicks = prepare(found, documents(2), bias="inverse_rank").clicks
    assert clicks.looks == pytest.approx([1 / LOOKS.sum(), 1 / 40 / LOOKS.sum()])


def test_shares_of_looks_stay_with_their_rows():
    clicks = asked(10, like=np.full(SHOWN, 0.5), queries=20)
    part = clicks.of_queries([3, 7])
    for number, query in enumerate((3, 7)):
        assert part.looks[part.query == number].tolist() == clicks.looks[clicks.query == query].tolist()
    kept = clicks.document < 2
    assert clicks.of_rows(kept).looks.tolist() == clicks.looks[kept].tolist()


def test_rows_that_are_made_anew_have_no_places():
    vectors = np.eye(SHOWN, dtype=np.float32)
    near = np.ones((20, SHOWN), dtype=np.float32) / np.sqrt(SHOWN)
    clicks = replace(asked(2, like=np.full(SHOWN, 0.3), queries=20), vectors=near)
    assert not len(shared(clicks, cap=30.0).looks)
    assert not len(believed(clicks, near, vectors).looks)
