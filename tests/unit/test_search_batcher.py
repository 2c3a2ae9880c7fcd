"""Micro-batches: what piles up is encoded together, each query gets its own vector, the queue is bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest

from search import batcher as batcher_module
from search.batcher import Batcher, OverloadedError
from search.encoder import Encoder, Vectors
from search.metrics import Metrics
from tests.unit.search_fakes import DIM, CountingEncoder, words


@pytest.fixture
async def batcher() -> AsyncIterator[Batcher]:
    made = Batcher(Metrics(), max_batch=8)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_every_query_gets_its_own_vector_and_waiting_ones_share_a_batch(batcher: Batcher) -> None:
    counting = CountingEncoder()
    encoder = counting.encoder()
    texts = [f"query number {i}" for i in range(40)]
    got = await asyncio.gather(*(batcher.encode(encoder, text) for text in texts))
    np.testing.assert_allclose(np.stack(got), encoder.encode_queries(texts), rtol=1e-6)
    sizes = [len(call) for call in counting.queries[:-1]]
    assert max(sizes) == 8
    assert sum(sizes) == 40


async def test_equal_queries_in_a_batch_are_encoded_once(batcher: Batcher) -> None:
    counting = CountingEncoder()
    encoder = counting.encoder()
    await asyncio.gather(*(batcher.encode(encoder, "same") for _ in range(8)))
    assert sum(len(call) for call in counting.queries) <= 2


async def test_two_encoders_in_one_batch_do_not_mix(batcher: Batcher) -> None:
    one, two = CountingEncoder().encoder("one"), CountingEncoder().encoder("two")
    got = await asyncio.gather(*(batcher.encode(e, "text") for e in (one, two, one, two)))
    np.testing.assert_allclose(got[0], one.encode_queries(["text"])[0])
    np.testing.assert_allclose(got[1], two.encode_queries(["text"])[0])
    assert not np.allclose(got[0], got[1])


async def test_an_encoder_that_fails_fails_its_own_queries_only(batcher: Batcher) -> None:
    def broken(_: list[str]) -> Vectors:
        raise RuntimeError("no")

    bad, good = Encoder("bad", DIM, broken, broken), CountingEncoder().encoder()
    results = await asyncio.gather(
        batcher.encode(bad, "a"), batcher.encode(good, "a"), batcher.encode(bad, "b"), return_exceptions=True
    )
    assert [isinstance(result, RuntimeError) for result in results] == [True, False, True]
    assert (await batcher.encode(good, "c")).shape == (DIM,)


async def test_a_full_queue_refuses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "QUEUE", 3)
    release = threading.Event()

    def slow(texts: list[str]) -> Vectors:
        release.wait(5)
        return words(texts)

    made = Batcher(Metrics(), max_batch=1)
    task = asyncio.create_task(made.run())
    encoder = Encoder("slow", DIM, slow, slow)
    waiting = [asyncio.create_task(made.encode(encoder, "first"))]
    await asyncio.sleep(0.05)
    waiting += [asyncio.create_task(made.encode(encoder, str(i))) for i in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(OverloadedError):
        await made.encode(encoder, "one too many")
    release.set()
    assert len(await asyncio.gather(*waiting)) == 4
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
