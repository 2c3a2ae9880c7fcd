"""The embedding cache: right or absent, shared by versions of one encoder, and never a reason to fail."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import redis.asyncio as redis

from search.cache import EmbeddingCache, connect
from search.metrics import Metrics
from tests.unit.search_fakes import CountingEncoder


async def written(cache: EmbeddingCache) -> None:
    task = asyncio.create_task(cache.run())
    await asyncio.sleep(0.3)
    task.cancel()


async def test_a_vector_comes_back_as_it_was_and_for_its_encoder_only(redis_url: str) -> None:
    client = redis.from_url(redis_url)
    cache = EmbeddingCache(client, Metrics(), ttl_seconds=60)
    one, two = CountingEncoder().encoder("base-1"), CountingEncoder().encoder("qe-2")
    vector = one.encode_queries(["open a file"])[0]
    assert await cache.get(one, "open a file") is None
    cache.put(one, "open a file", vector)
    await written(cache)
    found = await cache.get(one, "open a file")
    assert found is not None
    np.testing.assert_array_equal(found, vector)
    assert await cache.get(two, "open a file") is None
    assert await cache.get(one, "open a File") is None
    (key,) = await client.keys("clickloop:query:*")
    assert 0 < await client.pttl(key) <= 60_000
    await client.aclose()


async def test_a_value_of_another_size_is_a_miss(redis_url: str) -> None:
    client = redis.from_url(redis_url)
    cache = EmbeddingCache(client, Metrics(), ttl_seconds=60)
    wide = CountingEncoder().encoder("v", dim=16)
    cache.put(wide, "text", wide.encode_queries(["text"])[0])
    await written(cache)
    assert await cache.get(CountingEncoder().encoder("v", dim=8), "text") is None
    await client.aclose()


async def test_without_redis_every_lookup_is_a_quick_miss() -> None:
    encoder = CountingEncoder().encoder()
    for client in (None, connect("redis://127.0.0.1:9")):
        metrics = Metrics()
        cache = EmbeddingCache(client, metrics, ttl_seconds=60)
        started = time.perf_counter()
        for i in range(200):
            assert await cache.get(encoder, str(i)) is None
            cache.put(encoder, str(i), encoder.encode_queries([str(i)])[0])
        assert time.perf_counter() - started < 2.0
        if client is not None:
            assert metrics.cache.labels("error")._value.get() >= 1
            await written(cache)
            await client.aclose()
