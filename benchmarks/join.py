"""How fast queries and clicks become examples, against a bare Faust loop and against Kafka Streams.

    python -m benchmarks.join                   worker and bare loop in turns, then Kafka Streams, on one Kafka
    python -m benchmarks.join --processes 1     the same with a worker of one process
    python -m benchmarks.join --scale           1, 2 and 4 workers; 1, 10 and 100 results an impression
    python -m benchmarks.join --open 1000000    memory of a worker with so many open impressions, and how long
                                                the next owner takes to rebuild them after kill -9

Apache Kafka comes from KAFKA_HOME; without it the embedded broker serves, and Kafka Streams is left out. All rules
are on: the worker's clock runs from the first record that it reads to the last whose examples the broker has
acknowledged.

The worker has a process a core (its setting ``processes``), and Kafka Streams a thread a core. A bare Faust loop
is one process, so a worker of one process is measured as well, in the same turns. Growth and memory are those of
workers of one process, as they are unless told otherwise.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import typer

from benchmarks.common import JsonFile, Quick, Stolen, finish, say
from clickloop import cli, topics
from clickloop.errors import ClickloopError, SettingsError
from clickloop.events import Message, QueryServed, Result, ResultClicked
from clickloop.kafka import Producer, create_topics, end_offsets
from demo.processes import Process, ProcessGroup, free_port
from demo.stack import kafka_home, start_broker, start_kafka

PARTITIONS = 4
CATALOGUE = 100_000
PEOPLE = 50_000
PATIENCE_SECONDS = 600.0
TARGETS = {"ratio": 4.0, "kafka_streams_ratio": 1.0}
"""At least."""
QUIET = 0.02
"""Share of the processor time that the host may give to others in a turn that counts by itself."""
MOST_BYTES = 2**30
"""For a million open impressions."""
REBALANCE_DELAY_MS = 3000
"""Kafka's default: what starts together joins together, before the clock starts."""
LOOK_SECONDS, LOOK_CLOSELY_SECONDS, LAST_SHARE = 0.25, 0.03, 0.95
"""Between two looks at how far a worker is, and when the clock is about to start or, with so much done, to stop. A
look costs the worker some milliseconds."""


@dataclass(frozen=True)
class Load:
    """``queries`` impressions of ``results`` documents each, and ``clicks`` clicks on them, in shuffled pairs."""

    queries: int
    clicks: int
    results: int = 10

    @property
    def events(self) -> int:
        return self.queries + self.clicks

    def messages(self) -> Iterator[tuple[topics.Topic, Message]]:
        rng = random.Random(0)
        catalogue = [f"catalogue/section-{n % 97}/{n:06d}" for n in range(CATALOGUE)]
        people = [uuid.UUID(int=rng.getrandbits(128)).hex for _ in range(PEOPLE)]
        clicked = set(rng.sample(range(self.queries), self.clicks))
        at = datetime.now(UTC)
        for number in range(self.queries):
            query_id, person = str(uuid.UUID(int=rng.getrandbits(128))), rng.choice(people)
            shown = [catalogue[rng.randrange(CATALOGUE)] for _ in range(self.results)]
            yield (
                topics.QUERIES,
                QueryServed(
                    event_id=f"{query_id}/served",
                    index="default",
                    query_id=query_id,
                    query=f"what people look for, number {number % 20_000}",
                    served_at=at,
                    results=[
                        Result(doc_id=doc, position=p, score=1.0 / p) for p, doc in enumerate(shown, start=1)
                    ],
                    split_key=person,
                    version="base-1",
                    space="base-1",
                    arm="live",
                    latency_seconds=0.0125,
                    sketch=rng.randbytes(64),
                ),
            )
            if number in clicked:
                yield (
                    topics.CLICKS,
                    ResultClicked(
                        event_id=f"{query_id}/click",
                        index="default",
                        query_id=query_id,
                        doc_id=shown[min(int(rng.expovariate(0.5)), self.results - 1)],
                        clicked_at=at + timedelta(seconds=3),
                        split_key=person,
                    ),
                )


async def fill(servers: str, prefix: str, load: Load, *, partitions: int = PARTITIONS) -> None:
    """Put a load into fresh topics."""
    await create_topics(servers, prefix=prefix, partitions=partitions)
    async with Producer(servers, prefix=prefix, source="benchmark") as producer:
        pending: list[asyncio.Future[Any]] = []
        for topic, message in load.messages():
            pending.append(await producer.send(topic, message))
            if len(pending) >= 5000:
                await asyncio.gather(*pending)
                pending.clear()
        await asyncio.gather(*pending)


