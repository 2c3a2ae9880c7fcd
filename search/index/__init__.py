"""One interface to the documents' index, with two implementations: Qdrant in process, and a Qdrant server.

A point is a document. It has one dense vector per space (``dense-<space>``), one sparse BM25 vector, and the
payload. Vectors of two spaces have different names, so a query can't meet vectors that aren't of its space.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from clickloop.errors import ClickloopError
from clickloop.events import Integer
from clickloop.vector_store import content_digest, document_text
from search.settings import DENSE_WEIGHT

Vector = NDArray[np.float32]
Scalar = str | int | float | bool

SNIPPET_CHARACTERS = 240
BM25 = "bm25"
RRF_K = 2
"""Reciprocal rank fusion's constant (Cormack et al. 2009). Qdrant's default; it also measured better than 60."""
PREFETCH = 50
"""Candidates that each side of a hybrid search hands to the fusion, at least."""

_NAMESPACE = uuid.UUID("6f0c2f4e-6f0b-5d0e-9d55-0c1d0f2f7a11")


class IndexUnavailableError(ClickloopError):
    """The index can't answer now: its server is away, or refused."""


class DocumentRefusedError(ClickloopError):
    """The index can't hold one of these documents, however often it is asked."""


class Range(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Bounds of a numeric attribute."""

    gte: float | None = None
    gt: float | None = None
    lte: float | None = None
    lt: float | None = None


FilterValue = str | Integer | float | bool | list[str | Integer] | Range
"""An attribute equals a value, is one of a list, or lies within bounds."""


def as_compared(attributes: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Attributes with numbers as filters compare them: 3.0 is 3, as for JSON, and for JavaScript that writes it.

    >>> as_compared({"price": 3.0, "weight": 2.5, "size": 4, "free": True})
    {'price': 3, 'weight': 2.5, 'size': 4, 'free': True}
    """
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value
        for name, value in attributes.items()
    }


@dataclass(frozen=True)
class Document:
    doc_id: str
    title: str = ""
    text: str = ""
    attributes: Mapping[str, Scalar] = field(default_factory=dict)

    @cached_property
    def content(self) -> str:
        """What encoders and BM25 read."""
        return document_text(self.title, self.text)

    @cached_property
    def digest(self) -> bytes:
        """Names the content, hence the vectors."""
        return content_digest(self.title, self.text)

    @cached_property
    def fingerprint(self) -> bytes:
        """16 bytes over everything that the index holds of the document."""
        whole = (self.title, self.text, sorted((k, repr(v)) for k, v in self.attributes.items()))
        return hashlib.blake2b(msgspec.json.encode(whole), digest_size=16).digest()

    @property
    def snippet(self) -> str:
        return self.text[:SNIPPET_CHARACTERS]


@dataclass(frozen=True)
class Stored:
    """What the index says about a document that it holds."""

    doc_id: str
    digest: bytes
    fingerprint: bytes


@dataclass(frozen=True)
class Question:
    """One search. ``vector`` is (dim,) float32, normalised, of ``space``."""

    text: str
    vector: Vector
    space: str
    k: int
    mode: Literal["dense", "hybrid"]
    filters: Mapping[str, FilterValue] = field(default_factory=dict)
    dense_weight: float = DENSE_WEIGHT
    """So many places in the dense list are one in BM25's, in a hybrid search."""


@dataclass(frozen=True)
class Hit:
    doc_id: str
    score: float
    title: str
    snippet: str


class Index(Protocol):
    """Holds documents and their vectors. Every method may raise IndexUnavailableError.

    Writes are visible to searches when the method returns. One writer at a time; searches at any time.
    """

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def stored(self) -> list[Stored]:
        """Every document that is held, from disk too: what a restart needs to know."""
        ...

    async def covered(self, space: str) -> set[str]:
        """Ids of the documents that have a vector of ``space``."""
        ...

    async def add_space(self, space: str, dim: int) -> None:
        """Make room for vectors of ``space``. Harmless where there is room already."""
        ...

    async def upsert(self, documents: Sequence[Document], vectors: Mapping[str, Mapping[bytes, Vector]]) -> None:
        """Put documents in place of what has their ids. ``vectors`` are by space, then by digest.

        Raises DocumentRefusedError; then some of them may have been put, and not the others.
        """
        ...

    async def set_vectors(
        self, space: str, documents: Sequence[Document], vectors: Mapping[bytes, Vector]
    ) -> None:
        """Add vectors of ``space``, by digest, to documents that are held."""
        ...

    async def delete(self, doc_ids: Collection[str]) -> None: ...

    async def documents(self, doc_ids: Collection[str]) -> list[Document]:
        """The documents with these ids, as far as they are held."""
        ...

    async def search(self, question: Question) -> list[Hit]:
        """The best ``k``, best first."""
        ...

    async def count(self) -> int: ...

    async def optimize(self) -> None:
        """Make searches fast after many writes."""
        ...


def vector_name(space: str) -> str:
    return f"dense-{space}"


def point_id(doc_id: str) -> str:
    """UUID version 5 of the document's id: the same on every node."""
    return str(uuid.uuid5(_NAMESPACE, doc_id))


def payload(document: Document) -> dict[str, object]:
    return {
        "doc_id": document.doc_id,
        "title": document.title,
        "text": document.text,
        "snippet": document.snippet,
        "attributes": dict(document.attributes),
        "digest": document.digest.hex(),
        "fingerprint": document.fingerprint.hex(),
    }


HIT_FIELDS = ["doc_id", "title", "snippet"]
STORED_FIELDS = ["doc_id", "digest", "fingerprint"]
DOCUMENT_FIELDS = ["doc_id", "title", "text", "attributes"]


def hit(fields: Mapping[str, str], score: float) -> Hit:
    return Hit(doc_id=fields["doc_id"], score=score, title=fields["title"], snippet=fields["snippet"])


def stored(fields: Mapping[str, str]) -> Stored:
    return Stored(fields["doc_id"], bytes.fromhex(fields["digest"]), bytes.fromhex(fields["fingerprint"]))


def attribute_path(name: str) -> str:
    """Path of an attribute in the payload; quoted, so that a name may hold a hyphen."""
    return f'attributes."{name}"'
