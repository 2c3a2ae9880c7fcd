"""Records of User Behavior Insights become queries, clicks and ratings, or say why not."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from clickloop import codec, topics
from clickloop.errors import InvalidMessageError
from clickloop.events import QueryServed, Result, ResultClicked, ResultRated
from clickloop.sources import Sources, mappings_of
from tests.unit.source_records import AT, LOGGED, UBI_EVENT, UBI_QUERY, envelope, read, readable, row, without
from tests.unit.test_schemas import strict_validator as ubi_validator


def test_a_ubi_click_is_a_click_and_its_client_a_pseudonym() -> None:
    message = read(UBI_EVENT, topics.CLICKS)
    assert isinstance(message, ResultClicked)
    assert (message.query_id, message.doc_id, message.position) == ("q-1", "sku-17", 2)
    assert message.clicked_at == AT
    assert message.index == "products"
    assert message.split_key == codec.split_key("browser-7")


def test_the_same_ubi_event_sent_twice_has_one_id_and_another_event_another() -> None:
    first, again = read(UBI_EVENT, topics.CLICKS), read(dict(reversed(UBI_EVENT.items())), topics.CLICKS)
    later = read({**UBI_EVENT, "timestamp": "2026-03-02T10:15:05+01:00"}, topics.CLICKS)
    assert first == again
    assert later.event_id != first.event_id


@pytest.mark.parametrize("name", ["rating", "value"])
def test_a_ubi_rating_is_a_rating_on_either_topic(name: str) -> None:
    attributes = {**UBI_EVENT["event_attributes"], name: 4}
    for topic in (topics.RATINGS, topics.CLICKS):
        message = read({**UBI_EVENT, "action_name": "rating", "event_attributes": attributes}, topic)
        assert isinstance(message, ResultRated)
        assert (message.rating, message.rated_at) == (4.0, AT)


def test_a_ubi_query_is_an_impression_with_its_hits_from_the_top_down() -> None:
    message = read(UBI_QUERY, topics.QUERIES)
    assert isinstance(message, QueryServed)
    assert message.results == [Result(doc_id="sku-4", position=1), Result(doc_id="sku-17", position=2)]
    assert (message.query, message.served_at, message.version, message.arm) == ("trail shoes", AT, "", "")


def test_a_ubi_time_may_be_the_milliseconds_of_a_browsers_clock() -> None:
    at = AT.timestamp() * 1000.0 + 123
    assert read({**UBI_EVENT, "timestamp": at}, topics.CLICKS).clicked_at == AT + timedelta(milliseconds=123)
    assert read({**UBI_QUERY, "timestamp": int(at)}, topics.QUERIES).served_at == AT + timedelta(milliseconds=123)
    for text in (f"{at:.0f}", f" {at} "):
        assert read({**UBI_EVENT, "timestamp": text}, topics.CLICKS).clicked_at == AT + timedelta(milliseconds=123)


def test_a_ubi_query_without_a_time_was_asked_when_the_broker_got_it() -> None:
    message = read(without(UBI_QUERY, "timestamp"), topics.QUERIES)
    assert message.served_at.timestamp() == LOGGED


def test_numbered_documents_and_positions_from_zero_are_no_mistakes() -> None:
    attributes = {"object": {"object_id": 17}, "position": {"ordinal": 0}}
    message = read({**UBI_EVENT, "event_attributes": attributes}, topics.CLICKS)
    assert (message.doc_id, message.position) == ("17", None)


@pytest.mark.parametrize(
    ("change", "topic", "reason"),
    [
        ({"query_id": None}, topics.CLICKS, "without query_id can't be joined"),
        ({"action_name": ["click"]}, topics.CLICKS, "action a list"),
        ({"action_name": ""}, topics.CLICKS, "action '' is no name"),
        ({"action_name": "x" * 101}, topics.CLICKS, "no name of 1 to 100 characters"),
        ({"action_name": "impression"}, topics.QUERIES, "a UBI event on queries: its topic is clicks"),
        ({"event_attributes": {}}, topics.CLICKS, "without event_attributes.object.object_id"),
        ({"event_attributes": []}, topics.CLICKS, "event_attributes of a UBI event is a list"),
        ({"event_attributes": {"object": {"object_id": 1.5}}}, topics.CLICKS, "object_id is 1.5"),
        ({"timestamp": "2026-03-02T09:15:04"}, topics.CLICKS, "clicked_at"),
        ({"timestamp": 1772442904}, topics.CLICKS, "1772442904, neither RFC 3339 nor milliseconds"),
        ({"timestamp": "1772442904"}, topics.CLICKS, "'1772442904', neither RFC 3339 nor milliseconds"),
        ({"timestamp": "5"}, topics.CLICKS, "'5', neither RFC 3339 nor milliseconds"),
        ({"timestamp": "nan"}, topics.CLICKS, "no number"),
        ({"timestamp": ""}, topics.CLICKS, "clicked_at"),
        ({"timestamp": 1e18}, topics.CLICKS, "not in the years"),
        ({"timestamp": [2026]}, topics.CLICKS, "timestamp is a list, no number"),
        ({"action_name": "rating"}, topics.RATINGS, r"without event_attributes\.rating"),
        ({}, topics.QUERIES, "a ResultClicked on queries: its topic is clicks"),
    ],
)
def test_a_ubi_event_that_cannot_be_used_says_why(
    change: dict[str, Any], topic: topics.Topic, reason: str
) -> None:
    with pytest.raises(InvalidMessageError, match=reason):
        read({**UBI_EVENT, **change}, topic)


NO_FEEDBACK: list[dict[str, Any]] = [
    {"action_name": "impression"},
    {"action_name": "view", "query_id": None, "event_attributes": None},
    {"action_name": "item_hover", "client_id": "", "timestamp": "2026-03-02T09:15:04"},
    {"action_name": "on_search", "timestamp": None, "event_attributes": {}},
    {"action_name": "page_exit", "event_attributes": {"object": {"currentPageName": "/"}, "position": {}}},
    {"action_name": "scroll", "event_attributes": [7], "timestamp": "soon", "query_id": ["q"], "client_id": {}},
]


@pytest.mark.parametrize("change", NO_FEEDBACK, ids=lambda c: c["action_name"])
def test_a_ubi_event_whose_action_carries_no_feedback_is_no_mistake(change: dict[str, Any]) -> None:
    record = {**UBI_EVENT, **change}
    for topic in (topics.CLICKS, topics.RATINGS):
        assert read(record, topic) is None
        assert read(envelope(record), topic) is None
        assert row(record, topic) is None
    assert row(record) is None


def test_a_mapping_may_say_what_an_apps_own_action_is() -> None:
    fields = {"query_id": "query_id", "doc_id": "event_attributes.object.object_id", "time": "timestamp"}
    table = {"topic": "clicks", "when": {"action_name": "open"}, "fields": fields}
    own = {**UBI_EVENT, "action_name": "open"}
    assert read(own, topics.CLICKS) is None
    assert read(own, topics.CLICKS, sources=Sources("products", mappings_of({"opens": table}))).doc_id == "sku-17"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query_id": ""}, "without query_id"),
        ({"query_response_hit_ids": None}, "query_response_hit_ids is null"),
        ({"query_response_hit_ids": [["a"]]}, "a list"),
        ({"query_response_hit_ids": ["d"] * 1001}, "results"),
        ({"user_query": 7}, "query"),
    ],
)
def test_a_ubi_query_that_cannot_be_used_says_why(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidMessageError, match=reason):
        read({**UBI_QUERY, **change}, topics.QUERIES)


UBI_SCHEMAS = Path(__file__).parents[2] / "schemas" / "sources"
UBI_EXAMPLES = sorted((UBI_SCHEMAS / "examples").rglob("*.json"))


@pytest.mark.parametrize("path", UBI_EXAMPLES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_schema_and_reader_agree_with_the_name_of_every_ubi_example(path: Path) -> None:
    wanted = path.name.startswith("valid-")
    record = json.loads(path.read_bytes())
    schema = json.loads((UBI_SCHEMAS / f"{path.parent.name}.schema.json").read_bytes())
    assert ubi_validator(schema).is_valid(record) is wanted
    topic = topics.QUERIES if path.parent.name == "ubi-query" else topics.CLICKS
    assert readable(record, topic) is wanted


def test_each_ubi_record_has_examples_good_and_bad() -> None:
    for name in ("ubi-query", "ubi-event"):
        names = [p.name for p in UBI_EXAMPLES if p.parent.name == name]
        assert sum(n.startswith("valid-") for n in names) >= 2
        assert sum(n.startswith("invalid-") for n in names) >= 2
