"""The streams worker as a process, on every broker: from traffic to examples, reports, a command and splits."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

from clickloop import codec, topics
from clickloop.commands import ForgetUser, Promote, Retrain
from clickloop.events import (
    DriftMeasured,
    ExampleFormed,
    GateResult,
    MessageQuarantined,
    ModelVersionPublished,
    NodeReported,
    QueryServed,
    ResultClicked,
    SplitChanged,
)
from clickloop.kafka import Producer
from demo.processes import ProcessGroup
from tests.streams_worker import exit_code, last_revisions, read_all, send, traffic, undisturbed, until, worker


def published(name: str, *, gate: GateResult | None) -> ModelVersionPublished:
    return ModelVersionPublished(
        event_id=f"default/{name}",
        index="default",
        version=name,
        kind="full" if gate is None else "adapter",
        space="base-1",
        artifact_uri=f"file:///{name}",
        digest="0" * 64,
        published_at=codec.now(),
        gate=gate,
    )


def loaded(*versions: str) -> NodeReported:
    return NodeReported(
        event_id=codec.new_id(),
        index="default",
        node_id="node-1",
        reported_at=codec.now(),
        state="serving",
        versions=list(versions),
    )


async def test_traffic_becomes_examples_reports_and_one_command(any_broker: Any, tmp_path: Path) -> None:
    broker = any_broker
    with ProcessGroup() as processes:
        process = processes.start(worker(broker, tmp_path, threshold=150))
        messages = traffic(300)
        expected = undisturbed(messages)
        await send(broker, messages, per_second=300)
        (command,) = await until(broker, topics.RETRAIN_COMMANDS, Retrain, bool, seconds=60)
        await until(
            broker,
            topics.DRIFT_REPORTS,
            DriftMeasured,
            lambda reports: sum(r.examples for r in reports) >= len(expected),
            seconds=20,
        )
        process.terminate()
        assert await exit_code(process, seconds=6) == 0

    reports = await read_all(broker, topics.DRIFT_REPORTS, DriftMeasured)
    examples = await read_all(broker, topics.TRAINING_EXAMPLES, ExampleFormed)
    assert sum(r.queries for r in reports) == 300
    assert sum(r.examples for r in reports) == len(expected)
    assert last_revisions(examples) == expected
    assert command.reason.policies == ["threshold"]
    assert command.reason.figures["examples"] >= 150
    in_ranges = sum(r.end - r.start for r in command.ranges)
    assert 150 <= in_ranges <= len(examples)


async def test_unreadable_bytes_on_every_topic_are_quarantined_and_the_worker_goes_on(
    broker: Any, tmp_path: Path
) -> None:
    poisoned = [
        topics.QUERIES,
        topics.CLICKS,
        topics.RATINGS,
        topics.DRIFT_REPORTS,
        topics.RETRAIN_COMMANDS,
        topics.TRAINING_RUNS,
        topics.MODEL_VERSIONS,
        topics.NODE_STATUS,
        topics.TRAFFIC_SPLITS,
        topics.COMMANDS,
    ]
    with ProcessGroup() as processes:
        process = processes.start(worker(broker, tmp_path))
        async with Producer(broker.bootstrap_servers, prefix=broker.prefix, source="test") as producer:
            assert producer._producer is not None
            for topic in poisoned:
                await producer._producer.send_and_wait(topic.name(broker.prefix), b"\xffno json", key=b"k")
        await send(broker, traffic(20))
        letters = await until(
            broker,
            topics.DEAD_LETTERS,
            MessageQuarantined,
            lambda found: len(found) >= len(poisoned),
            seconds=60,
        )
        examples = await until(broker, topics.TRAINING_EXAMPLES, ExampleFormed, bool, seconds=20)
        process.check()
    assert sorted(letter.topic for letter in letters) == sorted(t.name(broker.prefix) for t in poisoned)
    assert {letter.value for letter in letters} == {b"\xffno json"}
    assert {letter.error for letter in letters} == {"UnreadableMessageError"}
    assert examples


async def test_more_poison_than_the_limit_stops_the_worker_loudly(broker: Any, tmp_path: Path) -> None:
    with ProcessGroup() as processes:
        process = processes.start(worker(broker, tmp_path, dead_letters_per_minute=5))
        async with Producer(broker.bootstrap_servers, prefix=broker.prefix, source="test") as producer:
            assert producer._producer is not None
            for _ in range(20):
                await producer._producer.send_and_wait(topics.CLICKS.name(broker.prefix), b"?", partition=1)
        assert await exit_code(process, seconds=60) == 1
    assert "dead_letters_per_minute" in process.tail()
    letters = await read_all(broker, topics.DEAD_LETTERS, MessageQuarantined)
    assert len(letters) == 5


async def test_clicks_on_what_was_not_shown_are_letters_and_stop_no_worker_however_many(
    broker: Any, tmp_path: Path
) -> None:
    (asked, served), *_ = traffic(1)
    assert isinstance(served, QueryServed)

    def clicked(number: int, doc_id: str) -> ResultClicked:
        at = served.served_at + timedelta(seconds=2 + number)
        return ResultClicked(
            event_id=f"e{number}", index="default", query_id=served.query_id, doc_id=doc_id, clicked_at=at
        )

    flood = [clicked(number, "never-shown") for number in range(60)]
    honest = clicked(60, served.results[0].doc_id)
    with ProcessGroup() as processes:
        process = processes.start(worker(broker, tmp_path, dead_letters_per_minute=5))
        await send(broker, [(asked, served), *((topics.CLICKS, click) for click in [*flood, honest])])
        (example,) = await until(broker, topics.TRAINING_EXAMPLES, ExampleFormed, bool, seconds=60)
        process.check()
    assert example.doc_id == honest.doc_id
    letters = await read_all(broker, topics.DEAD_LETTERS, MessageQuarantined)
    assert {letter.error for letter in letters} == {"ImpossibleFeedbackError"}
    assert len({letter.event_id for letter in letters}) == len(flood)


async def test_a_version_gets_shares_until_it_is_live_and_commands_are_followed_once(
    broker: Any, tmp_path: Path
) -> None:
    passed = GateResult(verdict="pass", queries=100)
    settings = {"rollout_max_wait_seconds": 0.5, "rollout_steps": "10,100"}
    with ProcessGroup() as processes:
        process = processes.start(worker(broker, tmp_path, **settings))
        async with Producer(broker.bootstrap_servers, prefix=broker.prefix, source="test") as producer:
            await producer.send_and_wait(topics.MODEL_VERSIONS, published("base-1", gate=None))
            await producer.send_and_wait(topics.NODE_STATUS, loaded("base-1"))
            await until(broker, topics.TRAFFIC_SPLITS, SplitChanged, bool, seconds=60)
            await producer.send_and_wait(topics.MODEL_VERSIONS, published("adapter-2", gate=passed))
            await producer.send_and_wait(topics.NODE_STATUS, loaded("base-1", "adapter-2"))
            await until(broker, topics.TRAFFIC_SPLITS, SplitChanged, lambda s: len(s) == 3, seconds=20)
            await producer.send_and_wait(
                topics.COMMANDS,
                Promote(command_id="p1", index="default", issued_at=codec.now(), version="base-1", reason="test"),
            )
            await until(broker, topics.TRAFFIC_SPLITS, SplitChanged, lambda s: len(s) == 4, seconds=20)
            # As one that was trained before the first click: nothing judged it, and an operator takes it.
            unclear = GateResult(verdict="inconclusive", queries=0)
            await producer.send_and_wait(topics.MODEL_VERSIONS, published("adapter-3", gate=unclear))
            chosen = Promote(
                command_id="p2", index="default", issued_at=codec.now(), version="adapter-3", reason="test"
            )
            await producer.send_and_wait(topics.COMMANDS, chosen)
            await until(broker, topics.TRAFFIC_SPLITS, SplitChanged, lambda s: len(s) == 5, seconds=20)
            process.kill()
            again = processes.start(worker(broker, tmp_path, **settings))
            await producer.send_and_wait(
                topics.COMMANDS,
                ForgetUser(command_id="f1", index="default", issued_at=codec.now(), split_key="user-3"),
            )
            await send(broker, traffic(30))
            await until(broker, topics.TRAINING_EXAMPLES, ExampleFormed, lambda e: len(e) > 20, seconds=60)
            await asyncio.sleep(2)
            again.check()
    splits = await read_all(broker, topics.TRAFFIC_SPLITS, SplitChanged)
    assert [[(a.version, a.buckets) for a in split.arms] for split in splits] == [
        [("base-1", 10_000)],
        [("base-1", 9_000), ("adapter-2", 1_000)],
        [("adapter-2", 10_000)],
        [("base-1", 10_000)],
        [("adapter-3", 10_000)],
    ]
    assert [split.sequence for split in splits] == [1, 2, 3, 4, 5]
    examples = await read_all(broker, topics.TRAINING_EXAMPLES, ExampleFormed)
    assert "user-3" not in {example.split_key for example in examples}
