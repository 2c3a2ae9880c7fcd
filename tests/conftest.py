"""Fixtures that start real parts: brokers and Redis as processes. Nothing here is a fake."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from clickloop import kafka
from demo.processes import ProcessGroup
from demo.stack import kafka_home, start_broker, start_kafka, start_redis


@dataclass(frozen=True)
class Broker:
    """A running broker. ``prefix`` is fresh for each test, so that tests share a broker but no topic."""

    bootstrap_servers: str
    kind: str
    prefix: str = "clickloop"


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
            home = kafka_home()
            if external is None and home is None:
                pytest.skip("real Kafka: neither KAFKA_HOME (with java) nor KAFKA_BOOTSTRAP_SERVERS is set")
            known[kind] = external or await start_kafka(processes, home=home, folder=folder)
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


SLOWEST_FIRST = ("faults", "end_to_end", "contract")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes comes first, so that the many short tests even things out at the end."""

    def turn(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return SLOWEST_FIRST.index(folder) if folder in SLOWEST_FIRST else len(SLOWEST_FIRST)

    items.sort(key=turn)
