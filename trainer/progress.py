"""How a run tells the world how far it is: an event at every change of stage, and at least every two seconds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from clickloop import codec, topics
from clickloop.commands import Retrain
from clickloop.errors import BrokerError, TrainingError
from clickloop.events import TrainingProgressed, Verdict, VersionKind
from clickloop.kafka import Producer
from clickloop.logs import logger
from trainer.methods.base import Progress, StoppedError
from trainer.publish import run_name
from trainer.trackers import Tracking

T = TypeVar("T")

EVERY_SECONDS = 1.0
LOOK_SECONDS = 0.2
"""After so long does someone who waits for a broker look whether the run is to end."""
ENDS = ("done", "failed")


class CancelledError(TrainingError):
    """An operator ended the run."""


@dataclass(frozen=True)
class _State:
    kind: VersionKind
    stage: str
    version: str = ""
    verdict: Verdict | None = None
    message: str = ""
    progress: Progress | None = None
    first: Progress | None = None
    """The stage's first: what a resumed training did before is no sign of its speed."""
    since: float = 0.0
    """When that was, monotonic seconds."""


class RunReport:
    """One run's voice. ``from_thread`` may be called from any thread, the rest from the event loop's."""

    def __init__(
        self, producer: Producer, command: Retrain, stopping: threading.Event, tracking: Tracking | None = None
    ) -> None:
        self._producer = producer
        self._command = command
        self._stopping = stopping
        self._tracking = tracking or Tracking()
        self._cancelled = threading.Event()
        self._state = _State(kind=command.kinds[0], stage="waiting")
        self.run_id = run_name(command.command_id)

    async def stage(
        self,
        kind: VersionKind,
        stage: str,
        *,
        version: str = "",
        verdict: Verdict | None = None,
        message: str = "",
    ) -> None:
        """Enter a stage, and say so at once. Raises CancelledError."""
        self._state = _State(kind, stage, version, verdict, message)
        # What is said next, that the run failed, is of the rung that was to begin, not of the one that is done.
        if self._cancelled.is_set() and stage not in ENDS:
            raise CancelledError("cancelled")
        await self._send()

    async def failed(self, message: str, *, verdict: Verdict | None = None) -> None:
        """The run ended without a result, in the stage that it was in.

        ``verdict`` is inconclusive where nothing is wrong with it but that there is too little to learn from yet.
        """
        self._tracking.failed(self._state.version)
        state = self._state
        await self.stage(state.kind, "failed", version=state.version, message=message, verdict=verdict)

    def cancel(self) -> None:
        """End the run at its next step."""
        self._cancelled.set()

    async def while_wanted(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns; it is broken off where the run or the process is to end.

        For what waits for others, e.g. a broker, and may not end by itself. Raises StoppedError, CancelledError.
        """
        task = asyncio.create_task(work)
        try:
            while not task.done():
                self._check()
                await asyncio.wait({task}, timeout=LOOK_SECONDS)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError("cancelled")
        if self._stopping.is_set():
            raise StoppedError("stopped before the end of training; it starts anew with the next start")

    def from_thread(self, progress: Progress) -> None:
        """Note how far it is; the next event says it.

        Raises StoppedError where the process is to stop, and CancelledError where the run is."""
        self._check()
        state = self._state
        first, since = state.first, state.since
        if state.stage != progress.stage or first is None or progress.steps != first.steps:
            first, since = progress, time.monotonic()
        said = progress.message or state.message
        self._state = replace(
            state, stage=progress.stage, message=said, progress=progress, first=first, since=since
        )
        self._tracking.progress(state.version, progress)

    def encoding(self, done: int, texts: int) -> None:
        """Note how many of ``texts`` are encoded."""
        self.from_thread(Progress("encoding", done, texts, examples=done))

    @asynccontextmanager
    async def ticking(self) -> AsyncIterator[None]:
        """While inside, an event goes out every second, whatever the run is busy with."""
        ticker = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                await self._send()
            except BrokerError as error:
                # The run goes on: a broker that is away for a while must not cost an hour of training.
                logger().warning("progress not sent", reason=str(error))

    async def _send(self) -> None:
        await self._producer.send(topics.TRAINING_RUNS, self._event(self._state))

    def _event(self, state: _State) -> TrainingProgressed:
        progress = state.progress or Progress("training")
        first = state.first or progress
        seconds = max(time.monotonic() - state.since, 1e-6)
        examples, steps = progress.examples - first.examples, progress.step - first.step
        rate = examples / seconds if examples > 0 else None
        left = (progress.steps - progress.step) * seconds / steps if steps > 0 else None
        return TrainingProgressed(
            event_id=codec.new_id(),
            index=self._command.index,
            run_id=self.run_id,
            command_id=self._command.command_id,
            kind=state.kind,
            stage=state.stage,  # type: ignore[arg-type]
            at=codec.now(),
            step=progress.step,
            steps=progress.steps,
            loss=progress.loss,
            examples_per_second=rate,
            eta_seconds=max(left, 0.0) if left is not None else None,
            version=state.version,
            verdict=state.verdict,
            message=state.message[:2000],
        )
