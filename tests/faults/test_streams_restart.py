"""A streams worker that is killed at a bad moment loses nothing, and counts nothing twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from clickloop import topics
from clickloop.commands import Retrain
from clickloop.events import DriftMeasured, ExampleFormed
from demo.processes import ProcessGroup
from streams.buffer import covers
from tests.streams_worker import last_revisions, read_all, send, traffic, undisturbed, until, worker
from tests.unit.streams_facts import progress


async def test_a_killed_worker_ends_at_the_examples_of_an_undisturbed_one(broker: Any, tmp_path: Path) -> None:
    messages = traffic(400)
    expected = undisturbed(messages)
    with ProcessGroup() as processes:
        first = processes.start(worker(broker, tmp_path, threshold=len(expected)))
        feeding = asyncio.create_task(send(broker, messages, per_second=100))
        some = await until(broker, topics.TRAINING_EXAMPLES, ExampleFormed, lambda e: len(e) > 60, seconds=60)
        first.kill()
        assert 60 < len(last_revisions(some)) < len(expected), "killed in the middle"
        second = processes.start(worker(broker, tmp_path, threshold=len(expected)))
        await feeding
        commands = await until(broker, topics.RETRAIN_COMMANDS, Retrain, bool, seconds=90)
        second.check()

    examples = await read_all(broker, topics.TRAINING_EXAMPLES, ExampleFormed)
    assert last_revisions(examples) == expected
    reports = {r.event_id: r for r in await read_all(broker, topics.DRIFT_REPORTS, DriftMeasured)}
    assert sum(r.queries for r in reports.values()) == 400
    assert sum(r.examples for r in reports.values()) == len(expected)
    (command,) = commands
    assert command.reason.figures["examples"] == len(expected), "a threshold of all is reached by all, once"
    assert {r.partition for r in command.ranges} == {0, 1, 2, 3}


async def test_a_worker_that_joins_and_one_that_dies_change_nothing(broker: Any, tmp_path: Path) -> None:
    messages = traffic(500, seed=1)
    expected = undisturbed(messages)
    folders = [tmp_path / "first", tmp_path / "second"]
    with ProcessGroup() as processes:
        first = processes.start(worker(broker, folders[0], threshold=len(expected)))
        feeding = asyncio.create_task(send(broker, messages, per_second=70))
        await until(broker, topics.TRAINING_EXAMPLES, ExampleFormed, lambda e: len(e) > 30, seconds=60)
        second = processes.start(worker(broker, folders[1], threshold=len(expected)))
        await until(
            broker, topics.DRIFT_REPORTS, DriftMeasured, lambda _: "generation=" in second.tail(), seconds=60
        )
        first.kill()
        await feeding
        commands = await until(broker, topics.RETRAIN_COMMANDS, Retrain, bool, seconds=90)
        second.check()

    examples = await read_all(broker, topics.TRAINING_EXAMPLES, ExampleFormed)
    assert last_revisions(examples) == expected
    reports = {r.event_id: r for r in await read_all(broker, topics.DRIFT_REPORTS, DriftMeasured)}
    assert sum(r.queries for r in reports.values()) == 500
    assert [command.reason.figures["examples"] for command in commands] == [len(expected)]


async def test_a_killed_worker_still_knows_on_what_no_gate_has_decided(broker: Any, tmp_path: Path) -> None:
    """The trainer is played: the first command ends inconclusive while no worker lives, the second one passes."""
    messages = traffic(600)
    size = len(messages) // 3
    parts = [messages[start : start + size] for start in (0, size, 2 * size)]
    settings = {"threshold": 100, "kinds": "adapter", "cool_down_seconds": 0, "policies": "threshold"}
    given: list[Retrain] = []
    with ProcessGroup() as processes:
        for part, verdict in zip(parts, ("inconclusive", "pass", ""), strict=True):
            process = processes.start(worker(broker, tmp_path, **settings))
            await send(broker, part, per_second=300)
            wanted = len(given) + 1
            given = await until(
                broker, topics.RETRAIN_COMMANDS, Retrain, lambda found, n=wanted: len(found) >= n, seconds=60
            )
            assert len(given) == wanted
            process.kill()
            if verdict:
                ended = progress(given[-1].command_id, "adapter", "done", when=0.0, verdict=verdict)
                await send(broker, [(topics.TRAINING_RUNS, ended)])
    first, second, third = given
    assert first.reason.figures["undecided"] == 0
    assert second.reason.figures["undecided"] == first.reason.figures["examples"] >= 100
    assert covers(second.ranges, first.ranges)
    assert third.reason.figures["undecided"] == 0
    ends = {one.partition: one.end for one in second.ranges}
    assert all(one.start >= ends.get(one.partition, 0) for one in third.ranges)
