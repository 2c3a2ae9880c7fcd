"""The index in process: Qdrant's own engine in one folder, which belongs to one process.

The engine releases the GIL; searches run on threads of their own, writes on one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import qdrant_edge as qdrant

from clickloop.errors import NodeError
from clickloop.logs import logger
from search.index import (
    BM25,
    DOCUMENT_FIELDS,
    HIT_FIELDS,
    PREFETCH,
    RRF_K,
    STORED_FIELDS,
    Document,
    DocumentRefusedError,
    FilterValue,
    Hit,
    Question,
    Range,
    Stored,
    Vector,
    attribute_path,
    hit,
    payload,
    point_id,
    stored,
    vector_name,
)
from search.index.bm25 import document_terms, query_terms

T = TypeVar("T")

SCROLL = 1000
SEARCH_THREADS = 2


class EdgeIndex:
    """Implements ``Index`` in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shard: Any = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="index-write")
        self._readers = ThreadPoolExecutor(SEARCH_THREADS, thread_name_prefix="index-read")

    async def open(self) -> None:
        """Load what lies in the folder, or begin anew.

        A folder that can't be loaded is put aside: the documents' log and the vector store hold all of it.
        Raises NodeError where another process has the folder open.
        """
        self._shard = await self._write(self._load_or_create)

    async def close(self) -> None:
        if self._shard is not None:
            shard, self._shard = self._shard, None
            await asyncio.get_running_loop().run_in_executor(self._writer, shard.close)
        self._writer.shutdown(wait=False)
        self._readers.shutdown(wait=False)

    async def stored(self) -> list[Stored]:
        return await self._read(lambda: [stored(r.payload) for r in self._scroll(None, STORED_FIELDS)])

    async def covered(self, space: str) -> set[str]:
        has_vector = qdrant.Filter(must=[qdrant.HasVectorCondition(vector_name(space))])
        return await self._read(lambda: {r.payload["doc_id"] for r in self._scroll(has_vector, ["doc_id"])})

    async def add_space(self, space: str, dim: int) -> None:
        operation = qdrant.UpdateOperation.create_dense_vector(vector_name(space), dim, qdrant.Distance.Dot)
        await self._write(lambda: self._shard.update(operation))

    async def upsert(self, documents: Sequence[Document], vectors: Mapping[str, Mapping[bytes, Vector]]) -> None:
        def work() -> None:
            try:
                points = [_point(document, vectors) for document in documents]
            except (TypeError, ValueError, OverflowError) as error:
                reason = str(error).partition("\n")[0]
                raise DocumentRefusedError(f"the engine can't hold it: {reason}") from error
            self._shard.update(qdrant.UpdateOperation.upsert_points(points))

        if documents:
            await self._write(work)

    async def set_vectors(
        self, space: str, documents: Sequence[Document], vectors: Mapping[bytes, Vector]
    ) -> None:
        def work() -> None:
            points = [
                qdrant.PointVectors(point_id(d.doc_id), {vector_name(space): vectors[d.digest].tolist()})
                for d in documents
            ]
            self._shard.update(qdrant.UpdateOperation.update_vectors(points))

        if documents:
            await self._write(work)

    async def delete(self, doc_ids: Collection[str]) -> None:
        operation = qdrant.UpdateOperation.delete_points([point_id(d) for d in doc_ids])
        if doc_ids:
            await self._write(lambda: self._shard.update(operation))

    async def documents(self, doc_ids: Collection[str]) -> list[Document]:
        ids = [point_id(d) for d in doc_ids]
        records = await self._read(lambda: self._shard.retrieve(ids, DOCUMENT_FIELDS, False))
        return [Document(**r.payload) for r in records]

    async def search(self, question: Question) -> list[Hit]:
        return await self._read(lambda: self._search(question))

    async def count(self) -> int:
        return await self._read(lambda: int(self._shard.count(qdrant.CountRequest(exact=True))))

    async def optimize(self) -> None:
        await self._write(lambda: (self._shard.optimize(), self._shard.flush()))

    def _search(self, question: Question) -> list[Hit]:
        dense = qdrant.Query.Nearest(question.vector.tolist(), using=vector_name(question.space))
        condition = _filter(question.filters)
        terms = query_terms(question.text) if question.mode == "hybrid" else ([], [])
        if not terms[0]:
            request = qdrant.QueryRequest(limit=question.k, query=dense, filter=condition, with_payload=HIT_FIELDS)
        else:
            candidates = max(PREFETCH, question.k)
            sparse = qdrant.Query.Nearest(qdrant.SparseVector(*terms), using=BM25)
            request = qdrant.QueryRequest(
                limit=question.k,
                query=_fusion(question.dense_weight),
                prefetches=[
                    qdrant.Prefetch(limit=candidates, query=dense, filter=condition),
                    qdrant.Prefetch(limit=candidates, query=sparse, filter=condition),
                ],
                with_payload=HIT_FIELDS,
            )
        return [hit(p.payload, p.score) for p in self._shard.query(request)]

    def _scroll(self, condition: Any, fields: list[str]) -> Iterator[Any]:
        offset = None
        while True:
            request = qdrant.ScrollRequest(
                limit=SCROLL, offset=offset, filter=condition, with_payload=fields, with_vector=False
            )
            records, offset = self._shard.scroll(request)
            yield from records
            if offset is None:
                return

    def _load_or_create(self) -> Any:
        if (self._folder / "edge_config.json").is_file():
            try:
                return qdrant.EdgeShard.load(str(self._folder))
            except Exception as error:  # noqa: BLE001 - the engine raises nothing narrower
                if "WouldBlock" in str(error):
                    raise NodeError(f"the index in {self._folder} is open in another process") from None
                aside = self._folder.with_name(f"{self._folder.name}.unreadable-{time.time_ns()}")
                logger().error("index can't be loaded; building it anew", moved_to=str(aside), reason=str(error))
                self._folder.rename(aside)
        self._folder.mkdir(parents=True, exist_ok=True)
        config = qdrant.EdgeConfig(
            sparse_vectors={BM25: qdrant.EdgeSparseVectorParams(modifier=qdrant.Modifier.Idf)},
            max_search_threads=1,
        )
        return qdrant.EdgeShard.create(str(self._folder), config)

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def _write(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)


