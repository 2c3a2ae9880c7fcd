"""Any bytes on any topic: a valid message, nothing to learn from, or a MessageError with a reason, and soon."""

from __future__ import annotations

import base64
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from clickloop import codec, topics
from clickloop.errors import InvalidMessageError, MessageError
from clickloop.events import Message, MessageQuarantined
from clickloop.kafka import Record
from tests.unit.golden_messages import GOLDEN
from tests.unit.source_records import AT, UBI_EVENT, mapped
from tests.unit.test_sources_page import page_sources, shown_examples
from tests.unit.test_sources_ubi import UBI_EXAMPLES

MESSAGES = 100_000
SECONDS = 60.0
"""Of a processor, for all of them; it takes a few."""
SLOWEST_SECONDS = 2.0
"""For the worst single one."""

SOURCES = mapped()
FEEDBACK = (topics.QUERIES, topics.CLICKS, topics.RATINGS, topics.DOCUMENTS)

HOSTILE = [
    *[b"null", b"true", b"0", b"-1", b"1.5", b"1e308", b"-0.0", b'""', b"[]", b"{}", b"[[]]", b'{"a":{}}'],
    *[b"NaN", b"Infinity", b"1e999", b"-1e999", b"9" * 30, b"9" * 400, b"1" + b"0" * 5000, b"0x10", b"01"],
    *[rb'"\ud800"', rb'"\udfff\ud800"', b'"\xed\xa0\x80"', b'"\xff"', rb'"\u0000"', b'"' + b"x" * 300 + b'"'],
    *[b"[" * 50 + b"]" * 50, b"[" * 1500 + b"]" * 1500, b'{"a":' * 300 + b"1" + b"}" * 300, b"[" * 20_000],
    *[b'"2026-02-30T00:00:00Z"', b'"9999-12-31T23:59:59-14:00"', b'"0001-01-01T00:00:00+14:00"', b'"AQI"'],
    *[b'"1772442904"', b"1772442904", b"1e15", b"[1,2,3]", b'["a","a"]', b'"2026-03-02T09:15:04"', b'"+1"'],
]


@dataclass(frozen=True)
class Sent:
    topic: topics.Topic
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


def seeds() -> list[Sent]:
    """A message of every type, and on the topics that apps write one of every form."""
    found = []
    for topic in topics.TOPICS:
        for kind in topic.types:
            message = GOLDEN[f"{kind.__name__}.v1"]
            found.append(Sent(topic, codec.encode(message), tuple(codec.headers(message, source="app"))))
    queries = {path: "query" in path.parent.name for path in UBI_EXAMPLES}
    found += [Sent(topics.QUERIES if q else topics.CLICKS, path.read_bytes()) for path, q in queries.items()]
    for kind, suffix, text in shown_examples():
        if kind != "settings":
            *head, body = text.strip().split("\n\n")
            pairs = [line.split(": ", 1) for line in "\n".join(head).splitlines()]
            headers = tuple((name, value.encode()) for name, value in pairs)
            found.append(Sent(next(t for t in topics.TOPICS if t.suffix == suffix), body.encode(), headers))
    envelope = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}
    packed = base64.b64encode(json.dumps(UBI_EVENT).encode()).decode()
    found.append(Sent(topics.CLICKS, json.dumps({**envelope, "data_base64": packed}).encode()))
    return found


_VALUES = re.compile(rb'(?<=:)\s*("(?:[^"\\]|\\.)*"|[^,}\]\s]+)')