class Worker:
    """A streams worker of ``count`` processes as it is deployed, watched through its metrics."""

    def __init__(
        self, processes: ProcessGroup, servers: str, prefix: str, folder: Path, *, count: int = 1
    ) -> None:
        self._ports = free_ports(count)
        self.process = processes.start(
            Process(
                "streams",
                [sys.executable, "-m", "streams"],
                log=folder / f"streams-{self._ports[0]}.log",
                env={
                    "CLICKLOOP_BOOTSTRAP_SERVERS": servers,
                    "CLICKLOOP_TOPIC_PREFIX": prefix,
                    "CLICKLOOP_METRICS_PORT": str(self._ports[0]),
                    "CLICKLOOP_PROCESSES": str(count),
                    "CLICKLOOP_PARTITIONS": str(PARTITIONS),
                    "CLICKLOOP_THRESHOLD": str(10**9),
                    "CLICKLOOP_POLICIES": "threshold",
                    "CLICKLOOP_CONFIG": "",
                    "CLICKLOOP_LOG_LEVEL": "WARNING",
                },
            )
        )

    @property
    def rss_bytes(self) -> int:
        """Resident memory; what several processes share counts once."""
        worker = psutil.Process(self.process.pid)
        parts = worker.children()
        if not parts:
            return int(worker.memory_info().rss)
        return sum(int(part.memory_full_info().pss) for part in [worker, *parts])

    async def read(self, metric: str) -> dict[str, float]:
        """A metric by its labels, of all processes the largest; none while the worker does not answer yet."""
        self.process.check()
        found: dict[str, float] = {}
        for port in self._ports:
            for labels, value in (await self.read_of(port, metric)).items():
                found[labels] = max(found.get(labels, 0.0), value)
        return found

    @staticmethod
    async def read_of(port: int, metric: str) -> dict[str, float]:
        """The same of the process that serves metrics on one port."""
        url = f"http://127.0.0.1:{port}/metrics"
        try:
            page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
        except (OSError, HTTPException):
            # Not there yet; where nothing listens, a connection may even reach itself.
            return {}
        lines = [line.rpartition(" ") for line in page.splitlines() if line.split("{")[0] == metric]
        return {name.partition("{")[2]: float(value) for name, _, value in lines}


async def through(workers: list[Worker]) -> int | None:
    """Events of fresh topics that are read, with all effects acknowledged; None before any is anyone's to read.

    What the next owner of a partition reads again counts once.
    """
    found: dict[str, float] = {}
    for worker in workers:
        for partition, position in (await worker.read("clickloop_streams_position")).items():
            found[partition] = max(found.get(partition, 0.0), position)
    return int(sum(found.values())) if found else None


