"""Keeps the index in step with the documents' log: what has changed is encoded and put in, what is gone goes.

The log is the state. Of two messages about one document the later one in the log wins, on every node alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

from clickloop.errors import ArtifactError
from clickloop.logs import logger
from search.backfill import Backfill
from search.encoder import Encoder
from search.index import Document, DocumentRefusedError, Index, IndexUnavailableError, Stored, Vector
from search.metrics import Metrics

T = TypeVar("T")

PAGE = 2048
"""Documents that are taken on together; a change that comes meanwhile waits for the page's end."""
WAITING = 20_000
"""Changes that may wait; beyond that, reading the log waits."""
BULK = 1000
"""Writes after which the index is worth optimizing."""
AWAY = (ArtifactError, IndexUnavailableError, OSError)
"""What is raised while the store or the index's server is away, or has no room."""
PAUSE_SECONDS, MOST_PAUSE_SECONDS = 1.0, 30.0

Progress = Callable[[str, int], None]
"""Told the version of the space that is being filled, and how many documents it covers."""


@dataclass(frozen=True)
class Deleted:
    doc_id: str


Change = Document | Deleted


class Catalog:
    """What the index holds, in memory: ids and digests, and which documents lack a vector of which space."""

    def __init__(self) -> None:
        self._stored: dict[str, Stored] = {}
        self._lacking: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._stored)

    def ids(self) -> set[str]:
        return set(self._stored)

    def get(self, doc_id: str) -> Stored | None:
        return self._stored.get(doc_id)

    def track(self, space: str, covered: Iterable[str] = ()) -> None:
        self._lacking.setdefault(space, set(self._stored) - set(covered))

    def lacking(self, space: str) -> set[str]:
        return self._lacking[space]

    def complete(self, doc_id: str, spaces: Iterable[str]) -> bool:
        return not any(doc_id in self._lacking[space] for space in spaces)

    def put(self, document: Stored, spaces: Iterable[str] = ()) -> None:
        """``document`` was written anew, with vectors of ``spaces`` and no others."""
        self._stored[document.doc_id] = document
        for space, lacking in self._lacking.items():
            if space in spaces:
                lacking.discard(document.doc_id)
            else:
                lacking.add(document.doc_id)

    def covered(self, space: str, doc_ids: Iterable[str]) -> None:
        self._lacking[space].difference_update(doc_ids)

    def drop(self, doc_ids: Iterable[str]) -> None:
        for doc_id in doc_ids:
            self._stored.pop(doc_id, None)
            for lacking in self._lacking.values():
                lacking.discard(doc_id)