def mutated(sent: Sent, rng: random.Random) -> Sent:
    """The record after one to three accidents."""
    value, headers, topic = sent.value, sent.headers, sent.topic
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        match rng.randrange(8):
            case 0 if value:
                at = rng.randrange(len(value))
                value = value[:at] + bytes([value[at] ^ 1 << rng.randrange(8)]) + value[at + 1 :]
            case 1:
                value = value[: rng.randrange(len(value) + 1)]
            case 2:
                at = rng.randrange(len(value) + 1)
                value = value[:at] + rng.randbytes(rng.randrange(1, 9)) + value[at + rng.randrange(4) :]
            case 3 | 4 | 5:
                places = list(_VALUES.finditer(value))
                if places:
                    place = rng.choice(places)
                    value = value[: place.start()] + rng.choice(HOSTILE) + value[place.end() :]
            case 6:
                places = [m.start() for m in re.finditer(rb'"', value)]
                if len(places) > 1:
                    at = rng.choice(places)
                    value = value[: at + 1] + rng.choice((b"x", b"\\u00e9", b"\x00", b'"')) + value[at + 1 :]
            case 7:
                junk = rng.choice((b"", b"\xff\xfe", b"1.0", b"application/cloudevents+json", rng.randbytes(5)))
                name = rng.choice(("content-type", "ce_id", "ce_specversion", "ce_time", "ce_type", "ce_source"))
                headers = (*(h for h in headers if h[0] != name), (name, junk))
                topic = rng.choice((topic, rng.choice(FEEDBACK)))
    return Sent(topic, value, headers)


def outcome(sent: Sent) -> str:
    """``valid``, ``ignored``, or the class of the MessageError. Any other exception goes through."""
    try:
        message = SOURCES.read(sent.value, sent.headers, sent.topic, logged=AT.timestamp())
    except MessageError as error:
        return type(error).__name__ if str(error) else "error without a reason"
    if message is None:
        return "ignored"
    assert isinstance(message, Message)
    codec.encode(message)
    return "valid"


def test_a_hundred_thousand_damaged_messages_of_every_form_are_messages_or_message_errors() -> None:
    rng, originals = random.Random(5), seeds()
    assert {sent.topic for sent in originals} == set(topics.TOPICS)
    outcomes: Counter[str] = Counter()
    slowest, start = 0.0, time.thread_time()
    for number in range(MESSAGES):
        sent = mutated(originals[number % len(originals)], rng)
        before = time.thread_time()
        outcomes[outcome(sent)] += 1
        slowest = max(slowest, time.thread_time() - before)
    assert set(outcomes) == {"valid", "ignored", "UnreadableMessageError", "InvalidMessageError"}
    assert outcomes.pop("ignored") > MESSAGES // 200
    assert min(outcomes.values()) > MESSAGES // 20, outcomes
    assert slowest < SLOWEST_SECONDS
    assert time.thread_time() - start < SECONDS


