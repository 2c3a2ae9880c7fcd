"""Unreadable bytes on every consumed topic: a dead letter with its reason each, and every service goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from clickloop import FeedbackProducer, codec, topics
from clickloop.commands import Reason, Retrain
from clickloop.events import ExampleFormed, MessageQuarantined, OffsetRange, TrainingProgressed
from clickloop.kafka import Follower, Producer, end_offsets
from demo import services
from demo.processes import ProcessGroup
from demo.services import INDEX, Node, Place
from tests.conftest import Broker

POISON = (b"\xff\x00\xfe not json", b'{"type":"Nonsense"}', b"[[[[", b"")
CONSUMED_BY_ALWAYS_RUNNING = (
    topics.DOCUMENTS,
    topics.QUERIES,
    topics.CLICKS,
    topics.RATINGS,
    topics.DRIFT_REPORTS,
    topics.RETRAIN_COMMANDS,
    topics.TRAINING_RUNS,
    topics.MODEL_VERSIONS,
    topics.TRAFFIC_SPLITS,
    topics.NODE_STATUS,
    topics.COMMANDS,
)


@dataclass
class Running:
    place: Place
    node: Node
    session: aiohttp.ClientSession
    letters: list[MessageQuarantined]
    examples: list[ExampleFormed]
    runs: list[TrainingProgressed]

    async def until(self, condition: Callable[[], bool], *, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            await asyncio.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-2000:]}" for p in sorted(self.place.logs.glob("*.log")))

    def poisoned(self) -> set[tuple[str, str]]:
        """(topic, service) of every letter."""
        return {(letter.topic, letter.service.split("/")[0]) for letter in self.letters}


@pytest.fixture
async def running(broker: Broker, tmp_path: Path) -> AsyncIterator[Running]:
    """One node, the streams and the trainer, as processes of their own, on ten documents."""
    place = Place(
        bootstrap_servers=broker.bootstrap_servers,
        redis_url="",
        qdrant_url="",
        topic_prefix=broker.prefix,
        work=tmp_path,
        run=tmp_path / "run",
    )
    followed = (topics.DEAD_LETTERS, topics.TRAINING_EXAMPLES, topics.TRAINING_RUNS)
    with ProcessGroup() as processes:
        node = services.start_node(processes, place, 1)
        services.start_streams(processes, place, {"CLICKLOOP_THRESHOLD": "1000000"})
        services.start_trainer(processes, place)
        async with (
            aiohttp.ClientSession() as session,
            FeedbackProducer(broker.bootstrap_servers, index=INDEX, prefix=broker.prefix) as feedback,
            Follower(broker.bootstrap_servers, followed, prefix=broker.prefix) as follower,
        ):
            state = Running(place, node, session, [], [], [])
            for number in range(10):
                await feedback.document(f"d{number}", f"document about subject number {number}")
            await feedback.flush()
            following = asyncio.create_task(follow(follower, state))
            deadline = time.monotonic() + 90
            while not await services.is_ready(session, node):
                processes.check()
                assert time.monotonic() < deadline, state.logs()
                await asyncio.sleep(0.2)
            try:
                yield state
                processes.check()
            finally:
                following.cancel()


async def follow(follower: Follower, state: Running) -> None:
    while True:
        for topic, record in await follower.batch(timeout_seconds=0.2):
            if topic is topics.DEAD_LETTERS:
                state.letters.append(codec.decode(record.value, MessageQuarantined))
            elif record.value is not None and b'"type"' in record.value and b"Nonsense" not in record.value:
                message = codec.decode(record.value, ExampleFormed, TrainingProgressed)
                if isinstance(message, ExampleFormed):
                    state.examples.append(message)
                else:
                    state.runs.append(message)


async def click_something(running: Running, broker: Broker) -> None:
    """A search and a click on its first result, as an app does it."""
    body = {"query": "subject number 3", "k": 5, "split_key": "someone"}
    async with running.session.post(f"{running.node.address}/search", json=body) as response:
        assert response.status == 200, await response.text()
        answer = await response.json()
    await asyncio.sleep(0.3)
    async with FeedbackProducer(broker.bootstrap_servers, index=INDEX, prefix=broker.prefix) as feedback:
        await feedback.click(answer["query_id"], answer["results"][0]["doc_id"], position=1, split_key="someone")


@pytest.mark.timeout(240)
async def test_poison_on_every_consumed_topic_is_a_dead_letter_and_the_work_goes_on(
    running: Running, broker: Broker
) -> None:
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix, source="poisoner") as producer:
        for topic in CONSUMED_BY_ALWAYS_RUNNING:
            for value in POISON:
                await producer.send_raw(topic.name(broker.prefix), value, key=b"poison")

        names = {topic: topic.name(broker.prefix) for topic in topics.TOPICS}
        expected = {(names[t], "search") for t in (topics.DOCUMENTS, topics.MODEL_VERSIONS, topics.TRAFFIC_SPLITS)}
        expected |= {(names[t], "streams") for t in CONSUMED_BY_ALWAYS_RUNNING if t is not topics.DOCUMENTS}
        expected |= {(names[topics.RETRAIN_COMMANDS], "trainer")}
        await running.until(lambda: running.poisoned() >= expected)
        for letter in running.letters:
            assert letter.value in POISON, "the original bytes are kept"
            assert letter.key == b"poison"
            assert letter.reason
            assert letter.error in {"UnreadableMessageError", "InvalidMessageError"}

        # Search answers, the join forms an example, and the trainer takes a command, over poison in its range.
        await click_something(running, broker)
        await running.until(lambda: any(example.label == "positive" for example in running.examples))
        examples = topics.TRAINING_EXAMPLES.name(broker.prefix)
        for value in POISON:
            await producer.send_raw(examples, value, key=b"poison")
        ranges = [
            OffsetRange(topic=examples, partition=partition, start=first, end=end)
            for partition, (first, end) in (await end_offsets(broker.bootstrap_servers, examples)).items()
            if end > first
        ]
        command = Retrain(
            command_id="c-1",
            index=INDEX,
            issued_at=codec.now(),
            kinds=["adapter"],
            ranges=ranges,
            reason=Reason(policies=["manual"], text="test"),
        )
        await producer.send_and_wait(topics.RETRAIN_COMMANDS, command)
        await running.until(lambda: any(run.stage in {"done", "failed"} for run in running.runs), seconds=90)
        await running.until(lambda: (examples, "trainer") in running.poisoned())
        end = next(run for run in running.runs if run.stage in {"done", "failed"})
        assert end.verdict in {None, "inconclusive"}, "one click proves nothing"
