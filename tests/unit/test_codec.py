"""Messages over the wire: what is refused, with which error, and what the headers and identities promise."""

from __future__ import annotations

import gc
import time
from datetime import UTC, datetime
from uuid import UUID

import pytest

from clickloop import codec
from clickloop.commands import Pause, Promote, Rollback
from clickloop.errors import InvalidMessageError, MessageError, UnreadableMessageError
from clickloop.events import Measurement, QueryServed, Result, ResultClicked, ResultRated

AT = datetime(2026, 3, 2, 9, 15, tzinfo=UTC)
CLICK = ResultClicked(event_id="c-1", index="products", query_id="q-1", doc_id="d-1", clicked_at=AT)


def with_field(name: str, value: bytes) -> bytes:
    return codec.encode(CLICK)[:-1] + b',"' + name.encode() + b'":' + value + b"}"


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"{",
        b"\x00\xff\xfe",
        b'{"type":"ResultClicked"',
        with_field("split_key", b'"\xff"'),
        with_field("split_key", b'"\\ud800"'),
        with_field("x", b"[" * 100_000),
    ],
    ids=["tombstone", "empty", "torn", "binary", "cut", "no-utf8", "lone-surrogate", "deep-nesting"],
)
def test_bytes_that_are_no_json_are_unreadable(raw: bytes | None) -> None:
    with pytest.raises(UnreadableMessageError):
        codec.decode(raw, ResultClicked)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position", b"0"),
        ("position", b"10001"),
        ("position", b"1.0"),
        ("position", b"1" * 5000),
        ("dwell_seconds", b"-0.1"),
        ("dwell_seconds", b"1e999"),
        ("query_id", b'""'),
        ("query_id", b'"' + b"q" * 257 + b'"'),
        ("index", b'"products\\n"'),
        ("index", b'"Products"'),
        ("clicked_at", b'"2026-03-02T09:15:00"'),
        ("clicked_at", b'"2026-02-30T09:15:00Z"'),
        ("clicked_at", b"1772442900"),
        ("type", b'"ResultRated"'),
    ],
)
def test_json_that_breaks_a_rule_is_invalid_and_the_error_names_the_place(name: str, value: bytes) -> None:
    with pytest.raises(InvalidMessageError, match=rf"ResultClicked.*\$\.{name}"):
        codec.decode(with_field(name, value), ResultClicked)


def test_array_in_place_of_a_message_is_invalid() -> None:
    with pytest.raises(InvalidMessageError):
        codec.decode(b"[]", ResultClicked)


def test_message_of_another_topic_is_invalid() -> None:
    with pytest.raises(InvalidMessageError):
        codec.decode(codec.encode(CLICK), ResultRated)


def test_message_above_the_limit_is_refused_before_it_is_parsed() -> None:
    raw = b" " * codec.MAX_MESSAGE_BYTES + codec.encode(CLICK)
    with pytest.raises(InvalidMessageError, match="limit"):
        codec.decode(raw, ResultClicked)


def test_fields_of_a_later_release_are_ignored() -> None:
    assert codec.decode(with_field("device", b'{"kind":"phone"}'), ResultClicked) == CLICK


def test_type_may_be_missing_where_the_topic_has_one_type_only() -> None:
    raw = codec.encode(CLICK).replace(b'"type":"ResultClicked",', b"")
    assert codec.decode(raw, ResultClicked) == CLICK
    with pytest.raises(MessageError):
        codec.decode(raw, ResultClicked, ResultRated)


def test_several_types_are_told_apart_by_their_type_field() -> None:
    rollback = Rollback(command_id="k-1", index="products", issued_at=AT, reason="odd results")
    pause = Pause(command_id="k-2", index="products", issued_at=AT, paused=True)
    assert codec.decode(codec.encode(rollback), Rollback, Promote, Pause) == rollback
    assert codec.decode(codec.encode(pause), Rollback, Promote, Pause) == pause


def test_defaults_are_not_sent() -> None:
    assert codec.encode(CLICK) == (
        b'{"type":"ResultClicked","event_id":"c-1","index":"products","query_id":"q-1","doc_id":"d-1",'
        b'"clicked_at":"2026-03-02T09:15:00Z"}'
    )


@pytest.mark.parametrize("text", ["\ud800", "query \udfff"])
def test_text_that_utf8_cannot_hold_is_refused_by_the_sender(text: str) -> None:
    event = QueryServed(event_id="q", index="products", query_id="q", query=text, served_at=AT, results=[])
    with pytest.raises(InvalidMessageError, match="QueryServed"):
        codec.encode(event)


def test_figure_that_is_no_number_is_refused_by_the_reader() -> None:
    # JSON has no NaN; it goes out as null, which a plain number may not be.
    sent = codec.encode(Measurement(detector="d", value=float("nan")))  # type: ignore[arg-type]
    assert b'"value":null' in sent


def test_headers_are_cloudevents_in_binary_mode() -> None:
    sent = dict(codec.headers(CLICK, source="shop/web", traceparent="00-4bf9-00f0-01"))
    assert sent["ce_specversion"] == b"1.0"
    assert sent["ce_id"] == b"c-1"
    assert sent["ce_type"] == b"io.clickloop.ResultClicked.v1"
    assert sent["ce_source"] == b"shop/web"
    assert sent["traceparent"] == b"00-4bf9-00f0-01"
    stamped = datetime.fromisoformat(sent["ce_time"].decode())
    assert abs((stamped - datetime.now(UTC)).total_seconds()) < 60
    assert sent["ce_time"].endswith(b"Z")


def test_headers_of_a_command_carry_its_command_id() -> None:
    command = Promote(command_id="k-9", index="products", issued_at=AT, version="v", reason="r")
    assert dict(codec.headers(command, source="cli"))["ce_id"] == b"k-9"


def test_new_ids_sort_by_the_time_at_which_they_were_made() -> None:
    made = []
    for _ in range(20):
        made.append(codec.new_id())
        time.sleep(0.002)
    assert made == sorted(made)


def test_new_ids_are_uuids_of_version_7_and_differ() -> None:
    made = {codec.new_id() for _ in range(5000)}
    assert len(made) == 5000
    before = time.time_ns() // 1_000_000
    identity = UUID(codec.new_id())
    assert identity.version == 7
    assert identity.variant == "specified in RFC 4122"
    assert before <= identity.int >> 80 <= time.time_ns() // 1_000_000


@pytest.mark.parametrize(
    "moment", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59Z"]
)
def test_times_that_arithmetic_would_fail_on_are_refused(moment: str) -> None:
    value = f'{{"event_id":"e","index":"i","query_id":"q","doc_id":"d","clicked_at":"{moment}"}}'.encode()
    with pytest.raises(InvalidMessageError, match="clicked_at is in the year"):
        codec.decode(value, ResultClicked)


def test_the_garbage_collector_is_not_burdened_with_messages() -> None:
    shown = [Result(doc_id="d-1", position=1), Result(doc_id="d-2", position=2)]
    sent = QueryServed(event_id="q", index="products", query_id="q", query="shoe", served_at=AT, results=shown)
    query = codec.decode(codec.encode(sent), QueryServed)
    assert query == sent
    assert not any(gc.is_tracked(known) for known in (query, *query.results))
