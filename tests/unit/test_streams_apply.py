"""A batch of records: what of it becomes examples, and what becomes a letter, with which reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from clickloop import codec, topics
from clickloop.errors import ImpossibleFeedbackError
from clickloop.sources import Sources
from streams.apply import Applied, apply
from streams.partition import Partition
from tests.unit.streams_facts import NOON, click, partition, query


@dataclass(frozen=True)
class Record:
    """The part of aiokafka's that is read."""

    offset: int
    value: bytes
    timestamp: int = int(NOON * 1000)
    headers: Sequence[tuple[str, bytes]] = ()


def applied(state: Partition, topic: topics.Topic, *records: Record, now: float = NOON + 5) -> Applied:
    def letter(record: Any) -> int:
        offset: int = record.offset
        return offset

    sources = Sources("default", {})
    return apply(records, state, topic, sources=sources, letter=letter, index="default", now=now)


def asked(*names: str) -> list[Record]:
    return [Record(offset, codec.encode(query(name))) for offset, name in enumerate(names)]


def test_examples_come_in_the_order_of_the_clicks() -> None:
    state = partition()
    assert not applied(state, topics.QUERIES, *asked("q1", "q2")).examples
    clicks = [click("b", "q2"), click("a", "q1"), click("d", "q2", when=3.0)]
    found = applied(state, topics.CLICKS, *(Record(i, codec.encode(c)) for i, c in enumerate(clicks)))
    assert [(e.query_id, e.doc_id) for e in found.examples] == [("q2", "b"), ("q1", "a"), ("q2", "d")]
    assert not found.unusable


def test_unreadable_bytes_are_a_letter_and_what_follows_them_counts() -> None:
    state = partition()
    applied(state, topics.QUERIES, *asked("q1"))
    found = applied(state, topics.CLICKS, Record(7, b"\xff{"), Record(8, codec.encode(click("a"))))
    assert [(of, live) for of, _, live in found.unusable] == [(7, True)]
    assert [e.doc_id for e in found.examples] == ["a"]


def test_actions_without_feedback_are_counted_and_have_no_effect() -> None:
    state = partition()
    applied(state, topics.QUERIES, *asked("q1"))
    hover = b'{"action_name": "item_hover", "query_id": "q1", "timestamp": "2026-03-02T09:15:09Z"}'
    hovers = [Record(offset, hover) for offset in range(1000)]
    found = applied(state, topics.CLICKS, *hovers, Record(1000, codec.encode(click("a"))))
    assert found.unusable == []
    assert [e.doc_id for e in found.examples] == ["a"]
    assert (state.join.counts["ignored"], state.join.counts["joined"]) == (1000, 1)


def test_what_is_read_again_after_a_restart_sends_its_letter_no_second_time() -> None:
    state = partition(handled={topics.CLICKS.suffix: 8})
    found = applied(state, topics.CLICKS, Record(7, b"\xff{"), Record(8, b"\xff{"))
    assert [(of, live) for of, _, live in found.unusable] == [(7, False), (8, True)]


def test_a_click_on_what_was_not_shown_is_a_letter_of_the_click_itself() -> None:
    state = partition()
    early = applied(state, topics.CLICKS, Record(41, codec.encode(click("nowhere"))))
    assert not early.unusable, "it waits for its query"
    found = applied(state, topics.QUERIES, *asked("q1"))
    ((of, error, live),) = found.unusable
    assert (of, live) == (41, True), "and not of the query that it waited for"
    assert isinstance(error, ImpossibleFeedbackError)
    assert "'nowhere' was not shown" in str(error)


def test_other_indexes_have_no_effect() -> None:
    state = partition()
    applied(state, topics.QUERIES, *asked("q1"))
    other = msgspec.structs.replace(click("a"), index="shoes")
    found = applied(state, topics.CLICKS, Record(0, codec.encode(other)))
    assert not found.examples
    assert not found.unusable


def test_a_record_from_the_future_is_as_old_as_now() -> None:
    tomorrow = int((NOON + 86_400) * 1000)
    records = [replace(record, timestamp=tomorrow) for record in asked("q1")]
    assert applied(partition(), topics.QUERIES, *records, now=NOON + 5).log_time == NOON + 5
    assert applied(partition(), topics.QUERIES, *asked("q1"), now=NOON + 5).log_time == NOON
