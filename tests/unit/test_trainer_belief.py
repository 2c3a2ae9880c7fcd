"""Which clicked pairs are believed: told from how often other clicks on the query agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trainer.belief import beliefs, believed, weighed
from trainer.dataset import Clicks
from trainer.model import Vectors, normalised

QUERIES, DOCUMENTS, DIMENSION = 400, 400, 16


def clicked(*, asked: float, wrong: float) -> tuple[Clicks, Vectors, Vectors]:
    """Query i wants document i, and is asked about ``asked`` times; ``wrong`` is the clicks' share that goes to
    anything in the first ten."""
    rng = np.random.default_rng(0)
    documents = normalised(rng.normal(size=(DOCUMENTS, DIMENSION)))
    queries = normalised(documents[:QUERIES] + 0.15 * rng.normal(size=(QUERIES, DIMENSION)))
    order = np.argsort(-(queries @ documents.T), axis=1)[:, :10]
    rows: dict[tuple[int, int], float] = {}
    for query in range(QUERIES):
        for _ in range(rng.poisson(asked)):
            mistaken = rng.random() < wrong
            document = int(rng.choice(order[query])) if mistaken else query
            rows[query, document] = rows.get((query, document), 0.0) + 1.0
    pairs = np.asarray(sorted(rows), dtype=np.int64)
    evidence = np.asarray([rows[tuple(pair)] for pair in pairs.tolist()], dtype=np.float32)
    texts = [f"query {n}" for n in range(QUERIES)]
    return Clicks(texts, pairs[:, 0], pairs[:, 1], evidence, evidence), queries, documents


def right(clicks: Clicks) -> float:
    return float((clicks.query == clicks.document).mean())


def test_most_mistakes_go_and_nearly_all_right_pairs_stay() -> None:
    clicks, queries, documents = clicked(asked=3.0, wrong=0.3)
    kept = believed(clicks, queries, documents)
    assert right(clicks) < 0.65
    assert right(kept) > 0.85
    assert right(kept) * len(kept) > 0.9 * right(clicks) * len(clicks)


def test_a_pair_that_others_confirm_is_believed_more_than_one_that_they_contradict() -> None:
    clicks, queries, documents = clicked(asked=3.0, wrong=0.3)
    belief = beliefs(clicks, queries, documents)
    total = np.bincount(clicks.query, clicks.evidence)[clicks.query]
    confirmed = belief[(clicks.evidence >= 3) & (total == clicks.evidence)]
    contradicted = belief[(clicks.evidence == 1) & (total >= 3)]
    assert confirmed.min() > contradicted.max()


def test_where_no_query_was_asked_twice_everything_is_believed() -> None:
    clicks, queries, documents = clicked(asked=0.2, wrong=0.3)
    once = np.bincount(clicks.query, clicks.evidence, minlength=QUERIES)[clicks.query] == 1
    single = Clicks(
        clicks.queries, clicks.query[once], clicks.document[once], clicks.weight[once], clicks.evidence[once]
    )
    assert beliefs(single, queries, documents).tolist() == [1.0] * len(single)


def test_a_few_clicks_that_do_not_agree_take_no_belief_from_all_others() -> None:
    clicks, queries, documents = clicked(asked=0.2, wrong=0.0)
    contradicted = replace(
        clicks,
        query=np.append(clicks.query, clicks.query[-1]),
        document=np.append(clicks.document, 0),
        weight=np.append(clicks.weight, np.float32(1.0)),
        evidence=np.append(np.ones(len(clicks)), 1.0).astype(np.float32),
    )
    belief = beliefs(contradicted, queries, documents)
    assert belief[:-2].min() > 0.8
    assert belief[-2:].max() <= 0.5


def test_a_large_corpus_is_looked_at_in_parts_and_told_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    clicks, queries, documents = clicked(asked=3.0, wrong=0.3)
    whole = beliefs(clicks, queries, documents)
    monkeypatch.setattr("trainer.belief._CELLS", 7 * DOCUMENTS)
    assert np.array_equal(beliefs(clicks, queries, documents), whole)


def test_each_row_loses_as_much_weight_as_evidence() -> None:
    clicks, queries, documents = clicked(asked=3.0, wrong=0.3)
    doubled = replace(clicks, weight=2 * clicks.evidence)
    found = weighed(doubled, queries, documents)
    assert np.allclose(found.evidence, clicks.evidence * beliefs(clicks, queries, documents))
    assert np.allclose(found.weight, 2 * found.evidence)
    assert np.array_equal(found.document, clicks.document)


def test_what_is_less_than_a_click_is_not_made_more_by_being_believed() -> None:
    clicks, asked, documents = clicked(asked=1.0, wrong=0.0)
    faint = replace(clicks, evidence=np.full(len(clicks), 0.1, dtype=np.float32))
    kept = believed(faint, asked, documents)
    assert len(kept) == len(clicks)
    assert float(kept.evidence.max()) <= 0.1 + 1e-6