def test_rows_of_files_are_as_safe() -> None:
    rng, originals = random.Random(6), seeds()
    outcomes: Counter[str] = Counter()
    for number in range(MESSAGES // 10):
        sent = mutated(originals[number % len(originals)], rng)
        topic = rng.choice((None, *FEEDBACK))
        try:
            message = SOURCES.read_row(sent.value, topic, now=AT)
            outcomes["ignored" if message is None else "valid"] += 1
            if message is not None:
                codec.encode(message)
        except MessageError as error:
            outcomes[type(error).__name__ if str(error) else "error without a reason"] += 1
    assert set(outcomes) == {"valid", "ignored", "UnreadableMessageError", "InvalidMessageError"}
    assert min(outcomes.values()) > MESSAGES // 2000, outcomes


def bombs() -> Iterator[tuple[str, bytes]]:
    """As much trouble as fits into one message."""
    room = codec.MAX_MESSAGE_BYTES
    yield "open lists", b"[" * room
    yield "open objects", b'{"a":' * (room // 5)
    yield "closed lists", b"[" * (room // 2) + b"]" * (room // 2)
    yield "digits", b"1" * room
    yield "digits in a field", b'{"type":"ResultClicked","position":' + b"1" * (room - 100) + b"}"
    yield "fraction", b'{"action_name":"rate","query_id":1,"timestamp":0.' + b"1" * (room - 100) + b"}"
    yield "escapes", b'"' + rb"\u0041" * ((room - 2) // 6) + b'"'
    yield "many keys", b"{" + b",".join(b'"k%d":0' % n for n in range(80_000)) + b"}"
    yield "one key again and again", b"{" + b",".join([b'"action_name":1'] * 60_000) + b"}"
    yield "many results", b'{"user_query":"q","query_id":"q","query_response_hit_ids":[' + b"1," * 400_000 + b"1]}"
    yield (
        "envelopes",
        b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":' * 15_000 + b"1" + b"}" * 15_000,
    )
    packed = base64.b64encode(b"[" * 700_000)
    yield "packed", b'{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"' + packed + b'"}'
    yield "long id", b'{"specversion":"1.0","id":"' + b"i" * (room - 200) + b'","source":"s","type":"t","data":{}}'
    yield "too long", b" " * (room + 1)


@pytest.mark.parametrize(("name", "value"), bombs(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_bomb_is_refused_soon_and_fits_its_letter(name: str, value: bytes) -> None:
    for topic in topics.TOPICS:
        before = time.thread_time()
        with pytest.raises(MessageError) as caught:
            SOURCES.read(value, (), topic, logged=AT.timestamp())
        assert time.thread_time() - before < SLOWEST_SECONDS, name
        assert len(str(caught.value)) < 1000


def test_every_reason_can_be_told_in_a_letter() -> None:
    rng, originals = random.Random(7), seeds()
    told = 0
    for number in range(5_000):
        sent = mutated(originals[number % len(originals)], rng)
        try:
            SOURCES.read(sent.value, sent.headers, sent.topic)
        except MessageError as error:
            letter = MessageQuarantined(
                event_id="t/0/1", index="i", topic="t", partition=0, offset=number, value=sent.value,
                quarantined_at=AT, service="s", error=type(error).__name__, reason=str(error)[:1000],
            )  # fmt: skip
            assert codec.decode(codec.encode(letter), MessageQuarantined) == letter
            told += 1
    assert told > 1_000


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["click", "rating", "1.0", "2026-03-02T09:15:04Z", "io.clickloop.ResultClicked.v1", "AQID"])
)
_NAMES = [
    *["type", "action_name", "user_query", "query_id", "timestamp", "event_attributes", "object", "object_id"],
    *["query_response_hit_ids", "client_id", "position", "ordinal", "rating", "value", "dwell_seconds"],
    *["specversion", "id", "source", "time", "data", "data_base64", "datacontenttype", "event", "kind", "search"],
    *["sku", "rank", "ts", "visitor", "stars", "hits", "q", "at", "doc_id", "clicked_at", "index", "event_id"],
]
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=8),
    max_leaves=25,
)


@settings(max_examples=400, deadline=None)
@given(
    record=st.dictionaries(st.sampled_from(_NAMES), _values, max_size=14) | _values,
    topic=st.sampled_from(topics.TOPICS),
    headers=st.lists(
        st.tuples(
            st.sampled_from(["ce_id", "ce_type", "ce_specversion", "ce_source", "content-type"]), st.binary()
        ),
        max_size=5,
    ),
)
def test_any_json_of_familiar_names_is_a_message_or_a_message_error(
    record: object, topic: topics.Topic, headers: list[tuple[str, bytes]]
) -> None:
    outcome(Sent(topic, json.dumps(record).encode(), tuple(headers)))


@settings(max_examples=300, deadline=None)
@given(value=st.binary(max_size=200), topic=st.sampled_from(topics.TOPICS))
def test_any_bytes_are_a_message_or_a_message_error(value: bytes, topic: topics.Topic) -> None:
    outcome(Sent(topic, value))


def test_a_record_without_a_value_is_no_message() -> None:
    with pytest.raises(MessageError):
        page_sources().read(Record("t", 0, 0, None, None).value, (), topics.CLICKS)


def test_the_mutations_reach_the_forms_that_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise InvalidMessageError("stop")

    monkeypatch.setattr("clickloop.sources.ubi.event", broken)
    rng, originals = random.Random(5), [s for s in seeds() if b"action_name" in s.value]
    reasons = Counter()
    for number in range(500):
        try:
            SOURCES.read(mutated(originals[number % len(originals)], rng).value, (), topics.CLICKS)
        except MessageError as error:
            reasons[str(error)] += 1
    assert reasons["stop"] > 100
