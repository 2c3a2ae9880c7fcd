"""Slices of the clicks: their own clicks, whatever is cut away or put in front."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from tests.unit.trainer_facts import documents, example
from trainer.dataset import Clicks, prepare
from trainer.slices import Slices


def shops() -> Clicks:
    """One text in two shops, which mean another document each, and one text in one of them."""
    clicked = [
        ("boots", 1, "ski"),
        ("boots", 1, "ski"),
        ("boots", 2, "garden"),
        ("gloves", 3, "garden"),
        ("hat", 0, ""),
    ]
    given = [
        msgspec.structs.replace(example(text, f"d{document:04}", number=n), domain=domain)
        for n, (text, document, domain) in enumerate(clicked)
    ]
    return prepare(given, documents(4), bias="off").clicks


def told(clicks: Clicks) -> dict[str, dict[tuple[str, int], float]]:
    found: dict[str, dict[tuple[str, int], Any]] = {}
    for name, rows, weight in clicks.slices.each(clicks.query, clicks.document):
        pairs = [(clicks.queries[clicks.query[row]], int(clicks.document[row])) for row in rows]
        found[name] = dict(zip(pairs, weight.tolist(), strict=True))
    return found


SKI = {"domain ski": {("boots", 1): 2.0}}
GARDEN = {"domain garden": {("boots", 2): 1.0, ("gloves", 3): 1.0}}


def test_a_slice_has_its_own_clicks_on_a_text_that_another_slice_has_too() -> None:
    assert told(shops()) == SKI | GARDEN


def test_it_has_those_of_the_queries_and_pairs_that_are_left() -> None:
    clicks = shops()
    assert told(clicks.of_queries([1, 2])) == {"domain garden": {("gloves", 3): 1.0}}
    assert told(clicks.of_queries([2])) == {}
    assert told(clicks.of_rows(clicks.document != 2)) == SKI | {"domain garden": {("gloves", 3): 1.0}}


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [2, 0, 3, 1]])
def test_the_order_of_the_pairs_makes_no_difference(order: list[int]) -> None:
    clicks = shops()
    given = list(clicks.slices.each(clicks.query, clicks.document))
    turned = list(clicks.slices.each(clicks.query[order], clicks.document[order]))
    assert [name for name, *_ in turned] == [name for name, *_ in given]
    assert [np.asarray(order)[rows].tolist() for _, rows, _ in turned] == [rows.tolist() for _, rows, _ in given]


def test_a_query_is_of_the_first_of_its_domains_by_name() -> None:
    assert shops().slices.domains() == {0: "domain garden", 1: "domain garden"}
    assert Slices().domains() == {}
