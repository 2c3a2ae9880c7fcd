"""Queries that say the same in other words share their evidence, and no more than is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.dataset import Clicks
from trainer.sharing import MOST_LIKES, shared


def clicks(rows: list[tuple[int, int, float]], angles: list[float], **more: object) -> Clicks:
    """Rows of (query, document, evidence); query i lies at ``angles[i]`` degrees."""
    turned = np.radians(angles)
    query, document, evidence = (np.asarray(column) for column in zip(*rows, strict=True))
    return Clicks(
        queries=[f"query {i}" for i in range(len(angles))],
        query=query.astype(np.int64),
        document=document.astype(np.int64),
        weight=evidence.astype(np.float32) / 2,
        evidence=evidence.astype(np.float32),
        vectors=np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32),
        **more,  # type: ignore[arg-type]
    )


def told(found: Clicks) -> dict[tuple[int, int], float]:
    rows = zip(found.query, found.document, found.evidence, strict=True)
    return {(int(q), int(d)): round(float(e), 4) for q, d, e in rows}


def test_a_rare_query_borrows_from_its_near_duplicate_up_to_the_cap() -> None:
    known = clicks([(0, 7, 1.0), (1, 8, 9.0), (1, 9, 1.0)], [0.0, 5.0])
    found = shared(known, cap=1.0)
    assert told(found) == {(0, 7): 1.0, (0, 8): 0.9, (0, 9): 0.1, (1, 8): 9.0, (1, 9): 1.0}
    assert found.weight.tolist() == pytest.approx([e / 2 for e in found.evidence])
    assert list(found.query) == sorted(found.query)


def test_what_both_clicked_is_borne_out() -> None:
    found = shared(clicks([(0, 7, 1.0), (1, 7, 0.5)], [0.0, 5.0]), cap=1.0)
    assert told(found) == {(0, 7): 1.5, (1, 7): 1.5}


def test_queries_that_only_resemble_share_nothing_nor_does_a_cap_of_0() -> None:
    known = clicks([(0, 7, 1.0), (1, 8, 9.0)], [0.0, 20.0])
    assert shared(known, cap=1.0) is known
    assert shared(clicks([(0, 7, 1.0), (1, 8, 9.0)], [0.0, 1.0]), cap=0.0).evidence.tolist() == [1.0, 9.0]


def test_a_query_with_clicks_enough_of_its_own_borrows_nothing() -> None:
    found = shared(clicks([(0, 7, 3.0), (1, 8, 9.0)], [0.0, 1.0]), cap=1.0)
    assert told(found) == {(0, 7): 3.0, (1, 8): 9.0}


def test_what_is_borrowed_is_no_longer_held_against_the_document() -> None:
    found = shared(
        clicks([(0, 7, 1.0), (1, 8, 2.0)], [0.0, 1.0], unwanted={0: {8: 0.1, 9: 0.1}, 1: {3: 2.0}}), cap=1.0
    )
    assert found.unwanted == {0: {9: 0.1}, 1: {3: 2.0}}


@pytest.mark.parametrize(("against", "left"), [(1.5, {0: {8: 0.5}}), (1.0, {})])
def test_what_speaks_against_a_document_beyond_what_is_borrowed_stays(
    against: float, left: dict[int, dict[int, float]]
) -> None:
    found = shared(clicks([(0, 7, 1.0), (1, 8, 2.0)], [0.0, 1.0], unwanted={0: {8: against}}), cap=1.0)
    assert found.unwanted == left


def test_a_query_borrows_from_the_nearest_of_very_many_near_duplicates() -> None:
    """What thousands of ways to ask the same cost grew with their square, in time and in memory."""
    half = MOST_LIKES + 1
    count = 2 * half
    angles = [0.0, *np.linspace(0.01, 5.0, count).tolist()]
    rows = [(0, 0, 1.0), *((1 + i, 1 if i < half else 2, 1.0) for i in range(count))]
    found = told(shared(clicks(rows, angles), cap=1.0))
    assert {document: e for (query, document), e in found.items() if query == 0} == {0: 1.0, 1: 1.0}
    assert {document: e for (query, document), e in found.items() if query == count} == {2: 2.0}
