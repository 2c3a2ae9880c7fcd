"""The node's reports on ``node-status``: a heartbeat, what became of each version, how far an indexing is."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from clickloop.events import NodeReported
from clickloop.kafka import Producer
from clickloop.logs import logger
from clickloop.topics import NODE_STATUS
from search.swap import Outcome

TICK_SECONDS = 1.0
"""Time between progress reports while documents are being indexed."""
WAITING = 1000
SEND_SECONDS = 5.0


class Reporter:
    """``facts`` tells the node's state whenever a report is made; the report's own fields come on top."""

    def __init__(self, producer: Producer, facts: Callable[[], NodeReported], *, heartbeat_seconds: float) -> None:
        self._producer = producer
        self._facts = facts
        self._heartbeat_seconds = heartbeat_seconds
        self._waiting: deque[NodeReported] = deque(maxlen=WAITING)
        self._wake = asyncio.Event()
        self._moved: tuple[str, int] | None = None

    def outcome(self, outcome: Outcome) -> None:
        """A version is warm, or was rejected."""
        self._add(
            state="rejected" if outcome.rejected else "swapped",
            version=outcome.version,
            swap_seconds=None if outcome.rejected else outcome.seconds,
            message=outcome.rejected[:1000],
        )

    def progress(self, version: str, documents: int) -> None:
        """``documents`` are indexed (in the space of ``version``, where it is named)."""
        self._moved = (version, documents)

    def now(self) -> None:
        """Report without waiting for the heartbeat."""
        self._add()

    async def run(self) -> None:
        """Report until cancelled."""
        loop = asyncio.get_running_loop()
        beat = loop.time()
        while True:
            if self._moved is not None:
                (version, documents), self._moved = self._moved, None
                self._add(state="indexing", version=version, documents=documents)
            if loop.time() >= beat:
                beat = loop.time() + self._heartbeat_seconds
                self._add()
            while self._waiting:
                await self._send(self._waiting.popleft())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()

    async def last(self) -> None:
        """Send what waits and a final ``stopping``, and wait for it a little."""
        self._add(state="stopping")
        while self._waiting:
            await self._send(self._waiting.popleft())

    def _add(self, **changes: Any) -> None:
        self._waiting.append(msgspec.structs.replace(self._facts(), **changes))
        self._wake.set()

    async def _send(self, report: NodeReported) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._producer.send_and_wait(NODE_STATUS, report)
        except Exception as error:  # noqa: BLE001 - the node must outlive its broker, and reports again
            logger().warning("report not sent", state=report.state, reason=repr(error))
