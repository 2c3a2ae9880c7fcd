"""The HTTP face: a user's mistake is a 4xx that says what is wrong; what is served is what is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clickloop import codec
from clickloop.errors import ArtifactError
from clickloop.events import QueryServed
from clickloop.propensity import propensities, swapped_pair
from search.answer import Searcher
from search.backfill import Backfill, NoLeases
from search.batcher import Batcher, OverloadedError
from search.cache import EmbeddingCache
from search.encoder import Adapter, LoadedVersion
from search.http import build_app
from search.index import Document
from search.index.edge import EdgeIndex
from search.indexing import Indexer
from search.metrics import Metrics
from search.sketch import sketch
from search.swap import Swap
from tests.unit.search_fakes import DIM, CountingEncoder, announcement, eventually, split

DOCUMENTS = [
    Document("d1", "open", "open a file for reading", {"topic": "io", "year": 2001}),
    Document("d2", "close", "close the socket", {"topic": "net", "year": 2010}),
    Document("d3", "parse", "parse the arguments", {"topic": "cli", "year": 2020}),
]


@dataclass
class Served:
    """A node without Kafka: the real parts from HTTP to index."""

    app: FastAPI
    client: httpx.AsyncClient
    searcher: Searcher
    swap: Swap
    base: LoadedVersion
    events: list[QueryServed] = field(default_factory=list)

    async def ask(self, **body: Any) -> httpx.Response:
        return await self.client.post("/search", json={"query": "open a file", **body})


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Served]:
    metrics, counting = Metrics(), CountingEncoder()
    index = EdgeIndex(tmp_path / "index")
    backfill = Backfill(str(tmp_path / "store"), NoLeases(), metrics)
    indexer = Indexer(index, backfill, metrics)
    batcher = Batcher(metrics, max_batch=8)
    events: list[QueryServed] = []
    searcher = Searcher(
        index,
        batcher,
        EmbeddingCache(None, metrics, ttl_seconds=60),
        events.append,
        metrics,
        index_name="default",
        mode="dense",
    )
    base = LoadedVersion("base-1", "full", "base-1", counting.encoder())
    rotation = np.roll(np.eye(DIM, dtype=np.float32), 7, axis=0)

    def load(event: Any) -> LoadedVersion:
        if event.version == "torn":
            raise ArtifactError("no such file")
        return LoadedVersion(
            event.version, "adapter", "base-1", base.encoder, Adapter(rotation, np.zeros(DIM, np.float32))
        )

    async def fill(_: LoadedVersion) -> None:
        return

    swap = Swap(load, fill, lambda _: None, metrics, base=base)
    app = build_app(searcher, indexer, metrics, node_id="n1", index_name="default")
    await indexer.open()
    tasks = [asyncio.create_task(work) for work in (indexer.run(), batcher.run(), swap.run())]
    await indexer.fill(base.space, base.encoder)
    for document in DOCUMENTS:
        await indexer.offer(document)
    await indexer.settled()
    searcher.swap, searcher.ready = swap, True
    swap.caught_up()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        yield Served(app, client, searcher, swap, base, events)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    backfill.close()
    await index.close()


async def test_an_answer_names_results_version_space_split_and_arm(node: Served) -> None:
    response = await node.ask(k=2, split_key="user-1")
    assert response.status_code == 200
    body = response.json()
    assert body["results"][0]["doc_id"] == "d1"
    assert [r["position"] for r in body["results"]] == [1, 2]
    assert set(body["results"][0]) == {"doc_id", "position", "score", "title", "snippet"}
    assert (body["version"], body["space"], body["split_id"], body["arm"]) == (
        "base-1",
        "base-1",
        "initial",
        "live",
    )
    assert body["latency_seconds"] > 0


async def test_what_was_served_is_recorded_word_for_word(node: Served) -> None:
    body = (await node.ask(k=3, split_key="user-1")).json()
    (event,) = node.events
    assert codec.decode(codec.encode(event), QueryServed) == event
    assert event.query_id == body["query_id"]
    assert [(r.doc_id, r.position) for r in event.results] == [
        (r["doc_id"], r["position"]) for r in body["results"]
    ]
    assert (event.version, event.space, event.split_id, event.arm) == ("base-1", "base-1", "initial", "live")
    assert event.split_key == "user-1"
    assert event.sketch == sketch(node.base.encoder.encode_queries(["open a file"])[0])


async def test_a_query_that_is_not_to_be_recorded_leaves_no_event(node: Served) -> None:
    assert (await node.ask(record=False)).status_code == 200
    assert node.events == []


async def test_exploration_swaps_a_pair_for_user_and_log_alike_and_logs_how_likely_that_was(node: Served) -> None:
    node.searcher._exploration = 0.5
    plain = [r["doc_id"] for r in (await node.ask(record=False)).json()["results"]]
    count = len(plain)
    bodies = [(await node.ask(domain="files")).json() for _ in range(60)]
    assert len(node.events) == 60
    for body, event in zip(bodies, node.events, strict=True):
        assert [r.doc_id for r in event.results] == [r["doc_id"] for r in body["results"]]
        assert event.swapped == swapped_pair(event.query_id, count, 0.5)
        wanted = plain.copy()
        if event.swapped is not None:
            place = event.swapped
            wanted[place - 1 : place + 1] = [plain[place], plain[place - 1]]
        assert [r.doc_id for r in event.results] == wanted
        assert [r.propensity for r in event.results] == propensities(count, 0.5, event.swapped)
        assert event.domain == "files"
    assert 15 <= sum(event.swapped is not None for event in node.events) <= 45


async def test_a_pinned_version_and_a_query_that_is_not_recorded_are_shown_as_ranked(node: Served) -> None:
    node.searcher._exploration = 0.5
    unrecorded = [(await node.ask(record=False)).json() for _ in range(20)]
    pinned = [(await node.ask(version="base-1")).json() for _ in range(20)]
    assert len({tuple(r["doc_id"] for r in body["results"]) for body in [*unrecorded, *pinned]}) == 1
    assert {(event.swapped, event.results[0].propensity) for event in node.events} == {(None, 1.0)}


async def test_filters_and_hybrid_mode_reach_the_index(node: Served) -> None:
    body = (await node.ask(filters={"topic": ["net", "cli"], "year": {"gte": 2015}}, mode="hybrid")).json()
    assert [r["doc_id"] for r in body["results"]] == ["d3"]


async def test_the_split_decides_and_an_adapter_s_sketch_is_still_the_base_s(node: Served) -> None:
    node.swap.announce(announcement("adapter-1"))
    node.swap.change_split(split(1, ("live", "base-1", 5000), ("candidate", "adapter-1", 5000)))
    await eventually(lambda: node.swap.serving.split_id == "split-1")
    bodies = [(await node.ask(split_key=f"user-{i}")).json() for i in range(40)]
    assert {(b["arm"], b["version"], b["split_id"]) for b in bodies} == {
        ("live", "base-1", "split-1"),
        ("candidate", "adapter-1", "split-1"),
    }
    again = [(await node.ask(split_key=f"user-{i}")).json()["arm"] for i in range(40)]
    assert again == [b["arm"] for b in bodies]
    assert len({e.sketch for e in node.events}) == 1


async def test_a_loaded_version_can_be_asked_for_by_name(node: Served) -> None:
    node.swap.announce(announcement("adapter-1"))
    node.swap.announce(announcement("torn"))
    await eventually(lambda: node.swap.rejection("torn") != "")
    body = (await node.ask(version="adapter-1")).json()
    assert (body["version"], body["arm"], body["split_id"]) == ("adapter-1", "pinned", "")
    unknown = await node.ask(version="nobody")
    assert (unknown.status_code, unknown.json()["title"]) == (404, "Unknown version")
    broken = await node.ask(version="torn")
    assert broken.status_code == 409
    assert "no such file" in broken.json()["detail"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "query"),
        ({"query": ""}, "query"),
        ({"query": " \n\t "}, "query"),
        ({"query": "a" * 2001}, "query"),
        ({"query": 5}, "query"),
        ({"query": "a", "k": 0}, "k"),
        ({"query": "a", "k": 101}, "k"),
        ({"query": "a", "k": "ten"}, "k"),
        ({"query": "a", "limit": 5}, "limit"),
        ({"query": "a", "mode": "sparse"}, "mode"),
        ({"query": "a", "split_key": "x" * 257}, "split_key"),
        ({"query": "a", "filters": {'to"pic': "io"}}, "filters"),
        ({"query": "a", "filters": {"topic": []}}, "filters"),
        ({"query": "a", "filters": {"topic": ["io", 1]}}, "filters"),
        ({"query": "a", "filters": {"year": {"above": 1}}}, "filters"),
        ({"query": "a", "filters": {"year": 2**70}}, "filters"),
        ([], "array"),
    ],
)
async def test_bad_input_is_a_400_that_says_where(node: Served, body: Any, where: str) -> None:
    response = await node.client.post("/search", json=body)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == 400
    assert problem["title"]
    assert where in problem["detail"]
    assert node.events == []


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b'{"query":"\\ud800"}', b"[" * 50_000])
async def test_unreadable_bodies_are_a_400(node: Served, raw: bytes) -> None:
    response = await node.client.post("/search", content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400


async def test_other_mistakes_have_their_own_status(node: Served) -> None:
    large = await node.client.post("/search", content=b" " * 70_000, headers={"content-type": "application/json"})
    form = await node.client.post("/search", data={"query": "a"})
    method = await node.client.get("/search")
    path = await node.client.get("/nothing")
    assert [r.status_code for r in (large, form, method, path)] == [413, 415, 405, 404]
    assert {r.headers["content-type"] for r in (large, form, method, path)} == {"application/problem+json"}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(["query", "k", "filters", "mode", "version", "split_key", "record", "other"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(fields, json_values, max_size=5))
async def test_no_json_whatever_makes_the_node_fail(node: Served, body: Any) -> None:
    response = await node.client.post("/search", json={"query": "a", **body})
    assert response.status_code < 500


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(min_size=1, max_size=100), name=st.from_regex(r"\A[A-Za-z0-9_.-]{1,64}\Z"), value=json_values)
async def test_any_text_and_any_filter_is_answered_or_refused(
    node: Served, query: str, name: str, value: Any
) -> None:
    for mode in ("dense", "hybrid"):
        response = await node.client.post("/search", json={"query": query, "filters": {name: value}, "mode": mode})
        assert response.status_code in (200, 400)


async def test_a_node_that_is_not_ready_says_so_and_a_stopping_one_still_answers(node: Served) -> None:
    assert (await node.client.get("/readyz")).status_code == 200
    node.searcher.ready = False
    assert (await node.client.get("/readyz")).status_code == 503
    refused = await node.ask()
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert (await node.client.get("/healthz")).status_code == 200
    node.searcher.ready, node.searcher.stopping = True, True
    assert (await node.client.get("/readyz")).status_code == 503
    assert (await node.ask()).status_code == 200


async def test_a_client_that_goes_away_in_mid_body_is_no_failed_query(
    node: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    coming = iter([{"type": "http.request", "body": b'{"query"', "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(coming)

    async def send(_: Any) -> None:
        return

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/search", "query_string": b"", "headers": headers}
    await node.app(scope, receive, send)
    assert node.searcher.failed == 0
    assert "clickloop_search_failed_queries_total 0.0" in (await node.client.get("/metrics")).text
    assert "Traceback" not in capsys.readouterr().out


async def test_an_overload_is_a_503_and_counted(node: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: Any) -> Any:
        raise OverloadedError("1024 queries are waiting")

    monkeypatch.setattr(Batcher, "encode", full)
    response = await node.ask()
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert node.searcher.failed == 1


async def test_a_bug_is_a_500_without_its_inside_and_the_node_goes_on(
    node: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        async def bug(*_: Any) -> Any:
            raise ZeroDivisionError("secret detail")

        patch.setattr(EdgeIndex, "search", bug)
        response = await node.ask()
    assert response.status_code == 500
    assert "secret" not in response.text
    assert (await node.ask()).status_code == 200


async def test_metrics_count_without_naming_versions_or_users(node: Served) -> None:
    await node.ask(split_key="user-17")
    await node.ask(k=0)
    text = (await node.client.get("/metrics")).text
    assert 'clickloop_search_queries_total{arm="live"} 1.0' in text
    assert "clickloop_search_refused_requests_total 1.0" in text
    assert "clickloop_search_documents 3.0" in text
    assert "user-17" not in text
    assert "base-1" not in text


async def test_the_version_page_tells_what_is_loaded_and_the_docs_describe_the_body(node: Served) -> None:
    state = (await node.client.get("/version")).json()
    assert state["versions"] == {"base-1": {"kind": "full", "space": "base-1"}}
    assert state["split"]["arms"] == [{"name": "live", "version": "base-1", "buckets": 10000}]
    described = (await node.client.get("/openapi.json")).json()["paths"]["/search"]["post"]["requestBody"]
    assert set(described["content"]["application/json"]["schema"]["properties"]) >= {
        "query",
        "k",
        "filters",
        "mode",
    }
    assert "$ref" not in str(described)