class Indexer:
    """The only writer of the index. ``offer`` takes changes; ``run`` applies them, page by page."""

    def __init__(self, index: Index, backfill: Backfill, metrics: Metrics) -> None:
        self._index = index
        self._backfill = backfill
        self._metrics = metrics
        self._catalog = Catalog()
        self._spaces: dict[str, Encoder] = {}
        # With the number of the first change that waits, of all that were offered.
        self._pending: dict[str, tuple[int, Change]] = {}
        self._offered = 0
        self._applied = 0
        self._page_applied = asyncio.Condition()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._write = asyncio.Lock()
        self._written = 0
        self.progress: Progress = lambda _version, _documents: None

    @property
    def documents(self) -> int:
        """Documents in the index."""
        return len(self._catalog)

    @property
    def busy(self) -> bool:
        """Whether a change waits or is being applied."""
        return self._applied < self._offered

    @property
    def spaces(self) -> tuple[str, ...]:
        """Spaces that cover every document, or will in a moment; the first one first."""
        return tuple(self._spaces)

    async def open(self) -> None:
        """Open the index and learn what it holds from earlier."""
        await self._index.open()
        for document in await self._index.stored():
            self._catalog.put(document)
        self._metrics.documents.set(len(self._catalog))

    async def offer(self, change: Change) -> None:
        """Take a change on; waits where too many wait already."""
        await self._room.wait()
        self._offered += 1
        # Put last, so that the order in which pages are taken is the log's; who waits, waits since the first one.
        since, _ = self._pending.pop(change.doc_id, (self._offered, change))
        self._pending[change.doc_id] = since, change
        self._wake.set()
        if len(self._pending) >= WAITING:
            self._room.clear()

    async def settled(self) -> None:
        """Return once every change that had been offered before is applied; later ones may wait."""
        offered = self._offered
        async with self._page_applied:
            await self._page_applied.wait_for(lambda: self._applied >= offered)

    async def keep_only(self, doc_ids: set[str]) -> None:
        """Delete what the log doesn't know: it was deleted, and compacted away, while the node was down."""
        strangers = self._catalog.ids() - doc_ids
        if strangers:
            logger().info("documents that are no longer in the log are deleted", documents=len(strangers))
        for doc_id in strangers:
            await self.offer(Deleted(doc_id))

    async def fill(self, space: str, encoder: Encoder) -> None:
        """Bring every document's vector of ``space`` in, and keep them up to date from now on.

        Queries and changes go on meanwhile. Returns when the space covers every document. Raises
        IndexUnavailableError before anything is encoded; later it waits until the index is back.
        """
        if space in self._spaces:
            return
        async with self._write:
            await self._index.add_space(space, encoder.dim)
        self._catalog.track(space, await self._index.covered(space))
        # Documents that change meanwhile are written without the space, and may never cease to. So after one pass
        # changes are given it, and what is left by then is the last.
        await self._complete_once(space, encoder, list(self._catalog.lacking(space)))
        self._spaces[space] = encoder
        try:
            await self._complete(space, encoder)
        except BaseException:
            del self._spaces[space]
            raise
        self._wake.set()
        await self._optimize_after_bulk()

    async def _complete(self, space: str, encoder: Encoder) -> None:
        """Give a vector of ``space`` to every document that has none, but for those that the log will tell of."""
        left = dict[str, Stored | None]()
        while listed := list(self._catalog.lacking(space) - self._still_left(left)):
            left |= await self._complete_once(space, encoder, listed)

    async def _complete_once(
        self, space: str, encoder: Encoder, doc_ids: Sequence[str]
    ) -> dict[str, Stored | None]:
        """Of ``doc_ids``, those that still lack a vector. Returns what it left."""
        left = dict[str, Stored | None]()
        lacking = self._catalog.lacking(space)
        for start in range(0, len(doc_ids), PAGE):
            if page := [doc_id for doc_id in doc_ids[start : start + PAGE] if doc_id in lacking]:
                left |= await persist(partial(self._complete_page, space, encoder, page))
        return left

    def _still_left(self, left: Mapping[str, Stored | None]) -> set[str]:
        return {doc_id for doc_id, stored in left.items() if self._catalog.get(doc_id) is stored}

    async def _complete_page(self, space: str, encoder: Encoder, doc_ids: list[str]) -> dict[str, Stored | None]:
        """Returns what another node has written another text of: the log will tell this one, too."""
        async with self._write:
            page = await self._index.documents(doc_ids)
            # What isn't there (any more) needs no vector.
            self._catalog.covered(space, set(doc_ids).difference(document.doc_id for document in page))
            await asyncio.to_thread(_hash, page)
            left = {d.doc_id: self._catalog.get(d.doc_id) for d in page if not self._is_current(d)}
        by_digest: dict[bytes, list[Document]] = {}
        for document in page:
            if document.doc_id not in left:
                by_digest.setdefault(document.digest, []).append(document)
        texts = {digest: same[0].content for digest, same in by_digest.items()}
        async for vectors in self._backfill.vectors(space, encoder, texts):
            await self._set_vectors(space, by_digest, vectors)
            self.progress(space, self.documents - len(self._catalog.lacking(space)))
        return left

    async def run(self) -> None:
        """Apply changes as they come, until cancelled. Begins when the first space is filled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending and self._spaces:
                page = self._next_page()
                await persist(partial(self._apply, page))
                # A space whose filling ended while the page was being encoded is not in the page.
                for space, encoder in list(self._spaces.items()):
                    await self._complete(space, encoder)
                if len(page) < PAGE or not self._pending:
                    await self._optimize_after_bulk()
                async with self._page_applied:
                    waiting = (since for since, _ in self._pending.values())
                    self._applied = min(waiting, default=self._offered + 1) - 1
                    self._page_applied.notify_all()

    def _next_page(self) -> dict[str, Change]:
        page = {doc_id: self._pending.pop(doc_id)[1] for doc_id in list(islice(self._pending, PAGE))}
        if len(self._pending) < WAITING:
            self._room.set()
        return page

    async def _apply(self, page: Mapping[str, Change]) -> None:
        gone = [d for d, change in page.items() if isinstance(change, Deleted) and self._catalog.get(d)]
        if gone:
            async with self._write:
                await self._index.delete(gone)
                self._catalog.drop(gone)
        told = [change for change in page.values() if isinstance(change, Document)]
        await asyncio.to_thread(_hash, told)
        by_digest: dict[bytes, list[Document]] = {}
        for document in told:
            if not self._is_held(document):
                by_digest.setdefault(document.digest, []).append(document)
        texts = {digest: same[0].content for digest, same in by_digest.items()}
        spaces = dict(self._spaces)
        first, *others = spaces
        # The other spaces first: a document that is replaced must not miss in any of them for a moment.
        for space in others:
            async for _ in self._backfill.vectors(space, spaces[space], texts):
                pass
        async for vectors in self._backfill.vectors(first, spaces[first], texts):
            documents = [document for digest in vectors for document in by_digest[digest]]
            await self._upsert(documents, {first: vectors} | {s: self._known(s, vectors) for s in others})
            self.progress("", self.documents)
        self._metrics.documents.set(self.documents)

    def _is_held(self, document: Document) -> bool:
        held = self._catalog.get(document.doc_id)
        return (
            held is not None
            and held.fingerprint == document.fingerprint
            and self._catalog.complete(document.doc_id, self._spaces)
        )

    def _is_current(self, document: Document) -> bool:
        held = self._catalog.get(document.doc_id)
        return held is not None and held.digest == document.digest

    def _known(self, space: str, digests: Iterable[bytes]) -> dict[bytes, Vector]:
        found = {digest: self._backfill.known(space, digest) for digest in digests}
        return {digest: vector for digest, vector in found.items() if vector is not None}

    async def _upsert(self, documents: list[Document], vectors: Mapping[str, Mapping[bytes, Vector]]) -> None:
        async with self._write:
            try:
                await self._index.upsert(documents, vectors)
            except DocumentRefusedError:
                documents = await self._upsert_one_by_one(documents, vectors)
            for document in documents:
                spaces = [space for space, known in vectors.items() if document.digest in known]
                self._catalog.put(Stored(document.doc_id, document.digest, document.fingerprint), spaces)
        self._written += len(documents)

    async def _upsert_one_by_one(
        self, documents: list[Document], vectors: Mapping[str, Mapping[bytes, Vector]]
    ) -> list[Document]:
        """Those that the index took. What it refuses is left as it was."""
        taken = []
        for document in documents:
            try:
                await self._index.upsert([document], vectors)
            except DocumentRefusedError as error:
                logger().warning("document left out", doc_id=document.doc_id, reason=str(error))
            else:
                taken.append(document)
        return taken

    async def _set_vectors(
        self, space: str, by_digest: Mapping[bytes, list[Document]], vectors: Mapping[bytes, Vector]
    ) -> None:
        async with self._write:
            # A document that has changed since its text was read gets no vector of the old text.
            current = [d for digest in vectors for d in by_digest[digest] if self._is_current(d)]
            await self._index.set_vectors(space, current, vectors)
            self._catalog.covered(space, [document.doc_id for document in current])
        self._written += len(current)

    async def _optimize_after_bulk(self) -> None:
        if self._written >= BULK:
            self._written = 0
            async with self._write:
                await self._index.optimize()


def _hash(documents: Iterable[Document]) -> None:
    """What is computed once of each document. For a page of long ones that takes long: not on the event loop."""
    for document in documents:
        _ = document.digest, document.fingerprint


async def persist(
    work: Callable[[], Awaitable[T]], *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> T:
    """Do ``work``, and again after a pause while what it needs is away. What it did once, it may do again."""
    pause = PAUSE_SECONDS
    while True:
        try:
            done = await work()
            break
        except AWAY as error:
            if pause == PAUSE_SECONDS:
                logger().warning("indexing waits for the store or the index", reason=str(error) or repr(error))
        await sleep(pause)
        pause = min(2 * pause, MOST_PAUSE_SECONDS)
    if pause > PAUSE_SECONDS:
        logger().info("indexing goes on")
    return done
