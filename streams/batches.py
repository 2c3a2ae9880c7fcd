"""Record batches for Faust's agents, and what the log remembers for a worker.

Faust's cost is per message. Here a message is all records of one partition that one fetch brought, so that cost
is paid once for hundreds of records. Three things follow:

- Offsets are not acknowledged one by one. ``BatchTransport.low_water`` names for each partition the oldest
  offset that is still needed, and that is what gets committed. A partition without an entry is read from its
  start again.
- What a rebalance interrupts is fetched again, from the committed offset; a batch carries its generation, so
  that its reader can tell old state from new.
- Partition n of every topic goes to the same worker, or the join would not be local.

It leans on Faust's inside (faust-streaming 0.15): the consumer's ``getmany``, ``perform_seek``, ``_new_offset``,
``_filter_tps_with_pending_acks`` and ``_add_gap``, and its thread's ``_fetch_records``, ``_commit`` and
``_create_worker_consumer``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import KafkaError as KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP, ConsumerMessage

from clickloop.errors import BrokerError
from clickloop.kafka import Record
from clickloop.logs import logger
from clickloop.records import as_read

FETCH_WAIT_MS = 100
"""A broker that answers as soon as there is data makes no difference here; the embedded one looks now and then."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive records of one partition, from one fetch. Never empty."""

    topic: str
    partition: int
    generation: int
    records: list[Any]
    """As ``clickloop.records.Read`` has them."""

    @property
    def next_offset(self) -> int:
        return int(self.records[-1].offset) + 1

    def record(self, found: Any) -> Record:
        """One of ``records``, with its place."""
        return Record(self.topic, self.partition, found.offset, found.key, found.value, tuple(found.headers))


