"""The edge to Kafka: topics, producers and consumers, with aiokafka behind them.

Only what lies beneath it (``cluster``, ``offsets``, ``records``, ``standby``) imports aiokafka as well; nothing
else in ``clickloop``, ``search`` and ``trainer`` does. (``streams`` reads through Faust.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import stamina
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from clickloop import codec, offsets, topics
from clickloop.cluster import START_SECONDS, answering, has_idempotence, unreachable
from clickloop.cluster import check_servers as check_servers
from clickloop.cluster import create_topics as create_topics
from clickloop.cluster import list_topics as list_topics
from clickloop.errors import BrokerError, MessageError, RangeGoneError
from clickloop.events import Message, OffsetRange
from clickloop.letters import letter_of
from clickloop.logs import logger
from clickloop.records import read_any_header_name
from clickloop.standby import StandBy

read_any_header_name()

M = TypeVar("M", bound=Message)

MAX_BATCH_BYTES = 128 * 1024
"""Of one batch to one partition, before compression: a burst of examples goes out in a few requests."""
FETCH_WAIT_MS = 100
"""A broker answers as soon as there is data, but the embedded one looks only at fractions of this."""
SILENT_SECONDS = 30.0
"""A broker from which nothing more of what it holds has come by then is there no longer."""
FLUSH_SECONDS = 60.0
"""What is not acknowledged by then is waited for no longer: an idempotent producer would try for ever."""
CLOSE_SECONDS = 1.0
"""For what is under way when a producer closes that has given up, or has nothing left to send."""


@dataclass(frozen=True)
class Record:
    """One record as it lies in the log."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    appended: float = 0.0
    """When the broker took it, seconds since the epoch; 0 where that was not asked."""


def _record(found: Any) -> Record:
    """As aiokafka has read it."""
    at = found.timestamp / 1000.0
    return Record(found.topic, found.partition, found.offset, found.key, found.value, found.headers, at)


