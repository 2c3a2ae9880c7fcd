"""What runs during a demo: the stack, Clickloop's services, an outside app, and the demo's own connections."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from clickloop import FeedbackProducer
from clickloop.errors import StackError
from clickloop.events import Message, VersionKind
from clickloop.kafka import create_topics, list_topics
from demo import services
from demo.corpus import Corpus
from demo.processes import ProcessGroup
from demo.services import INDEX, NODES, Node, Place
from demo.stack import start_broker, start_redis
from demo.users import Population, Traffic
from demo.watcher import Watcher

PARTITIONS = 4

Say = Callable[[str, str], None]


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    corpus: Corpus
    work: Path
    examples: int
    kinds: list[VersionKind]
    seed: int
    bootstrap_servers: str = ""
    redis_url: str = ""
    qdrant_url: str = ""


@dataclass
class Stage:
    """Everything that is up. ``until`` is how a step waits: it fails as soon as any part has failed."""

    place: Place
    processes: ProcessGroup
    nodes: list[Node]
    session: aiohttp.ClientSession
    feedback: FeedbackProducer
    population: Population
    traffic: Traffic
    watcher: Watcher
    background: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    async def until(self, condition: Callable[[], bool], *, seconds: float, what: str) -> None:
        """Wait for ``condition``. Raises StackError at the deadline, or what a background part failed with."""

        async def check() -> bool:
            return condition()

        await self.until_async(check, seconds=seconds, what=what)

    async def until_async(self, condition: Callable[[], Awaitable[bool]], *, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not await condition():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"gave up waiting for {what} after {seconds:.0f} s; see {self.place.logs}")
            await asyncio.sleep(0.1)

    def check(self) -> None:
        """Raises what a background part failed with, and StackError where a process has ended."""
        self.processes.check()
        for task in self.background:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error


@asynccontextmanager
async def set_up(options: Options, *, say: Say, tell: Callable[[Message], None]) -> AsyncIterator[Stage]:
    """Start all of it; leaving the block ends all of it, whatever happened inside.

    ``say`` is told about the parts, ``tell`` gets every message of the loop. Raises StackError, BrokerError.
    """
    async with AsyncExitStack() as parts:
        processes = parts.enter_context(ProcessGroup())
        place = await _start_stack(options, processes)
        say("stack", f"Kafka {place.bootstrap_servers}, {place.redis_url}, logs in {place.logs}")
        nodes = [services.start_node(processes, place, number) for number in range(1, NODES + 1)]
        services.start_streams(processes, place, _streams_settings(options))
        services.start_trainer(processes, place)
        services.start_subscriber(processes, place)
        say("services", f"{NODES} search nodes, streams, trainer and an outside app are starting")
        timeout = aiohttp.ClientTimeout(total=30)
        session = await parts.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        feedback = await parts.enter_async_context(
            FeedbackProducer(place.bootstrap_servers, index=INDEX, prefix=place.topic_prefix, source="demo-app")
        )
        traffic = Traffic()
        population = Population(
            session,
            [node.address for node in nodes],
            feedback,
            traffic=traffic,
            clock=time.time,
            seed=options.seed,
        )
        watcher = Watcher(place.bootstrap_servers, prefix=place.topic_prefix, index=INDEX, tell=tell)
        stage = Stage(place, processes, nodes, session, feedback, population, traffic, watcher)
        stage.background = [
            asyncio.create_task(watcher.run()),
            asyncio.create_task(_relay(place.logs / "your-app.log", say)),
        ]
        try:
            yield stage
        finally:
            for task in stage.background:
                task.cancel()
            await asyncio.gather(*stage.background, return_exceptions=True)


async def _start_stack(options: Options, processes: ProcessGroup) -> Place:
    run = options.work / "run"
    logs = run / "logs"
    await asyncio.to_thread(shutil.rmtree, run, ignore_errors=True)
    await asyncio.to_thread(logs.mkdir, parents=True)
    if options.bootstrap_servers:
        bootstrap_servers, prefix = options.bootstrap_servers, f"clickloop-demo-{int(time.time())}"
        await list_topics(bootstrap_servers)
    else:
        # The embedded broker forgets its versions when it stops, so their artifacts have no owner any more.
        await asyncio.to_thread(shutil.rmtree, options.work / "store" / "versions", ignore_errors=True)
        bootstrap_servers, prefix = await start_broker(processes, logs=logs), "clickloop"
    redis_url = options.redis_url or await start_redis(processes, logs=logs)
    await create_topics(bootstrap_servers, prefix=prefix, partitions=PARTITIONS)
    return Place(
        bootstrap_servers=bootstrap_servers,
        redis_url=redis_url,
        qdrant_url=options.qdrant_url,
        topic_prefix=prefix,
        work=options.work,
        run=run,
    )


def _streams_settings(options: Options) -> dict[str, str]:
    """Production's rules at a demo's pace: one retrain, when the users have taught enough, and a quick rollout."""
    return {
        "CLICKLOOP_THRESHOLD": str(options.examples),
        "CLICKLOOP_DRIFT_MIN_EXAMPLES": str(options.examples),
        "CLICKLOOP_DRIFT_WINDOW_QUERIES": "250",
        "CLICKLOOP_COOL_DOWN_SECONDS": "3600",
        "CLICKLOOP_REPORT_SECONDS": "1",
        "CLICKLOOP_KINDS": ",".join(options.kinds),
        "CLICKLOOP_ROLLOUT_STEPS": "50,100",
        "CLICKLOOP_ROLLOUT_MIN_QUERIES": "20",
    }


async def _relay(log: Path, say: Say) -> None:
    """Show what the outside app prints, as its own terminal would. Runs until cancelled."""
    told = 0
    while True:
        text = await asyncio.to_thread(_read, log)
        lines = text.splitlines()
        for line in lines[told:]:
            say("your app", line)
        told = len(lines)
        await asyncio.sleep(0.5)


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.is_file() else ""
