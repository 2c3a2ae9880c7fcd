"""A worker that is asked to stop while a batch is half through, or whose partitions have gone to another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from clickloop import codec, topics
from clickloop.errors import ClickloopError
from clickloop.events import Message, QueryServed, Result
from clickloop.records import Read
from streams import metrics
from streams.app import StreamsApp, build_app
from streams.batches import Batch
from streams.partition import INPUTS, Partition
from streams.settings import StreamsSettings

SETTINGS = StreamsSettings(report_seconds=0.001)
NAMES = {suffix: f"clickloop.{suffix}.v1" for suffix in INPUTS}
GENERATION = 3


class Worker:
    """A worker in one generation, with partition 0; its broker is a list."""

    def __init__(self) -> None:
        self.streams: StreamsApp = build_app(SETTINGS)
        self.sent: list[Message] = []
        self.committed: list[dict[TP, int]] = []
        self.consumer = SimpleNamespace(
            ready_generation=GENERATION,
            starts={TP(name, 0): 0 for name in NAMES.values()},
            highwater=lambda _: 0,
            resume_partitions=lambda _: None,
        )
        partition = Partition(
            0, SETTINGS, handled=dict.fromkeys(INPUTS, 0), forgotten=frozenset(), now=time.time()
        )
        streams: Any = self.streams
        streams._app = SimpleNamespace(
            consumer=self.consumer, transport=SimpleNamespace(low_water={}), stop=self.streams.tick
        )
        streams._producer = SimpleNamespace(send_and_wait=self._send)
        streams._handled = SimpleNamespace(commit=self._commit, read=self._read)
        streams._generation = GENERATION
        streams._partitions = {0: partition}
        streams._gauges = {0: SimpleNamespace(tell=lambda _: None)}

    async def _send(self, _: topics.Topic, message: Message) -> None:
        self.sent.append(message)

    async def _read(self, owned: set[TP]) -> dict[TP, int]:
        return dict.fromkeys(owned, 0)

    async def _commit(self, offsets: dict[TP, int]) -> None:
        self.committed.append(offsets)


def batch() -> Batch:
    now = codec.now()
    served = QueryServed(
        event_id="1",
        index=SETTINGS.index,
        query_id="1",
        query="how to sort",
        served_at=now,
        results=[Result(doc_id="a", position=1)],
        split_key="user",
        version="base-1",
        space="base-1",
        arm="live",
    )
    record = Read(0, int(now.timestamp() * 1000), b"1", codec.encode(served), b"")
    return Batch(NAMES[topics.QUERIES.suffix], 0, GENERATION, [record])


async def test_what_a_batch_counted_before_it_was_cut_off_is_in_no_report() -> None:
    """Its offsets are not handled, so the next owner counts it: it would count twice, under two ids."""
    worker, waiting = Worker(), asyncio.Event()

    async def hang(*_: Any) -> None:
        waiting.set()
        await asyncio.Event().wait()

    worker.streams._caps.exchange = hang  # type: ignore[method-assign]
    feeding = asyncio.create_task(worker.streams.on_feedback(batch()))
    await waiting.wait()
    feeding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await feeding
    await worker.streams._stop_app()
    assert worker.sent == []
    assert worker.committed == []


async def test_what_a_batch_counted_before_a_rule_failed_is_in_no_report() -> None:
    """The worker ends a moment later, and its timer does not know."""
    worker = Worker()

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    async def feed() -> None:
        async with worker.streams.loud("feedback"):
            await worker.streams.on_feedback(batch())

    worker.streams._caps.exchange = broken  # type: ignore[method-assign]
    feeding = asyncio.create_task(feed())
    with pytest.raises(ClickloopError, match="'feedback': ZeroDivisionError"):
        await worker.streams._failure
    await worker.streams.tick()
    feeding.cancel()
    assert worker.sent == []
    assert worker.committed == []


async def test_a_worker_tells_where_its_partitions_begin_and_nothing_of_those_that_have_gone() -> None:
    worker, (served, clicked, rated) = Worker(), [TP(name, 0) for name in NAMES.values()]
    streams: Any = worker.streams
    metrics.POSITION.labels("queries", "7").set(99)
    metrics.LAG.labels("queries", "7").set(5)

    worker.consumer.starts = {served: 30, clicked: 20, rated: 10}
    worker.consumer.ready_generation += 1
    assert await streams._enter(worker.consumer.ready_generation)
    told = {(s.labels["topic"], s.labels["partition"]): s.value for s in metrics.POSITION.collect()[0].samples}
    assert told == {("queries", "0"): 30, ("clicks", "0"): 20, ("ratings", "0"): 10}
    assert not metrics.LAG.collect()[0].samples


@pytest.mark.parametrize("moved", [False, True])
async def test_how_far_it_came_is_committed_by_no_past_owner(moved: bool) -> None:
    worker = Worker()
    await worker.streams.on_feedback(batch())
    await worker.streams._sent(0)

    async def slow(_: topics.Topic, message: Message) -> None:
        worker.sent.append(message)
        worker.consumer.ready_generation += moved

    worker.streams._producer.send_and_wait = slow  # type: ignore[assignment,method-assign]
    await worker.streams.tick()
    assert len(worker.sent) == 1
    assert [offsets[TP(NAMES[topics.QUERIES.suffix], 0)] for offsets in worker.committed] == [1] * (not moved)