class Producer:
    """Sends messages to their topics. Idempotent where the broker supports it.

    ``source`` goes into the CloudEvents header and names the sender.
    """

    def __init__(self, bootstrap_servers: str, *, prefix: str = "clickloop", source: str = "clickloop") -> None:
        self._bootstrap_servers = bootstrap_servers
        self._prefix = prefix
        self._source = source
        self._producer: AIOKafkaProducer | None = None
        self.idempotent = False
        """The broker drops what a retry sends twice. Known once the producer is started."""

    async def start(self) -> None:
        """Raises BrokerError where no broker answers."""
        self.idempotent = await has_idempotence(self._bootstrap_servers)
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap_servers,
            client_id=self._source.replace("/", "-"),
            acks="all",
            enable_idempotence=self.idempotent,
            compression_type="zstd",
            linger_ms=5,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=2 * codec.MAX_MESSAGE_BYTES,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                await producer.start()
        except (KafkaError, TimeoutError) as error:
            await producer.stop()
            raise unreachable(self._bootstrap_servers, error) from None
        self._producer = producer

    async def stop(self, *, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Send what is buffered, then close. What no broker has taken by then is given up."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                await producer.flush()
                await producer.stop()
        except TimeoutError:
            await _give_up(producer)
        except asyncio.CancelledError:
            await _give_up(producer)
            raise

    async def __aenter__(self) -> Producer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def send(
        self, topic: topics.Topic, message: Message, *, partition: int | None = None
    ) -> asyncio.Future[Any]:
        """Hand over to the send buffer; the future resolves when the broker has acknowledged.

        It resolves to the record's metadata (``partition``, ``offset``), or raises KafkaError. Without
        ``partition`` the key decides. Raises BrokerError where the buffer does not take it: no such topic, too
        large, or full for too long.
        """
        if self._producer is None:
            raise BrokerError("this producer is not started: use 'async with' or await start()")
        name = topic.name(self._prefix)
        try:
            future: asyncio.Future[Any] = await self._producer.send(
                name,
                value=codec.encode(message),
                key=topic.key(message).encode(),
                partition=partition,
                headers=codec.headers(message, source=self._source),
            )
        except UnknownTopicOrPartitionError as error:
            raise BrokerError(f"topic {name} does not exist: run 'clickloop topics create'") from error
        except KafkaError as error:
            raise BrokerError(f"{name}: not sent: {error!r}") from error
        return future

    async def send_and_wait(self, topic: topics.Topic, message: Message, *, partition: int | None = None) -> None:
        """Return once every in-sync replica has the message. Raises BrokerError."""
        try:
            await (await self.send(topic, message, partition=partition))
        except KafkaError as error:
            raise BrokerError(f"{topic.suffix}: not acknowledged: {error!r}") from error

    async def send_batch(
        self, topic: topics.Topic, messages: Iterable[Message], *, partition: int
    ) -> list[tuple[int, int]]:
        """Send to one partition, in this order, and return once the broker has all: offset and end of each part.

        For many messages it costs far less than ``send`` for each. Raises BrokerError, and KafkaError where the
        broker refuses; some may lie in the log then.
        """
        if self._producer is None:
            raise BrokerError("this producer is not started: use 'async with' or await start()")
        name, parts = topic.name(self._prefix), []
        batch, sent_at = self._producer.create_batch(), codec.time_header()
        for message in messages:
            record = {
                "key": topic.key(message).encode(),
                "value": codec.encode(message),
                "headers": codec.headers(message, source=self._source, sent_at=sent_at),
                "timestamp": None,
            }
            if batch.append(**record) is None:
                parts.append((await self._producer.send_batch(batch, name, partition=partition), batch))
                batch = self._producer.create_batch()
                batch.append(**record)
        if batch.record_count():
            parts.append((await self._producer.send_batch(batch, name, partition=partition), batch))
        acks = await asyncio.gather(*[future for future, _ in parts])
        return [(ack.offset, ack.offset + sent.record_count()) for ack, (_, sent) in zip(acks, parts, strict=True)]

    async def send_all(self, messages: Iterable[tuple[topics.Topic, Message]]) -> None:
        """Send in this order, and return once the broker has all of them. Raises BrokerError."""
        try:
            await asyncio.gather(*[await self.send(topic, message) for topic, message in messages])
        except KafkaError as error:
            raise BrokerError(f"not acknowledged: {error!r}") from error

    async def send_raw(
        self, topic_name: str, value: bytes, *, key: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Send bytes as they are, for replays, and wait for the acknowledgement. Raises BrokerError."""
        if self._producer is None:
            raise BrokerError("this producer is not started: use 'async with' or await start()")
        try:
            await self._producer.send_and_wait(topic_name, value=value, key=key, headers=list(headers))
        except KafkaError as error:
            raise BrokerError(f"{topic_name}: not acknowledged: {error!r}") from error

    async def flush(self) -> None:
        if self._producer is not None:
            await self._producer.flush()

    async def quarantine(self, *unusable: tuple[Record, MessageError], service: str, index: str) -> None:
        """Send messages that can't be used to ``dead-letters``, each with its reason. Raises BrokerError."""
        letters = [letter_of(record, error, service=service, index=index) for record, error in unusable]
        await self.send_all((topics.DEAD_LETTERS, letter) for letter in letters)
        if letters:
            first = letters[0]
            logger().warning(
                "messages quarantined",
                count=len(letters),
                topic=first.topic,
                offset=first.offset,
                reason=first.reason[:200],
            )


async def _give_up(producer: AIOKafkaProducer) -> None:
    """Close a producer without what no broker takes: its own ``stop`` would wait for that."""
    producer._closed = True
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await producer._sender.close()
    await producer.client.close()


class Follower:
    """Reads every partition of some topics without a group, each from its beginning, end or offset.

    For what every process must see in full: documents, model versions, splits, node status. Nothing is
    committed: a restart reads the (compacted) log again, which is the state.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        wanted: Iterable[topics.Topic],
        *,
        prefix: str = "clickloop",
        from_beginning: bool = True,
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._names = {topic.name(prefix): topic for topic in wanted}
        self._from_beginning = from_beginning
        self._consumer: AIOKafkaConsumer | None = None
        self._ends: dict[TopicPartition, int] = {}

    async def start(self) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap_servers,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=4 * codec.MAX_MESSAGE_BYTES,
        )
        try:
            with answering(self._bootstrap_servers):
                await consumer.start()
                partitions = [p for name in self._names for p in await _partitions(consumer, name)]
                self._ends = await offsets.end_offsets(consumer, partitions)
                if self._from_beginning:
                    await consumer.seek_to_beginning(*partitions)
        except BaseException:
            await _stop(consumer)
            raise
        if not self._from_beginning:
            for partition, end in self._ends.items():
                consumer.seek(partition, end)
        self._consumer = consumer

    async def stop(self) -> None:
        if self._consumer is not None:
            await _stop(self._consumer)
            self._consumer = None

    async def __aenter__(self) -> Follower:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def batch(
        self, *, timeout_seconds: float = 0.5, max_records: int = 500
    ) -> list[tuple[topics.Topic, Record]]:
        """The next records, at most ``max_records``; empty after ``timeout_seconds`` without any.

        Raises BrokerError.
        """
        if self._consumer is None:
            raise BrokerError("this follower is not started: use 'async with' or await start()")
        with answering(self._bootstrap_servers):
            got = await self._consumer.getmany(timeout_ms=int(timeout_seconds * 1000), max_records=max_records)
        return [(self._names[r.topic], _record(r)) for records in got.values() for r in records]

    async def caught_up(self) -> bool:
        """Everything that lay in the log at the start has been handed out. Raises BrokerError."""
        if self._consumer is None:
            return False
        with answering(self._bootstrap_servers):
            for partition, end in self._ends.items():
                if end and await self._consumer.position(partition) < end:
                    return False
        return True

    async def held(self, *, max_records: int = 500) -> AsyncIterator[tuple[topics.Topic, Record]]:
        """What lay in the log at the start, and what comes with the last of it.

        Not all until nothing comes: a topic that is written to all the time would be read for ever. Raises
        BrokerError where the broker falls silent before.
        """
        while batch := await self._more(max_records):
            for one in batch:
                yield one

    async def _more(self, max_records: int) -> list[tuple[topics.Topic, Record]]:
        """The next records; none where all that lay in the log has been handed out."""
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                while not await self.caught_up():
                    if batch := await self.batch(timeout_seconds=0.2, max_records=max_records):
                        return batch
        except TimeoutError:
            raise BrokerError(
                f"the broker at {self._bootstrap_servers} stopped answering: nothing for {SILENT_SECONDS:.0f} s"
            ) from None
        return []


async def _stop(consumer: AIOKafkaConsumer) -> None:
    """Close a consumer. One that waits to ask a broker again breaks off its own ``stop`` with a cancellation."""
    try:
        await consumer.stop()
    except asyncio.CancelledError:
        await consumer._client.close()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise


async def _partitions(consumer: AIOKafkaConsumer, name: str) -> list[TopicPartition]:
    """The topic's partitions, waiting a little for metadata of a topic that has just been made."""
    async for attempt in stamina.retry_context(on=BrokerError, timeout=15, wait_initial=0.1, wait_max=1.0):
        with attempt:
            # A manual assignment asks for no metadata of its own; this call does.
            await consumer._client.force_metadata_update()
            found = consumer.partitions_for_topic(name)
            if not found:
                consumer._client.add_topic(name)
                raise BrokerError(f"topic {name} does not exist: run 'clickloop topics create'")
            return [TopicPartition(name, number) for number in sorted(found)]
    raise AssertionError("unreachable")


@asynccontextmanager
async def group_consumer(
    bootstrap_servers: str,
    topic: topics.Topic,
    *,
    prefix: str,
    group: str,
    session_timeout_seconds: float = 10.0,
) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer-group member that commits by hand, for work that must be done once: retrain commands.

    Who has the partitions keeps them; the others stand by. A rebalance hands out again what is not committed yet.
    """
    consumer = AIOKafkaConsumer(
        topic.name(prefix),
        bootstrap_servers=bootstrap_servers,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        # A member of an earlier release knows the second one alone.
        partition_assignment_strategy=(StandBy(), RoundRobinPartitionAssignor),
        fetch_max_wait_ms=FETCH_WAIT_MS,
        session_timeout_ms=int(session_timeout_seconds * 1000),
        heartbeat_interval_ms=int(session_timeout_seconds * 1000 / 3),
        max_poll_interval_ms=24 * 60 * 60 * 1000,
    )
    async with _started(consumer, bootstrap_servers):
        yield consumer


@asynccontextmanager
async def _started(consumer: AIOKafkaConsumer, bootstrap_servers: str) -> AsyncIterator[None]:
    """For the block. Raises BrokerError where it can't start."""
    try:
        with answering(bootstrap_servers):
            await consumer.start()
        yield
    finally:
        await _stop(consumer)


@asynccontextmanager
async def _one_look(bootstrap_servers: str, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group, for the block. Raises BrokerError."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, enable_auto_commit=False, **options)
    with answering(bootstrap_servers):
        async with _started(consumer, bootstrap_servers):
            yield consumer


async def end_offsets(bootstrap_servers: str, topic_name: str) -> dict[int, tuple[int, int]]:
    """First offset and end offset of each partition. Raises BrokerError."""
    async with _one_look(bootstrap_servers) as consumer:
        partitions = await _partitions(consumer, topic_name)
        first = await consumer.beginning_offsets(partitions)
        end = await offsets.end_offsets(consumer, partitions)
    return {p.partition: (first[p], end[p]) for p in partitions}


async def offsets_since(bootstrap_servers: str, topic_name: str, since: float) -> dict[int, tuple[int, int]]:
    """For each partition, the first offset that was appended at ``since`` (seconds) or later, and the end offset.

    The embedded broker doesn't look up times, and gives the first offset that it has. Raises BrokerError.
    """
    async with _one_look(bootstrap_servers) as consumer:
        partitions = await _partitions(consumer, topic_name)
        first = await consumer.beginning_offsets(partitions)
        end = await offsets.end_offsets(consumer, partitions)
        found = await consumer.offsets_for_times({p: max(0, int(since * 1000)) for p in partitions})
    starts = {p: end[p] if found[p] is None else max(first[p], found[p].offset) for p in partitions}
    return {p.partition: (starts[p], end[p]) for p in partitions}


async def read_range(bootstrap_servers: str, wanted: OffsetRange, *, on_record: Callable[[Record], None]) -> None:
    """Hand every record with an offset in ``[start, end)`` to ``on_record``, in order.

    Raises RangeGoneError when the broker no longer holds the whole range, BrokerError when it doesn't answer.
    """
    limits = {"auto_offset_reset": "none", "max_partition_fetch_bytes": 4 * codec.MAX_MESSAGE_BYTES}
    async with _one_look(bootstrap_servers, **limits) as consumer:
        partition = TopicPartition(wanted.topic, wanted.partition)
        await _partitions(consumer, wanted.topic)
        first = (await consumer.beginning_offsets([partition]))[partition]
        last = (await offsets.end_offsets(consumer, [partition]))[partition]
        if wanted.start < first or wanted.end > last:
            raise RangeGoneError(
                f"{wanted.topic}/{wanted.partition} holds offsets {first} to {last}, "
                f"not {wanted.start} to {wanted.end}: its retention is shorter than the buffer"
            )
        consumer.seek(partition, wanted.start)
        position = wanted.start
        while position < wanted.end:
            got = await consumer.getmany(partition, timeout_ms=int(1000 * SILENT_SECONDS), max_records=2000)
            records = got.get(partition, [])
            position = max([position, await consumer.position(partition)])
            for r in records:
                if r.offset < wanted.end:
                    on_record(_record(r))
            if not records and position < wanted.end:
                raise BrokerError(
                    f"{wanted.topic}/{wanted.partition}: no record at {position} within {SILENT_SECONDS:.0f} s"
                )
