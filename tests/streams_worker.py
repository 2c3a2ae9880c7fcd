"""A real streams worker as a process, traffic for it, and what it wrote."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from clickloop import codec, topics
from clickloop.events import ExampleFormed, Message, QueryServed, Result, ResultClicked, ResultRated
from clickloop.kafka import Follower, Producer
from demo.processes import Process
from streams.partition import Partition
from streams.settings import StreamsSettings

M = TypeVar("M", bound=Message)
SESSION_SECONDS = 6


def worker(broker: Any, folder: Path, **settings: object) -> Process:
    """``clickloop streams`` on this broker; not started yet."""
    env = {
        "CLICKLOOP_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "CLICKLOOP_TOPIC_PREFIX": broker.prefix,
        "CLICKLOOP_SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS),
        "CLICKLOOP_REPORT_SECONDS": "0.5",
    }
    env |= {f"CLICKLOOP_{name.upper()}": str(value) for name, value in settings.items()}
    return Process("streams", [sys.executable, "-m", "streams"], log=folder / "streams.log", env=env)


def traffic(queries: int, *, seed: int = 0) -> list[tuple[topics.Topic, Message]]:
    """Queries with clicks and ratings: some twice, some before their query, all in a fixed pseudo-random order."""
    rng = random.Random(seed)
    sent: list[tuple[topics.Topic, Message]] = []
    for number in range(queries):
        query_id, docs = f"q{number}", rng.sample([f"d{n}" for n in range(200)], 8)
        served = codec.now()
        group: list[tuple[topics.Topic, Message]] = [
            (
                topics.QUERIES,
                QueryServed(
                    event_id=f"served-{query_id}",
                    index="default",
                    query_id=query_id,
                    query=f"word{rng.randrange(40)} thing{rng.randrange(40)}",
                    served_at=served,
                    results=[Result(doc_id=d, position=p) for p, d in enumerate(docs, start=1)],
                    split_key=f"user-{number % 97}",
                    version="base-1",
                    space="base-1",
                    arm="live",
                ),
            )
        ]
        group.extend(
            (
                topics.CLICKS,
                ResultClicked(
                    event_id=f"click-{query_id}-{click}",
                    index="default",
                    query_id=query_id,
                    doc_id=rng.choice(docs),
                    clicked_at=served + timedelta(seconds=1 + click),
                ),
            )
            for click in range(rng.choice([0, 1, 1, 2]))
        )
        if rng.random() < 0.3:
            group.append(
                (
                    topics.RATINGS,
                    ResultRated(
                        event_id=f"rating-{query_id}",
                        index="default",
                        query_id=query_id,
                        doc_id=rng.choice(docs),
                        rating=float(rng.choice([1, 5])),
                        rated_at=served + timedelta(seconds=3),
                    ),
                )
            )
        if rng.random() < 0.2:
            group.append(rng.choice(group))
        if rng.random() < 0.2:
            rng.shuffle(group)
        sent.extend(group)
    return sent


async def exit_code(process: Process, *, seconds: float) -> int | None:
    """Wait for the process to end by itself; after ``seconds`` it is killed, and the code is negative."""
    await asyncio.to_thread(process.wait_ended, deadline=time.monotonic() + seconds)
    return process._child.returncode if process._child else None


async def send(
    broker: Any, messages: Sequence[tuple[topics.Topic, Message]], *, per_second: float | None = None
) -> None:
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix, source="test") as producer:
        for topic, message in messages:
            await producer.send(topic, message)
            if per_second:
                await asyncio.sleep(1 / per_second)
        await producer.flush()


async def read_all(broker: Any, topic: topics.Topic, kind: type[M]) -> list[M]:
    """Every message that lies in a topic now."""
    found: list[M] = []
    async with Follower(broker.bootstrap_servers, [topic], prefix=broker.prefix) as follower:
        while not await follower.caught_up():
            batch = await follower.batch(timeout_seconds=0.2)
            found.extend(codec.decode(r.value, kind) for _, r in batch if r.value is not None)
    return found


async def until(
    broker: Any, topic: topics.Topic, kind: type[M], enough: Callable[[list[M]], bool], *, seconds: float
) -> list[M]:
    """Read a topic again and again until ``enough``; what it holds then, or at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        found = await read_all(broker, topic, kind)
        if enough(found) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.3)


def last_revisions(examples: Sequence[ExampleFormed]) -> dict[str, int]:
    last: dict[str, int] = {}
    for example in examples:
        last[example.example_id] = max(example.revision, last.get(example.example_id, 0))
    return last


def undisturbed(messages: Sequence[tuple[topics.Topic, Any]]) -> dict[str, int]:
    """The last revisions that the rules come to when everything is put to them in order, once."""
    now = 1.0
    rules = Partition(0, StreamsSettings(), handled={}, forgotten=set(), now=now)
    examples: list[ExampleFormed] = []
    for offset, (_, event) in enumerate(messages):
        if isinstance(event, QueryServed):
            effects = rules.query(event, offset=offset, log_time=now, now=now)
        else:
            effects = rules.feedback(event, offset=offset, log_time=now, now=now)
        examples.extend(effects.examples)
    return last_revisions(examples)
