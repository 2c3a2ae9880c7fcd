"""Two workers share eight partitions, or two processes four, and one dies in mid-stream.

The examples are those of an undisturbed run.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.join import Load, Worker, fill, free_ports
from clickloop import topics
from clickloop.commands import Retrain
from clickloop.events import ExampleFormed
from clickloop.kafka import end_offsets
from demo.processes import Process, ProcessGroup
from tests.streams_worker import exit_code, last_revisions, read_all, undisturbed, until, worker

LOAD = Load(queries=133_000, clicks=67_000)
PARTITIONS = 8
FEWER = Load(queries=50_000, clicks=25_000)


async def formed(broker: Any) -> int:
    ends = await end_offsets(broker.bootstrap_servers, topics.TRAINING_EXAMPLES.name(broker.prefix))
    return sum(end for _, end in ends.values())


def scratch_in(folder: Path) -> int:
    return len(list(folder.glob("clickloop-streams-*")))


@pytest.mark.timeout(600)
async def test_join_of_200_000_events_by_two_workers_survives_the_death_of_one(
    any_broker: Any, tmp_path: Path
) -> None:
    broker = replace(any_broker, prefix=f"s{uuid.uuid4().hex[:8]}")
    await fill(broker.bootstrap_servers, broker.prefix, LOAD, partitions=PARTITIONS)
    expected = undisturbed(list(LOAD.messages()))
    assert len(expected) == LOAD.clicks
    folders = [tmp_path / "first", tmp_path / "second"]
    with ProcessGroup() as processes:
        first, second = (
            processes.start(worker(broker, folder, threshold=len(expected), partitions=PARTITIONS))
            for folder in folders
        )
        deadline = time.monotonic() + 120
        while (so_far := await formed(broker)) < len(expected) // 10:
            assert time.monotonic() < deadline
        first.kill()
        assert so_far < len(expected), "killed in mid-stream"
        commands = await until(broker, topics.RETRAIN_COMMANDS, Retrain, bool, seconds=240)
        second.check()

    assert last_revisions(await read_all(broker, topics.TRAINING_EXAMPLES, ExampleFormed)) == expected
    assert [command.reason.figures["examples"] for command in commands] == [len(expected)], "each counted once"


@pytest.mark.timeout(300)
async def test_a_worker_ends_with_any_of_its_processes_and_the_next_one_goes_on(
    any_broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    broker = replace(any_broker, prefix=f"s{uuid.uuid4().hex[:8]}")
    await fill(broker.bootstrap_servers, broker.prefix, FEWER)
    expected = undisturbed(list(FEWER.messages()))
    ports = free_ports(2)

    def of_two(name: str) -> Process:
        return worker(broker, tmp_path / name, threshold=len(expected), processes=2, metrics_port=ports[0])

    async def told(metric: str) -> list[dict[str, float]]:
        """By topic and partition, of each process."""
        return [await Worker.read_of(port, metric) for port in ports]

    async def read() -> tuple[float, float]:
        """Messages that are left, and those that are done with."""
        lags, ends = [await told(f"clickloop_streams_{name}") for name in ("lag", "position")]
        return sum(sum(one.values()) for one in lags), sum(sum(one.values()) for one in ends)

    with ProcessGroup() as processes:
        first = processes.start(of_two("first"))
        deadline = time.monotonic() + 120
        while (so_far := await formed(broker)) < len(expected) // 10:
            assert time.monotonic() < deadline
        one, other = psutil.Process(first.pid).children()
        one.kill()
        assert so_far < len(expected), "killed in mid-stream"
        assert await exit_code(first, seconds=30) == 137
        assert not other.is_running()
        second = processes.start(of_two("second"))
        commands = await until(broker, topics.RETRAIN_COMMANDS, Retrain, bool, seconds=120)
        second.check()
        deadline = time.monotonic() + 60
        while not all(await told("clickloop_open_impressions")) or await read() != (0, FEWER.events):
            assert time.monotonic() < deadline, "each has its part, and has read it"
            await asyncio.sleep(0.2)
        for metric in ("clickloop_streams_position", "clickloop_streams_lag", "clickloop_open_impressions"):
            one_tells, other_tells = await told(metric)
            assert not set(one_tells) & set(other_tells), "no process tells what is the other's by now"
        second.terminate()
        assert await exit_code(second, seconds=30) == 0

    assert scratch_in(tmp_path) == 1, "nothing is left but what the killed one had"
    assert last_revisions(await read_all(broker, topics.TRAINING_EXAMPLES, ExampleFormed)) == expected
    assert [command.reason.figures["examples"] for command in commands] == [len(expected)], "each counted once"
