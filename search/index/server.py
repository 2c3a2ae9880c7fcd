"""The index on a Qdrant server. All nodes of an index share one collection and write the same points to it.

A node writes vectors of the spaces that it has. Where a point has a document's text already, vectors of other
spaces stay; where it has another text, they go with it. The server decides which, so nodes can write at one time.

Adding a space to a live collection needs a server that knows ``create_vector_name`` (Qdrant 1.18 and newer).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import httpx
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

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
    IndexUnavailableError,
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
Point = TypeVar("Point", models.PointStruct, models.PointVectors)

SCROLL = 1000
BATCH = 256
"""Points in one request at most: about 1 MB at 384 dimensions, where texts are short."""
BATCH_BYTES = 8 * 2**20
"""And so many bytes of them, unless one alone has more. A server refuses 32 MB, unless it is set otherwise."""

REFUSALS = (400, 413, 422)
"""HTTP statuses with which a server says that a request will never do."""


class ServerIndex:
    """Implements ``Index`` in the collection ``name``."""

    def __init__(self, client: AsyncQdrantClient, name: str) -> None:
        self._client = client
        self._name = name

    @classmethod
    def at(cls, url: str, name: str) -> ServerIndex:
        return cls(AsyncQdrantClient(url=url, timeout=10, check_compatibility=False), name)

    async def open(self) -> None:
        if await self._ask(self._client.collection_exists(self._name)):
            return
        sparse = {BM25: models.SparseVectorParams(modifier=models.Modifier.IDF)}
        try:
            await self._ask(
                self._client.create_collection(self._name, vectors_config={}, sparse_vectors_config=sparse)
            )
        except IndexUnavailableError:
            # Another node may have made it in the meantime.
            if not await self._ask(self._client.collection_exists(self._name)):
                raise

    async def close(self) -> None:
        await self._client.close()

    async def stored(self) -> list[Stored]:
        return [stored(fields) async for fields in self._scroll(None, STORED_FIELDS)]

    async def covered(self, space: str) -> set[str]:
        has_vector = models.Filter(must=[models.HasVectorCondition(has_vector=vector_name(space))])
        return {fields["doc_id"] async for fields in self._scroll(has_vector, ["doc_id"])}

    async def add_space(self, space: str, dim: int) -> None:
        if await self._has_space(space):
            return
        config = models.DenseVectorNameConfig(
            dense=models.DenseVectorConfig(size=dim, distance=models.Distance.DOT)
        )
        try:
            await self._ask(self._client.create_vector_name(self._name, vector_name(space), config))
        except IndexUnavailableError:
            # Another node may have added it in the meantime.
            if not await self._has_space(space):
                raise

    async def upsert(self, documents: Sequence[Document], vectors: Mapping[str, Mapping[bytes, Vector]]) -> None:
        for batch, points in await asyncio.to_thread(_requests, documents, partial(_point, vectors=vectors)):
            another_text = models.Filter(must_not=[_which("digest", batch)])
            await self._put(self._client.upsert(self._name, points, wait=True, update_filter=another_text))
            await self._renew(batch, vectors)

    async def set_vectors(
        self, space: str, documents: Sequence[Document], vectors: Mapping[bytes, Vector]
    ) -> None:
        def point(document: Document) -> models.PointVectors:
            return models.PointVectors(id=point_id(document.doc_id), vector=_dense(document, {space: vectors}))

        for batch, points in await asyncio.to_thread(_requests, documents, point):
            same_text = _which("digest", batch)
            await self._ask(self._client.update_vectors(self._name, points, wait=True, update_filter=same_text))

    async def delete(self, doc_ids: Collection[str]) -> None:
        if doc_ids:
            ids = models.PointIdsList(points=[point_id(d) for d in doc_ids])
            await self._ask(self._client.delete(self._name, ids, wait=True))

    async def documents(self, doc_ids: Collection[str]) -> list[Document]:
        ids = [point_id(d) for d in doc_ids]
        found = []
        for start in range(0, len(ids), BATCH):
            asked = ids[start : start + BATCH]
            found += await self._ask(
                self._client.retrieve(self._name, asked, with_payload=DOCUMENT_FIELDS, with_vectors=False)
            )
        return [Document(**(record.payload or {})) for record in found]

    async def search(self, question: Question) -> list[Hit]:
        condition = _filter(question.filters)
        terms = query_terms(question.text) if question.mode == "hybrid" else ([], [])
        if not terms[0]:
            answer = self._client.query_points(
                self._name,
                query=question.vector.tolist(),
                using=vector_name(question.space),
                query_filter=condition,
                limit=question.k,
                with_payload=HIT_FIELDS,
            )
        else:
            candidates = max(PREFETCH, question.k)
            answer = self._client.query_points(
                self._name,
                query=models.RrfQuery(rrf=models.Rrf(k=RRF_K, weights=[question.dense_weight, 1.0])),
                prefetch=[
                    models.Prefetch(
                        query=question.vector.tolist(),
                        using=vector_name(question.space),
                        limit=candidates,
                        filter=condition,
                    ),
                    models.Prefetch(
                        query=models.SparseVector(indices=terms[0], values=terms[1]),
                        using=BM25,
                        limit=candidates,
                        filter=condition,
                    ),
                ],
                limit=question.k,
                with_payload=HIT_FIELDS,
            )
        response = await self._ask(answer)
        return [hit(p.payload or {}, p.score) for p in response.points]

    async def count(self) -> int:
        return int((await self._ask(self._client.count(self._name, exact=True))).count)

    async def optimize(self) -> None:
        """The server does it by itself."""

    async def _renew(self, documents: Sequence[Document], vectors: Mapping[str, Mapping[bytes, Vector]]) -> None:
        """Of points that had the text already: the rest, as far as it is not as it should be."""
        has_vectors = [models.HasVectorCondition(has_vector=vector_name(space)) for space in vectors]
        behind = models.Filter(
            must=[models.HasIdCondition(has_id=[point_id(d.doc_id) for d in documents])],
            must_not=[models.Filter(must=[_which("fingerprint", documents), *has_vectors])],
        )
        found = {fields["doc_id"] async for fields in self._scroll(behind, ["doc_id"])}
        renewed = [d for d in documents if d.doc_id in found]
        if not renewed:
            return
        operations: list[models.UpdateOperation] = [
            models.OverwritePayloadOperation(
                overwrite_payload=models.SetPayload(payload=payload(d), filter=_which("digest", [d]))
            )
            for d in renewed
        ]
        dense = {point_id(d.doc_id): _dense(d, vectors) for d in renewed}
        points = [models.PointVectors(id=point, vector=named) for point, named in dense.items() if named]
        if points:
            changed = models.UpdateVectors(points=points, update_filter=_which("digest", renewed))
            operations.append(models.UpdateVectorsOperation(update_vectors=changed))
        await self._put(self._client.batch_update_points(self._name, operations, wait=True))

    async def _has_space(self, space: str) -> bool:
        info = await self._ask(self._client.get_collection(self._name))
        known = info.config.params.vectors
        return isinstance(known, dict) and vector_name(space) in known

    async def _scroll(self, condition: models.Filter | None, fields: list[str]) -> AsyncIterator[dict[str, Any]]:
        offset: Any = None
        while True:
            records, offset = await self._ask(
                self._client.scroll(
                    self._name,
                    scroll_filter=condition,
                    limit=SCROLL,
                    offset=offset,
                    with_payload=fields,
                    with_vectors=False,
                )
            )
            for record in records:
                yield record.payload or {}
            if offset is None:
                return

    async def _put(self, call: Awaitable[T]) -> T:
        """As ``_ask``, for what documents are in. Raises DocumentRefusedError."""
        try:
            return await self._ask(call)
        except IndexUnavailableError as error:
            cause = error.__cause__
            if isinstance(cause, UnexpectedResponse) and cause.status_code in REFUSALS:
                raise DocumentRefusedError(str(error)) from error
            raise

    async def _ask(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except (ApiException, QdrantException, httpx.HTTPError) as error:
            raise IndexUnavailableError(f"Qdrant, collection {self._name}: {error}") from error


def _requests(
    documents: Sequence[Document], point: Callable[[Document], Point]
) -> list[tuple[list[Document], list[Point]]]:
    """Documents and their points, in parts that a server takes. Takes a while: not for the event loop."""
    requests: list[tuple[list[Document], list[Point]]] = []
    size = 0
    for document in documents:
        made = point(document)
        length = len(made.model_dump_json().encode())
        if not requests or len(requests[-1][0]) == BATCH or size + length > BATCH_BYTES:
            requests.append(([], []))
            size = 0
        requests[-1][0].append(document)
        requests[-1][1].append(made)
        size += length
    return requests


def _point(document: Document, vectors: Mapping[str, Mapping[bytes, Vector]]) -> models.PointStruct:
    indices, values = document_terms(document.content)
    named = {BM25: models.SparseVector(indices=indices, values=values)} | _dense(document, vectors)
    return models.PointStruct(id=point_id(document.doc_id), vector=named, payload=payload(document))


def _dense(document: Document, vectors: Mapping[str, Mapping[bytes, Vector]]) -> dict[str, Any]:
    known = {vector_name(space): by_digest.get(document.digest) for space, by_digest in vectors.items()}
    return {name: vector.tolist() for name, vector in known.items() if vector is not None}


def _which(name: Literal["digest", "fingerprint"], documents: Sequence[Document]) -> models.Filter:
    """Points that are as these documents in the field ``name``."""
    return models.Filter(
        should=[
            models.Filter(
                must=[
                    models.HasIdCondition(has_id=[point_id(document.doc_id)]),
                    models.FieldCondition(key=name, match=models.MatchValue(value=getattr(document, name).hex())),
                ]
            )
            for document in documents
        ]
    )


def _filter(filters: Mapping[str, FilterValue]) -> models.Filter | None:
    if not filters:
        return None
    return models.Filter(must=[_condition(attribute_path(n), v) for n, v in filters.items()])


def _condition(path: str, value: FilterValue) -> models.FieldCondition:
    if isinstance(value, Range):
        bounds = models.Range(gte=value.gte, gt=value.gt, lte=value.lte, lt=value.lt)
        return models.FieldCondition(key=path, range=bounds)
    if isinstance(value, list):
        # One type throughout: the request's check saw to it.
        either: Any = value
        return models.FieldCondition(key=path, match=models.MatchAny(any=either))
    if isinstance(value, float):
        return models.FieldCondition(key=path, range=models.Range(gte=value, lte=value))
    return models.FieldCondition(key=path, match=models.MatchValue(value=value))
