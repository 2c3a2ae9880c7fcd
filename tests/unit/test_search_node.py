"""The whole node in this process, on a real broker and with the real model: from the log to an answer, and out."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from clickloop import codec, topics
from clickloop.client import FeedbackProducer
from clickloop.errors import NodeError, SettingsError
from clickloop.events import MessageQuarantined, ModelVersionPublished, NodeReported, QueryServed
from clickloop.kafka import Follower, Producer
from demo.processes import free_port
from search.index.server import ServerIndex
from search.node import _hold, _listen, build_node
from search.settings import SearchSettings
from tests.conftest import Broker
from tests.unit.search_fakes import announcement, split


def settings(broker: Broker, folder: Path, **changes: object) -> SearchSettings:
    given: dict[str, object] = {
        "bootstrap_servers": broker.bootstrap_servers,
        "topic_prefix": broker.prefix,
        "port": free_port(),
        "node_id": "node-1",
        "data_dir": str(folder / "node"),
        "store_url": str(folder / "store"),
        "encode_threads": 1,
    }
    return SearchSettings.load(**(given | changes))


async def everything(broker: Broker, *wanted: topics.Topic) -> dict[str, list[bytes]]:
    got: dict[str, list[bytes]] = {topic.suffix: [] for topic in wanted}
    async with Follower(broker.bootstrap_servers, wanted, prefix=broker.prefix) as follower:
        while not await follower.caught_up():
            for topic, record in await follower.batch(timeout_seconds=0.2):
                got[topic.suffix].append(record.value or b"")
    return got


async def ready(client: httpx.AsyncClient, running: asyncio.Task[None]) -> None:
    async with asyncio.timeout(60):
        while True:
            assert not running.done(), running.exception()
            try:
                if (await client.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)


async def test_a_node_reads_the_log_serves_records_and_leaves_in_order(broker: Broker, tmp_path: Path) -> None:
    poison = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    await poison.start()
    for topic in (topics.DOCUMENTS, topics.MODEL_VERSIONS, topics.TRAFFIC_SPLITS):
        await poison.send_and_wait(topic.name(broker.prefix), b"\xff no json", key=b"k")
    await poison.stop()
    async with FeedbackProducer(broker.bootstrap_servers, prefix=broker.prefix) as app:
        await app.document("d1", "def open_file(path): ...", title="open_file", attributes={"topic": "io"})
        await app.document("d2", "def close_socket(s): ...", title="close_socket")
        await app.document("d3", "old text", title="gone")
        await app.document("d3", deleted=True)
    async with FeedbackProducer(broker.bootstrap_servers, prefix=broker.prefix, index="other") as app:
        await app.document("stranger", "def open_file(path): ...", title="open_file of another index")

    wanted = settings(broker, tmp_path, dense_weight=3.0, exploration=0.0)
    superfluous = wanted.folder / "models" / "adapter-of-old-0123456789abcdef"
    superfluous.mkdir(parents=True)
    stop = asyncio.Event()
    running = asyncio.create_task(build_node(wanted).run(stop))
    async with httpx.AsyncClient(base_url=wanted.url, timeout=10) as client:
        await ready(client, running)
        state = (await client.get("/version")).json()
        assert state["documents"] == 2
        answer = (await client.post("/search", json={"query": "open a file", "split_key": "u1"})).json()
        assert answer["results"][0]["doc_id"] == "d1"
        # A wrong split is put aside; a document that changes while the node runs is found.
        async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
            await producer.send_and_wait(topics.TRAFFIC_SPLITS, split(1, ("live", state["base"], 17)))
            lost = announcement("lost", space=state["base"], digest=f"sha256:{0:064x}", parent=state["base"])
            await producer.send_and_wait(topics.MODEL_VERSIONS, lost)
        async with FeedbackProducer(broker.bootstrap_servers, prefix=broker.prefix) as app:
            await app.document("d4", "def frobnicate(wombat): ...", title="frobnicate")
            await app.document("d2", deleted=True)
        async with asyncio.timeout(10):
            while True:
                body = {"query": "frobnicate a wombat", "record": False, "mode": "hybrid"}
                results = (await client.post("/search", json=body)).json()["results"]
                shown = [r["doc_id"] for r in results]
                if shown[0] == "d4" and "d2" not in shown:
                    break
                await asyncio.sleep(0.05)
        assert results[0]["score"] == pytest.approx(3 / 4 + 1 / 2), (
            "on top of the dense list, which weighs 3, and BM25's"
        )
        rejected = 'clickloop_search_swaps_total{outcome="rejected"} 1.0'
        async with asyncio.timeout(10):
            while True:
                if rejected in (await client.get("/metrics")).text:
                    break
                await asyncio.sleep(0.05)
        stop.set()
        async with asyncio.timeout(10):
            await running
    assert [path.name.rpartition("-")[0] for path in superfluous.parent.iterdir()] == [state["base"]]

    got = await everything(broker, topics.QUERIES, topics.NODE_STATUS, topics.MODEL_VERSIONS, topics.DEAD_LETTERS)
    (event,) = (codec.decode(value, QueryServed) for value in got["queries"])
    assert (event.query_id, event.version, event.split_key) == (answer["query_id"], state["base"], "u1")
    assert len(event.sketch) == 64
    reports = [codec.decode(value, NodeReported) for value in got["node-status"]]
    states = [report.state for report in reports]
    assert states[0] == "starting"
    assert "serving" in states
    assert states[-1] == "stopping"
    assert (reports[0].rejected, reports[-1].rejected) == ([], ["lost"]), "each report tells what was rejected"
    readable = [value for value in got["model-versions"] if value.startswith(b"{")]
    published = [codec.decode(value, ModelVersionPublished) for value in readable]
    assert [(p.event_id, p.kind, p.space) for p in published] == [
        (f"base/default/{state['base']}", "full", state["base"]),
        ("e-lost", "adapter", state["base"]),
    ]
    letters = [codec.decode(value, MessageQuarantined) for value in got["dead-letters"]]
    assert sorted((letter.topic.split(".")[1], letter.error) for letter in letters) == [
        ("documents", "UnreadableMessageError"),
        ("model-versions", "UnreadableMessageError"),
        ("traffic-splits", "InvalidMessageError"),
        ("traffic-splits", "UnreadableMessageError"),
    ]


async def test_a_split_is_in_force_at_once_however_many_documents_wait(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.indexing.WAITING", 3)
    wanted = settings(broker, tmp_path)
    node, stop = build_node(wanted), asyncio.Event()
    running = asyncio.create_task(node.run(stop))
    async with httpx.AsyncClient(base_url=wanted.url, timeout=10) as client:
        await ready(client, running)
        base = (await client.get("/version")).json()["base"]

        async def hang(*_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(node._indexer, "_apply", hang)
        async with FeedbackProducer(broker.bootstrap_servers, prefix=broker.prefix) as app:
            for number in range(20):
                await app.document(f"d{number}", f"text {number}")
        async with asyncio.timeout(10):
            while True:
                if not node._indexer._room.is_set():
                    break
                await asyncio.sleep(0.05)
        async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
            await producer.send_and_wait(topics.TRAFFIC_SPLITS, split(1, ("live", base, 10_000)))
        async with asyncio.timeout(10):
            while True:
                if (await client.get("/version")).json()["split"]["split_id"] == "split-1":
                    break
                await asyncio.sleep(0.05)
        stop.set()
        async with asyncio.timeout(10):
            await running


async def test_a_taken_port_is_one_clear_error_before_anything_else(broker: Broker, tmp_path: Path) -> None:
    wanted = settings(broker, tmp_path)
    with (
        socket.create_server(("127.0.0.1", wanted.port)),
        pytest.raises(NodeError, match=rf"can't listen on 127\.0\.0\.1:{wanted.port}"),
    ):
        await build_node(wanted).run(asyncio.Event())


async def test_a_node_is_ready_once_it_knows_both_the_documents_and_the_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def done(*_: object) -> None: ...

    node = build_node(SearchSettings.load(data_dir=str(tmp_path / "node"), store_url=str(tmp_path / "store")))
    monkeypatch.setattr(node._indexer, "fill", done)
    monkeypatch.setattr(node._indexer, "settled", done)
    live = asyncio.Event()
    live.set()
    swap: Any = SimpleNamespace(
        base=SimpleNamespace(space="", encoder=None), live=live, serving=SimpleNamespace(split_id="")
    )
    for first, second in (
        (node._documents_known, node._versions_known),
        (node._versions_known, node._documents_known),
    ):
        first.set()
        second.clear()
        node._searcher.ready = False
        ready = asyncio.create_task(node._become_ready(swap))
        await asyncio.sleep(0.05)
        assert not node._searcher.ready
        second.set()
        await ready
        assert node._searcher.ready


def test_a_data_folder_belongs_to_one_process(tmp_path: Path) -> None:
    held = _hold(tmp_path / "node")
    with held, pytest.raises(NodeError, match="belongs to a running node"), _hold(tmp_path / "node"):
        pass
    with _hold(tmp_path / "node"):
        pass


def test_a_port_can_be_taken_again_at_once() -> None:
    port = free_port()
    for _ in range(2):
        with _listen("127.0.0.1", port) as listening:
            assert listening.getsockname()[1] == port


def test_deployments_with_names_of_their_own_have_collections_of_their_own() -> None:
    def collection(prefix: str, index: str) -> str:
        wanted = SearchSettings.load(topic_prefix=prefix, index=index, qdrant_url="http://localhost:6333")
        built = build_node(wanted)._index
        assert isinstance(built, ServerIndex)
        return built._name

    assert collection("clickloop", "default") == "clickloop.default"
    deployments = [
        ("shop", "eu-products"),
        ("shop-eu", "products"),
        ("shop.eu", "products"),
        ("shop", "eu_products"),
    ]
    assert len({collection(*deployment) for deployment in deployments}) == len(deployments)
    with pytest.raises(SettingsError, match="index"):
        SearchSettings.load(index="eu.products")


def test_settings_have_names_and_places_of_their_own_for_each_node() -> None:
    one, two = SearchSettings.load(port=8081), SearchSettings.load(port=8082)
    assert one.name != two.name
    assert one.folder != two.folder
    assert SearchSettings.load(host="::1", port=1).url == "http://[::1]:1"
    assert "0.0.0.0" not in SearchSettings.load(host="0.0.0.0").url
    assert SearchSettings.load(address="https://search.example/").url == "https://search.example"
    with pytest.raises(SettingsError, match="mode"):
        SearchSettings.load(mode="sparse")
    with pytest.raises(SettingsError, match="redis_url"):
        build_node(SearchSettings.load(redis_url="http://x"))
