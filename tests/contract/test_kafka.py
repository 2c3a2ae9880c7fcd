"""The same promises on every broker: topics, producers, followers, offset ranges, the app's client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaTimeoutError

from clickloop import FeedbackProducer, ModelSubscriber, codec, topics
from clickloop.errors import BrokerError, InvalidMessageError, RangeGoneError, UnreadableMessageError
from clickloop.events import (
    GateResult,
    MessageQuarantined,
    ModelVersionPublished,
    OffsetRange,
    ResultClicked,
    ResultRated,
)
from clickloop.kafka import (
    Follower,
    Producer,
    Record,
    create_topics,
    end_offsets,
    list_topics,
    offsets_since,
    read_range,
)
from demo.processes import ProcessGroup
from demo.stack import start_broker
from tests.conftest import Broker

REAL_KAFKA = pytest.mark.parametrize("any_broker", [pytest.param("kafka", marks=pytest.mark.kafka)], indirect=True)


@pytest.fixture
async def producer(any_broker: Broker) -> AsyncIterator[Producer]:
    async with Producer(any_broker.bootstrap_servers, prefix=any_broker.prefix, source="test") as p:
        yield p


async def read_all(broker: Broker, topic: topics.Topic) -> list[Record]:
    found = []
    async with Follower(broker.bootstrap_servers, [topic], prefix=broker.prefix) as follower:
        while not await follower.caught_up():
            found += [record for _, record in await follower.batch()]
    return found


def version(name: str, verdict: str | None = "pass", index: str = "default") -> ModelVersionPublished:
    gate = GateResult(verdict=verdict, queries=10) if verdict else None  # type: ignore[arg-type]
    return ModelVersionPublished(
        event_id=f"{index}/{name}",
        index=index,
        version=name,
        kind="adapter",
        space="base-1",
        artifact_uri=f"memory://x/{name}",
        digest="0" * 64,
        published_at=codec.now(),
        gate=gate,
    )


async def test_every_topic_of_the_contract_is_created_and_a_second_time_none(any_broker: Broker) -> None:
    names = await list_topics(any_broker.bootstrap_servers)
    assert {t.name(any_broker.prefix) for t in topics.TOPICS} <= set(names)
    again = await create_topics(any_broker.bootstrap_servers, prefix=any_broker.prefix, partitions=4)
    assert again == []


@REAL_KAFKA
async def test_a_topic_that_the_broker_refuses_is_an_error_with_its_words(any_broker: Broker) -> None:
    """The embedded broker takes any number of replicas."""
    prefix = f"{any_broker.prefix}-replicas"
    with pytest.raises(
        BrokerError, match=rf"refuses to create {prefix}\.documents\.v1: .*replication factor of 9"
    ):
        await create_topics(any_broker.bootstrap_servers, prefix=prefix, partitions=1, replication_factor=9)


async def test_topics_that_another_creates_meanwhile_are_no_error_and_not_counted(
    any_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lists = AIOKafkaAdminClient.list_topics, 0

    async def none_yet(admin: AIOKafkaAdminClient) -> list[str]:
        nonlocal lists
        lists += 1
        return [] if lists == 1 else await real(admin)

    monkeypatch.setattr(AIOKafkaAdminClient, "list_topics", none_yet)
    assert await create_topics(any_broker.bootstrap_servers, prefix=any_broker.prefix, partitions=4) == []


async def test_feedback_of_an_app_arrives_with_its_key_and_in_its_partition(any_broker: Broker) -> None:
    async with FeedbackProducer(any_broker.bootstrap_servers, prefix=any_broker.prefix, index="shop") as feedback:
        clicked = await feedback.click("q-1", "d-7", position=3, split_key="k")
        await feedback.rate("q-1", "d-7", 4)
        await feedback.query("red shoes", ["d-1", "d-7"], query_id="q-1")
    clicks = await read_all(any_broker, topics.CLICKS)
    ratings = await read_all(any_broker, topics.RATINGS)
    queries = await read_all(any_broker, topics.QUERIES)
    assert [codec.decode(r.value, ResultClicked).event_id for r in clicks] == [clicked]
    assert codec.decode(ratings[0].value, ResultRated).rating == 4
    assert {r.key for r in clicks + ratings + queries} == {b"q-1"}
    assert len({r.partition for r in clicks + ratings + queries}) == 1, "the join must be local to a partition"


async def test_invalid_feedback_is_refused_in_the_app_and_never_sent(any_broker: Broker) -> None:
    async with FeedbackProducer(any_broker.bootstrap_servers, prefix=any_broker.prefix) as feedback:
        with pytest.raises(InvalidMessageError, match="position"):
            await feedback.click("q-1", "d-7", position=0)
        with pytest.raises(InvalidMessageError, match="rating"):
            await feedback.rate("q-1", "d-7", 6)
        with pytest.raises(InvalidMessageError, match="query_id"):
            await feedback.click("", "d-7")
    assert await read_all(any_broker, topics.CLICKS) == []
    assert await read_all(any_broker, topics.RATINGS) == []


@REAL_KAFKA
async def test_feedback_that_the_broker_refuses_is_an_error_of_the_flush(any_broker: Broker) -> None:
    """The embedded broker has no limit for messages."""
    name = topics.DOCUMENTS.name(any_broker.prefix)
    admin = AIOKafkaAdminClient(bootstrap_servers=any_broker.bootstrap_servers)
    await admin.start()
    try:
        await admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name, configs={"max.message.bytes": "10000"})]
        )
    finally:
        await admin.close()
    async with FeedbackProducer(any_broker.bootstrap_servers, prefix=any_broker.prefix) as feedback:
        await feedback.document("d-1", os.urandom(20_000).hex())
        with pytest.raises(BrokerError, match=r"not acknowledge: 1; .*MessageSizeTooLarge"):
            await feedback.flush()
        await feedback.document("d-2", "small")
    assert [record.key for record in await read_all(any_broker, topics.DOCUMENTS)] == [b"d-2"]


@REAL_KAFKA
async def test_feedback_to_a_topic_that_does_not_exist_says_what_to_do(any_broker: Broker) -> None:
    """The embedded broker makes every topic that is asked for."""
    async with FeedbackProducer(any_broker.bootstrap_servers, prefix="no-such") as feedback:
        inner = feedback._producer._producer
        assert inner is not None
        inner.client._request_timeout_ms = 100
        with pytest.raises(
            BrokerError, match=r"no-such\.clicks\.v1 does not exist: run 'clickloop topics create'"
        ):
            await feedback.click("q-1", "d-7")


async def test_leaving_the_block_ends_though_the_broker_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clickloop.client.FLUSH_SECONDS", 0.5)
    with ProcessGroup() as processes:
        where = await start_broker(processes, logs=tmp_path)
        await create_topics(where, prefix="clickloop", partitions=1)

        async def clicks() -> None:
            async with FeedbackProducer(where) as feedback:
                await feedback.click("q-0", "d-7")
                await feedback.flush()
                await asyncio.to_thread(processes.stop)
                await feedback.click("q-1", "d-7")

        async with asyncio.timeout(20):
            with pytest.raises(BrokerError, match="not acknowledge: 1"):
                await clicks()


async def test_subscriber_sees_each_passed_version_of_its_index_once(
    any_broker: Broker, producer: Producer
) -> None:
    for event in (
        version("base-1", None),
        version("adapter-1"),
        version("adapter-1"),
        version("adapter-2", "fail"),
        version("other", index="elsewhere"),
        version("adapter-3"),
    ):
        await producer.send_and_wait(topics.MODEL_VERSIONS, event)
    seen = []
    async with ModelSubscriber(any_broker.bootstrap_servers, prefix=any_broker.prefix) as models:
        async with asyncio.timeout(20):
            async for event in models:
                seen.append(event.version)
                if event.version == "adapter-3":
                    break
    assert seen == ["base-1", "adapter-1", "adapter-3"]


async def test_subscriber_skips_bytes_that_it_cannot_read(any_broker: Broker, producer: Producer) -> None:
    name = topics.MODEL_VERSIONS.name(any_broker.prefix)
    raw = AIOKafkaProducer(bootstrap_servers=any_broker.bootstrap_servers)
    await raw.start()
    try:
        await raw.send_and_wait(name, b"\xff\x00 not json", key=b"poison")
    finally:
        await raw.stop()
    await producer.send_and_wait(topics.MODEL_VERSIONS, version("adapter-9"))
    async with ModelSubscriber(any_broker.bootstrap_servers, prefix=any_broker.prefix) as models:
        assert (await models.wait_for("adapter-9", timeout_seconds=20)).version == "adapter-9"


async def test_exactly_the_offsets_of_a_range_are_read(any_broker: Broker, producer: Producer) -> None:
    for number in range(20):
        event = ResultClicked(
            event_id=str(number), index="default", query_id="same", doc_id="d", clicked_at=codec.now()
        )
        await producer.send_and_wait(topics.CLICKS, event)
    records = await read_all(any_broker, topics.CLICKS)
    partition = records[0].partition
    wanted = OffsetRange(topic=records[0].topic, partition=partition, start=5, end=12)
    got: list[Record] = []
    await read_range(any_broker.bootstrap_servers, wanted, on_record=got.append)
    assert [r.offset for r in got] == list(range(5, 12))
    beyond = OffsetRange(topic=records[0].topic, partition=partition, start=5, end=99)
    with pytest.raises(RangeGoneError, match="not 5 to 99"):
        await read_range(any_broker.bootstrap_servers, beyond, on_record=got.append)


async def test_quarantine_keeps_the_bytes_the_place_and_the_reason(any_broker: Broker, producer: Producer) -> None:
    record = Record(topic="x.clicks.v1", partition=2, offset=17, key=b"k", value=b"\xff\x00poison")
    await producer.quarantine(
        (record, UnreadableMessageError("no readable JSON")), service="streams", index="default"
    )
    (letter,) = await read_all(any_broker, topics.DEAD_LETTERS)
    event = codec.decode(letter.value, MessageQuarantined)
    assert (event.topic, event.partition, event.offset) == ("x.clicks.v1", 2, 17)
    assert (event.value, event.key) == (b"\xff\x00poison", b"k")
    assert event.error == "UnreadableMessageError"


async def test_a_broker_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1"):
        await Producer("127.0.0.1:1").start()
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1"):
        await list_topics("127.0.0.1:1")
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1"):
        await Follower("127.0.0.1:1", [topics.CLICKS]).start()


async def test_a_broker_that_stops_answering_is_one_clear_error(
    any_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: object) -> None:
        raise KafkaTimeoutError("Failed to get offsets by times in 40000 ms")

    monkeypatch.setattr("clickloop.kafka.offsets.end_offsets", silent)
    where, name = any_broker.bootstrap_servers, topics.CLICKS.name(any_broker.prefix)
    wanted = OffsetRange(topic=name, partition=0, start=0, end=1)
    questions: list[Callable[[], Awaitable[object]]] = [
        lambda: read_all(any_broker, topics.CLICKS),
        lambda: end_offsets(where, name),
        lambda: offsets_since(where, name, 0.0),
        lambda: read_range(where, wanted, on_record=print),
    ]
    for ask in questions:
        with pytest.raises(BrokerError, match=rf"the broker at {where} stopped answering"):
            await ask()


async def test_reading_what_a_broker_held_ends_though_it_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clickloop.kafka.SILENT_SECONDS", 1.0)

    async def read(where: str) -> None:
        async with Follower(where, [topics.CLICKS]) as follower:
            follower._ends = dict.fromkeys(follower._ends, 100)
            await asyncio.to_thread(processes.stop)
            async for _ in follower.held():
                pass

    with ProcessGroup() as processes:
        where = await start_broker(processes, logs=tmp_path)
        await create_topics(where, prefix="clickloop", partitions=1)
        with pytest.raises(BrokerError, match="stopped answering: nothing for 1 s"):
            await read(where)


async def test_producers_are_idempotent_where_the_broker_gives_producer_ids(
    any_broker: Broker, producer: Producer
) -> None:
    """The embedded broker lists the request and fails it; Apache Kafka answers it."""
    assert producer.idempotent == (any_broker.kind == "kafka")


async def test_a_batch_counts_with_all_its_records(producer: Producer, any_broker: Broker) -> None:
    """The embedded broker names the offset after a batch's first record as the end."""
    where, topic = any_broker.bootstrap_servers, topics.CLICKS
    clicks = [
        ResultClicked(event_id=f"c{n}", index="default", query_id="q", doc_id="d", clicked_at=codec.now())
        for n in range(12)
    ]
    for part in (clicks[:5], clicks[5:]):
        ((start, end),) = await producer.send_batch(topic, part, partition=1)
        assert (await end_offsets(where, topic.name(any_broker.prefix)))[1] == (0, end)
        assert end - start == len(part)
    sent = await read_all(any_broker, topic)
    assert len(sent) == 12
    stamps = [datetime.fromisoformat(dict(record.headers)["ce_time"].decode()) for record in sent]
    assert max(abs((codec.now() - stamp).total_seconds()) for stamp in stamps) < 60
    found: list[Record] = []
    await read_range(
        where,
        OffsetRange(topic=topic.name(any_broker.prefix), partition=1, start=3, end=12),
        on_record=found.append,
    )
    assert [record.offset for record in found] == list(range(3, 12))
    async with Follower(where, [topic], prefix=any_broker.prefix, from_beginning=False) as follower:
        await producer.send_and_wait(topic, clicks[0])
        late = [r async for r in _records(follower)]
    assert len(late) == 1


async def _records(follower: Follower) -> AsyncIterator[Record]:
    """What comes within a second."""
    for _ in range(4):
        for _, record in await follower.batch(timeout_seconds=0.25):
            yield record
