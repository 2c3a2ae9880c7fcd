"""The index follows the documents' log: changed, deleted, unchanged, in several spaces."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient
from structlog.testing import capture_logs

from clickloop.vector_store import content_digest
from search import indexing
from search.backfill import Backfill, NoLeases
from search.encoder import Encoder, Vectors
from search.index import Document, Index, IndexUnavailableError, Question
from search.index.bm25 import document_terms
from search.index.edge import EdgeIndex
from search.index.server import ServerIndex
from search.indexing import Deleted, Indexer
from search.metrics import Metrics
from tests.unit.search_fakes import DIM, CountingEncoder, eventually, words

BASE, FULL = "base-1", "full-2"


class Node:
    """An indexer on a real index, with an encoder that counts."""

    def __init__(self, folder: Path, counting: CountingEncoder, index: Index | None = None) -> None:
        self.counting = counting
        self.index = index or EdgeIndex(folder / "index")
        self.backfill = Backfill(str(folder / "store"), NoLeases(), Metrics())
        self.indexer = Indexer(self.index, self.backfill, Metrics())

    async def first(self, text: str, space: str = BASE) -> str:
        vector = self.counting.encoder(space).encode_queries([text])[0]
        hits = await self.index.search(Question(text, vector, space, 1, "dense"))
        return hits[0].doc_id if hits else ""

    async def offer(self, *changes: Document | Deleted) -> None:
        for change in changes:
            await self.indexer.offer(change)
        async with asyncio.timeout(10):
            await self.indexer.settled()

    def encoded(self) -> int:
        return sum(len(call) for call in self.counting.documents)


@asynccontextmanager
async def running(folder: Path, index: Index | None = None) -> AsyncIterator[Node]:
    node = Node(folder, CountingEncoder(), index)
    await node.indexer.open()
    task = asyncio.create_task(node.indexer.run())
    await node.indexer.fill(BASE, node.counting.encoder())
    yield node
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    node.backfill.close()
    await node.index.close()


def documents(count: int) -> list[Document]:
    return [Document(f"d{i}", f"title{i}", f"text{i} about things") for i in range(count)]


async def test_documents_are_found_once_they_are_settled(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(*documents(100))
        assert node.indexer.documents == 100
        assert await node.first("title42 text42") == "d42"


async def test_a_document_that_has_not_changed_is_neither_encoded_nor_written(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(*documents(50))
        await node.offer(*documents(50))
        assert node.encoded() == 50


async def test_changed_attributes_are_written_without_an_encode(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(Document("d1", "title", "text", {"price": 1}))
        await node.offer(Document("d1", "title", "text", {"price": 2}))
        (held,) = await node.index.documents(["d1"])
        assert held.attributes == {"price": 2}
        assert node.encoded() == 1


async def test_of_two_messages_about_a_document_the_later_wins(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(Document("d1", "", "first words"), Document("d1", "", "second words"))
        (held,) = await node.index.documents(["d1"])
        assert held.text == "second words"
        await node.offer(Deleted("d1"))
        assert node.indexer.documents == 0
        await node.offer(Deleted("d1"), Document("d1", "", "third words"))
        assert await node.first("third words") == "d1"


async def test_a_document_that_the_index_refuses_is_left_out_and_named_and_its_neighbours_are_not(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as node:
        await node.offer(Document("d1", "", "first words"))
        refused = Document("d1", "", "second words", {"ean": 10**310})
        with capture_logs() as logs:
            await node.offer(refused, *documents(4)[2:])
        assert [(log["event"], log["doc_id"]) for log in logs] == [("document left out", "d1")]
        (held,) = await node.index.documents(["d1"])
        assert held.text == "first words"
        assert await node.first("title2 text2") == "d2"
        await node.offer(Document("d1", "", "third words"))
        assert await node.first("third words") == "d1"


async def test_changes_that_keep_coming_do_not_keep_earlier_ones_from_being_settled(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        vectors, more = node.backfill.vectors, (Document(f"more{n}", "", f"more {n}") for n in count())

        async def trickle(*asked: Any) -> AsyncIterator[Any]:
            async for part in vectors(*asked):
                yield part
            await node.indexer.offer(next(more))

        node.backfill.vectors = trickle  # type: ignore[method-assign]
        async with asyncio.timeout(3):
            for document in documents(3):
                await node.indexer.offer(document)
                await node.indexer.offer(replace(document, title="newer"))
            await node.indexer.settled()
        assert node.indexer.busy
        assert {"d0", "d1", "d2"} == {d.doc_id for d in await node.index.documents(["d0", "d1", "d2"])}


def failing(times: int, error: Exception, work: Callable[..., Any]) -> Callable[..., Any]:
    """``work``, which first raises ``error`` so many times."""
    left = iter(range(times))

    def call(*args: Any) -> Any:
        if next(left, None) is not None:
            raise error
        return work(*args)

    return call


@pytest.mark.parametrize("part", ["qdrant", "store"])
async def test_changes_wait_while_what_they_need_is_away_and_are_made_once_it_is_back(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "PAUSE_SECONDS", 0.001)
    async with running(tmp_path) as node:
        await node.offer(*documents(3))
        index: Any = node.index
        with capture_logs() as logs:
            if part == "qdrant":
                index.upsert = failing(3, IndexUnavailableError("no connection"), index.upsert)
                index.delete = failing(3, IndexUnavailableError("no connection"), index.delete)
            else:
                store = node.backfill._store(BASE)
                monkeypatch.setattr(store, "load_new", failing(3, OSError("no route to host"), store.load_new))
            await node.offer(Document("new", "", "brand new thing"), Deleted("d1"))
        assert await node.first("brand new thing") == "new"
        assert node.indexer.documents == 3
        assert [log["log_level"] for log in logs] == ["warning", "info"]


async def test_a_space_that_is_being_filled_waits_for_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "PAUSE_SECONDS", 0.001)
    async with running(tmp_path) as node:
        await node.offer(*documents(3))
        store = node.backfill._store(FULL)
        monkeypatch.setattr(store, "load_new", failing(2, OSError("stale file handle"), store.load_new))
        await node.indexer.fill(FULL, node.counting.encoder(FULL))
        assert len(await node.index.covered(FULL)) == 3


async def test_pauses_grow_to_half_a_minute_and_no_further() -> None:
    pauses = list[float]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def nothing() -> None:
        return

    with capture_logs() as logs:
        await indexing.persist(failing(7, OSError("away"), nothing), sleep=sleep)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert [log["log_level"] for log in logs] == ["warning", "info"]


async def test_documents_with_the_same_text_are_encoded_once_and_both_found(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(Document("a", "", "same text"), Document("b", "", "same text"))
        assert node.indexer.documents == 2
        assert node.encoded() == 1


async def test_after_a_restart_nothing_is_encoded_again(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(*documents(60))
    async with running(tmp_path) as node:
        assert node.indexer.documents == 60
        await node.offer(*documents(60))
        assert node.encoded() == 0
        assert await node.first("title7 text7") == "d7"


async def test_documents_that_left_the_log_while_the_node_was_down_are_deleted(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(*documents(10))
    async with running(tmp_path) as node:
        await node.indexer.keep_only({"d1", "d2"})
        await node.indexer.settled()
        assert node.indexer.documents == 2


async def test_a_new_space_is_filled_with_every_document_and_the_old_one_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(*documents(80))
        seen: list[int] = []
        node.indexer.progress = lambda version, count: seen.append(count) if version == FULL else None
        await node.indexer.fill(FULL, node.counting.encoder(FULL))
        assert await node.index.covered(FULL) == await node.index.covered(BASE)
        assert seen == sorted(seen)
        assert seen[-1] == 80
        assert await node.first("title5 text5", FULL) == "d5"
        assert await node.first("title5 text5", BASE) == "d5"


async def test_a_document_that_changes_after_a_fill_is_encoded_for_both_spaces(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(*documents(10))
        await node.indexer.fill(FULL, node.counting.encoder(FULL))
        await node.offer(Document("d3", "", "quite another matter"), Document("new", "", "brand new thing"))
        for space in (BASE, FULL):
            assert await node.first("quite another matter", space) == "d3"
            assert await node.first("brand new thing", space) == "new"
            assert len(await node.index.covered(space)) == 11


async def test_documents_that_change_during_a_fill_end_with_vectors_of_their_newest_text(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(*documents(300))
        filling = asyncio.create_task(node.indexer.fill(FULL, node.counting.encoder(FULL)))
        for i in range(0, 300, 10):
            await node.indexer.offer(Document(f"d{i}", "", f"altered{i} wholly other"))
            await asyncio.sleep(0.002)
        await node.indexer.offer(Deleted("d1"))
        async with asyncio.timeout(20):
            await filling
            await node.indexer.settled()
        assert node.indexer.documents == 299
        assert len(await node.index.covered(FULL)) == 299
        for i in (0, 150, 290):
            assert await node.first(f"altered{i} wholly other", FULL) == f"d{i}"


async def test_changes_that_keep_coming_do_not_keep_a_fill_from_its_end(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(*documents(3))
        vectors, more = node.backfill.vectors, (Document(f"more{n}", "", f"more {n}") for n in count())

        async def trickle(space: str, *rest: Any) -> AsyncIterator[Any]:
            if space == FULL and FULL not in node.indexer.spaces:
                await node.offer(next(more))
            async for part in vectors(space, *rest):
                yield part

        node.backfill.vectors = trickle  # type: ignore[method-assign]
        async with asyncio.timeout(3):
            await node.indexer.fill(FULL, node.counting.encoder(FULL))
        assert node.indexer.documents > 3
        assert len(await node.index.covered(FULL)) == node.indexer.documents


async def test_a_space_whose_fill_broke_off_is_not_kept_up(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(*documents(3))
        vectors, asked = node.backfill.vectors, count()

        async def broken(space: str, *rest: Any) -> AsyncIterator[Any]:
            if space == FULL:
                if next(asked) == 1:
                    raise RuntimeError("no memory")
                await node.offer(Document("new", "", "brand new thing"))
            async for part in vectors(space, *rest):
                yield part

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(node.backfill, "vectors", broken)
            with pytest.raises(RuntimeError):
                await node.indexer.fill(FULL, node.counting.encoder(FULL))
        assert node.indexer.spaces == (BASE,)
        await node.indexer.fill(FULL, node.counting.encoder(FULL))
        assert len(await node.index.covered(FULL)) == 4


async def test_a_document_that_was_being_encoded_when_a_fill_ended_gets_the_new_space_too(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        release, plain = threading.Event(), words

        def slow(texts: list[str]) -> Vectors:
            release.wait(5)
            return plain(texts, seed=BASE)

        node.indexer._spaces[BASE] = Encoder(BASE, DIM, slow, slow)
        await node.indexer.offer(Document("late", "", "late words"))
        await asyncio.sleep(0.05)
        # There is nothing to fill as yet, so the fill ends while the document is being encoded for the base.
        await node.indexer.fill(FULL, node.counting.encoder(FULL))
        release.set()
        async with asyncio.timeout(5):
            await node.indexer.settled()
        assert await node.index.covered(FULL) == {"late"}


async def test_a_vector_of_a_text_that_is_no_longer_there_is_not_written(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        old, new = Document("d1", "", "old words"), Document("d1", "", "new words")
        await node.offer(old)
        await node.index.add_space(FULL, DIM)
        node.indexer._catalog.track(FULL)
        await node.offer(new)
        vector = node.counting.encoder(FULL).encode_documents([old.content])[0]
        await node.indexer._set_vectors(FULL, {old.digest: [old]}, {old.digest: vector})
        assert await node.index.covered(FULL) == set()
        assert node.indexer._catalog.lacking(FULL) == {"d1"}


async def test_a_text_that_another_node_wrote_first_gets_its_vector_with_its_own_change(tmp_path: Path) -> None:
    shared = AsyncQdrantClient(":memory:")
    async with running(tmp_path, ServerIndex(shared, "c")) as fast:
        await fast.offer(*documents(5))
        slow = Node(tmp_path, fast.counting, ServerIndex(shared, "c"))
        await slow.indexer.open()
        changed = Document("d3", "", "quite another matter")
        await fast.offer(changed)
        async with asyncio.timeout(5):
            await slow.indexer.fill(FULL, fast.counting.encoder(FULL))
        assert await slow.index.covered(FULL) == {"d0", "d1", "d2", "d4"}
        task = asyncio.create_task(slow.indexer.run())
        await slow.offer(changed)
        assert await slow.first("quite another matter", FULL) == "d3"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        slow.backfill.close()


async def test_a_text_whose_change_came_during_the_fill_gets_its_vector_too(tmp_path: Path) -> None:
    shared = AsyncQdrantClient(":memory:")
    changed = Document("d3", "", "quite another matter")
    async with running(tmp_path / "a", ServerIndex(shared, "c")) as fast:
        await fast.offer(*documents(5))
        async with running(tmp_path / "b", ServerIndex(shared, "c")) as slow:
            await fast.offer(changed)
            vectors, to_come = slow.backfill.vectors, iter([changed])

            async def interrupted(space: str, *rest: Any) -> AsyncIterator[Any]:
                async for part in vectors(space, *rest):
                    yield part
                if space == FULL:
                    await slow.offer(*to_come)

            slow.backfill.vectors = interrupted  # type: ignore[method-assign]
            async with asyncio.timeout(5):
                await slow.indexer.fill(FULL, slow.counting.encoder(FULL))
            assert await slow.first("quite another matter", FULL) == "d3"


async def test_what_another_node_deleted_needs_no_vector(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(*documents(5))
        await node.index.delete(["d1"])
        async with asyncio.timeout(5):
            await node.indexer.fill(FULL, node.counting.encoder(FULL))
        assert await node.index.covered(FULL) == {"d0", "d2", "d3", "d4"}


async def test_texts_are_hashed_and_split_away_from_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set[tuple[str, bool]]()

    def watched(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            seen.add((name, threading.current_thread() is threading.main_thread()))
            return work(*args)

        return call

    monkeypatch.setattr("search.index.content_digest", watched("digest", content_digest))
    monkeypatch.setattr("search.index.server.document_terms", watched("terms", document_terms))
    async with running(tmp_path, ServerIndex(AsyncQdrantClient(":memory:"), "c")) as node:
        await node.offer(*documents(5))
        await node.indexer.fill(FULL, node.counting.encoder(FULL))
    assert seen == {("digest", False), ("terms", False)}


async def test_what_lacks_vectors_is_listed_once_for_all_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(set[str]):
        listed = 0

        def __iter__(self) -> Iterator[str]:
            self.listed += 1
            return super().__iter__()

        def __sub__(self, other: Any) -> set[str]:
            self.listed += 1
            return set(super().__sub__(other))

    monkeypatch.setattr(indexing, "PAGE", 5)
    async with running(tmp_path) as node:
        await node.offer(*documents(50))
        lacking = node.indexer._catalog._lacking[FULL] = Watched(node.indexer._catalog.ids())
        await node.indexer.fill(FULL, node.counting.encoder(FULL))
        assert len(await node.index.covered(FULL)) == 50
        assert lacking.listed == 2, "and once to see that nothing is left"


async def test_an_interrupted_fill_goes_on_where_it_was(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.offer(*documents(100))
        filling = asyncio.create_task(node.indexer.fill(FULL, node.counting.encoder(FULL)))
        await eventually(lambda: node.encoded() >= 170)  # the base's 100 and a chunk of the new space
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
        done = node.encoded() - 100
    async with running(tmp_path) as node:
        await node.indexer.fill(FULL, node.counting.encoder(FULL))
        assert len(await node.index.covered(FULL)) == 100
        assert node.encoded() <= 100 - (done // 64) * 64


async def test_a_page_of_vectors_has_the_document_s_own_vector(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        made = documents(40)
        await node.offer(*made)
        for document in made[::8]:
            vector = node.counting.encoder().encode_documents([document.content])[0]
            hits = await node.index.search(Question("", vector, BASE, 1, "dense"))
            assert hits[0].doc_id == document.doc_id
            assert np.isclose(hits[0].score, 1.0, atol=1e-4)
