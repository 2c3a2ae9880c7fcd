"""What a batch of pairs holds: who is a negative for whom, and how much each pair counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.unit.trainer_facts import world
from trainer.dataset import Clicks
from trainer.methods import losses
from trainer.methods.batching import neighbourly_batches
from trainer.methods.objectives import LOSSES, batch_of, distilled
from trainer.methods.pairs import Pairs, Texts
from trainer.model import normalised

CLICKS = Clicks(
    queries=["a", "b", "c"],
    query=np.array([0, 1, 1, 2]),
    document=np.array([5, 5, 3, 8]),
    weight=np.array([4, 4, 4, 4], np.float32),
    evidence=np.array([0.5, 3, 1, 1.5], np.float32),
)
HARD = np.array([[1, -1], [2, 0], [-1, -1], [0, 1]])
PAIRS = Pairs(CLICKS, asked=np.array([10, 11, 11, 12]), found=np.array([1, 1, 0, 2]), hard=HARD)
ROWS = np.array([3, 0, 1])


def test_texts_are_the_clicked_documents_those_spoken_against_and_the_queries():
    _, corpus = world()
    texts = Texts(corpus, [CLICKS], against={1: {7: 1.0}, 0: {9: 2.0, 3: 1.0}})
    assert texts.documents.tolist() == [3, 5, 7, 8, 9]
    assert texts.all == [corpus.documents[i].text for i in (3, 5, 7, 8, 9)] + ["a", "b", "c"]
    assert {query: numbers.tolist() for query, numbers in texts.unwanted.items()} == {1: [2], 0: [4, 0]}
    assert texts.asked(CLICKS).tolist() == [5, 6, 6, 7]
    assert texts.found(CLICKS).tolist() == [1, 1, 0, 3]


def test_pairs_count_by_what_is_made_of_their_clicks_and_one_in_the_mean():
    assert PAIRS.weight.tolist() == pytest.approx([1 / 3, 2, 2 / 3, 1])
    even = replace(PAIRS, clicks=replace(CLICKS, debiased=True))
    assert even.weight.tolist() == pytest.approx([1, 1, 1, 1])


def test_pairs_of_one_query_or_one_document_are_no_negatives_for_one_another():
    same = PAIRS.same(np.arange(4))
    assert same.nonzero().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]


def test_a_batch_holds_each_rows_vectors_and_what_is_known_of_it():
    texts = PAIRS.texts(ROWS)
    assert texts.tolist() == [12, 10, 11, 2, 1, 1, 0, 1, 1, 0, 2, 0]
    vectors = torch.from_numpy(normalised(np.random.default_rng(0).normal(size=(len(texts), 4))))
    batch = batch_of(PAIRS, ROWS, vectors)
    assert torch.equal(batch.asked, vectors[:3])
    assert torch.equal(batch.found, vectors[3:6])
    assert batch.weight.tolist() == pytest.approx([1, 1 / 3, 2])
    assert batch.strength.tolist() == [1, 0.5, 1]
    assert batch.same.nonzero().tolist() == [[1, 2], [2, 1]]
    assert batch.hard is not None
    nothing = torch.zeros(4)
    expected = [[vectors[6], vectors[7]], [vectors[8], nothing], [vectors[10], vectors[11]]]
    assert torch.equal(batch.hard, torch.stack([torch.stack(of_row) for of_row in expected]))
    assert batch_of(replace(PAIRS, hard=np.zeros((4, 0), np.int64)), ROWS, vectors[:6]).hard is None


@pytest.mark.parametrize(("name", "both_ways"), [("both_ways", True), ("query_to_document", False)])
def test_a_ranking_has_all_that_is_known_of_a_batch(name: str, both_ways: bool):
    vectors = torch.from_numpy(normalised(np.random.default_rng(1).normal(size=(12, 4))))
    batch = batch_of(PAIRS, ROWS, vectors)
    known = {"same": batch.same, "weight": batch.weight, "hard": batch.hard, "both_ways": both_ways}
    expected = losses.ranking(batch.asked, batch.found, scale=2.0, **known)
    assert LOSSES[name](batch, 2.0).item() == pytest.approx(expected.item())  # type: ignore[index]
    for left_out in ({"same": None}, {"weight": None}, {"hard": None}, {"both_ways": not both_ways}):
        other = losses.ranking(batch.asked, batch.found, scale=2.0, **{**known, **left_out})
        assert other.item() != pytest.approx(expected.item(), rel=1e-3), left_out


def test_what_is_distilled_weighs_as_the_pairs_do():
    vectors = torch.from_numpy(normalised(np.random.default_rng(2).normal(size=(12, 4))))
    batch = batch_of(PAIRS, ROWS, vectors)
    lead = torch.tensor([0.3, -0.1, 0.8])
    assert batch.hard is not None
    expected = losses.margin_distillation(batch.asked, batch.found, batch.hard[:, 0], lead, batch.weight)
    assert distilled(batch, lead, scale=20.0).item() == pytest.approx(20.0 * expected.item(), rel=1e-5)


def test_half_of_a_batch_lies_nearer_to_its_first_row_than_all_that_come_later():
    vectors = normalised(np.random.default_rng(3).normal(size=(64, 8)))
    batches = list(neighbourly_batches(vectors, 8, np.random.default_rng(4)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(64))
    assert [len(batch) for batch in batches] == [8] * 8
    for batch, after in pairwise(batches):
        to_first = vectors @ vectors[batch[0]]
        assert to_first[batch[1:5]].min() >= to_first[[*batch[5:], *after]].max()
