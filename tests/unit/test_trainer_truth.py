"""Truth on judged queries: the figures are those that ir-measures gives, and a better order is seen."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, Success, nDCG

from clickloop.recorded import Judged
from tests.unit.trainer_facts import documents
from trainer.truth import Truth, comparison, top


def test_figures_are_those_of_ir_measures() -> None:
    rng = np.random.default_rng(3)
    corpus = documents(40)
    judged = [
        Judged(f"q{n}", {f"d{d:04}": float(rng.integers(1, 4)) for d in rng.choice(40, 1 + n % 4, replace=False)})
        for n in range(30)
    ]
    found = np.stack([rng.permutation(40)[:10] for _ in judged])
    measured = Truth(judged, corpus).of_top(found)
    qrels = [
        ir_measures.Qrel(one.query, doc_id, int(grade)) for one in judged for doc_id, grade in one.relevant.items()
    ]
    run = [
        ir_measures.ScoredDoc(one.query, corpus[d].doc_id, 10.0 - place)
        for one, row in zip(judged, found, strict=True)
        for place, d in enumerate(row)
    ]
    wanted = {
        "mrr_at_10": RR @ 10,
        "recall_at_1": Success @ 1,
        "recall_at_5": Success @ 5,
        "ndcg_at_10": nDCG @ 10,
    }
    expected = ir_measures.calc_aggregate(list(wanted.values()), qrels, run)
    for name, measure in wanted.items():
        assert measured[name].mean() == pytest.approx(expected[measure], abs=1e-9)


def test_the_nearest_come_first_and_of_equally_near_ones_the_first() -> None:
    vectors = np.asarray([[0, 1], [1, 0], [1, 0], [0.6, 0.8]], dtype=np.float32)
    queries = np.asarray([[1, 0], [0, 1]], dtype=np.float32)
    assert top(queries, vectors, 3).tolist() == [[1, 2, 3], [0, 3, 1]]
    assert top(queries, vectors, 10).shape == (2, 4)
    copies = np.asarray([[0.6, 0.8]] * 3 + [[1, 0]] * 500 + [[0, 1]], dtype=np.float32)
    assert top(queries, copies, 3).tolist() == [[3, 4, 5], [503, 0, 1]], "also where the last one has copies"


def test_the_nearest_of_very_many_documents_are_those_of_each_query(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, vectors = (rng.normal(size=(n, 8)).astype(np.float32) for n in (30, 200))
    found = top(queries, vectors, 5)
    monkeypatch.setattr("trainer.truth._CELLS", 1000)
    assert top(queries, vectors, 5).tolist() == found.tolist()


def test_slices_are_compared_on_their_own() -> None:
    judged = [
        Judged("a", {"d0000": 1.0}, "easy"),
        Judged("b", {"d0001": 1.0}, "hard"),
        Judged("c", {"d0002": 1.0}),
    ]
    truth = Truth(judged, documents(5))
    before = truth.of_top(np.asarray([[0, 1], [0, 1], [0, 2]]))
    after = truth.of_top(np.asarray([[0, 1], [1, 0], [2, 0]]))
    found = truth.slices(before, after)
    assert {name: (s.queries, s.metrics["mrr_at_10"].change) for name, s in found.items()} == {
        "easy": (1, 0.0),
        "hard": (1, 1.0),
    }
    assert comparison(before, after)["recall_at_1"].after == 1.0
