"""A trainer of two ranks ends as a whole, whichever process ends first, and the next start does its command."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from clickloop import topics
from clickloop.events import ModelVersionPublished
from clickloop.model_store import ModelStore
from demo.processes import Process, ProcessGroup
from tests.faults.test_trainer_kill import KINDS, Lane
from tests.streams_worker import read_all

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENDS_WITHIN = 35.0
"""seconds; torchrun itself kills after 30 what doesn't end"""


def started(here: Lane, processes: ProcessGroup, name: str) -> Process:
    alone = here.trainer()
    env = alone._env | {"CLICKLOOP_THREADS": "0"}
    log = here.folder / f"{name}.log"
    return processes.start(Process(name, [*TORCHRUN, "-m", "trainer"], log=log, env=env))


def ranks_of(torchrun: Process) -> dict[int, psutil.Process]:
    """The ranks' processes; those that only start others set no rank."""
    found = {}
    for child in psutil.Process(torchrun.pid).children(recursive=True):
        rank = child.environ().get("RANK")
        if rank is not None and "trainer" in child.cmdline():
            found[int(rank)] = child
    return found


async def training(here: Lane, torchrun: Process) -> dict[int, psutil.Process]:
    """Wait until this start trains an encoder; its ranks."""
    before = len(await here.told())
    deadline = time.monotonic() + 120
    while not [m for m in (await here.told())[before:] if (m.kind, m.stage) == ("query_encoder", "training")]:
        torchrun.check()
        assert time.monotonic() < deadline, torchrun.tail()
        await asyncio.sleep(0.1)
    found = ranks_of(torchrun)
    assert sorted(found) == [0, 1]
    return found


async def all_ended(torchrun: Process, ranks: dict[int, psutil.Process]) -> None:
    deadline = time.monotonic() + ENDS_WITHIN
    while torchrun.running or any(rank.is_running() and rank.status() != "zombie" for rank in ranks.values()):
        assert time.monotonic() < deadline, torchrun.tail()
        await asyncio.sleep(0.1)


def hit(what: str, torchrun: Process, ranks: dict[int, psutil.Process]) -> None:
    if what == "ctrl-c":
        os.killpg(torchrun.pid or 0, signal.SIGINT)
    elif what == "torchrun":
        os.kill(torchrun.pid or 0, signal.SIGKILL)
    else:
        ranks[int(what[-1])].kill()


SAID = {
    "rank 1": ("lost another one", "run interrupted"),
    "rank 0": ("lost another one", "has not ended"),
    "torchrun": ("run interrupted",),
    "ctrl-c": ("run interrupted",),
}
"""One of these is in the log."""


@pytest.mark.timeout(500)
async def test_ranks_end_together_and_the_next_start_does_the_command(broker: Any, tmp_path: Path) -> None:
    here = Lane(broker, tmp_path, random.Random(0))
    await here.fill()
    with ProcessGroup() as processes:
        command = await here.ask()
        for what, said in SAID.items():
            torchrun = started(here, processes, what.replace(" ", "-"))
            ranks = await training(here, torchrun)
            hit(what, torchrun, ranks)
            await all_ended(torchrun, ranks)
            log = torchrun.log.read_text()
            assert any(line in log for line in said), torchrun.tail()
            assert await here.ended(command) < len(KINDS), "it is not done"
        assert not [m for m in await here.told() if m.stage == "failed"], "nor given up"
        last = started(here, processes, "last")
        deadline = time.monotonic() + 120
        while await here.ended(command) < len(KINDS):
            last.check()
            assert time.monotonic() < deadline, last.tail()
            await asyncio.sleep(0.5)
        ranks = ranks_of(last)
        last.terminate()
        await all_ended(last, ranks)
    announced = await read_all(broker, topics.MODEL_VERSIONS, ModelVersionPublished)
    assert {m.kind for m in announced} == set(KINDS)
    assert {m.lineage.settings["ranks"] for m in announced} == {2}
    for event in announced:
        ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "check").fetch(event.version, digest=event.digest)
