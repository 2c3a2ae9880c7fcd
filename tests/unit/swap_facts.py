"""A swap with what it asks of the rest of a node, and what it told it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from clickloop.events import GateResult, ModelVersionPublished
from search import swap as swap_module
from search.encoder import Encoder, LoadedVersion
from search.metrics import Metrics
from search.swap import Outcome, Swap
from tests.unit.search_fakes import announcement, loaded

BASE = loaded("base-1")


class World:
    """What a swap asks of the rest of the node, and what it told it."""

    def __init__(self, **swap_options: Any) -> None:
        self.loads: list[str] = []
        self.fills: list[str] = []
        self.outcomes: list[Outcome] = []
        self.broken: dict[str, Exception] = {}
        self.hung: set[str] = set()
        self.answers = threading.Event()
        self.encoders: dict[str, Encoder] = {}
        self.fill_gate = asyncio.Event()
        self.fill_gate.set()
        self.swap = Swap(self.load, self.fill, self.outcomes.append, Metrics(), base=BASE, **swap_options)

    def load(self, event: ModelVersionPublished) -> LoadedVersion:
        self.loads.append(event.version)
        if event.version in self.hung:
            self.answers.wait(10)
        if event.version in self.broken:
            raise self.broken[event.version]
        encoder = self.encoders.get(event.version, BASE.encoder)
        return LoadedVersion(event.version, event.kind, event.space, encoder)

    async def fill(self, version: LoadedVersion) -> None:
        self.fills.append(version.version)
        await self.fill_gate.wait()

    async def idle(self) -> None:
        await asyncio.sleep(0.05)

    @property
    def rejected(self) -> dict[str, str]:
        return {outcome.version: outcome.rejected for outcome in self.outcomes if outcome.rejected}

    @property
    def versions(self) -> set[str]:
        return set(self.swap.serving.versions)


@asynccontextmanager
async def world(*, caught_up: bool = True, **options: Any) -> AsyncIterator[World]:
    """A swap that runs, and tries again within moments."""
    made = World(**options)
    if caught_up:
        made.swap.caught_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swap_module, "RETRY_SECONDS", 0.01)
        task = asyncio.create_task(made.swap.run())
        try:
            yield made
        finally:
            made.answers.set()
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def undecided(version: str) -> ModelVersionPublished:
    return msgspec.structs.replace(announcement(version), gate=GateResult(verdict="inconclusive", queries=10))
