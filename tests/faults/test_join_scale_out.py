"""Two workers share eight partitions, one dies in mid-stream: the examples are those of an undisturbed run."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.join import Load, fill
from clickloop import topics
from clickloop.commands import Retrain
from clickloop.events import ExampleFormed
from clickloop.kafka import end_offsets
from demo.processes import ProcessGroup
from tests.streams_worker import last_revisions, read_all, undisturbed, until, worker

LOAD = Load(queries=133_000, clicks=67_000)
PARTITIONS = 8


async def formed(broker: Any) -> int:
    ends = await end_offsets(broker.bootstrap_servers, topics.TRAINING_EXAMPLES.name(broker.prefix))
    return sum(end for _, end in ends.values())


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
