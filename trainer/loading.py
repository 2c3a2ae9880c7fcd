"""From names to what training works on: a version in memory, documents and queries as vectors.

Vectors of documents are shared with the nodes through the vector store, so that each is encoded once. Those of
queries stay in this process: they come from people.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from clickloop.errors import TrainingError
from clickloop.logs import logger
from clickloop.model_store import Manifest, ModelStore
from clickloop.vector_store import VectorStore
from trainer.dataset import Clicks, Corpus
from trainer.domain import domain_queries
from trainer.examples import Document
from trainer.methods.base import Parent
from trainer.model import Model, Vectors, encode, load_model, load_space

MOST_QUERIES = 100_000
"""Query vectors kept between runs, about 150 MB at 384 dimensions; beyond it the oldest go."""

OnText = Callable[[int, int], None]
"""Told how many texts are done, and of how many."""
SecondsLeft = Callable[[], float]

_CHARACTERS = 4
"""Of a token, about."""
_SAMPLE = 64
"""Texts that tell a pace."""


def _endless() -> float:
    return float("inf")


def characters_read(encoder: SentenceTransformer, texts: Sequence[str]) -> int:
    """About so many characters of the texts does the encoder look at."""
    most = _CHARACTERS * (encoder.max_seq_length or 512)
    return sum(min(len(text), most) for text in texts)


@dataclass(frozen=True)
class Loaded:
    parent: Parent
    corpus: Corpus
    clicks: Clicks
    """with vectors"""
    synthetic: Clicks
    """with vectors"""
    domain: Clicks
    """with vectors"""


class Loader:
    """Loads versions and encodes what no one has encoded yet."""

    def __init__(self, store: ModelStore, device: str, *, seed: int) -> None:
        self._store = store
        self._device = device
        self._seed = seed
        self._queries: OrderedDict[tuple[str, str], Vectors] = OrderedDict()

    def searched_by(
        self, version: str, documents: list[Document], *, on_text: OnText, seconds_left: SecondsLeft = _endless
    ) -> tuple[Parent, Vectors]:
        """A version with both its encoders, and the documents' vectors in its space. Raises as ``load`` does."""
        model = load_model(self._store, version, self._device)
        of_documents = load_space(self._store, model, self._device)
        vectors = self._in_space(model.space, documents, of_documents, within(seconds_left, on_text))
        return Parent(version, model.encoder, model.adapter, of_documents, model.low_rank), vectors

    def load(
        self,
        manifest: Manifest,
        documents: list[Document],
        clicks: Clicks,
        synthetic: Clicks,
        *,
        on_text: OnText,
        seconds_left: SecondsLeft = _endless,
    ) -> Loaded:
        """The parent, the corpus in its space, and clicks and documents' pieces as its encoder sees them.

        Raises TrainingError where the time is up before all is encoded. What was, is not encoded again.
        """
        counted = within(seconds_left, on_text)
        parent, vectors = self.searched_by(manifest.version, documents, on_text=on_text, seconds_left=seconds_left)
        encoder = parent.query_encoder
        domain = domain_queries(documents, seed=self._seed)
        pieces = {hashlib.sha256(text.encode()).digest(): text for text in domain.queries}
        of_pieces = self._stored(f"{manifest.encoder}-pieces", pieces, encoder, counted)
        digests = [hashlib.sha256(text.encode()).digest() for text in domain.queries]
        return Loaded(
            parent,
            Corpus(documents, vectors),
            replace(clicks, vectors=self._asked(manifest.encoder, clicks.queries, encoder, counted)),
            replace(synthetic, vectors=self._asked(manifest.encoder, synthetic.queries, encoder, counted)),
            replace(domain, vectors=_stacked(of_pieces, digests, vectors.shape[1])),
        )

    def searched(self, version: str, documents: list[Document], *, on_text: OnText) -> tuple[Model, Vectors]:
        """A version, and the documents' vectors in its space: all that a search with it takes."""
        model = load_model(self._store, version, self._device)
        return model, self._in_space(model.space, documents, load_space(self._store, model, self._device), on_text)

    def seconds_to_encode(self, encoder: SentenceTransformer, texts: Sequence[str]) -> float:
        """About how long it will take, told by a few of the texts."""
        if not texts:
            return 0.0
        sample = texts[:: -(-len(texts) // _SAMPLE)]
        encode(encoder, sample[:1])  # the first call waits for more than its text
        begun = time.monotonic()
        encode(encoder, sample)
        seconds = time.monotonic() - begun
        return seconds * characters_read(encoder, texts) / max(characters_read(encoder, sample), 1)

    def keep(self, space: str, documents: Sequence[Document], vectors: Vectors) -> None:
        """Leave a new space's vectors where the nodes look for them, so that their backfill only reads."""
        store = VectorStore(self._store.url, space)
        _kept(store, {document.digest: vectors[i] for i, document in enumerate(documents)})

    def _in_space(
        self, space: str, documents: Sequence[Document], encoder: SentenceTransformer, on_text: OnText
    ) -> Vectors:
        """(documents, dim); what no one has encoded yet is encoded now."""
        texts = {document.digest: document.text for document in documents}
        vectors = self._stored(space, texts, encoder, on_text)
        return _stacked(
            vectors, [document.digest for document in documents], int(encoder.get_embedding_dimension() or 0)
        )

    def _stored(
        self, space: str, texts: dict[bytes, str], encoder: SentenceTransformer, on_text: OnText
    ) -> VectorStore:
        """The space's vectors, with those of ``texts`` among them."""
        store = VectorStore(self._store.url, space)
        store.load_new()
        missing = store.missing(texts)
        done: dict[bytes, Vectors] = {}
        try:
            self._encode(
                encoder,
                [texts[digest] for digest in missing],
                on_text,
                lambda rows, vectors: done.update(zip((missing[i] for i in rows), vectors, strict=True)),
            )
        finally:
            _kept(store, done)
        return store

    def _asked(self, version: str, queries: list[str], encoder: SentenceTransformer, on_text: OnText) -> Vectors:
        """(queries, dim) float32; what an earlier run has encoded is not encoded again."""
        new = [text for text in dict.fromkeys(queries) if (version, text) not in self._queries]
        self._encode(
            encoder,
            new,
            on_text,
            lambda rows, vectors: self._queries.update(
                zip(((version, new[i]) for i in rows), vectors, strict=True)
            ),
        )
        if not queries:
            return encode(encoder, [])
        found = np.stack([self._queries[version, text] for text in queries])
        while len(self._queries) > MOST_QUERIES:
            self._queries.popitem(last=False)
        return found

    def _encode(
        self,
        encoder: SentenceTransformer,
        texts: Sequence[str],
        on_text: OnText,
        on_vectors: Callable[[NDArray[np.int64], Vectors], None],
    ) -> None:
        """Give ``on_vectors`` each batch's rows and vectors as soon as they are there."""
        encode(encoder, texts, on_batch=lambda done: on_text(done, len(texts)), on_vectors=on_vectors)


def within(seconds_left: SecondsLeft, on_text: OnText) -> OnText:
    """``on_text``, raising TrainingError where the time is up and texts are left."""

    def counted(done: int, texts: int) -> None:
        on_text(done, texts)
        if done < texts and seconds_left() <= 0.0:
            raise TrainingError(
                f"the budget of time was spent with {done:,} of {texts:,} texts encoded; documents' vectors "
                "are kept, and the next run goes on from them"
            )

    return counted


def _kept(store: VectorStore, vectors: Mapping[bytes, Vectors]) -> None:
    """For others, too. Where the store takes nothing now, they encode again: no reason to end, or to hide why one
    ends."""
    try:
        store.add(vectors)
    except OSError as error:
        logger().warning("vectors not kept in the store", vectors=len(vectors), reason=str(error))


def _stacked(store: VectorStore, digests: Sequence[bytes], dim: int) -> Vectors:
    """(digests, dim) float32 in the digests' order."""
    rows = [store.get(digest) for digest in digests]
    known = [row for row in rows if row is not None]
    if len(known) != len(rows):
        raise TrainingError(f"{len(rows) - len(known)} documents have no vector")
    if not known:
        return np.zeros((0, dim), dtype=np.float32)
    return np.ascontiguousarray(np.stack(known), dtype=np.float32)
