"""A row of a file becomes the message that it says it is."""

from __future__ import annotations

import json

import pytest

from clickloop import codec, topics
from clickloop.errors import InvalidMessageError, UnreadableMessageError
from clickloop.events import QueryServed, Result, ResultClicked, ResultPreferred, ResultRated
from clickloop.sources import Sources
from tests.unit.golden_messages import GOLDEN
from tests.unit.source_records import AT, UBI_EVENT, UBI_QUERY, envelope, read, row


def test_a_row_in_our_own_names_needs_neither_type_nor_id() -> None:
    click = {"query_id": "q", "doc_id": "d", "clicked_at": AT.isoformat(), "position": "3"}
    message = row(click)
    assert isinstance(message, ResultClicked)
    assert message.position == 3
    assert row(click).event_id == message.event_id
    assert row({"doc_id": "d", "text": "t", "changed_at": AT.isoformat()}, topics.DOCUMENTS).text == "t"


@pytest.mark.parametrize("typed", [{}, {"type": "ResultClicked"}], ids=["by its time", "by its type"])
def test_integers_are_ids_in_a_row_of_a_file_and_not_on_a_topic(typed: dict[str, str]) -> None:
    click = {**typed, "query_id": 81, "doc_id": 17, "event_id": 3, "split_key": 5, "clicked_at": AT.isoformat()}
    message = row(click)
    assert (message.query_id, message.doc_id, message.event_id, message.split_key) == ("81", "17", "3", "5")
    for wrong in (True, 1.5, [1]):
        with pytest.raises(InvalidMessageError, match="doc_id"):
            row({**click, "doc_id": wrong})
    on_topic = {"type": "ResultClicked", "index": "products", "event_id": "e", **click}
    with pytest.raises(InvalidMessageError, match="got `int`"):
        read(on_topic, topics.CLICKS)


def test_integers_are_ids_within_results_and_preferences_too() -> None:
    query = {"query_id": 81, "query": "shoes", "served_at": AT.isoformat()}
    results = row({**query, "results": [{"doc_id": 17, "position": 1}]}).results
    assert results == [Result(doc_id="17", position=1)]
    preference = row({"query_id": 81, "preferred": 17, "alternative": 4, "preferred_at": AT.isoformat()})
    assert (preference.preferred, preference.alternative) == ("17", "4")


@pytest.mark.parametrize("topic", [None, topics.RATINGS], ids=["by its time", "on ratings"])
def test_a_topic_of_two_kinds_takes_the_rows_of_both(topic: topics.Topic | None) -> None:
    preference = {"query_id": "q", "preferred": "a", "alternative": "b", "preferred_at": AT.isoformat()}
    assert isinstance(row(preference, topic), ResultPreferred)
    rating = {"query_id": "q", "doc_id": "d", "rating": 5, "rated_at": AT.isoformat()}
    assert isinstance(row(rating, topic), ResultRated)


def test_a_row_on_a_topic_is_none_of_another_ones() -> None:
    with pytest.raises(InvalidMessageError, match="not a valid ResultClicked"):
        row({"query_id": "q", "doc_id": "d", "rating": 5, "rated_at": AT.isoformat()}, topics.CLICKS)
    with pytest.raises(InvalidMessageError, match="not a valid ResultRated"):
        row({"query_id": "q", "doc_id": "d", "rating": 5}, topics.RATINGS)


def test_a_row_of_any_form_is_what_it_says() -> None:
    forms = [UBI_EVENT, UBI_QUERY, envelope(UBI_EVENT), json.loads(codec.encode(GOLDEN["ResultRated.v1"]))]
    assert [type(row(form)) for form in forms] == [ResultClicked, QueryServed, ResultClicked, ResultRated]


def test_a_row_that_is_nothing_says_what_it_might_have_been() -> None:
    with pytest.raises(InvalidMessageError, match="no form that is known"):
        row({"a": 1})
    with pytest.raises(InvalidMessageError, match="does not belong on queries"):
        row(UBI_EVENT, topics.QUERIES)
    with pytest.raises(UnreadableMessageError):
        Sources("products").read_row(b"{", None, now=AT)
