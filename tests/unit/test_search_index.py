"""The index's contract, held by both implementations; Qdrant's local mode stands in for its server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient

from clickloop.errors import NodeError
from search.index import (
    PREFETCH,
    Document,
    DocumentRefusedError,
    FilterValue,
    Index,
    IndexUnavailableError,
    Question,
    Range,
    as_compared,
)
from search.index.edge import EdgeIndex
from search.index.server import ServerIndex
from tests.unit.search_fakes import DIM, words

A, B = "base-a", "full-b"

DOCUMENTS = [
    Document("d1", "open", "open a file for reading", {"topic": "io", "year": 2001, "price": 1.5, "free": True}),
    Document(
        "d2", "close", "close the socket politely", {"topic": "net", "year": 2010, "price": 2.5, "free": False}
    ),
    Document(
        "d3", "parse", "parse arguments of a command", {"topic": "cli", "year": 2020, "price": 2.5, "free": True}
    ),
]


async def make(kind: str, tmp_path: Path) -> Index:
    index: Index
    index = EdgeIndex(tmp_path / "index") if kind == "edge" else ServerIndex(AsyncQdrantClient(":memory:"), "test")
    await index.open()
    return index


@pytest.fixture(params=["edge", "server"])
async def index(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Index]:
    made = await make(request.param, tmp_path)
    await made.add_space(A, DIM)
    yield made
    await made.close()


def vectors(documents: list[Document], seed: str = "") -> dict[bytes, np.ndarray]:
    rows = words([d.content for d in documents], seed=seed)
    return {d.digest: row / np.linalg.norm(row) for d, row in zip(documents, rows, strict=True)}


def question(
    text: str, *, k: int = 10, mode: str = "dense", space: str = A, filters: dict[str, FilterValue] | None = None
) -> Question:
    vector = words([text], seed="" if space == A else space)[0]
    vector = vector / np.linalg.norm(vector)
    return Question(text, vector, space, k, "hybrid" if mode == "hybrid" else "dense", filters or {})


async def found(index: Index, asked: Question) -> list[str]:
    return [hit.doc_id for hit in await index.search(asked)]


async def test_dense_search_ranks_by_the_vector_and_returns_what_is_shown(index: Index) -> None:
    await index.upsert(DOCUMENTS, {A: vectors(DOCUMENTS)})
    hits = await index.search(question("close the socket", k=2))
    assert hits[0].doc_id == "d2"
    assert len(hits) == 2
    assert hits[0].score > hits[1].score
    assert (hits[0].title, hits[0].snippet) == ("close", "close the socket politely")


async def test_hybrid_search_finds_a_word_that_the_vector_misses(index: Index) -> None:
    # All vectors are alike, so only the word can tell the documents apart.
    same = {d.digest: np.ones(DIM, dtype=np.float32) / np.sqrt(DIM) for d in DOCUMENTS}
    await index.upsert(DOCUMENTS, {A: same})
    assert (await found(index, question("politely", mode="hybrid")))[0] == "d2"
    assert (await found(index, question("arguments", mode="hybrid")))[0] == "d3"


async def test_the_dense_list_weighs_as_the_question_says(index: Index) -> None:
    # One is nearest to the vector, and another, which is too far away to be in that list, has the word.
    documents = [Document(f"d{n}", "", f"text of number {n}") for n in range(2 * PREFETCH)]
    far = np.linspace(0.0, 1.0, len(documents), dtype=np.float32)
    rows = np.stack([1.0 - far, far, *[np.zeros_like(far)] * (DIM - 2)], axis=1)
    await index.upsert(documents, {A: {d.digest: row for d, row in zip(documents, rows, strict=True)}})
    for weight, first in ((0.2, "d99"), (5.0, "d0")):
        asked = Question("99", np.eye(DIM, dtype=np.float32)[0], A, 3, "hybrid", dense_weight=weight)
        assert (await found(index, asked))[0] == first


async def test_the_same_hybrid_search_finds_the_same_each_time(tmp_path: Path) -> None:
    """Equal fused scores would come out in another order each time, so places of the two lists must not tie."""
    rng = np.random.default_rng(3)
    documents = [Document(f"d{i}", "", " ".join(f"word{n}" for n in rng.choice(60, 12))) for i in range(200)]
    rows = rng.normal(size=(200, DIM)).astype(np.float32)
    index = await make("edge", tmp_path)
    await index.add_space(A, DIM)
    await index.upsert(documents, {A: {d.digest: row for d, row in zip(documents, rows, strict=True)}})
    await index.optimize()
    for document, row in zip(documents[:30], rows[1:], strict=False):
        asked = Question(" ".join(document.text.split()[:3]), row, A, 10, "hybrid")
        first = await found(index, asked)
        assert all([await found(index, asked) == first for _ in range(5)])
    await index.close()


async def test_hybrid_search_of_stop_words_falls_back_to_the_vector(index: Index) -> None:
    await index.upsert(DOCUMENTS, {A: vectors(DOCUMENTS)})
    assert len(await found(index, question("the of and", mode="hybrid"))) == 3


async def test_upsert_replaces_a_document_and_its_text(index: Index) -> None:
    await index.upsert(DOCUMENTS, {A: vectors(DOCUMENTS)})
    new = Document("d1", "shut", "shut the window", {"topic": "house"})
    await index.upsert([new], {A: vectors([new])})
    assert await index.count() == 3
    assert (await found(index, question("shut the window")))[0] == "d1"
    assert (await found(index, question("reading", mode="hybrid")))[0] != "d1"
    (held,) = await index.documents(["d1"])
    assert held == new
    assert {s.doc_id: s.digest for s in await index.stored()}["d1"] == new.digest


async def test_deleted_documents_are_not_found(index: Index) -> None:
    await index.upsert(DOCUMENTS, {A: vectors(DOCUMENTS)})
    await index.delete(["d2", "never-there"])
    assert sorted(await found(index, question("close the socket", mode="hybrid"))) == ["d1", "d3"]
    assert await index.count() == 2


async def test_a_space_can_be_added_to_live_documents_and_filled_later(index: Index) -> None:
    await index.upsert(DOCUMENTS, {A: vectors(DOCUMENTS)})
    await index.add_space(B, DIM)
    await index.add_space(B, DIM)
    assert await index.covered(B) == set()
    by_digest = vectors(DOCUMENTS, seed=B)
    await index.set_vectors(B, DOCUMENTS[:2], by_digest)
    assert await index.covered(B) == {"d1", "d2"}
    assert await index.covered(A) == {"d1", "d2", "d3"}
    # Each space answers with its own vectors, and the old one is as it was.
    assert (await found(index, question("close the socket", space=B)))[0] == "d2"
    assert "d3" not in await found(index, question("parse arguments", space=B))
    assert (await found(index, question("parse arguments")))[0] == "d3"


async def test_a_document_whose_text_stays_keeps_vectors_of_the_spaces_of_others(tmp_path: Path) -> None:
    index = await make("server", tmp_path)
    for space in (A, B):
        await index.add_space(space, DIM)
    both = {A: vectors(DOCUMENTS), B: vectors(DOCUMENTS, seed=B)}
    await index.upsert(DOCUMENTS, both)
    changed = [replace(DOCUMENTS[0], attributes={"topic": "files"}), replace(DOCUMENTS[1], text="shut it")]
    await index.upsert(changed, {A: vectors(changed)})
    assert await index.covered(A) == {"d1", "d2", "d3"}
    assert await index.covered(B) == {"d1", "d3"}, "a vector of the old text would be wrong"
    assert (await found(index, question("open a file", space=B)))[0] == "d1"
    assert await found(index, question("open", filters={"topic": "files"})) == ["d1"]
    assert {s.doc_id: s.fingerprint for s in await index.stored()}["d1"] == changed[0].fingerprint
    await index.upsert(changed, {B: vectors(changed, seed=B)})
    assert await index.covered(A) == await index.covered(B) == {"d1", "d2", "d3"}
    await index.close()


async def test_a_vector_is_not_added_to_a_text_that_it_is_not_of(tmp_path: Path) -> None:
    index = await make("server", tmp_path)
    for space in (A, B):
        await index.add_space(space, DIM)
    newer = [replace(DOCUMENTS[0], text="newer words"), *DOCUMENTS[1:]]
    await index.upsert(newer, {A: vectors(newer)})
    await index.set_vectors(B, DOCUMENTS, vectors(DOCUMENTS, seed=B))
    assert await index.covered(B) == {"d2", "d3"}
    await index.close()


async def test_a_search_in_a_space_that_is_not_there_fails_and_does_not_answer(index: Index) -> None:
    await index.upsert(DOCUMENTS, {A: vectors(DOCUMENTS)})
    with pytest.raises(Exception, match="full-b"):
        await index.search(question("open", space=B))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"topic": "net"}, {"d2"}),
        ({"topic": ["net", "cli"]}, {"d2", "d3"}),
        ({"year": 2020}, {"d3"}),
        ({"year": [2001, 2010]}, {"d1", "d2"}),
        ({"price": 2.5}, {"d2", "d3"}),
        ({"free": True}, {"d1", "d3"}),
        ({"year": Range(gte=2010)}, {"d2", "d3"}),
        ({"year": Range(gt=2001, lt=2020)}, {"d2"}),
        ({"price": 2.5, "free": True}, {"d3"}),
        ({"nothing": "x"}, set()),
    ],
)
async def test_filters_hold_in_both_modes(
    index: Index, filters: dict[str, FilterValue], expected: set[str]
) -> None:
    await index.upsert(DOCUMENTS, {A: vectors(DOCUMENTS)})
    for mode in ("dense", "hybrid"):
        assert set(await found(index, question("open a file", mode=mode, filters=filters))) == expected


async def test_an_attribute_may_have_a_hyphen_in_its_name(index: Index) -> None:
    document = Document("d1", "", "text", {"price-group": "a", "x.y": 1})
    await index.upsert([document], {A: vectors([document])})
    assert await found(index, question("text", filters={"price-group": "a"})) == ["d1"]
    assert await found(index, question("text", filters={"x.y": 1})) == ["d1"]
    assert await found(index, question("text", filters={"price-group": "b"})) == []


@pytest.mark.parametrize("wanted", [3, 3.0, [3], Range(gte=3.0)])
async def test_a_whole_number_is_found_however_it_was_written(index: Index, wanted: FilterValue) -> None:
    """Python says 3.0 where JavaScript says 3."""
    documents = [
        Document(name, "", name, as_compared({"n": n})) for name, n in (("d1", 3), ("d2", 3.0), ("d3", 2.9))
    ]
    await index.upsert(documents, {A: vectors(documents)})
    assert set(await found(index, question("text", filters={"n": wanted}))) == {"d1", "d2"}


def test_a_whole_number_that_is_no_integer_of_64_bits_stays_as_it_is() -> None:
    assert repr(as_compared({"a": 1e300, "b": float("inf"), "c": -2.0})) == "{'a': 1e+300, 'b': inf, 'c': -2}"


async def test_both_implementations_rank_a_hybrid_search_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    vocabulary = [f"word{i}" for i in range(60)]
    documents = [Document(f"d{i}", "", " ".join(rng.choice(vocabulary, 12))) for i in range(200)]
    rankings = []
    for kind in ("edge", "server"):
        index = await make(kind, tmp_path)
        await index.add_space(A, DIM)
        await index.upsert(documents, {A: vectors(documents)})
        await index.optimize()
        rankings.append(
            [await found(index, question(" ".join(d.text.split()[:3]), mode="hybrid")) for d in documents[:40]]
        )
        await index.close()
    # Fused scores often tie, and each breaks a tie in its own way: so sets, and the top within the other's first.
    pairs = list(zip(*rankings, strict=True))
    assert np.mean([len(set(edge) & set(server)) / 10 for edge, server in pairs]) > 0.75
    assert np.mean([edge[0] in server[:3] and server[0] in edge[:3] for edge, server in pairs]) > 0.9


async def test_a_document_that_the_engine_can_not_hold_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    index = await make("edge", tmp_path)
    await index.add_space(A, DIM)
    huge = Document("d1", "", "text", {"ean": 10**310})
    with pytest.raises(DocumentRefusedError, match="can't hold"):
        await index.upsert([huge, *DOCUMENTS[1:]], {A: vectors([huge, *DOCUMENTS[1:]])})
    await index.upsert(DOCUMENTS[1:], {A: vectors(DOCUMENTS)})
    assert await index.count() == 2
    await index.close()


async def test_long_documents_come_in_requests_that_a_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = list[tuple[int, list[str]]]()

    def server(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            points = json.loads(request.content)["points"]
            sent.append((len(request.content), [p.get("payload", {}).get("doc_id") for p in points]))
            result: object = {"operation_id": 1, "status": "completed"}
        else:
            result = {"points": [], "next_page_offset": None}
        return httpx.Response(200, json={"result": result, "status": "ok", "time": 0.1})

    monkeypatch.setattr("search.index.server.BATCH_BYTES", 100_000, raising=False)
    index = answered(server)
    some = [Document(f"d{n}", "", f"{n} " + '"quoted" ' * (10_000 if n == 7 else 2_000)) for n in range(12)]
    await index.upsert(some, {A: vectors(some)})
    assert [doc_id for _, ids in sent for doc_id in ids] == [d.doc_id for d in some]
    assert all(size < 110_000 or ids == ["d7"] for size, ids in sent)
    assert 4 <= len(sent) <= 6
    sent.clear()
    await index.set_vectors(A, some * 10, vectors(some))
    assert sum(len(ids) for _, ids in sent) == 120
    assert max(size for size, _ in sent) < 130_000
    await index.close()


def answered(server: Callable[[httpx.Request], httpx.Response]) -> ServerIndex:
    """An index on a server that answers so."""
    transport: Any = httpx.MockTransport(server)
    return ServerIndex(AsyncQdrantClient("http://qdrant", transport=transport, check_compatibility=False), "test")


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (413, DocumentRefusedError),
        (422, DocumentRefusedError),
        (429, IndexUnavailableError),
        (503, IndexUnavailableError),
    ],
)
async def test_what_a_server_says_of_a_document_tells_whether_to_ask_again(
    status: int, raised: type[Exception]
) -> None:
    says = {"json": {"status": {"error": "no"}}, "headers": {"Retry-After": "1"}}
    index = answered(lambda _: httpx.Response(status, **says))
    with pytest.raises(raised):
        await index.upsert(DOCUMENTS, {A: vectors(DOCUMENTS)})
    await index.close()


async def test_edge_index_is_as_it_was_after_a_restart(tmp_path: Path) -> None:
    index = await make("edge", tmp_path)
    await index.add_space(A, DIM)
    await index.upsert(DOCUMENTS, {A: vectors(DOCUMENTS)})
    await index.add_space(B, DIM)
    await index.set_vectors(B, DOCUMENTS[:1], vectors(DOCUMENTS))
    await index.close()
    again = await make("edge", tmp_path)
    assert {s.doc_id: (s.digest, s.fingerprint) for s in await again.stored()} == {
        d.doc_id: (d.digest, d.fingerprint) for d in DOCUMENTS
    }
    assert await again.covered(A) == {"d1", "d2", "d3"}
    assert await again.covered(B) == {"d1"}
    assert (await found(again, question("close the socket")))[0] == "d2"
    await again.close()


async def test_edge_index_that_is_open_elsewhere_is_refused_with_a_clear_error(tmp_path: Path) -> None:
    first = await make("edge", tmp_path)
    second = EdgeIndex(tmp_path / "index")
    with pytest.raises(NodeError, match="open in another process"):
        await second.open()
    await first.close()
    await second.close()


async def test_unreadable_edge_index_is_put_aside_and_begun_anew(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "edge_config.json").write_text("{ torn")
    index = await make("edge", tmp_path)
    await index.add_space(A, DIM)
    assert await index.count() == 0
    assert [path.name for path in sorted(tmp_path.iterdir()) if "unreadable" in path.name]  # noqa: ASYNC240
    await index.close()


async def test_searches_go_on_while_documents_are_written(tmp_path: Path) -> None:
    index = await make("edge", tmp_path)
    await index.add_space(A, DIM)
    await index.upsert(DOCUMENTS, {A: vectors(DOCUMENTS)})
    many = [Document(f"m{i}", "", f"filler number {i}") for i in range(2000)]
    writing = asyncio.create_task(index.upsert(many, {A: vectors(many)}))
    answers = 0
    while not writing.done():
        assert (await found(index, question("close the socket politely")))[0] == "d2"
        answers += 1
    await writing
    assert answers > 1
    assert await index.count() == 2003
    await index.close()


async def test_a_server_that_is_away_is_an_error_of_our_own() -> None:
    index = ServerIndex.at("http://127.0.0.1:9", "test")
    with pytest.raises(IndexUnavailableError):
        await index.open()
    await index.close()