def free_ports(count: int) -> range:
    """So many loopback ports in a row that were free a moment ago."""
    while True:
        first = free_port()
        try:
            for port in range(first + 1, first + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except (OSError, OverflowError):
            continue
        return range(first, first + count)


async def joined(workers: list[Worker], events: int) -> float:
    """Seconds in which the workers together get through ``events``, all effects acknowledged."""
    started = 0.0
    seen: int | None = None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        before = time.monotonic()
        found = await through(workers)
        if found is None and seen is None:
            # Whoever reads them is told after this moment: the clock starts too early rather than too late.
            started = before
        seen = found if found is not None else seen
        if seen is not None and seen >= events:
            return time.monotonic() - started
        closely = seen is None or seen == 0 or seen >= LAST_SHARE * events
        await asyncio.sleep(LOOK_CLOSELY_SECONDS if closely else LOOK_SECONDS)
    raise ClickloopError(f"only {seen or 0} of {events} events within {PATIENCE_SECONDS:.0f} s")


@asynccontextmanager
async def broker() -> AsyncIterator[tuple[ProcessGroup, str, Path, Path | None]]:
    """A fresh broker: processes, ``host:port``, a folder, and Kafka's home where it is Kafka's."""
    home = kafka_home()
    folder = Path(tempfile.mkdtemp(prefix="clickloop-bench-"))
    try:
        with ProcessGroup() as processes:
            if home is not None:
                say(f"Apache Kafka from {home}")
                servers = await start_kafka(
                    processes, home=home, folder=folder, rebalance_delay_ms=REBALANCE_DELAY_MS
                )
                yield processes, servers, folder, home
            else:
                say("KAFKA_HOME (or java) is not there: the embedded broker, without Kafka Streams")
                yield processes, await start_broker(processes, logs=folder), folder, None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_home() -> None:
    """Raises SettingsError where ``KAFKA_HOME`` names something else than Apache Kafka."""
    home = kafka_home()
    if home is not None and not (home / "libs").is_dir():
        raise SettingsError(f"KAFKA_HOME={home}: no folder with Apache Kafka's libs/")


def stop(process: Process) -> None:
    process.terminate()
    process.wait_ended(deadline=time.monotonic() + 15)


async def output_of(command: list[str]) -> dict[str, Any]:
    """The JSON line that a peer prints."""
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await child.communicate()
    if child.returncode != 0:
        raise ClickloopError(f"{command[0]} failed: {err.decode()[-800:]}")
    found: dict[str, Any] = json.loads(out.decode().strip().splitlines()[-1])
    return found


@dataclass(frozen=True)
class Turn:
    """Events a second of the worker, of one process of it, and of the bare loop, one right after the other."""

    worker: float
    alone: float
    bare: float
    stolen: float
    """Share of the time that the host took: of the three, the largest."""

    @property
    def ratio(self) -> float:
        return self.worker / self.bare


def undecided(done: list[Turn], *, turns: int, most: int) -> bool:
    """Another turn is worth its time: fewer than ``turns`` were quiet, and there were fewer than ``most``."""
    return len(done) < most and sum(turn.stolen <= QUIET for turn in done) < turns


def counted(done: list[Turn], *, turns: int) -> dict[str, Any]:
    """The figures of those ``turns`` from which the host took the least, whatever came out of them."""
    quietest = sorted(done, key=lambda turn: turn.stolen)[:turns]
    ratios = [turn.ratio for turn in quietest]
    return {
        "turns": len(quietest),
        "turns_left_out": len(done) - len(quietest),
        "stolen_share": max(turn.stolen for turn in quietest),
        "events_per_second": median(turn.worker for turn in quietest),
        "bare_events_per_second": median(turn.bare for turn in quietest),
        "ratio": median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "one_process_events_per_second": median(turn.alone for turn in quietest),
        "one_process_ratio": median(turn.alone / turn.bare for turn in quietest),
    }


async def throughput(
    load: Load, count: int, *, turns: int = 3, most: int = 6, stretch: bool = True
) -> dict[str, Any]:
    """A worker of ``count`` processes, one of a single process and the bare loop in turns, each worker on fresh
    topics, then Kafka Streams with as many threads and its changelog, and for ``stretch`` without.

    Medians of the turns. Where the host gives the processor to others, a turn wanders by a third: there are up to
    ``most`` turns until as many as ``turns`` were quiet, and those from which the least was taken count.
    """
    done, examples = list[Turn](), 0
    async with broker() as (processes, servers, folder, home):
        while undecided(done, turns=turns, most=most):
            speeds, taken = dict[int, float](), 0.0
            for members in sorted({count, 1}):
                prefix = f"bench{len(done)}of{members}"
                say(f"filling {load.queries:,} queries of {load.results} results and {load.clicks:,} clicks")
                await fill(servers, prefix, load)
                say(f"worker of {members} process{'es' * (members > 1)}, all rules on")
                worker, stolen = Worker(processes, servers, prefix, folder, count=members), Stolen()
                speeds[members] = load.events / await joined([worker], load.events)
                taken = max(taken, stolen.share)
                ends = await end_offsets(servers, topics.TRAINING_EXAMPLES.name(prefix))
                examples = sum(end for _, end in ends.values())
                stop(worker.process)

            say("bare Faust loop, decoding only")
            names = [topic.name(prefix) for topic in (topics.QUERIES, topics.CLICKS)]
            stolen = Stolen()
            bare = await output_of(
                [sys.executable, "-m", "benchmarks.peers.bare_faust", servers, *names, str(load.events)]
            )
            slow = bare["events"] / bare["seconds"]
            turn = Turn(speeds[count], speeds[1], slow, max(taken, stolen.share))
            say(
                f"{turn.worker:,.0f} ({turn.alone:,.0f} by one process) and {turn.bare:,.0f} events a second, "
                f"ratio {turn.ratio:.2f}; the host took {turn.stolen:.1%} of the time"
            )
            done.append(turn)

        peers: dict[str, float | None] = {"changelog": None, "plain": None}
        if home is not None:
            source = Path(__file__).parent / "peers" / "KafkaStreamsJoin.java"
            for how in peers if stretch else ["changelog"]:
                say(f"Kafka Streams ({how}), {count} thread{'s' * (count > 1)}")
                output = topics.TRAINING_EXAMPLES.name(f"peer-{how}")
                await create_topics(servers, prefix=f"peer-{how}", partitions=PARTITIONS)
                java = ["java", "-cp", f"{home}/libs/*", str(source), servers, *names, output]
                peer = await output_of([*java, str(load.events), how, str(count)])
                peers[how] = peer["events"] / peer["seconds"]
    figures = counted(done, turns=turns)
    speed, with_log, without = figures["events_per_second"], peers["changelog"], peers["plain"]
    return {
        "events": load.events,
        "examples": examples,
        "processes": count,
        **figures,
        "kafka_streams_events_per_second": with_log,
        "kafka_streams_ratio": speed / with_log if with_log else None,
        "kafka_streams_without_changelog_events_per_second": without,
        "kafka_streams_without_changelog_ratio": speed / without if without else None,
    }


async def scale(load: Load) -> dict[str, Any]:
    """How it grows with workers, and with results an impression."""
    figures: dict[str, Any] = {}
    async with broker() as (processes, servers, folder, _):
        for results in (1, 10, 100):
            prefix = f"results{results}"
            share = Load(load.queries // max(1, results // 10), load.clicks // max(1, results // 10), results)
            say(f"{results} results an impression, {share.events:,} events, one worker")
            await fill(servers, prefix, share)
            worker = Worker(processes, servers, prefix, folder)
            figures[f"events_per_second_{results}_results"] = share.events / await joined([worker], share.events)
            stop(worker.process)
        for count in (1, 2, 4):
            prefix = f"workers{count}"
            say(f"{count} workers on {psutil.cpu_count()} cores")
            await fill(servers, prefix, load)
            workers = [Worker(processes, servers, prefix, folder) for _ in range(count)]
            figures[f"events_per_second_{count}_workers"] = load.events / await joined(workers, load.events)
            for worker in workers:
                stop(worker.process)
    return figures


async def held_by(worker: Worker) -> float:
    return sum((await worker.read("clickloop_open_impressions")).values())


async def open_impressions(number: int, count: int) -> dict[str, Any]:
    """Memory of ``count`` processes with ``number`` open impressions, a third of them clicked, and the rebuild
    after kill -9."""
    load = Load(number, number // 3)
    async with broker() as (processes, servers, folder, _):
        say(f"filling {load.queries:,} queries and {load.clicks:,} clicks")
        await fill(servers, "open", load)
        worker = Worker(processes, servers, "open", folder, count=count)
        await joined([worker], load.events)
        held = await held_by(worker)
        rss = worker.rss_bytes
        say(f"{held:,.0f} open in {rss / 2**20:,.0f} MiB; kill -9")
        await asyncio.sleep(5)  # reports and offsets are committed within seconds
        worker.process.kill()
        again = Worker(processes, servers, "open", folder, count=count)
        begun = time.monotonic()
        while await held_by(again) < held:
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise ClickloopError(f"not rebuilt within {PATIENCE_SECONDS:.0f} s\n{again.process.tail()}")
            await asyncio.sleep(0.2)
        return {
            "processes": count,
            "open_impressions": int(held),
            "rss_bytes": rss,
            "bytes_an_impression": rss / held,
            "rebuild_seconds": time.monotonic() - begun,
            "rebuilt_rss_bytes": again.rss_bytes,
        }


def command(
    json_file: JsonFile = None,
    quick: Quick = False,
    count: Annotated[
        int | None,
        typer.Option(
            "--processes", min=1, max=PARTITIONS, help="Of the worker.", show_default="one a core; for memory one"
        ),
    ] = None,
    grow: Annotated[bool, typer.Option("--scale", help="Workers, results an impression, rebuild.")] = False,
    held: Annotated[int, typer.Option("--open", min=0, help="Open impressions to hold and to rebuild.")] = 0,
) -> None:
    """Measure the join. Figures are compared within one run only."""
    cli.checked(check_home)
    load = Load(15_000, 7_500) if quick else Load(200_000, 100_000)
    of_cores = count or min(PARTITIONS, psutil.cpu_count() or 1)
    if held:
        figures = asyncio.run(open_impressions(held, count or 1))
    elif grow:
        kept = open_impressions(20_000 if quick else 1_000_000, count or 1)
        figures = asyncio.run(scale(load)) | asyncio.run(kept)
    elif quick:
        figures = asyncio.run(throughput(load, of_cores, turns=1, most=1, stretch=False))
    else:
        figures = asyncio.run(throughput(load, of_cores))
    finish(figures, json_file=json_file)
    for name, target in TARGETS.items():
        if figures.get(name) is not None:
            say(f"{name}: {figures[name]:.2f}, target {target:g}")
    if figures.get("open_impressions", 0) > 0.99e6:
        say(f"rss_bytes: {figures['rss_bytes'] / 2**20:,.0f} MiB, target {MOST_BYTES / 2**20:,.0f}")


if __name__ == "__main__":
    typer.run(command)
