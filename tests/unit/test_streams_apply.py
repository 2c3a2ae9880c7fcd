"""A batch of records: what of it becomes examples, and what becomes a letter, with which reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from clickloop import codec, topics
from clickloop.errors import ImpossibleFeedbackError
from clickloop.events import DriftMeasured
from clickloop.sources import Sources
from streams.apply import Applied, apply
from streams.balance import MAX_SLICES
from streams.buffer import MAX_ARMS
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


def test_a_report_fits_into_a_message_whatever_queries_name() -> None:
    state = partition(domain_minimums=["shop-7=1"])
    names = [f"shop-{n}" for n in range(2000)]
    for number, name in enumerate(names):
        served = query(
            f"q{number}", domain=name, version=f"v{number}" if number else "x" * 900_000, key=f"u{number}"
        )
        state.query(served, offset=number, log_time=NOON, now=NOON)
        state.feedback(click("a", f"q{number}"), offset=number, log_time=NOON + 2, now=NOON + 2)
    report = state.report(NOON + 9)
    assert report is not None
    raw = codec.encode(report.event)
    assert len(raw) < codec.MAX_MESSAGE_BYTES / 2
    told = codec.decode(raw, DriftMeasured)
    assert (told.queries, told.clicks) == (2000, told.examples)
    assert sum(part.examples for part in told.slices) == told.examples > 0
    assert "shop-7" in {part.domain for part in told.slices}, "a minimum is set for it"
    assert 1 < len(told.slices) <= MAX_SLICES
    assert 1 < len(told.arms) <= MAX_ARMS
    assert all(len(arm.version) < 10 for arm in told.arms)


def test_a_sketch_of_any_length_takes_no_more_room_than_ours() -> None:
    state = partition()
    for number, length in enumerate((64, 700_000)):
        state.query(query(f"q{number}", sketch=b"x" * length), offset=number, log_time=NOON, now=NOON)
    assert [len(asked.sketch) for asked in state._sample.asked] == [64, 0]


def test_people_who_click_what_is_popular_have_not_gone_away() -> None:
    """Beyond its share a document's clicks teach nothing more. They say nothing against the answers, either."""
    state = partition(window_seconds=60.0)
    for number in range(60):
        served = query(f"q{number}", served=number, key=f"u{number}", text=f"t{number}")
        state.query(served, offset=number, log_time=NOON + number, now=NOON + number)
        state.feedback(
            click("a", f"q{number}", when=number + 2), offset=number, log_time=NOON + number + 2, now=NOON + number
        )
    assert state.trust.counts["document_share"] > 20
    state.close({"queries", "clicks", "ratings"}, NOON + 1000)
    assert state._sample.abandoned["base-1"].total == 0.0
    assert state._sample.clicks["base-1"].mean == 1.0
    report = state.report(NOON + 1000)
    assert report is not None
    assert report.event.abandoned == state.trust.counts["document_share"], "those without a trusted click"


def test_who_clicks_has_no_say_in_the_hour_that_the_shares_count_a_click_in() -> None:
    believed = []
    for ahead in (0.0, 3700.0):
        state = partition(window_seconds=86_400.0)
        for number in range(200):
            served = query(f"q{number}", key="", text=f"t{number}")
            state.query(served, offset=number, log_time=NOON, now=NOON)
            lie = click("a", f"q{number}", when=5 + ahead * (1 + number // 20))
            state.feedback(lie, offset=number, log_time=NOON + 5, now=NOON + 5)
        believed.append(200 - state.trust.counts["document_share"])
    assert believed == [20, 20]
