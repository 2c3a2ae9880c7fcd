"""What an app uses: send feedback, hear of new models. Needs the base install only."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from clickloop import codec, topics
from clickloop.codec import split_key as split_key
from clickloop.errors import BrokerError, InvalidMessageError, MessageError
from clickloop.events import (
    DocumentChanged,
    Message,
    ModelVersionPublished,
    QueryServed,
    Result,
    ResultClicked,
    ResultPreferred,
    ResultRated,
)
from clickloop.kafka import CLOSE_SECONDS, FLUSH_SECONDS, Follower, Producer, Record
from clickloop.logs import logger


class _Deliveries:
    """What was handed over and is not acknowledged yet, and what failed since that was last said.

    Bounded by the send buffer, which holds two batches of a partition, and then makes the sender wait.
    """

    def __init__(self) -> None:
        self._open: set[asyncio.Future[Any]] = set()
        self._failed = 0
        self._first = ""

    def add(self, delivery: asyncio.Future[Any]) -> None:
        self._open.add(delivery)
        delivery.add_done_callback(self._settle)

    def _settle(self, delivery: asyncio.Future[Any]) -> None:
        if delivery not in self._open:
            return
        self._open.remove(delivery)
        error = asyncio.CancelledError() if delivery.cancelled() else delivery.exception()
        if error is not None:
            self._failed += 1
            self._first = self._first or repr(error)

    async def acknowledged(self, *, timeout_seconds: float) -> None:
        """Return once the broker has all of them. Raises BrokerError if one failed, or is open by then."""
        delivered = set(self._open)
        if delivered:
            await asyncio.wait(delivered, timeout=timeout_seconds)
        for delivery in delivered:
            if delivery.done():
                self._settle(delivery)
        waiting = len(delivered & self._open)
        if not self._failed and not waiting:
            return
        reason = self._first or f"no answer within {timeout_seconds:.0f} s"
        count, self._failed, self._first = self._failed + waiting, 0, ""
        raise BrokerError(f"messages that the broker did not acknowledge: {count}; the first for this: {reason}")


class FeedbackProducer:
    """Sends what users do to Kafka, validated before it leaves the app.

    Use it as an async context manager, one per process::

        async with FeedbackProducer("localhost:9092", index="products") as feedback:
            await feedback.click(query_id, doc_id="sku-17", position=3)
            await feedback.rate(query_id, doc_id="sku-17", rating=5)

    Each call returns once the message is in the send buffer; leaving the block, or ``flush()``, waits for the
    broker's acknowledgement, for FLUSH_SECONDS at most. It raises BrokerError if the broker refused a message or
    did not answer, with the number of such messages and the first reason. Where the block itself raised, that is
    logged instead. Invalid values raise InvalidMessageError at once; a broker that can't be reached, a topic that
    does not exist and a send buffer that stays full raise BrokerError.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        index: str = "default",
        prefix: str = "clickloop",
        source: str = "app",
    ) -> None:
        self._index = index
        self._producer = Producer(bootstrap_servers, prefix=prefix, source=source)
        self._deliveries = _Deliveries()

    async def __aenter__(self) -> FeedbackProducer:
        await self._producer.start()
        self._deliveries = _Deliveries()
        return self

    async def __aexit__(self, _: object, raised: BaseException | None, __: object) -> None:
        try:
            await self.flush()
        except BrokerError as error:
            if raised is None:
                raise
            logger().error("feedback lost", reason=str(error))
        finally:
            await self._producer.stop(timeout_seconds=CLOSE_SECONDS)

    async def flush(self) -> None:
        """Return once the broker has all that was sent. Raises BrokerError where it has not."""
        await self._deliveries.acknowledged(timeout_seconds=FLUSH_SECONDS)

    async def click(
        self,
        query_id: str,
        doc_id: str,
        *,
        position: int | None = None,
        dwell_seconds: float | None = None,
        split_key: str = "",
        clicked_at: datetime | None = None,
        event_id: str | None = None,
    ) -> str:
        """A user opened a result. ``position`` counts from 1. Returns the event's id.

        Send the same ``event_id`` again, and it is still counted once.
        """
        event = ResultClicked(
            event_id=event_id or codec.new_id(),
            index=self._index,
            query_id=query_id,
            doc_id=doc_id,
            clicked_at=clicked_at or codec.now(),
            position=position,
            dwell_seconds=dwell_seconds,
            split_key=split_key,
        )
        await self._send(topics.CLICKS, event)
        return event.event_id

    async def rate(
        self,
        query_id: str,
        doc_id: str,
        rating: float,
        *,
        accuracy: float | None = None,
        relevance: float | None = None,
        split_key: str = "",
        rated_at: datetime | None = None,
        event_id: str | None = None,
    ) -> str:
        """A user rated a result from 1 (useless) to 5 (just right). Returns the event's id.

        Where your app asks for them, ``accuracy`` and ``relevance`` are on the same scale.
        """
        event = ResultRated(
            event_id=event_id or codec.new_id(),
            index=self._index,
            query_id=query_id,
            doc_id=doc_id,
            rating=rating,
            rated_at=rated_at or codec.now(),
            split_key=split_key,
            accuracy=accuracy,
            relevance=relevance,
        )
        await self._send(topics.RATINGS, event)
        return event.event_id

    async def prefer(
        self,
        query_id: str,
        preferred: str,
        alternative: str,
        *,
        strength: float = 1.0,
        split_key: str = "",
        preferred_at: datetime | None = None,
        event_id: str | None = None,
    ) -> str:
        """Of two results of one query a user, or a judge, chose ``preferred``. Returns the event's id.

        ``strength`` is above 0 (next to level) and at most 1 (beyond doubt).
        """
        event = ResultPreferred(
            event_id=event_id or codec.new_id(),
            index=self._index,
            query_id=query_id,
            preferred=preferred,
            alternative=alternative,
            preferred_at=preferred_at or codec.now(),
            strength=strength,
            split_key=split_key,
        )
        await self._send(topics.RATINGS, event)
        return event.event_id

    async def query(
        self,
        query: str,
        doc_ids: list[str],
        *,
        query_id: str | None = None,
        split_key: str = "",
        version: str = "",
        domain: str = "",
        served_at: datetime | None = None,
    ) -> str:
        """Your own search served ``doc_ids``, best first. (A Clickloop node reports this by itself.)

        Returns the query's id, which its clicks and ratings must carry.
        """
        event = QueryServed(
            event_id=codec.new_id(),
            index=self._index,
            query_id=query_id or codec.new_id(),
            query=query,
            served_at=served_at or codec.now(),
            results=[Result(doc_id=d, position=i) for i, d in enumerate(doc_ids, start=1)],
            split_key=split_key,
            version=version,
            domain=domain,
        )
        await self._send(topics.QUERIES, event)
        return event.query_id

    async def document(
        self,
        doc_id: str,
        text: str = "",
        *,
        title: str = "",
        attributes: dict[str, str | int | float | bool] | None = None,
        deleted: bool = False,
    ) -> None:
        """A document is new or changed, or, with ``deleted=True``, gone."""
        event = DocumentChanged(
            event_id=codec.new_id(),
            index=self._index,
            doc_id=doc_id,
            changed_at=codec.now(),
            text=text,
            title=title,
            attributes=attributes or {},
            deleted=deleted,
        )
        await self._send(topics.DOCUMENTS, event)

    async def _send(self, topic: topics.Topic, event: Message) -> None:
        # Constructing a Struct doesn't validate; reading it back does, by the rules that every consumer applies.
        codec.decode(codec.encode(event), type(event))
        self._deliveries.add(await self._producer.send(topic, event))


