"""Document vectors: encoded once for all nodes, taken from the store where they are, done even if a node dies."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import redis.asyncio as redis
from fsspec.implementations.local import LocalFileSystem
from structlog.testing import capture_logs

from clickloop.vector_store import VectorStore
from search import backfill
from search.backfill import Backfill, NoLeases, RedisLeases
from search.encoder import Encoder
from search.metrics import Metrics
from tests.unit.search_fakes import CountingEncoder, words


@pytest.fixture(autouse=True)
def _poll_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "POLL_SECONDS", 0.02)


def texts(count: int) -> dict[bytes, str]:
    made = [f"document number {i} " + "word " * (i % 7) for i in range(count)]
    return {hashlib.sha256(text.encode()).digest(): text for text in made}


async def collect(
    work: Backfill, encoder: Encoder, wanted: Mapping[bytes, str], space: str = "s"
) -> dict[bytes, np.ndarray]:
    got: dict[bytes, np.ndarray] = {}
    async for part in work.vectors(space, encoder, wanted):
        assert not set(part) & set(got)
        got.update(part)
    return got


def encoded(counting: CountingEncoder) -> list[str]:
    return [text for call in counting.documents for text in call]


async def test_every_text_gets_its_own_vector_and_the_store_keeps_it(tmp_path: Path) -> None:
    counting, wanted = CountingEncoder(), texts(200)
    work = Backfill(str(tmp_path), NoLeases(), Metrics())
    got = await collect(work, counting.encoder(), wanted)
    assert set(got) == set(wanted)
    for digest, text in list(wanted.items())[::20]:
        expected = words([text], seed="base-1")[0]
        np.testing.assert_allclose(got[digest], expected / np.linalg.norm(expected), rtol=1e-5)
    fresh = VectorStore(str(tmp_path), "s")
    assert fresh.load_new() == 200
    work.close()


async def test_what_the_store_holds_is_not_encoded_again(tmp_path: Path) -> None:
    wanted = texts(150)
    first = Backfill(str(tmp_path), NoLeases(), Metrics())
    await collect(first, CountingEncoder().encoder(), dict(list(wanted.items())[:100]))
    counting = CountingEncoder()
    second = Backfill(str(tmp_path), NoLeases(), Metrics())
    assert set(await collect(second, counting.encoder(), wanted)) == set(wanted)
    assert len(encoded(counting)) == 50
    first.close()
    second.close()


async def test_spaces_do_not_share_vectors(tmp_path: Path) -> None:
    counting, wanted = CountingEncoder(), texts(10)
    work = Backfill(str(tmp_path), NoLeases(), Metrics())
    await collect(work, counting.encoder(), wanted, "space-1")
    await collect(work, counting.encoder("full-2"), wanted, "space-2")
    assert len(encoded(counting)) == 20
    work.close()


async def test_texts_of_like_length_are_encoded_together(tmp_path: Path) -> None:
    counting, wanted = CountingEncoder(), texts(300)
    work = Backfill(str(tmp_path), NoLeases(), Metrics())
    await collect(work, counting.encoder(), wanted)
    spread = [max(map(len, call)) - min(map(len, call)) for call in counting.documents]
    assert np.mean(spread) < 4
    work.close()


async def test_two_nodes_share_the_work_and_nothing_is_encoded_twice(tmp_path: Path, redis_url: str) -> None:
    wanted = texts(700)
    client = redis.from_url(redis_url)
    nodes = [Backfill(str(tmp_path), RedisLeases(client, owner=f"node-{i}"), Metrics()) for i in range(2)]
    counters = [CountingEncoder() for _ in nodes]
    got = await asyncio.gather(
        *(collect(node, counter.encoder(), wanted) for node, counter in zip(nodes, counters, strict=True))
    )
    assert all(set(part) == set(wanted) for part in got)
    done = [encoded(counter) for counter in counters]
    assert sorted(done[0] + done[1]) == sorted(wanted.values())
    assert min(len(part) for part in done) > 100
    for node in nodes:
        node.close()
    await client.aclose()


async def test_the_work_of_a_dead_node_is_taken_over_when_its_lease_ends(tmp_path: Path, redis_url: str) -> None:
    wanted = texts(80)
    client = redis.from_url(redis_url)
    dead = RedisLeases(client, owner="dead", seconds=0.4)
    assert len(await dead.acquire("s", list(wanted)[:30])) == 30
    counting = CountingEncoder()
    work = Backfill(str(tmp_path), RedisLeases(client, owner="alive"), Metrics())
    parts = [part async for part in work.vectors("s", counting.encoder(), wanted)]
    # The free ones came first, while the dead node's were waited for.
    assert len(parts[0]) == 50
    assert sum(len(part) for part in parts) == 80
    assert len(encoded(counting)) == 80
    work.close()
    await client.aclose()


async def test_a_restarted_node_takes_its_own_leases_up_again(tmp_path: Path, redis_url: str) -> None:
    wanted = texts(30)
    client = redis.from_url(redis_url)
    await RedisLeases(client, owner="node-1", seconds=600).acquire("s", list(wanted))
    work = Backfill(str(tmp_path), RedisLeases(client, owner="node-1", seconds=600), Metrics())
    async with asyncio.timeout(5):
        assert len(await collect(work, CountingEncoder().encoder(), wanted)) == 30
    assert await RedisLeases(client, owner="node-2").acquire("s", list(wanted)) == []
    work.close()
    await client.aclose()


async def test_without_an_answering_redis_each_node_encodes_for_itself(tmp_path: Path) -> None:
    client = redis.from_url("redis://127.0.0.1:9", socket_connect_timeout=0.2)
    work = Backfill(str(tmp_path), RedisLeases(client, owner="n"), Metrics())
    assert len(await collect(work, CountingEncoder().encoder(), texts(40))) == 40
    work.close()
    await client.aclose()


async def test_vectors_of_another_node_are_waited_for_not_encoded(tmp_path: Path) -> None:
    wanted = texts(20)

    class NothingIsOurs:
        async def acquire(self, _space: str, _digests: Sequence[bytes]) -> list[bytes]:
            return []

    counting = CountingEncoder()
    work = Backfill(str(tmp_path), NothingIsOurs(), Metrics())
    waiting = asyncio.create_task(collect(work, counting.encoder(), wanted))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    other = Backfill(str(tmp_path), NoLeases(), Metrics())
    await collect(other, CountingEncoder().encoder(), wanted)
    async with asyncio.timeout(5):
        assert len(await waiting) == 20
    assert counting.documents == []
    work.close()
    other.close()


async def test_vectors_that_the_store_has_no_room_for_are_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, wanted = CountingEncoder(), texts(150)
    work = Backfill(str(tmp_path), NoLeases(), Metrics())
    filesystem = LocalFileSystem()
    monkeypatch.setattr(work._store("s"), "_fs", filesystem)
    with monkeypatch.context() as full, capture_logs() as logs:
        full.setattr(filesystem, "pipe_file", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        assert set(await collect(work, counting.encoder(), wanted)) == set(wanted)
        assert len(encoded(counting)) == 150
        assert [log["log_level"] for log in logs] == ["warning"]
    with capture_logs() as logs:
        assert len(await collect(work, counting.encoder(), texts(151))) == 151
    assert [log["log_level"] for log in logs] == ["info"]
    assert VectorStore(str(tmp_path), "s").load_new() == 1
    work.close()


async def test_giving_way_to_queries_does_not_lose_work(tmp_path: Path) -> None:
    wanted = texts(400)
    work = Backfill(str(tmp_path), NoLeases(), Metrics())
    got = 0
    async for part in work.vectors("s", CountingEncoder().encoder(), wanted):
        got += len(part)
        work.give_way()
    assert got == 400
    work.close()
