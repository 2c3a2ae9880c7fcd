"""Clickloop's own services as the demo starts them: the same programs, by the same settings, as in production."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from demo.processes import Process, ProcessGroup, free_port

INDEX = "demo"
NODES = 2
INDEXING_SECONDS = 900.0


@dataclass(frozen=True)
class Place:
    """Where this run's brokers and files are."""

    bootstrap_servers: str
    redis_url: str
    qdrant_url: str
    topic_prefix: str
    work: Path
    """Kept between runs: the vector store, so that a second run doesn't encode the same documents again."""
    run: Path
    """This run's own: logs, model store's cache, the nodes' data."""

    @property
    def logs(self) -> Path:
        return self.run / "logs"

    @property
    def store_url(self) -> str:
        return (self.work / "store").absolute().as_uri()

    def environment(self) -> dict[str, str]:
        return {
            "CLICKLOOP_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "CLICKLOOP_REDIS_URL": self.redis_url,
            "CLICKLOOP_TOPIC_PREFIX": self.topic_prefix,
            "CLICKLOOP_INDEX": INDEX,
            "CLICKLOOP_STORE_URL": self.store_url,
            "CLICKLOOP_LOG_LEVEL": "INFO",
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
            # Five programs share the cores here: a thread that waits for another must not spin on one.
            "OMP_WAIT_POLICY": "PASSIVE",
            # A clickloop.toml of the user's must not change what the demo shows.
            "CLICKLOOP_CONFIG": "",
        }


@dataclass(frozen=True)
class Node:
    process: Process
    address: str


def start_node(processes: ProcessGroup, place: Place, number: int) -> Node:
    port = free_port()
    name = f"node-{number}"
    env = {
        "CLICKLOOP_HOST": "127.0.0.1",
        "CLICKLOOP_PORT": str(port),
        "CLICKLOOP_NODE_ID": name,
        "CLICKLOOP_DATA_DIR": str(place.run / name),
        "CLICKLOOP_QDRANT_URL": place.qdrant_url,
        "CLICKLOOP_MODE": "hybrid",
        # The demo has a minute, not weeks, to learn where its users look: every other answer has a pair swapped.
        "CLICKLOOP_EXPLORATION": "0.5",
    }
    return Node(_start(processes, place, name, "search", env), f"http://127.0.0.1:{port}")


def start_streams(processes: ProcessGroup, place: Place, settings: Mapping[str, str]) -> Process:
    return _start(processes, place, "streams", "streams", settings)


def start_trainer(processes: ProcessGroup, place: Place) -> Process:
    return _start(processes, place, "trainer", "trainer", {"CLICKLOOP_WORK_DIR": str(place.run / "trainer")})


def start_subscriber(processes: ProcessGroup, place: Place) -> Process:
    arguments = [place.bootstrap_servers, INDEX, place.topic_prefix]
    command = [sys.executable, "-m", "demo.subscriber", *arguments]
    return processes.start(Process("your-app", command, log=place.logs / "your-app.log"))


def _start(processes: ProcessGroup, place: Place, name: str, package: str, env: Mapping[str, str]) -> Process:
    command = [sys.executable, "-m", package]
    log = place.logs / f"{name}.log"
    return processes.start(Process(name, command, log=log, env=place.environment() | dict(env)))


async def is_ready(session: aiohttp.ClientSession, node: Node) -> bool:
    try:
        async with session.get(f"{node.address}/readyz", timeout=aiohttp.ClientTimeout(total=2)) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
