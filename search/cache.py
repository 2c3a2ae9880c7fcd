"""Query embeddings in Redis, keyed by the version whose encoder made them.

What is kept is the encoder's vector before any adapter, so versions that share an encoder share the cache, and a
swap to a new adapter finds it warm. A query never fails for the cache: without Redis, or with one that is slow,
the encoder answers, and the miss is counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque

import numpy as np
import redis.asyncio as redis
from redis.exceptions import RedisError

from clickloop.logs import logger
from search.encoder import Encoder, Vectors
from search.metrics import Metrics

ANSWER_SECONDS = 0.1
"""An encode takes some milliseconds; a cache that needs longer is no help."""
PAUSE_SECONDS = 2.0
WAITING_WRITES = 1000
FLUSH_SECONDS = 0.1


class EmbeddingCache:
    """``get`` before an encode, ``put`` after it. ``put`` returns at once; ``run`` writes in the background."""

    def __init__(self, client: redis.Redis | None, metrics: Metrics, *, ttl_seconds: float) -> None:
        self._client = client if ttl_seconds > 0 else None
        self._metrics = metrics
        self._ttl_ms = int(ttl_seconds * 1000)
        self._writes: deque[tuple[str, bytes]] = deque(maxlen=WAITING_WRITES)
        self._paused_until = 0.0

    async def get(self, encoder: Encoder, text: str) -> Vectors | None:
        """(dim,) float32, or None."""
        if self._client is None or time.monotonic() < self._paused_until:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                raw = await self._client.get(_key(encoder, text))
        except (RedisError, TimeoutError, OSError) as error:
            self._pause(error)
            return None
        if raw is None or len(raw) != 4 * encoder.dim:
            self._metrics.cache.labels("miss").inc()
            return None
        self._metrics.cache.labels("hit").inc()
        return np.frombuffer(raw, dtype="<f4").astype(np.float32, copy=False)

    def put(self, encoder: Encoder, text: str, vector: Vectors) -> None:
        if self._client is not None:
            self._writes.append((_key(encoder, text), vector.astype("<f4").tobytes()))

    async def run(self) -> None:
        """Write what was put, until cancelled."""
        while self._client is not None:
            await asyncio.sleep(FLUSH_SECONDS)
            if not self._writes or time.monotonic() < self._paused_until:
                continue
            pipeline = self._client.pipeline(transaction=False)
            while self._writes:
                key, raw = self._writes.popleft()
                pipeline.set(key, raw, px=self._ttl_ms)
            try:
                async with asyncio.timeout(1.0):
                    await pipeline.execute()
            except (RedisError, TimeoutError, OSError) as error:
                self._pause(error)

    def _pause(self, error: BaseException) -> None:
        if time.monotonic() >= self._paused_until:
            logger().warning("Redis does not answer; going on without the cache", reason=repr(error))
        self._paused_until = time.monotonic() + PAUSE_SECONDS
        self._metrics.cache.labels("error").inc()


def connect(url: str) -> redis.Redis | None:
    """A client, unconnected as yet; None without a URL. Raises SettingsError for what is no Redis URL."""
    if not url:
        return None
    from clickloop.errors import SettingsError

    try:
        client: redis.Redis = redis.from_url(
            url, socket_connect_timeout=1.0, socket_timeout=5.0, health_check_interval=0
        )
    except ValueError as error:
        raise SettingsError(f"setting redis_url: {error} (got {url!r})") from None
    return client


def _key(encoder: Encoder, text: str) -> str:
    name = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"clickloop:query:{encoder.version}:{name}"
