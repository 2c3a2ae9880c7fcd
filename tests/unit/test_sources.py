"""Our own messages, and CloudEvents around any record."""

from __future__ import annotations

import base64
import gc
import json
from typing import Any

import pytest

from clickloop import codec, topics
from clickloop.errors import InvalidMessageError, MessageError, UnreadableMessageError
from clickloop.events import ResultClicked, ResultPreferred
from clickloop.kafka import Record
from clickloop.sources import Sources, time_of, topic_of
from tests.unit.golden_messages import GOLDEN
from tests.unit.source_records import AT, LOGGED, UBI_EVENT, envelope, read, without

# Our own messages


@pytest.mark.parametrize("topic", topics.TOPICS, ids=lambda t: t.suffix)
def test_our_own_messages_of_every_topic_are_read_as_the_codec_reads_them(topic: topics.Topic) -> None:
    for kind in topic.types:
        message = GOLDEN[f"{kind.__name__}.v1"]
        assert read(codec.encode(message), topic) == message


def test_our_own_messages_never_leave_the_codecs_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("clickloop.sources._opened")
    message = GOLDEN["ResultClicked.v1"]
    assert read(codec.encode(message), topics.CLICKS, headers=codec.headers(message, source="app")) == message


class Sealed:
    """A record whose headers are not to be looked at."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    @property
    def headers(self) -> Any:
        raise AssertionError("its headers were read")


@pytest.mark.parametrize("topic", topics.TOPICS, ids=lambda t: t.suffix)
def test_a_topics_reader_needs_no_headers_of_our_own_messages(topic: topics.Topic) -> None:
    for kind in topic.types:
        message = GOLDEN[f"{kind.__name__}.v1"]
        assert Sources("products").reader(topic)(Sealed(codec.encode(message)), LOGGED) == message


def test_a_topics_reader_reads_everything_else_as_ever() -> None:
    read_click = Sources("products").reader(topics.CLICKS)
    record = Record("clicks", 0, 7, None, json.dumps(UBI_EVENT).encode(), ())
    assert read_click(record, LOGGED) == read(UBI_EVENT, topics.CLICKS)
    named = {"ce_specversion": b"1.0", "ce_id": b"e-1", "ce_source": b"/shop", "ce_type": b"click"}
    opened = Record("clicks", 0, 8, None, json.dumps(UBI_EVENT).encode(), tuple(named.items()))
    assert read_click(opened, LOGGED).event_id == read(UBI_EVENT, topics.CLICKS, headers=opened.headers).event_id
    timeless = Record("clicks", 0, 9, None, json.dumps(without(UBI_EVENT, "timestamp")).encode(), ())
    assert read_click(timeless, LOGGED).clicked_at.timestamp() == LOGGED
    with pytest.raises(UnreadableMessageError):
        read_click(Record("clicks", 0, 10, None, b"{", ()), LOGGED)


@pytest.mark.parametrize("logged", [-1e13, 1e15, 1e30, float("inf"), float("nan")])
def test_a_record_without_a_time_whose_stamp_is_none_either_is_unusable(logged: float) -> None:
    timeless = json.dumps(without(UBI_EVENT, "timestamp")).encode()
    with pytest.raises(InvalidMessageError, match="no time of its own, and its record's is no date"):
        Sources("products").read(timeless, (), topics.CLICKS, logged=logged)
    assert (
        Sources("products").read(json.dumps(UBI_EVENT).encode(), (), topics.CLICKS, logged=logged).clicked_at == AT
    )


def test_foreign_records_leave_no_error_in_a_cycle() -> None:
    """A worker collects seldom: ten thousand such records a second would pile up between."""

    def errors() -> int:
        return sum(issubclass(type(one), MessageError) for one in gc.get_objects())

    read_click = Sources("products").reader(topics.CLICKS)
    record = Record("clicks", 0, 7, None, json.dumps(UBI_EVENT).encode(), ())
    gc.disable()
    try:
        before = errors()
        for _ in range(10):
            read_click(record, LOGGED)
        assert errors() == before
    finally:
        gc.enable()


def test_a_broken_message_of_ours_is_refused_with_the_codecs_reason() -> None:
    with pytest.raises(InvalidMessageError, match=r"not a valid ResultClicked: .*position"):
        read(codec.encode(GOLDEN["ResultClicked.v1"]).replace(b'"position":1', b'"position":0'), topics.CLICKS)


def test_topics_that_apps_do_not_write_take_no_foreign_records() -> None:
    with pytest.raises(InvalidMessageError, match="SplitChanged"):
        read(UBI_EVENT, topics.TRAFFIC_SPLITS)


def test_a_preference_is_read_from_ratings_and_from_a_file() -> None:
    event = ResultPreferred(
        event_id="p-1", index="default", query_id="q", preferred="a", alternative="b", preferred_at=AT
    )
    raw = codec.encode(event)
    assert Sources("default").read(raw, (), topics.RATINGS) == event
    assert Sources("default").read_row(raw, now=AT) == event
    assert topic_of(event) is topics.RATINGS
    assert time_of(event) == AT


# CloudEvents


STRUCTURED = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
BINARY = [("ce_specversion", b"1.0"), ("ce_id", b"e-9"), ("ce_source", b"/shop"), ("ce_type", b"com.shop.clicked")]


@pytest.mark.parametrize("headers", [STRUCTURED, []], ids=["declared", "seen"])
def test_an_envelope_is_opened_and_names_the_event(headers: Any) -> None:
    message = read(envelope(UBI_EVENT), topics.CLICKS, headers=headers)
    assert (message.event_id, message.doc_id) == ("/shop#e-9", "sku-17")


def test_an_envelope_fills_in_what_its_data_leaves_out() -> None:
    data = {"type": "ResultClicked", "query_id": "q-1", "doc_id": "d"}
    assert read(envelope(data), topics.CLICKS) == ResultClicked(
        event_id="/shop#e-9", index="products", query_id="q-1", doc_id="d", clicked_at=AT
    )
    named = envelope(without(data, "type"), type="io.clickloop.ResultClicked.v1")
    assert read(named, topics.CLICKS).doc_id == "d"


def test_data_as_base64_is_data() -> None:
    packed = base64.b64encode(json.dumps(UBI_EVENT).encode()).decode()
    message = read(without(envelope(None, data_base64=packed), "data"), topics.CLICKS)
    assert message.doc_id == "sku-17"


def test_headers_in_binary_mode_name_a_foreign_event() -> None:
    message = read(UBI_EVENT, topics.CLICKS, headers=BINARY)
    assert message.event_id == "/shop#e-9"
    time = [*BINARY, ("ce_time", b"2026-03-02T09:15:04Z")]
    assert read(without(UBI_EVENT, "timestamp"), topics.CLICKS, headers=time).clicked_at == AT


@pytest.mark.parametrize(
    ("record", "headers", "reason"),
    [
        (envelope(UBI_EVENT, specversion="0.3"), (), "specversion '0.3'"),
        (envelope(UBI_EVENT, id=""), (), "whose id is ''"),
        (envelope(UBI_EVENT, source=None), (), "whose source is null"),
        (envelope(UBI_EVENT, time=5), (), "whose time is 5"),
        (envelope(UBI_EVENT, datacontenttype="application/xml"), (), "application/xml"),
        (envelope("text"), (), "'text' where an object was expected"),
        (envelope(None, data_base64="*"), (), "no base64"),
        (envelope(envelope(UBI_EVENT)), (), "not a valid ResultClicked"),
        (envelope(UBI_EVENT), [("content-type", b"application/cloudevents-batch+json")], "one application"),
        (envelope(UBI_EVENT), [("content-type", b"application/cloudevents+avro")], r"cloudevents\+avro"),
        (UBI_EVENT, [*BINARY[1:], ("ce_specversion", b"\xff")], "no UTF-8"),
        (UBI_EVENT, BINARY[:1], "whose id is null"),
    ],
)
def test_a_cloudevent_that_cannot_be_used_says_why(record: Any, headers: Any, reason: str) -> None:
    with pytest.raises(InvalidMessageError, match=reason):
        read(record, topics.CLICKS, headers=headers)


def test_headers_without_a_value_are_passed_over() -> None:
    assert read(UBI_EVENT, topics.CLICKS, headers=[("ce_id", None), ("content-type", None)]).doc_id == "sku-17"
