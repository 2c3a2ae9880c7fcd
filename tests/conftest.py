"""Fixtures that start real parts: brokers and Redis as processes. Nothing here is a fake."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from clickloop import kafka
from demo.processes import Process, ProcessGroup, free_port, port_open
from demo.stack import start_broker, start_redis


@dataclass(frozen=True)
class Broker:
    """A running broker. ``prefix`` is fresh for each test, so that tests share a broker but no topic."""

    bootstrap_servers: str
    kind: str
    prefix: str = "clickloop"


def kafka_home() -> Path | None:
    home = os.environ.get("KAFKA_HOME")
    return Path(home).resolve() if home else None


async def start_kafka(processes: ProcessGroup, *, folder: Path) -> str:
    """Apache Kafka (KRaft) from ``KAFKA_HOME``, as one node, and its ``host:port``."""
    home = kafka_home()
    assert home is not None
    port, controller = free_port(), free_port()
    data = folder / "kafka"
    data.mkdir(parents=True)
    config = data / "server.properties"
    config.write_text(
        "\n".join(
            [
                "process.roles=broker,controller",
                "node.id=1",
                f"listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
                f"controller.quorum.bootstrap.servers=127.0.0.1:{controller}",
                "controller.listener.names=CONTROLLER",
                "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
                f"log.dirs={data / 'log'}",
                "auto.create.topics.enable=false",
                "offsets.topic.num.partitions=3",
                "offsets.topic.replication.factor=1",
                "transaction.state.log.num.partitions=3",
                "transaction.state.log.replication.factor=1",
                "transaction.state.log.min.isr=1",
                "group.initial.rebalance.delay.ms=0",
            ]
        )
    )
    script = (
        f'set -e; id=$("{home}/bin/kafka-storage.sh" random-uuid); '
        f'"{home}/bin/kafka-storage.sh" format --standalone -t "$id" -c "{config}"; '
        f'exec "{home}/bin/kafka-server-start.sh" "{config}"'
    )
    server = Process(
        "kafka", ["bash", "-c", script], log=folder / "kafka.log", env={"KAFKA_HEAP_OPTS": "-Xmx512m"}
    )
    processes.start(server)

    async def open_now() -> bool:
        return await port_open(port)

    await server.ready(open_now, seconds=60)
    return f"127.0.0.1:{port}"


@pytest.fixture(scope="session")
def processes() -> Iterator[ProcessGroup]:
    with ProcessGroup() as group:
        yield group


@pytest.fixture(scope="session")
def _addresses() -> dict[str, str]:
    """Brokers that this session has started already, by kind."""
    return {}


async def _address(
    kind: str, known: dict[str, str], processes: ProcessGroup, factory: pytest.TempPathFactory
) -> str:
    if kind not in known:
        folder = factory.mktemp(kind)
        if kind == "kafka":
            external = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
            if not external and (kafka_home() is None or shutil.which("java") is None):
                pytest.skip("real Kafka: neither KAFKA_HOME (with java) nor KAFKA_BOOTSTRAP_SERVERS is set")
            known[kind] = external or await start_kafka(processes, folder=folder)
        else:
            known[kind] = await start_broker(processes, logs=folder)
    return known[kind]


async def _prepared(kind: str, address: str) -> Broker:
    broker = Broker(address, kind, prefix=f"t{uuid.uuid4().hex[:8]}")
    await kafka.create_topics(address, prefix=broker.prefix, partitions=4)
    return broker


@pytest.fixture
async def broker(
    processes: ProcessGroup, _addresses: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Broker:
    """The embedded broker with the contract's topics under a prefix of this test's own."""
    return await _prepared("embedded", await _address("embedded", _addresses, processes, tmp_path_factory))


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
async def any_broker(
    request: pytest.FixtureRequest,
    processes: ProcessGroup,
    _addresses: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Broker:
    """Each broker in turn: the embedded one, and Apache Kafka."""
    kind: str = request.param
    return await _prepared(kind, await _address(kind, _addresses, processes, tmp_path_factory))


@pytest.fixture
async def redis_url(processes: ProcessGroup, tmp_path: Path) -> str:
    return await start_redis(processes, logs=tmp_path)
