"""Answers one query: choose the arm, encode, search, tell what was served."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import Struct

from clickloop import codec
from clickloop.events import QueryServed, Result
from clickloop.propensity import propensities, swapped_pair
from search.batcher import Batcher
from search.cache import EmbeddingCache
from search.encoder import LoadedVersion, Vectors
from search.index import Hit, Index, Question
from search.metrics import Metrics
from search.requests import Problem, SearchRequest
from search.settings import DENSE_WEIGHT, Mode
from search.sketch import sketch
from search.swap import Serving, Swap

PINNED = "pinned"
"""Arm of an answer whose version the client chose."""


class Shown(Struct, frozen=True, kw_only=True):
    """One result as the client sees it."""

    doc_id: str
    position: int
    score: float
    title: str
    snippet: str


class Answer(Struct, frozen=True, kw_only=True):
    """Body of an answered ``POST /search``."""

    query_id: str
    results: list[Shown]
    version: str
    space: str
    split_id: str
    arm: str
    latency_seconds: float


class Searcher:
    """Needs a ``Swap`` to answer; until it has one, and after ``close``, it refuses with 503."""

    def __init__(
        self,
        index: Index,
        batcher: Batcher,
        cache: EmbeddingCache,
        record: Callable[[QueryServed], None],
        metrics: Metrics,
        *,
        index_name: str,
        mode: Mode,
        exploration: float = 0.0,
        dense_weight: float = DENSE_WEIGHT,
    ) -> None:
        self._exploration = exploration
        self._index = index
        self._batcher = batcher
        self._cache = cache
        self._record = record
        self._metrics = metrics
        self._index_name = index_name
        self._mode = mode
        self._dense_weight = dense_weight
        self.swap: Swap | None = None
        self.ready = False
        """Once true it stays so: a node that stops still answers what reaches it."""
        self.stopping = False
        self.queries = 0
        """Queries answered."""
        self.failed = 0
        """Queries that a ready node could not answer."""

    async def answer(self, wanted: SearchRequest) -> Answer:
        """Raises Problem, OverloadedError or IndexUnavailableError."""
        started = time.perf_counter()
        served_at = codec.now()
        swap = self.swap
        if swap is None or not self.ready:
            raise Problem(503, "Not ready", "the node is not serving (yet): see /readyz", retry_after=1)
        # One look at what is live: a swap that comes meanwhile does not touch this query.
        serving = swap.serving
        query_id = codec.new_id()
        text = wanted.query.strip()
        arm, split_id, version = _choose(swap, serving, wanted, query_id)
        encoded = await self._encode(version, text)
        question = Question(
            text=text,
            vector=version.query_vector(encoded),
            space=version.space,
            k=wanted.k,
            mode=wanted.mode or self._mode,
            filters=wanted.filters,
            dense_weight=self._dense_weight,
        )
        hits = await self._index.search(question)
        # Who asks for a version wants to see that version; what is not recorded can teach nothing.
        exploration = self._exploration if wanted.record and wanted.version is None else 0.0
        swapped = swapped_pair(query_id, len(hits), exploration)
        if swapped is not None:
            hits[swapped - 1], hits[swapped] = hits[swapped], hits[swapped - 1]
        latency = time.perf_counter() - started
        self.queries += 1
        self._metrics.queries.labels(arm).inc()
        self._metrics.latency.observe(latency)
        if wanted.record:
            self._record(
                QueryServed(
                    event_id=query_id,
                    index=self._index_name,
                    query_id=query_id,
                    query=text,
                    served_at=served_at,
                    results=_results(hits, propensities(len(hits), exploration, swapped)),
                    split_key=wanted.split_key,
                    version=version.version,
                    space=version.space,
                    split_id=split_id,
                    arm=arm,
                    latency_seconds=latency,
                    sketch=sketch(encoded) if version.encoder is swap.base.encoder else b"",
                    domain=wanted.domain,
                    swapped=swapped,
                )
            )
        return Answer(
            query_id=query_id,
            results=[
                Shown(doc_id=h.doc_id, position=i, score=h.score, title=h.title, snippet=h.snippet)
                for i, h in _ranked(hits)
            ],
            version=version.version,
            space=version.space,
            split_id=split_id,
            arm=arm,
            latency_seconds=latency,
        )

    async def _encode(self, version: LoadedVersion, text: str) -> Vectors:
        encoder = version.encoder
        encoded = await self._cache.get(encoder, text)
        if encoded is None:
            encoded = await self._batcher.encode(encoder, text)
            self._cache.put(encoder, text, encoded)
        return encoded


def _choose(swap: Swap, serving: Serving, wanted: SearchRequest, query_id: str) -> tuple[str, str, LoadedVersion]:
    """Name of the arm, id of the split, version."""
    if wanted.version is None:
        # Without a key, no one is to be kept in an arm: every query draws anew.
        arm, version = serving.choose(wanted.split_key or query_id)
        return arm.name, serving.split_id, version
    pinned = serving.versions.get(wanted.version)
    if pinned is not None:
        return PINNED, "", pinned
    if not swap.knows(wanted.version):
        raise Problem(404, "Unknown version", f"no version {wanted.version[:200]!r} was announced to this node")
    reason = swap.rejection(wanted.version) or "it is being loaded, or was unloaded to save memory"
    raise Problem(409, "Version not loaded", f"{wanted.version}: {reason}")


def _results(hits: list[Hit], chances: list[float]) -> list[Result]:
    return [
        Result(doc_id=hit.doc_id, position=position, score=hit.score, propensity=chance)
        for (position, hit), chance in zip(_ranked(hits), chances, strict=True)
    ]


def _ranked(hits: list[Hit]) -> enumerate[Hit]:
    return enumerate(hits, start=1)
