"""The whole topology: which topic feeds which rule feeds which topic.

    queries, clicks, ratings ──▶ Partition (join, trust, examples) ──▶ training-examples
                                     └── every few seconds ──────────▶ drift-reports
    drift-reports, training-runs, retrain-commands, commands ──▶ Trigger ──▶ retrain-commands
    model-versions, node-status, traffic-splits, drift-reports, commands ──▶ Rollout ──▶ traffic-splits
    what can't be used, of any of them ──▶ dead-letters

An agent decodes, calls the rule, and sends what comes out. The log is the state: see ``streams/batches.py`` for
what is committed when. Partition n of the feedback is one worker's; whoever has partition 0 is also trigger and
rollout.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import faust
from faust.types import TP

from clickloop import codec, topics
from clickloop.commands import Retrain
from clickloop.errors import BrokerError, ClickloopError, ImpossibleFeedbackError, MessageError
from clickloop.events import ExampleFormed, Message, OffsetRange, SplitChanged
from clickloop.kafka import Producer, Record, create_topics
from clickloop.logs import logger
from clickloop.settings import load_mappings
from clickloop.sources import Sources
from streams import metrics
from streams.apply import apply
from streams.backlog import Backlog
from streams.batches import Batch, BatchTransport, Handled, KafkaError
from streams.caps import Caps
from streams.control import CONTROL, Control
from streams.dead_letters import DeadLetterLimit
from streams.forgotten import Forgotten
from streams.partition import INPUTS, QUERIES, Partition
from streams.sending import until_sent
from streams.settings import StreamsSettings
from streams.trigger import NotNow

FEEDBACK = (topics.QUERIES, topics.CLICKS, topics.RATINGS)
CONTROL_PARTITION = 0
TICK_SECONDS = 0.25
START_SECONDS = 60.0
STOP_SECONDS = 8.0
QUEUED_BATCHES = 4
"""Batches that may wait for an agent; then fetching pauses."""


def build_app(settings: StreamsSettings) -> StreamsApp:
    """The Faust app with its agents and timer. Call it inside the event loop that is to run it."""
    # Faust makes this folder though no table of ours is ever in it; it goes with the process.
    scratch = tempfile.TemporaryDirectory(prefix="clickloop-streams-")
    app = faust.App(
        f"{settings.topic_prefix}-streams-{settings.index}",
        broker=[f"aiokafka://{server.strip()}" for server in settings.bootstrap_servers.split(",")],
        store="memory://",
        datadir=scratch.name,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        stream_buffer_maxsize=QUEUED_BATCHES,
        broker_session_timeout=settings.session_timeout_seconds,
        broker_heartbeat_interval=settings.session_timeout_seconds / 3,
        broker_commit_interval=1.0,
        broker_max_poll_interval=24 * 3600.0,
    )
    app.transport = BatchTransport(app.conf.broker_consumer, app)
    streams = StreamsApp(app, settings, scratch)

    def batches_of(wanted: Sequence[topics.Topic]) -> Any:
        names = [topic.name(settings.topic_prefix) for topic in wanted]
        return app.topic(*names, key_serializer="raw", value_serializer="raw")

    @app.agent(batches_of(FEEDBACK), name="feedback")  # type: ignore[untyped-decorator]
    async def feedback(batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            async with streams.loud("feedback"):
                await streams.on_feedback(batch)

    @app.agent(batches_of(CONTROL), name="control")  # type: ignore[untyped-decorator]
    async def control(batches: AsyncIterator[Batch]) -> None:
        async for batch in batches:
            async with streams.loud("control"):
                await streams.on_control(batch)

    @app.timer(TICK_SECONDS)  # type: ignore[untyped-decorator]
    async def tick() -> None:
        async with streams.loud("tick"):
            await streams.tick()

    return streams


class StreamsApp:
    """One worker: the rules' state for the partitions that it owns, and what they send."""

    def __init__(
        self, app: faust.App, settings: StreamsSettings, scratch: tempfile.TemporaryDirectory[str]
    ) -> None:
        where, prefix = settings.bootstrap_servers, settings.topic_prefix
        self._app = app
        self._scratch = scratch
        self._settings = settings
        self._topics = {topic.name(prefix): topic for topic in (*FEEDBACK, *CONTROL)}
        self._sources = Sources(settings.index, load_mappings())
        self._producer = Producer(where, prefix=prefix, source=f"clickloop/streams/{settings.index}")
        self._handled = Handled(where, group=f"{app.conf.id}-handled")
        self._forgotten = Forgotten(where, prefix=prefix, index=settings.index)
        self._caps = Caps(settings.redis_url, prefix=prefix, index=settings.index)
        self._limit = DeadLetterLimit(settings.dead_letters_per_minute)
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lock = asyncio.Lock()
        self._generation = -1
        self._partitions: dict[int, Partition] = {}
        self._gauges: dict[int, metrics.OfPartition] = {}
        self._next_report: dict[int, float] = {}
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._backlog = Backlog()
        self._control: Control | None = None
        self._ending = False

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set. Raises ClickloopError where it can't go on."""
        settings = self._settings
        await create_topics(
            settings.bootstrap_servers,
            prefix=settings.topic_prefix,
            partitions=settings.partitions,
            replication_factor=settings.replication_factor,
        )
        async with self._producer, self._forgotten, self._handled, contextlib.AsyncExitStack() as stack:
            following = asyncio.create_task(self._forgotten.follow(self._forget))
            following.add_done_callback(self._forgets_no_more)
            stack.callback(self._scratch.cleanup)
            stack.callback(following.cancel)
            stack.push_async_callback(self._caps.close)
            stack.callback(self._stop_sending)
            stack.push_async_callback(self._stop_app)
            await self._start_app()
            logger().info("streams ready", index=settings.index)
            await self._wait(stop)

    async def _start_app(self) -> None:
        self._app.finalize()
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._app.start()
        except TimeoutError:
            raise BrokerError(f"no start within {START_SECONDS:.0f} s: does the broker answer?") from None

    async def _stop_app(self) -> None:
        # Faust ends agents in the middle of a batch: what that has counted is in no report from here on.
        self._ending = True
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._app.stop()
        except TimeoutError:
            # Nothing is lost: what was not committed is read again.
            logger().warning("faust did not stop in time", seconds=STOP_SECONDS)

    def _stop_sending(self) -> None:
        """What is not known to be in the log is formed and sent again, under the same ids, at the next start."""
        for sending in self._sending.values():
            sending.cancel()

    async def _wait(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if self._failure.done():
                self._failure.result()
            if self._app.crash_reason is not None:
                raise ClickloopError(f"the worker crashed: {self._app.crash_reason!r}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.2)

    @contextlib.asynccontextmanager
    async def loud(self, name: str) -> AsyncIterator[None]:
        """An error ends the worker. Faust would acknowledge what an agent failed on, and go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the worker's outermost edge: told, and the process ends
            logger().exception("rule failed", agent=name)
            self._fail(ClickloopError(f"the streams worker failed in {name!r}: {error!r}"))
            await asyncio.get_running_loop().create_future()

    def _fail(self, error: ClickloopError) -> None:
        # What a rule failed on may be half counted. The worker goes on for a moment, and must not report it.
        self._ending = True
        if not self._failure.done():
            self._failure.set_exception(error)

    # Feedback: queries, clicks, ratings → training-examples.

    async def on_feedback(self, batch: Batch) -> None:
        async with self._lock:
            if not await self._enter(batch.generation) or batch.partition not in self._partitions:
                return
            partition, topic = self._partitions[batch.partition], self._topics[batch.topic]
            if topic is topics.QUERIES:
                await self._through(partition, topic, batch)
                await self._release(partition)
            elif self._backlog.holds(batch, self._queries_read(partition)):
                self._consumer.pause_partitions([TP(batch.topic, batch.partition)])
            else:
                await self._through(partition, topic, batch)

    async def _through(self, partition: Partition, topic: topics.Topic, batch: Batch) -> None:
        """Put a batch through the rules."""
        applied = apply(
            batch.records,
            partition,
            topic,
            sources=self._sources,
            letter=batch.record,
            index=self._settings.index,
            now=time.time(),
        )
        await self._quarantine([(letter, error) for letter, error, live in applied.unusable if live])
        await self._caps.exchange(partition.number, partition.trust.tallies)
        # While the broker takes this batch's examples, the next batch goes through the rules.
        await self._sent(partition.number)
        sending = self._send_examples(partition, topic, applied.examples, batch, applied.log_time)
        self._sending[partition.number] = asyncio.create_task(sending)

    async def _release(self, partition: Partition) -> None:
        """Go on with feedback that had to wait for its queries."""
        for batch in self._backlog.released(partition.number, self._queries_read(partition)):
            await self._through(partition, self._topics[batch.topic], batch)
            if not self._backlog.is_held(batch.topic, batch.partition):
                self._consumer.resume_partitions([TP(batch.topic, batch.partition)])

    def _queries_read(self, partition: Partition) -> float:
        """Append time up to which the partition's queries have been read."""
        return float("inf") if self._caught_up(partition, QUERIES) else partition.read_up_to(QUERIES)

    async def _send_examples(
        self,
        partition: Partition,
        topic: topics.Topic,
        examples: Sequence[ExampleFormed],
        batch: Batch,
        log_time: float,
    ) -> None:
        """Send what a batch has brought about. Only then is the batch done with."""
        number = partition.number
        if examples:
            name = topics.TRAINING_EXAMPLES.name(self._settings.topic_prefix)
            parts = await until_sent(
                "examples", lambda: self._producer.send_batch(topics.TRAINING_EXAMPLES, examples, partition=number)
            )
            for start, end in parts:
                partition.sent(OffsetRange(topic=name, partition=number, start=start, end=end))
            for label, count in Counter(example.label for example in examples).items():
                metrics.EXAMPLES.labels(label).inc(count)
        partition.applied(topic.suffix, batch.records[0].offset, batch.next_offset, log_time=log_time)
        metrics.EVENTS.labels(topic.suffix).inc(len(batch.records))
        metrics.POSITION.labels(topic.suffix, str(number)).set(batch.next_offset)

    async def _sent(self, *numbers: int) -> None:
        """Return once these partitions' examples are in the log, and their batches done with."""
        for number in numbers:
            sending = self._sending.pop(number, None)
            if sending is not None:
                await sending

    # Control: everything else → retrain-commands, traffic-splits.

    async def on_control(self, batch: Batch) -> None:
        async with self._lock:
            if not await self._enter(batch.generation) or self._control is None:
                return
            control, topic = self._control, self._topics[batch.topic]
            for record in batch.records:
                live = control.is_live(topic, record.offset)
                if record.value is None and "compact" in topic.cleanup:
                    continue
                try:
                    message = codec.decode(record.value, *topic.types)
                except MessageError as error:
                    await self._quarantine([(batch.record(record), error)] if live else [])
                    continue
                if message.index == self._settings.index:  # type: ignore[attr-defined]
                    appended = record.timestamp / 1000.0
                    control.hear(message, offset=record.offset, appended=appended, live=live)
            control.next_offsets[topic] = batch.next_offset
            metrics.EVENTS.labels(topic.suffix).inc(len(batch.records))

    # Time: reports, decisions, what is committed.

    async def tick(self) -> None:
        for number in list(self._partitions) or [CONTROL_PARTITION]:
            async with self._lock:
                if await self._goes_on() and number in self._partitions:
                    await self._tick_partition(self._partitions[number], time.time())
        async with self._lock:
            if await self._goes_on() and self._control is not None:
                await self._tick_control(self._control, time.time())

    async def _goes_on(self) -> bool:
        return not self._ending and await self._enter(self._consumer.ready_generation)

    async def _tick_partition(self, partition: Partition, now: float) -> None:
        number = partition.number
        await self._release(partition)
        await self._sent(number)
        caught_up = {suffix for suffix in INPUTS if self._caught_up(partition, suffix)}
        partition.close(caught_up, now)
        if now >= self._next_report.get(number, 0.0):
            self._next_report[number] = now + self._settings.report_seconds
            await self._report(partition, now)
        for suffix, offset in partition.low_water().items():
            self._app.transport.low_water[self._tp(suffix, number)] = offset
        self._gauges[number].tell({suffix: self._lag(partition, suffix) for suffix in INPUTS})

    async def _report(self, partition: Partition, now: float) -> None:
        report = partition.report(now)
        if report is None:
            return
        await self._send(topics.DRIFT_REPORTS, report.event)
        await self._commit_handled(
            {self._tp(suffix, partition.number): offset for suffix, offset in report.handled.items()}
        )
        metrics.observe_report(report.event)

    async def _tick_control(self, control: Control, now: float) -> None:
        partitions = {topic: self._tp(topic.suffix, CONTROL_PARTITION) for topic in CONTROL}
        starts = {topic: self._consumer.starts[tp] for topic, tp in partitions.items()}
        ends = {topic: self._consumer.ends[tp] for topic, tp in partitions.items()}
        if not control.caught_up(starts, ends):
            return
        for split in control.follow_wishes(now):
            await self._change_split(control, split)
        next_split = control.rollout.decide(now)
        if next_split is not None:
            await self._change_split(control, next_split)
        wish = control.decide(now)
        if isinstance(wish, Retrain):
            await self._send(topics.RETRAIN_COMMANDS, wish)
            control.trigger.retrain(wish)
            logger().info("retrain", command=wish.command_id, reason=wish.reason.text)
            for policy in wish.reason.policies:
                metrics.COMMANDS.labels(policy).inc()
        elif isinstance(wish, NotNow):
            control.say_once(wish.reason)
        metrics.NEW_EXAMPLES.set(control.trigger.new_examples)
        metrics.UNDECIDED.set(control.trigger.undecided(now).examples)
        for topic, offset in control.low_water().items():
            self._app.transport.low_water[self._tp(topic.suffix, CONTROL_PARTITION)] = offset
        handled = control.newly_handled()
        if handled:
            await self._commit_handled(
                {self._tp(t.suffix, CONTROL_PARTITION): offset for t, offset in handled.items()}
            )

    async def _change_split(self, control: Control, split: SplitChanged) -> None:
        await self._send(topics.TRAFFIC_SPLITS, split)
        control.rollout.split(split)
        metrics.SPLITS.inc()
        logger().info("split", split=split.split_id, reason=split.reason)

    # What a generation of the consumer group owns.

    async def _enter(self, generation: int) -> bool:
        """Make ``generation`` the current one. False for a past one: its batches are read again by their owner."""
        if generation < self._generation or generation < 0:
            return False
        if generation == self._generation:
            return True
        if self._consumer.ready_generation != generation:
            return False
        owned = set(self._consumer.starts)
        numbers = sorted(
            {tp.partition for tp in owned if tp.topic == FEEDBACK[0].name(self._settings.topic_prefix)}
        )
        await self._sent(*list(self._sending))
        self._backlog.clear()
        self._consumer.resume_partitions(owned)
        handled = await self._handled.read(owned)
        self._generation = generation
        self._app.transport.low_water.clear()
        self._next_report.clear()
        metrics.forget_partitions()
        now = time.time()
        self._partitions = {
            number: Partition(
                number,
                self._settings,
                handled={suffix: handled[self._tp(suffix, number)] for suffix in INPUTS},
                forgotten=self._forgotten.keys,
                now=now,
                max_open=max(1, self._settings.max_open_impressions // len(numbers)),
            )
            for number in numbers
        }
        self._gauges = {
            number: metrics.OfPartition(one, {s: self._consumer.starts[self._tp(s, number)] for s in INPUTS})
            for number, one in self._partitions.items()
        }
        control = {topic: self._tp(topic.suffix, CONTROL_PARTITION) for topic in CONTROL}
        self._control = (
            Control(self._settings, handled={topic: handled[tp] for topic, tp in control.items()})
            if all(tp in owned for tp in control.values())
            else None
        )
        logger().info(
            "partitions assigned", partitions=numbers, generation=generation, control=bool(self._control)
        )
        return True

    def _caught_up(self, partition: Partition, suffix: str) -> bool:
        """Nothing of this input is left to read, as far as the last fetch knows."""
        return self._lag(partition, suffix) == 0

    def _lag(self, partition: Partition, suffix: str) -> int | None:
        """Messages of this input that are left to read; None where no fetch has told yet."""
        tp = self._tp(suffix, partition.number)
        read = partition.next_offset(suffix)
        position = self._consumer.starts.get(tp, 0) if read is None else read
        end = self._consumer.highwater(tp)
        return None if end is None else max(0, end - position)

    def _tp(self, suffix: str, partition: int) -> TP:
        return TP(f"{self._settings.topic_prefix}.{suffix}.v1", partition)

    @property
    def _consumer(self) -> Any:
        return self._app.consumer

    # Sending.

    async def _send(self, topic: topics.Topic, message: Message) -> None:
        await until_sent(topic.suffix, lambda: self._producer.send_and_wait(topic, message))

    async def _commit_handled(self, offsets: dict[TP, int]) -> None:
        if self._consumer.ready_generation != self._generation:
            # The next owner has read how far this one was, and tells the same again under the same id.
            return
        try:
            await self._handled.commit(offsets)
        except KafkaError as error:
            logger().warning("progress not committed", reason=repr(error))

    async def _quarantine(self, unusable: Sequence[tuple[Record, MessageError]]) -> None:
        for number, (record, error) in enumerate(unusable):
            # Anyone who may click can click on what was not shown. That must not be a way to stop the worker.
            if isinstance(error, ImpossibleFeedbackError) or not self._limit.exceeded_by_one_more(time.time()):
                continue
            await self._send_letters(unusable[:number])
            self._fail(
                ClickloopError(
                    f"more than {self._settings.dead_letters_per_minute} unusable messages a minute, the last "
                    f"one at {record.topic}/{record.partition}/{record.offset}: {error}; "
                    "setting dead_letters_per_minute allows more"
                )
            )
            # The process is about to end; until then nothing more may be drained, nor acknowledged.
            await asyncio.get_running_loop().create_future()
        await self._send_letters(unusable)

    async def _send_letters(self, unusable: Sequence[tuple[Record, MessageError]]) -> None:
        if not unusable:
            return
        await until_sent(
            "dead letters",
            lambda: self._producer.quarantine(*unusable, service="streams", index=self._settings.index),
        )
        for record, error in unusable:
            metrics.QUARANTINED.labels(self._topics[record.topic].suffix, type(error).__name__).inc()

    def _forgets_no_more(self, following: asyncio.Task[None]) -> None:
        """Who asks to be forgotten must be heard: a worker that can't hear them must not go on."""
        if not following.cancelled():
            self._fail(
                ClickloopError(f"commands can't be read, so no one can be forgotten: {following.exception()!r}")
            )

    def _forget(self, split_key: str) -> None:
        for partition in self._partitions.values():
            partition.forget(split_key)
