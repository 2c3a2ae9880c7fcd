from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from clickloop import codec, topics
from clickloop.errors import TrainingError
from clickloop.events import Arm, DocumentChanged, ExampleFormed, OffsetRange, SplitChanged
from clickloop.kafka import Record
from clickloop.sources import Sources
from tests.unit.busy_topic import busy
from tests.unit.trainer_facts import example
from trainer.examples import (
    MOST_UNREADABLE,
    ExampleCollector,
    Reservoir,
    merged,
    read_documents,
    read_live_version,
)


def record(value: bytes, offset: int = 0) -> Record:
    return Record("clickloop.training-examples.v1", 0, offset, None, value)


def collect(*examples: ExampleFormed, most: int = 100) -> ExampleCollector:
    collector = ExampleCollector(index="default", most=most)
    for offset, one in enumerate(examples):
        collector.add(record(codec.encode(one), offset))
    return collector


def test_only_the_highest_revision_of_an_example_counts_in_whatever_order_they_lie():
    second = example("how", "d1", revision=2, position=3)
    read = collect(second, example("how", "d1", revision=1, position=1)).result()
    assert read.examples == [second]


def test_unreadable_bytes_are_handed_over_and_the_rest_is_read():
    collector = collect(example("how", "d1"))
    collector.add(record(b"\xff no json", 7))
    read = collector.result()
    assert len(read.examples) == 1
    assert [r.offset for r, _ in read.unreadable] == [7]


def test_a_log_of_garbage_ends_the_run_instead_of_filling_the_memory():
    collector = ExampleCollector(index="default", most=10)
    for offset in range(MOST_UNREADABLE):
        collector.add(record(b"garbage", offset))
    with pytest.raises(TrainingError, match="can't be read"):
        collector.add(record(b"garbage", MOST_UNREADABLE))


def test_examples_of_other_indexes_are_counted_and_not_used():
    read = collect(example("how", "d1", index="other")).result()
    assert (read.examples, read.of_other_indexes) == ([], 1)


@pytest.mark.parametrize("kept_by", [ExampleCollector, Reservoir])
def test_nothing_is_kept_of_who_asked_to_be_forgotten(kept_by: type[ExampleCollector | Reservoir]):
    collector = kept_by(index="default", most=10, forgotten={"ann", ""})
    for number, key in enumerate(("ann", "bob", "", "ann")):
        collector.add(record(codec.encode(example(f"query {number}", "d1", number=number, key=key))))
    found = collector.result()
    assert [e.split_key for e in (found if isinstance(found, list) else found.examples)] == ["bob", ""]


def test_beyond_the_bound_the_oldest_examples_go_and_are_counted():
    read = collect(*(example(f"query {n}", "d1", number=n) for n in range(50)), most=10).result()
    assert [e.query for e in read.examples] == [f"query {n}" for n in range(40, 50)]
    assert read.dropped == 40


def test_overlapping_ranges_name_each_offset_once():
    def offsets(partition: int, start: int, end: int) -> OffsetRange:
        return OffsetRange(topic="t", partition=partition, start=start, end=end)

    assert merged([offsets(1, 5, 9), offsets(0, 0, 4), offsets(0, 2, 8), offsets(0, 8, 9), offsets(0, 3, 3)]) == [
        offsets(0, 0, 9),
        offsets(1, 5, 9),
    ]


async def test_topics_that_are_written_to_all_the_time_are_read_to_where_they_ended(
    monkeypatch: pytest.MonkeyPatch,
):
    now = datetime(2026, 3, 2, tzinfo=UTC)
    document = DocumentChanged(
        event_id="d1", index="default", doc_id="d1", changed_at=now, title="shoe", text="red"
    )
    split = SplitChanged(
        event_id="s1",
        index="default",
        split_id="s1",
        sequence=1,
        changed_at=now,
        arms=[Arm(name="live", version="base-1", buckets=10_000)],
        reason="test",
        salt="s",
    )
    async with asyncio.timeout(10):
        monkeypatch.setattr("trainer.examples.Follower", busy(topics.DOCUMENTS, lambda _: document, held=1))
        documents, _ = await read_documents("nowhere:1", prefix="p", index="default", sources=Sources("default"))
        monkeypatch.setattr("trainer.examples.Follower", busy(topics.TRAFFIC_SPLITS, lambda _: split, held=1))
        live = await read_live_version("nowhere:1", prefix="p", index="default")
    assert [one.doc_id for one in documents] == ["d1"]
    assert live == "base-1"
