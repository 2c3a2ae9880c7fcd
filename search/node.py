"""A search node, put together from its parts, and its life from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import stamina
import uvicorn

from clickloop import codec, topics
from clickloop.base_model import base_model_folder
from clickloop.errors import ArtifactError, BrokerError, MessageError, NodeError
from clickloop.events import DocumentChanged, ModelVersionPublished, NodeReported, SplitChanged
from clickloop.kafka import Follower, Producer, Record, create_topics
from clickloop.logs import logger
from clickloop.model_store import ModelStore
from clickloop.settings import load_mappings
from clickloop.sources import Sources
from search import sentence_model
from search.answer import Searcher
from search.backfill import Backfill, NoLeases, RedisLeases
from search.batcher import Batcher
from search.cache import EmbeddingCache, connect
from search.encoder import EncoderPool, LoadedVersion
from search.http import build_app
from search.index import Document, Index, as_compared
from search.indexing import Deleted, Indexer
from search.metrics import Metrics
from search.recorder import Recorder
from search.reporter import Reporter
from search.settings import SearchSettings
from search.swap import Swap

State = Literal["starting", "indexing", "serving", "stopping"]

GRACE_SECONDS = 3
"""Queries in flight get so long when the node stops."""
KEEP_ALIVE_SECONDS = 75
"""Longer than clients and load balancers keep an idle connection (15 to 60 s). They must be the ones to close it,
or a query meets a connection that is just being closed, and fails."""


class _Server(uvicorn.Server):
    """Signals are the service's business (``clickloop.service``), not the HTTP server's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Node:
    """``run`` serves until it is told to stop. Made by ``build_node``."""

    def __init__(self, settings: SearchSettings, index: Index, store: ModelStore) -> None:
        self._settings = settings
        self._sources = Sources(settings.index, load_mappings())
        self._index = index
        self._metrics = Metrics()
        self._redis = connect(settings.redis_url)
        self._producer = Producer(
            settings.bootstrap_servers,
            prefix=settings.topic_prefix,
            source=f"clickloop/search/{settings.name}",
        )
        self._batcher = Batcher(self._metrics, max_batch=settings.max_batch)
        self._cache = EmbeddingCache(self._redis, self._metrics, ttl_seconds=settings.cache_seconds)
        self._recorder = Recorder(self._producer, self._metrics)
        leases = NoLeases() if self._redis is None else RedisLeases(self._redis, owner=settings.name)
        self._backfill = Backfill(settings.store_url, leases, self._metrics)
        self._indexer = Indexer(index, self._backfill, self._metrics)
        self._store = store
        self._pool = EncoderPool(store, load=sentence_model.loader(settings.threads))
        self._searcher = Searcher(
            index,
            self._batcher,
            self._cache,
            self._recorder.offer,
            self._metrics,
            index_name=settings.index,
            mode=settings.mode,
            exploration=settings.exploration,
            dense_weight=settings.dense_weight,
        )
        self._reporter = Reporter(self._producer, self._facts, heartbeat_seconds=settings.heartbeat_seconds)
        self._indexer.progress = self._reporter.progress
        app = build_app(
            self._searcher, self._indexer, self._metrics, node_id=settings.name, index_name=settings.index
        )
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=GRACE_SECONDS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load-base")
        self._versions_known = asyncio.Event()
        self._documents_known = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """From the first report to the last. Raises NodeError, BrokerError, SettingsError, ArtifactError."""
        settings = self._settings
        with _listen(settings.host, settings.port) as listening, _hold(settings.folder):
            await create_topics(
                settings.bootstrap_servers,
                prefix=settings.topic_prefix,
                partitions=settings.partitions,
                replication_factor=settings.replication_factor,
            )
            await self._producer.start()
            stopping = asyncio.create_task(stop.wait())
            try:
                await self._live(stopping, listening)
            finally:
                stopping.cancel()
                await self._stop()

    async def _live(self, stopping: asyncio.Task[Any], listening: socket.socket) -> None:
        self._serving = self._spawn(self._server.serve([listening]))
        self._spawn(self._batcher.run())
        self._spawn(self._recorder.run())
        self._spawn(self._reporter.run())
        if self._redis is not None:
            self._spawn(self._cache.run())
        logger().info("listening", address=self._settings.url, node_id=self._settings.name)
        await self._indexer.open()
        loading = asyncio.create_task(self._load_base())
        if await self._first_of(stopping, loading) is not loading:
            return
        base, announcement = loading.result()
        swap = self._begin(base)
        self._spawn(self._indexer.run())
        self._spawn(swap.run())
        self._spawn(self._follow_versions(swap, announcement))
        self._spawn(self._follow_documents())
        ready = asyncio.create_task(self._become_ready(swap))
        if await self._first_of(stopping, ready) is ready:
            ready.result()
            await self._first_of(stopping)

    def _begin(self, base: LoadedVersion) -> Swap:
        async def fill(loaded: LoadedVersion) -> None:
            await self._indexer.fill(loaded.space, loaded.encoder)

        swap = Swap(
            self._pool.version,
            fill,
            self._reporter.outcome,
            self._metrics,
            base=base,
            max_versions=self._settings.max_versions,
            keep_copies=self._store.keep_copies,
        )
        self._recorder.base = base.encoder
        self._searcher.swap = swap
        logger().info("base version is loaded", version=base.version)
        return swap

    async def _become_ready(self, swap: Swap) -> None:
        """What lay in the log at the start is indexed, and its split is live."""
        await self._indexer.fill(swap.base.space, swap.base.encoder)
        await self._documents_known.wait()
        await self._versions_known.wait()
        await swap.live.wait()
        await self._indexer.settled()
        self._backfill.give_way()
        self._searcher.ready = True
        self._metrics.ready.set(1)
        logger().info("ready", documents=self._indexer.documents, split_id=swap.serving.split_id)
        self._reporter.now()

    async def _load_base(self) -> tuple[LoadedVersion, ModelVersionPublished]:
        # Another node may be writing the same artifact for the first time: what is half there verifies soon.
        async for attempt in stamina.retry_context(on=ArtifactError, attempts=6, wait_initial=0.5, wait_max=3.0):
            with attempt:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._loader, self._publish_and_load_base)
        raise AssertionError("unreachable")

    def _publish_and_load_base(self) -> tuple[LoadedVersion, ModelVersionPublished]:
        name = self._settings.base_model
        published = self._store.ensure_base(base_model_folder(name), name=name)
        manifest = published.manifest
        event = ModelVersionPublished(
            event_id=f"base/{self._settings.index}/{manifest.version}",
            index=self._settings.index,
            version=manifest.version,
            kind=manifest.kind,
            space=manifest.space,
            artifact_uri=published.uri,
            digest=published.digest,
            signature=published.signature,
            published_at=codec.now(),
            lineage=manifest.lineage,
        )
        loaded = self._pool.version(event)
        loaded.warm_up()
        return loaded, event

    async def _follow_versions(self, swap: Swap, base: ModelVersionPublished) -> None:
        """Read versions and splits from their beginning, for ever."""
        async with self._following(topics.MODEL_VERSIONS, topics.TRAFFIC_SPLITS) as follower:
            while True:
                for topic, record in await follower.batch():
                    try:
                        self._take_version_or_split(topic, record, swap)
                    except MessageError as error:
                        await self._quarantine(topic, record, error)
                if not self._versions_known.is_set() and await follower.caught_up():
                    if not swap.was_announced(base.version):
                        await self._producer.send_and_wait(topics.MODEL_VERSIONS, base)
                    swap.caught_up()
                    self._versions_known.set()

    async def _follow_documents(self) -> None:
        """Read documents from their beginning, for ever; apart from the splits, which must not wait for them."""
        seen: set[str] = set()
        async with self._following(topics.DOCUMENTS) as follower:
            while True:
                for topic, record in await follower.batch():
                    try:
                        doc_id = await self._take_document(record)
                    except MessageError as error:
                        await self._quarantine(topic, record, error)
                        # What can't be read says nothing about the document that it is about: keep that one.
                        doc_id = (record.key or b"").decode("utf-8", "replace")
                    if doc_id and not self._documents_known.is_set():
                        seen.add(doc_id)
                if not self._documents_known.is_set() and await follower.caught_up():
                    await self._indexer.keep_only(seen)
                    seen.clear()
                    self._documents_known.set()

    def _following(self, *wanted: topics.Topic) -> Follower:
        return Follower(self._settings.bootstrap_servers, wanted, prefix=self._settings.topic_prefix)

    def _take_version_or_split(self, topic: topics.Topic, record: Record, swap: Swap) -> None:
        """Raises MessageError."""
        if record.value is None:
            return
        if topic is topics.MODEL_VERSIONS:
            published = codec.decode(record.value, ModelVersionPublished)
            if published.index == self._settings.index:
                swap.announce(published)
        else:
            split = codec.decode(record.value, SplitChanged)
            if split.index == self._settings.index:
                swap.change_split(split)

    async def _take_document(self, record: Record) -> str:
        """The document's id where it is one that is there. Raises MessageError."""
        if record.value is None:
            if record.key:
                await self._indexer.offer(Deleted(record.key.decode("utf-8", "replace")))
            return ""
        event: DocumentChanged = self._sources.read(
            record.value, record.headers, topics.DOCUMENTS, logged=codec.now().timestamp()
        )
        if event.index != self._settings.index:
            return ""
        if event.deleted:
            await self._indexer.offer(Deleted(event.doc_id))
            return ""
        attributes = as_compared(event.attributes)
        await self._indexer.offer(Document(event.doc_id, event.title, event.text, attributes))
        return event.doc_id

    async def _quarantine(self, topic: topics.Topic, record: Record, error: MessageError) -> None:
        self._metrics.quarantined.labels(topic.suffix).inc()
        try:
            await self._producer.quarantine(
                (record, error), service=f"search/{self._settings.name}", index=self._settings.index
            )
        except BrokerError as failed:
            logger().error("dead letter not sent", topic=record.topic, offset=record.offset, reason=str(failed))

    def _facts(self) -> NodeReported:
        settings, swap = self._settings, self._searcher.swap
        return NodeReported(
            event_id=codec.new_id(),
            index=settings.index,
            node_id=settings.name,
            reported_at=codec.now(),
            state=self._state(),
            address=settings.url,
            versions=[] if swap is None else list(swap.serving.versions),
            rejected=[] if swap is None else swap.rejected,
            split_id="" if swap is None else swap.serving.split_id,
            documents=self._indexer.documents,
            queries=self._searcher.queries,
            failed_queries=self._searcher.failed,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        return task

    async def _first_of(self, *ends: asyncio.Task[Any]) -> asyncio.Task[Any]:
        """The first of ``ends`` that is done. Raises what any of the node's tasks raised: none may just end."""
        done, _ = await asyncio.wait({*ends, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - set(ends):
            task.result()
            raise NodeError("a part of the node ended by itself")
        return next(task for task in ends if task in done)

    async def _stop(self) -> None:
        """Finish what is in flight, send what is left, let go of everything."""
        self._searcher.stopping = True
        self._metrics.ready.set(0)
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait({self._serving}, timeout=GRACE_SECONDS + 1)
        self._backfill.close()
        self._loader.shutdown(wait=False, cancel_futures=True)
        await self._recorder.flush(timeout_seconds=GRACE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reporter.last()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await self._producer.stop()
        await self._index.close()
        if self._redis is not None:
            await self._redis.aclose()
        logger().info("stopped", queries=self._searcher.queries)

    def _state(self) -> State:
        if self._searcher.stopping:
            return "stopping"
        if self._searcher.ready:
            return "serving"
        return "indexing" if self._searcher.swap is not None else "starting"


def build_node(settings: SearchSettings) -> Node:
    """Put a node together. Nothing is opened, loaded or sent before ``run``. Raises SettingsError."""
    folder = settings.folder
    store = ModelStore(settings.store_url, cache=folder / "models", public_key=settings.public_key)
    if not settings.qdrant_url:
        from search.index.edge import EdgeIndex

        return Node(settings, EdgeIndex(folder / "index"), store)
    from search.index.server import ServerIndex

    # No index has a dot in its name, so no two deployments have one collection.
    name = f"{settings.topic_prefix}.{settings.index}"
    return Node(settings, ServerIndex.at(settings.qdrant_url, name), store)


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket, before anything slow begins. Raises NodeError where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise NodeError(f"can't listen on {host}:{port}: {os.strerror(error.errno or 0)}") from None
    with listening:
        listening.setblocking(False)
        yield listening


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Keep ``folder`` to this process. Raises NodeError where another one has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+", encoding="ascii")
    except OSError as error:
        raise NodeError(f"data_dir {folder} can't be used: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise NodeError(f"data_dir {folder} belongs to a running node (process {owner})") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
