"""Two trainers of one index: one works, the other stands by, and takes over when the first has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from clickloop import topics
from clickloop.commands import Retrain
from clickloop.kafka import Producer, group_consumer
from tests.conftest import Broker
from tests.end_to_end.test_trainer_service import command, trainer_for


class Stage:
    """Trainers that only note which command they begin; the first command takes until ``finish`` is set."""

    def __init__(self, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broker = broker
        self.began: list[tuple[str, str]] = []
        self.finish = asyncio.Event()
        self.members: list[Any] = []
        self.tasks: list[asyncio.Task[None]] = []

        @asynccontextmanager
        async def member(*given: Any, **more: Any) -> AsyncIterator[Any]:
            async with group_consumer(*given, **more) as consumer:
                self.members.append(consumer)
                yield consumer

        monkeypatch.setattr("trainer.service.group_consumer", member)

    def start(self, name: str, folder: Path) -> asyncio.Event:
        """What ends it when it is set."""
        trainer, _ = trainer_for(self.broker, folder)
        stop = asyncio.Event()

        async def run(wish: Retrain, *_: object) -> None:
            self.began.append((name, wish.command_id))
            if wish.command_id == "c1":
                await self.finish.wait()

        trainer.run = run  # type: ignore[method-assign]
        self.tasks.append(asyncio.create_task(trainer.serve(stop)))
        return stop

    async def ask(self, command_id: str) -> None:
        value = command([], command_id=command_id).value
        assert value is not None
        async with Producer(self.broker.bootstrap_servers, prefix=self.broker.prefix) as producer:
            await producer.send_raw(topics.RETRAIN_COMMANDS.name(self.broker.prefix), value, key=b"default")

    async def until(self, true: Callable[[], object]) -> None:
        while not true():
            for task in self.tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.05)

    def in_one_group(self) -> bool:
        generations = {member._coordinator.generation for member in self.members}
        return len(self.members) == 2 and len(generations) == 1


@pytest.mark.timeout(120)
async def test_a_trainer_that_joins_takes_no_command_away_and_has_none_done_again(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(broker, monkeypatch)
    first = stage.start("first", tmp_path / "first")
    await stage.ask("c1")
    await stage.until(lambda: stage.began)
    second = stage.start("second", tmp_path / "second")
    await stage.until(stage.in_one_group)
    stage.finish.set()
    await stage.ask("c2")
    await stage.until(lambda: ("first", "c2") in stage.began)
    first.set()
    await stage.tasks[0]
    await stage.ask("c3")
    await stage.until(lambda: ("second", "c3") in stage.began)
    second.set()
    await stage.tasks[1]
    assert stage.began == [("first", "c1"), ("first", "c2"), ("second", "c3")]


@pytest.mark.timeout(120)
async def test_a_trainer_with_the_same_work_dir_waits_until_the_other_has_ended(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(broker, monkeypatch)
    first = stage.start("first", tmp_path)
    await stage.until(lambda: stage.members)
    unwanted, second = stage.start("unwanted", tmp_path), stage.start("second", tmp_path)
    unwanted.set()
    await stage.tasks[1]
    assert len(stage.members) == 1, "who stands by here is in no group"
    first.set()
    await stage.tasks[0]
    stage.finish.set()
    await stage.ask("c1")
    await stage.until(lambda: stage.began)
    second.set()
    await stage.tasks[2]
    assert stage.began == [("second", "c1")]