class ModelSubscriber:
    """Yields model versions as they are published: the model-ready topic for your own code.

    ::

        async with ModelSubscriber("localhost:9092", index="products") as models:
            async for model in models:
                print(model.version, model.artifact_uri, model.gate)

    With ``from_beginning`` (the default) it starts with the versions that exist. Each version comes once; a loop
    that was left goes on with the next one, as does one after ``wait_for``.
    Versions whose gate did not pass are left out unless ``all_verdicts`` is set; the base model, which went
    through no gate, comes. Messages that can't be read are logged and skipped.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        index: str = "default",
        prefix: str = "clickloop",
        from_beginning: bool = True,
        all_verdicts: bool = False,
    ) -> None:
        self._follower = Follower(
            bootstrap_servers, [topics.MODEL_VERSIONS], prefix=prefix, from_beginning=from_beginning
        )
        self._index = index
        self._all_verdicts = all_verdicts
        self._seen: dict[str, ModelVersionPublished] = {}
        self._fetched: deque[Record] = deque()
        """Outlives a loop that is left: the next one goes on where it ended."""

    async def __aenter__(self) -> ModelSubscriber:
        await self._follower.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._follower.stop()

    async def __aiter__(self) -> AsyncIterator[ModelVersionPublished]:
        while True:
            while self._fetched:
                event = self._new(self._fetched.popleft())
                if event is not None and self._wanted(event):
                    yield event
            self._fetched.extend(record for _, record in await self._follower.batch(timeout_seconds=1.0))

    def _new(self, record: Record) -> ModelVersionPublished | None:
        """A version of the index that was not heard of before."""
        if record.value is None:
            return None
        try:
            event = codec.decode(record.value, ModelVersionPublished)
        except MessageError as error:
            logger().warning("model version skipped", offset=record.offset, reason=str(error))
            return None
        if event.index != self._index or event.version in self._seen:
            return None
        self._seen[event.version] = event
        return event

    def _wanted(self, event: ModelVersionPublished) -> bool:
        return self._all_verdicts or event.gate is None or event.gate.verdict == "pass"

    async def wait_for(self, version: str, *, timeout_seconds: float) -> ModelVersionPublished:
        """The named version, once it is published. Raises TimeoutError."""
        known = self._seen.get(version)
        if known is not None and self._wanted(known):
            return known
        async with asyncio.timeout(timeout_seconds):
            async for event in self:
                if event.version == version:
                    return event
        raise InvalidMessageError(f"no version {version}")
