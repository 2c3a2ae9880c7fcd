"""Publishes what was served, apart from the answer: a bounded queue between the two.

A query's sketch comes from the base encoder's vector. Where the answer was made with it, the sketch costs nothing.
Where another encoder answered, a fixed share of the queries is encoded once more, in batches, after the answer:
detectors compare distributions, and a share of the queries shows them as well.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import msgspec

from clickloop.events import QueryServed
from clickloop.kafka import Producer
from clickloop.logs import logger
from clickloop.topics import QUERIES
from search.encoder import Encoder
from search.metrics import Metrics
from search.sketch import sketch

WAITING = 10_000
"""Events that may wait for the broker. Beyond that the oldest go, counted."""
BATCH = 64
SKETCHED_SHARE = 4
"""One query in so many gets a sketch where it costs an encode."""


class Recorder:
    def __init__(self, producer: Producer, metrics: Metrics) -> None:
        self._producer = producer
        self._metrics = metrics
        self._waiting: deque[QueryServed] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sketch")
        self.base: Encoder | None = None
        """Encoder of the sketches, once it is loaded."""

    def offer(self, event: QueryServed) -> None:
        """Take an event; returns at once."""
        if len(self._waiting) >= WAITING:
            self._waiting.popleft()
            self._metrics.events.labels("dropped").inc()
        self._waiting.append(event)
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                    for event in await self._with_sketches(batch):
                        await self._send(event)
                self._idle.set()
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def flush(self, *, timeout_seconds: float) -> None:
        """Wait until all that was offered is acknowledged, at most so long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
                await self._producer.flush()
        except TimeoutError:
            logger().warning("not all QueryServed events could be sent", waiting=len(self._waiting))

    async def _with_sketches(self, batch: list[QueryServed]) -> list[QueryServed]:
        base = self.base
        lacking = [i for i, event in enumerate(batch) if not event.sketch and _is_sampled(event.query_id)]
        if base is None or not lacking:
            return batch
        texts = [batch[i].query for i in lacking]
        vectors = await asyncio.get_running_loop().run_in_executor(self._thread, base.encode_queries, texts)
        for i, vector in zip(lacking, vectors, strict=True):
            batch[i] = msgspec.structs.replace(batch[i], sketch=sketch(vector))
        return batch

    async def _send(self, event: QueryServed) -> None:
        try:
            future = await self._producer.send(QUERIES, event)
        except Exception as error:  # noqa: BLE001 - the node must outlive its broker; counted and logged
            self._lost(error)
            return
        future.add_done_callback(self._on_sent)

    def _on_sent(self, future: asyncio.Future[object]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._metrics.events.labels("sent").inc()
        else:
            self._lost(error)

    def _lost(self, error: BaseException) -> None:
        self._metrics.events.labels("failed").inc()
        logger().warning("QueryServed could not be sent", reason=repr(error))


def _is_sampled(query_id: str) -> bool:
    return zlib.crc32(query_id.encode()) % SKETCHED_SHARE == 0