def _point(document: Document, vectors: Mapping[str, Mapping[bytes, Vector]]) -> Any:
    named: dict[str, Any] = {BM25: qdrant.SparseVector(*document_terms(document.content))}
    for space, by_digest in vectors.items():
        if document.digest in by_digest:
            named[vector_name(space)] = by_digest[document.digest].tolist()
    return qdrant.Point(point_id(document.doc_id), named, payload(document))


def _fusion(dense_weight: float) -> Any:
    # The engine's type stubs don't count its own fusion among queries.
    return qdrant.Fusion.Rrf(k=RRF_K, weights=[dense_weight, 1.0])


def _filter(filters: Mapping[str, FilterValue]) -> Any:
    if not filters:
        return None
    return qdrant.Filter(must=[_condition(attribute_path(n), v) for n, v in filters.items()])


def _condition(path: str, value: FilterValue) -> Any:
    if isinstance(value, Range):
        bounds = qdrant.RangeFloat(gte=value.gte, gt=value.gt, lte=value.lte, lt=value.lt)
        return qdrant.FieldCondition(key=path, range=bounds)
    if isinstance(value, list):
        # One type throughout: the request's check saw to it.
        either: Any = value
        return qdrant.FieldCondition(key=path, match=qdrant.MatchAny(either))
    if isinstance(value, float):
        return qdrant.FieldCondition(key=path, range=qdrant.RangeFloat(gte=value, lte=value))
    # The engine's binding takes Python's bool for the integer that it also is.
    exact: Any = np.bool_(value) if isinstance(value, bool) else value
    return qdrant.FieldCondition(key=path, match=qdrant.MatchValue(exact))
