"""Micro-batching: queries that wait while others are being encoded are encoded together next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from clickloop.errors import ClickloopError
from search.encoder import Encoder, Vectors
from search.metrics import Metrics

QUEUE = 1024
"""Queries that may wait; beyond that, answering later is worse than saying so now."""

_Waiting = tuple[Encoder, str, "asyncio.Future[Vectors]"]


class OverloadedError(ClickloopError):
    """More queries wait for the encoder than can be answered in good time."""


class Batcher:
    """Encodes on one thread of its own. No query waits for company: a batch is what piled up meanwhile."""

    def __init__(self, metrics: Metrics, *, max_batch: int) -> None:
        self._metrics = metrics
        self._max_batch = max_batch
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(QUEUE)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode-queries")

    async def encode(self, encoder: Encoder, text: str) -> Vectors:
        """The encoder's vector of one query, (dim,) float32. Raises OverloadedError."""
        future: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((encoder, text, future))
        except asyncio.QueueFull:
            raise OverloadedError(f"{QUEUE} queries are waiting to be encoded") from None
        return await future

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                batch = [await self._queue.get()]
                while len(batch) < self._max_batch and not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                for encoder in dict.fromkeys(encoder for encoder, _, _ in batch):
                    waiting = [(t, f) for e, t, f in batch if e is encoder and not f.done()]
                    if waiting:
                        await self._encode(encoder, [t for t, _ in waiting], [f for _, f in waiting])
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _encode(
        self, encoder: Encoder, texts: list[str], futures: Sequence[asyncio.Future[Vectors]]
    ) -> None:
        self._metrics.encode_batch.observe(len(texts))
        # Equal texts are encoded once.
        unique = list(dict.fromkeys(texts))
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(
                self._thread, encoder.encode_queries, unique
            )
        except Exception as error:  # noqa: BLE001 - it belongs to those who asked, and they raise it
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        by_text = dict(zip(unique, vectors, strict=True))
        for text, future in zip(texts, futures, strict=True):
            if not future.done():
                future.set_result(by_text[text])
