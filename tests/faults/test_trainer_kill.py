"""A trainer that is killed at any moment makes each version once, whole, and in the same run; and a run can be
cancelled."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from clickloop import codec, kafka, topics
from clickloop.commands import Cancel, Reason, Retrain
from clickloop.events import ModelVersionPublished, OffsetRange, TrainingProgressed, VersionKind
from clickloop.kafka import Producer
from clickloop.model_store import LEFT_BEHIND, ModelStore
from demo.processes import Process, ProcessGroup
from tests.end_to_end.test_trainer_service import filled
from tests.forking import ForkedTrainer, trainer_forks
from tests.streams_worker import read_all, until
from trainer.publish import run_name, version_name

LANES = 4
KILLS = 5
"""in each lane, so that twenty moments are tried"""
KINDS: list[VersionKind] = ["adapter", "query_encoder"]
LONGEST_RUN = 6.0
"""Seconds from a run's first message within which it is killed; an undisturbed one takes about as long."""


@dataclass
class Lane:
    """One index with its own broker topics, store, and trainer."""

    broker: Any
    folder: Path
    rng: random.Random
    forks: subprocess.Popen[str] | None = None
    """Where there is one, trainers are forked from it."""
    commands: list[Retrain] = field(default_factory=list)
    ranges: list[OffsetRange] = field(default_factory=list)

    def trainer(self) -> Process:
        env = {
            "CLICKLOOP_BOOTSTRAP_SERVERS": self.broker.bootstrap_servers,
            "CLICKLOOP_TOPIC_PREFIX": self.broker.prefix,
            "CLICKLOOP_STORE_URL": f"file://{self.folder}/store",
            "CLICKLOOP_WORK_DIR": str(self.folder / "work"),
            "CLICKLOOP_MIN_EXAMPLES": "20",
            "CLICKLOOP_DEVICE": "cpu",
            "CLICKLOOP_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        log = self.folder / "trainer.log"
        if self.forks is not None:
            return ForkedTrainer(self.forks, log=log, env=env)
        return Process("trainer", [sys.executable, "-m", "trainer"], log=log, env=env)

    async def ask(self) -> Retrain:
        command = Retrain(
            command_id=f"command-{len(self.commands)}",
            index="default",
            issued_at=codec.now(),
            kinds=KINDS,
            ranges=self.ranges,
            reason=Reason(policies=["manual"], text="test"),
        )
        async with Producer(self.broker.bootstrap_servers, prefix=self.broker.prefix) as producer:
            await producer.send_and_wait(topics.RETRAIN_COMMANDS, command)
        self.commands.append(command)
        return command

    async def fill(self) -> None:
        await kafka.create_topics(self.broker.bootstrap_servers, prefix=self.broker.prefix, partitions=2)
        self.ranges = await filled(self.broker, examples=40)

    async def told(self) -> list[TrainingProgressed]:
        return await read_all(self.broker, topics.TRAINING_RUNS, TrainingProgressed)

    async def ended(self, command: Retrain) -> int:
        """How many of the command's rungs are done; a restarted trainer says it again."""
        return len({m.kind for m in await self.told() if (m.command_id, m.stage) == (command.command_id, "done")})

    async def kill_at_random(self, processes: ProcessGroup) -> str:
        """Start a trainer, kill it somewhere in a run, and say in which stage that was."""
        before = len(await self.told())
        if not self.commands or await self.ended(self.commands[-1]) >= len(KINDS):
            await self.ask()
        process = processes.start(self.trainer())
        deadline = time.monotonic() + 90
        while len(await self.told()) <= before:
            process.check()
            assert time.monotonic() < deadline, process.tail()
            await asyncio.sleep(0.1)
        await asyncio.sleep(self.rng.uniform(0.0, LONGEST_RUN))
        process.kill()
        return (await self.told())[-1].stage


async def lane(
    broker: Any, folder: Path, number: int, processes: ProcessGroup, forks: subprocess.Popen[str]
) -> list[str]:
    here = Lane(replace(broker, prefix=f"k{uuid.uuid4().hex[:8]}"), folder, random.Random(number), forks)
    await here.fill()
    stages = [await here.kill_at_random(processes) for _ in range(KILLS)]
    last = processes.start(here.trainer())
    deadline = time.monotonic() + 120
    while await here.ended(here.commands[-1]) < len(KINDS):
        last.check()
        assert time.monotonic() < deadline, last.tail()
        await asyncio.sleep(0.5)
    await check(here)
    return stages


async def check(here: Lane) -> None:
    """One version for each command and rung, each whole, and nothing else in the store."""
    expected = {version_name(kind, command.command_id) for command in here.commands for kind in KINDS}
    store = ModelStore(f"file://{here.folder}/store", cache=here.folder / "check")
    made = [version for version in store.versions() if not version.startswith("base-")]
    assert sorted(made) == sorted(expected)
    announced = await read_all(here.broker, topics.MODEL_VERSIONS, ModelVersionPublished)
    assert {event.version for event in announced} == expected
    for version in expected:
        found = {(event.event_id, event.digest) for event in announced if event.version == version}
        assert len(found) == 1, "announced again it is the same event"
        store.fetch(version, digest=found.pop()[1])
    store.sweep(now=datetime.now(UTC) + LEFT_BEHIND)
    base = {version for version in store.versions() if version.startswith("base-")}
    assert {path.name for path in (here.folder / "store/versions").iterdir()} == expected | base, "no orphan"
    told = await here.told()
    assert {(m.command_id, m.run_id) for m in told} == {
        (command.command_id, run_name(command.command_id)) for command in here.commands
    }
    assert not [m for m in told if m.stage == "failed"]
    assert not list((here.folder / "work").glob("checkpoints/*"))
    assert not list((here.folder / "work").glob("making/*"))


@pytest.mark.timeout(600)
async def test_a_trainer_killed_at_twenty_moments_makes_each_version_once(broker: Any, tmp_path: Path) -> None:
    with trainer_forks() as forks, ProcessGroup() as processes:
        lanes = (lane(broker, tmp_path / str(n), n, processes, forks) for n in range(LANES))
        stages = [stage for found in await asyncio.gather(*lanes) for stage in found]
    assert len(stages) == LANES * KILLS
    assert len(set(stages)) > 2, f"killed in stages {stages}"


@pytest.mark.timeout(180)
async def test_a_cancelled_run_ends_and_one_that_waits_never_begins(broker: Any, tmp_path: Path) -> None:
    here = Lane(broker, tmp_path, random.Random(0))
    here.ranges = await filled(broker, examples=40)
    cancelled, kept = await here.ask(), await here.ask()
    wish = Cancel(command_id="c", index="default", issued_at=codec.now(), retrain=cancelled.command_id)
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        await producer.send_and_wait(topics.COMMANDS, wish)
    with ProcessGroup() as processes:
        first, second = (processes.start(here.trainer()) for _ in range(2))
        told = await until(
            broker,
            topics.TRAINING_RUNS,
            TrainingProgressed,
            lambda found: sum(m.stage == "done" for m in found) >= len(KINDS),
            seconds=120,
        )
        first.check()
        second.check()
    ends = [(m.command_id, m.stage, m.message) for m in told if m.stage in {"done", "failed"}]
    assert ends[0] == (cancelled.command_id, "failed", "cancelled")
    assert {end[:2] for end in ends[1:]} == {(kept.command_id, "done")}
    runs = [m.run_id for m in told]
    assert runs == sorted(runs, key=[run_name(c.command_id) for c in (cancelled, kept)].index), "one at a time"
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "check")
    assert version_name("adapter", cancelled.command_id) not in store.versions()
