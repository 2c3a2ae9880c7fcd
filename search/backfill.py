"""Document vectors of a space: taken from the vector store, or encoded and put there, once for all nodes.

Nodes share the work by leases in Redis, one a document (``SET NX PX``): who gets the lease encodes, the others
wait for the vector to appear in the store. The lease of a dead node expires. Without Redis, each node encodes.
Encoding runs on one thread; once the node serves, with a lower priority than the threads that answer queries.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import redis.asyncio as redis
from redis.exceptions import RedisError

from clickloop.logs import logger
from clickloop.vector_store import VectorStore
from search.encoder import Encoder
from search.index import Vector
from search.metrics import Metrics

T = TypeVar("T")

CHUNK = 64
"""Documents leased and written together."""
FORWARD = 16
"""Documents encoded in one call: short enough to let a change of one document in between."""
READY_CHUNK = 512
LEASE_SECONDS = 30.0
POLL_SECONDS = 0.3
NICE = 5
"""Priority of the encoding thread (nice value): queries get about three times its share of a busy CPU."""


class Leases(Protocol):
    """Who encodes what."""

    async def acquire(self, space: str, digests: Sequence[bytes]) -> list[bytes]:
        """Those that are ours to encode now."""
        ...


class NoLeases:
    """Nobody to share with: all is ours."""

    async def acquire(self, space: str, digests: Sequence[bytes]) -> list[bytes]:  # noqa: ARG002
        return list(digests)


class RedisLeases:
    """``owner`` is unique among nodes, and the same after a restart: then it takes its own leases up again."""

    def __init__(self, client: redis.Redis, *, owner: str, seconds: float = LEASE_SECONDS) -> None:
        self._client = client
        self._owner = owner.encode()
        self._milliseconds = int(seconds * 1000)
        self._warned = False

    async def acquire(self, space: str, digests: Sequence[bytes]) -> list[bytes]:
        """Where Redis doesn't answer, all are ours: encoding twice is better than not at all."""
        keys = [f"clickloop:lease:{space}:{digest.hex()}" for digest in digests]
        try:
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.set(key, self._owner, nx=True, px=self._milliseconds)
            got = await pipeline.execute()
            owners = await self._client.mget(keys)
        except (RedisError, OSError) as error:
            if not self._warned:
                logger().warning("Redis does not answer; encoding without leases", reason=repr(error))
            self._warned = True
            return list(digests)
        self._warned = False
        mine = zip(digests, got, owners, strict=True)
        return [digest for digest, new, owner in mine if new or owner == self._owner]


class Backfill:
    """Brings document vectors up to date, whichever node encodes them."""

    def __init__(self, store_url: str, leases: Leases, metrics: Metrics) -> None:
        self._store_url = store_url
        self._leases = leases
        self._metrics = metrics
        self._stores: dict[str, VectorStore] = {}
        self._kept = True
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode-documents")

    def give_way(self) -> None:
        """From now on, queries come first."""
        # A thread may lower its priority but not raise it again, hence another thread.
        self._thread.shutdown(wait=False)
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="encode-documents-low", initializer=_lower_priority
        )

    def close(self) -> None:
        """Give up what is being encoded after the current forward pass."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def known(self, space: str, digest: bytes) -> Vector | None:
        """A vector that ``vectors`` has come by, (dim,) float32."""
        return self._store(space).get(digest)

    async def vectors(
        self, space: str, encoder: Encoder, texts: Mapping[bytes, str]
    ) -> AsyncIterator[dict[bytes, Vector]]:
        """Vectors of ``space`` for all ``texts`` (by digest), in parts, in the order in which they are ready.

        Raises OSError where the store can't be read.
        """
        store = self._store(space)
        await self._run(store.load_new)
        missing = dict.fromkeys(store.missing(texts))
        ready = [digest for digest in texts if digest not in missing]
        self._metrics.vectors.labels("stored").inc(len(ready))
        for start in range(0, len(ready), READY_CHUNK):
            yield self._found(store, ready[start : start + READY_CHUNK])
        # Equal lengths together: less padding. Longest first: nodes that share the work end together.
        lengths = await self._run(encoder.lengths, [texts[digest] for digest in missing])
        missing = {digest: None for _, digest in sorted(zip(lengths, missing, strict=True), reverse=True)}
        while missing:
            ours = await self._take(space, list(missing))
            await self._run(store.load_new)
            wanted = store.missing(ours)
            if wanted:
                await self._encode(store, encoder, {digest: texts[digest] for digest in wanted})
            fresh = [digest for digest in missing if store.get(digest) is not None]
            for digest in fresh:
                del missing[digest]
            encoded = len(set(wanted).intersection(fresh))
            self._metrics.vectors.labels("encoded").inc(encoded)
            self._metrics.vectors.labels("stored").inc(len(fresh) - encoded)
            if fresh:
                yield self._found(store, fresh)
            if not ours:
                await asyncio.sleep(POLL_SECONDS)

    def _store(self, space: str) -> VectorStore:
        if space not in self._stores:
            self._stores[space] = VectorStore(self._store_url, space)
        return self._stores[space]

    async def _take(self, space: str, missing: Sequence[bytes]) -> list[bytes]:
        """A chunk of what nobody else is at."""
        taken: list[bytes] = []
        start = 0
        while len(taken) < CHUNK and start < len(missing):
            asked = missing[start : start + CHUNK - len(taken)]
            taken += await self._leases.acquire(space, asked)
            start += len(asked)
        return taken

    async def _encode(self, store: VectorStore, encoder: Encoder, texts: Mapping[bytes, str]) -> None:
        """``texts`` come sorted by their length. Others that need the thread come in between."""
        digests = list(texts)
        done: dict[bytes, Vector] = {}
        for start in range(0, len(digests), FORWARD):
            part = digests[start : start + FORWARD]
            vectors = await self._run(encoder.encode_documents, [texts[digest] for digest in part])
            done.update(zip(part, vectors, strict=True))
        await self._keep(store, done)

    async def _keep(self, store: VectorStore, vectors: Mapping[bytes, Vector]) -> None:
        """For other nodes and later starts. This node goes on with them in any case."""
        try:
            await self._run(store.add, vectors)
        except OSError as error:
            if self._kept:
                logger().warning("the store takes no vectors; other nodes encode them again", reason=str(error))
            self._kept = False
        else:
            if not self._kept:
                logger().info("the store takes vectors again")
            self._kept = True

    @staticmethod
    def _found(store: VectorStore, digests: Sequence[bytes]) -> dict[bytes, Vector]:
        found = {digest: store.get(digest) for digest in digests}
        return {digest: vector for digest, vector in found.items() if vector is not None}

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)


def _lower_priority() -> None:
    # On Linux a thread has a nice value of its own.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