class CopartitionAssignor(AbstractPartitionAssignor):  # type: ignore[misc]
    """Partition n of every topic goes to member n modulo the number of members."""

    name = "clickloop-copartition"
    version = 0

    @classmethod
    def assign(
        cls, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        order = sorted(members)
        topics = sorted({topic for m in members.values() for topic in m.subscription})
        given: dict[str, dict[str, list[int]]] = {member: {} for member in order}
        for topic in topics:
            for number in sorted(cluster.partitions_for_topic(topic) or ()):
                given[order[number % len(order)]].setdefault(topic, []).append(number)
        return {
            member: ConsumerProtocolMemberAssignment(cls.version, sorted(partitions.items()), b"")
            for member, partitions in given.items()
        }

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(cls.version, sorted(topics), b"")

    @classmethod
    def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Nothing to keep: the assignment follows from the members alone."""


class _Fetched(dict[Any, list[Any]]):
    """Records by partition, and the generation of the assignment that they were fetched under."""

    generation: int = -1


class _Thread(AIOKafkaConsumerThread):  # type: ignore[misc]
    """The driver's thread, with our assignor, and commits that outlive a broker's absence."""

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._partition_assignment_strategy = (CopartitionAssignor,)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        consumer._value_deserializer = as_read
        return consumer

    async def _fetch_records(self, consumer: AIOKafkaConsumer, *args: Any, **kwargs: Any) -> _Fetched:
        fetched = _Fetched(await super()._fetch_records(consumer, *args, **kwargs))
        # aiokafka hands out records of the assignment in force, so here, in its thread, the tag is right.
        fetched.generation = consumer._coordinator.generation
        return fetched

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit, or leave it to the next time: nothing is lost by reading from an older offset."""
        consumer = self._ensure_consumer()
        assigned = self.assignment()
        wanted = {
            TopicPartition(tp.topic, tp.partition): OffsetAndMetadata(offset, "")
            for tp, offset in offsets.items()
            if tp in assigned
        }
        try:
            await consumer.commit(wanted)
        except KafkaError as error:
            logger().warning("offsets not committed", reason=repr(error))
            return False
        return True


class BatchConsumer(Consumer):  # type: ignore[misc]
    """Faust's consumer, with one message per partition and fetch.

    Once ``ready_generation`` is the app's generation, ``starts`` holds the first offset that each assigned
    partition is read from, and ``ends`` the log's end at that time.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ready_generation = -1
        self.starts: dict[TP, int] = {}
        self.ends: dict[TP, int] = {}

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:  # noqa: ASYNC109
        records, _ = await self._wait_next_records(timeout)
        if not records or self.should_stop:
            return
        generation = records.generation
        if generation == self.app.consumer_generation_id and not self.flow_active:
            # Fetched before the partitions were put to their places: put them there again.
            await self.perform_seek()
            return
        for found, batch in records.items():
            tp = TP(found.topic, found.partition)
            if not self.flow_active or self.app.consumer_generation_id != generation:
                # A rebalance came in between. With the new assignment every partition starts from its
                # committed offset again, so what is dropped here is fetched again.
                return
            if batch:
                yield tp, self._message(tp, batch, generation)

    async def perform_seek(self) -> None:
        """Put every assigned partition to its committed offset, or to its start where it has none."""
        generation = self.app.consumer_generation_id
        await super().perform_seek()
        assigned = sorted(self.assignment())
        if not assigned:
            return
        partitions = [TopicPartition(tp.topic, tp.partition) for tp in assigned]
        fresh = [p for tp, p in zip(assigned, partitions, strict=True) if not self._committed_offset[tp]]
        if fresh:
            await self._thread.seek_to_beginning(*fresh)
        earliest = await self.earliest_offsets(*partitions)
        self.ends = {TP(*p): offset for p, offset in (await self.highwaters(*partitions)).items()}
        self.starts = {TP(*p): max(offset, self._committed_offset[TP(*p)] or 0) for p, offset in earliest.items()}
        self.ready_generation = generation

    def highwater(self, tp: TP) -> int | None:
        """The end of a partition as of the last fetch. None: not known, or by now another worker's."""
        try:
            end: int | None = super().highwater(tp)
        except (AssertionError, AttributeError):
            # Its thread may lose the partition at any moment; aiokafka then fails in one of these two ways.
            return None
        return end

    def _message(self, tp: TP, records: list[Any], generation: int) -> ConsumerMessage:
        last = records[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000.0,
            None,
            [],
            None,
            Batch(tp.topic, tp.partition, generation, records),
            None,
            0,
            sum(len(r.value or b"") for r in records),
            tp,
            generation_id=generation,
        )

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (
            tp for tp in list(self.transport.low_water) if topics is None or tp in topics or tp.topic in topics
        )

    def _new_offset(self, tp: TP) -> int | None:
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        offset: int | None = self.transport.low_water.get(tp)
        return offset

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Offsets between batches need no bookkeeping: nothing is acknowledged one by one."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust would complain of a partition whose offset stands still, as an open window's must."""


class BatchTransport(Transport):  # type: ignore[misc]
    """Set it as ``app.transport``. ``low_water`` is what the worker still needs, by partition."""

    Consumer: ClassVar[type[BatchConsumer]] = BatchConsumer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.low_water: dict[TP, int] = {}


class Handled:
    """How far each partition's effects are in the log: the committed offsets of a group that has no members.

    The low-water mark says where to read again from; this says which of what is read again has had its effects.
    """

    def __init__(self, bootstrap_servers: str, *, group: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._group = group
        self._consumer: AIOKafkaConsumer | None = None
        self._assigned: set[TopicPartition] = set()

    async def __aenter__(self) -> Handled:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap_servers, group_id=self._group, enable_auto_commit=False
        )
        try:
            await consumer.start()
        except KafkaError as error:
            await consumer.stop()
            raise BrokerError(f"no Kafka broker answers at {self._bootstrap_servers}: {error}") from None
        self._consumer = consumer
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    async def read(self, wanted: Iterable[TP]) -> dict[TP, int]:
        """The offset below which everything has had its effects; 0 where nothing is known.

        As of one moment: a past owner's last commit may come meanwhile, and what is committed together must be
        read together. Offsets only grow, so two readings that agree were both true between them.
        """
        partitions = {tp: TopicPartition(tp.topic, tp.partition) for tp in wanted}
        consumer = self._with(partitions.values())
        before: dict[TP, int] | None = None
        while True:
            found = {tp: await consumer.committed(partition) or 0 for tp, partition in partitions.items()}
            if found == before:
                return found
            before = found

    async def commit(self, offsets: Mapping[TP, int]) -> None:
        """Raises KafkaError."""
        wanted = {TopicPartition(tp.topic, tp.partition): offset for tp, offset in offsets.items()}
        await self._with(wanted).commit(wanted)

    def _with(self, partitions: Iterable[TopicPartition]) -> AIOKafkaConsumer:
        """The consumer, with these partitions assigned by hand: only such may be asked about."""
        if self._consumer is None:
            raise BrokerError("this is not started: use 'async with'")
        new = set(partitions) - self._assigned
        if new:
            self._assigned |= new
            self._consumer.assign(list(self._assigned))
            # Nothing is ever read through it.
            self._consumer.pause(*self._assigned)
        return self._consumer
