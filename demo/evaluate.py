"""Held-out queries, asked of the running nodes over HTTP, one pinned version at a time, leaving no trace."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import numpy as np

from clickloop.errors import StackError
from clickloop.evaluation import NOT_FOUND, Ranks
from demo.corpus import Query

DEPTH = 10
CONCURRENCY = 16


async def ranks_of(
    session: aiohttp.ClientSession,
    nodes: Sequence[str],
    queries: Sequence[Query],
    *,
    version: str,
    mode: str,
) -> Ranks:
    """(n,) rank of the first relevant document among the top 10, NOT_FOUND where there is none.

    The queries are not recorded: they form no impression. Raises StackError where a node doesn't answer.
    """
    ranks: Ranks = np.full(len(queries), NOT_FOUND, dtype=np.int64)
    waiting = iter(enumerate(queries))

    async def worker() -> None:
        for number, query in waiting:
            body = {"query": query.text, "k": DEPTH, "mode": mode, "version": version, "record": False}
            async with session.post(f"{nodes[number % len(nodes)]}/search", json=body) as response:
                if response.status != 200:
                    raise StackError(f"evaluation of {version}: {response.status} {await response.text()}")
                answer = await response.json()
            found = (r["position"] for r in answer["results"] if r["doc_id"] in query.relevant)
            ranks[number] = next(found, NOT_FOUND)

    try:
        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    except aiohttp.ClientError as error:
        raise StackError(f"evaluation of {version}: {error}") from None
    return ranks
