"""Document vectors by content digest, beside the model store, so that a document is encoded once per space.

Vectors lie in append-only segments ``vectors/<space>/<name>.safetensors``, each with ``digests``
(n, 32) uint8 and ``vectors`` (n, dim) float32. A segment is written under a name made from its content and never
changes, so writers can't harm one another and a torn write is no segment. Needs numpy and safetensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clickloop.documents import document_text as document_text
from clickloop.logs import logger


def content_digest(title: str, text: str) -> bytes:
    """32 bytes that name a document's content, whatever its id."""
    return hashlib.sha256(document_text(title, text).encode()).digest()


@contextmanager
def _reached() -> Iterator[None]:
    """Some of what s3fs lets through is no OSError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("botocore."):
            raise OSError(str(error)) from error
        raise


class VectorStore:
    """The vectors of one space. ``load_new`` sees what other processes have added since.

    Reading and writing raise OSError where the store is away or has no room.
    """

    def __init__(self, store_url: str, space: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(store_url.rstrip("/"))
        self._folder = f"{root}/vectors/{space}"
        self._known: set[str] = set()
        self._vectors: dict[bytes, NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, digest: bytes) -> NDArray[np.float32] | None:
        """(dim,) float32, or None where no one has encoded this content (as far as was loaded)."""
        return self._vectors.get(digest)

    @_reached()
    def load_new(self) -> int:
        """Read segments that weren't there before; returns how many vectors came with them."""
        before = len(self._vectors)
        if not self._fs.exists(self._folder):
            return 0
        self._fs.invalidate_cache()
        for path in self._fs.ls(self._folder, detail=False):
            name = PurePosixPath(path).name
            if name in self._known or not name.endswith(".safetensors"):
                continue
            try:
                self._add(load(self._fs.cat_file(path)))
            except (SafetensorError, KeyError, ValueError) as error:
                logger().warning("unreadable vector segment left out", segment=name, reason=str(error))
            self._known.add(name)
        return len(self._vectors) - before

    @_reached()
    def add(self, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        """Write one segment. Adding what is there already is harmless.

        Where that raises, ``get`` knows the vectors all the same, and no other process does.
        """
        if not vectors:
            return
        digests = np.frombuffer(b"".join(vectors), dtype=np.uint8).reshape(len(vectors), 32)
        tensors = {"digests": digests.copy(), "vectors": np.stack(list(vectors.values())).astype(np.float32)}
        self._add(tensors)
        raw = save(tensors)
        name = f"{hashlib.sha256(raw).hexdigest()[:32]}.safetensors"
        self._fs.makedirs(self._folder, exist_ok=True)
        temporary = f"{self._folder}/.{name}.{uuid4().hex}"
        try:
            self._fs.pipe_file(temporary, raw)
            self._fs.mv(temporary, f"{self._folder}/{name}")
        except Exception:
            with suppress(Exception):
                self._fs.rm(temporary)
            raise
        self._known.add(name)

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        return [d for d in dict.fromkeys(digests) if d not in self._vectors]

    def _add(self, tensors: Mapping[str, Any]) -> None:
        digests, vectors = tensors["digests"], tensors["vectors"]
        if digests.ndim != 2 or digests.shape[1] != 32 or vectors.ndim != 2 or len(digests) != len(vectors):
            raise ValueError(f"digests {digests.shape} and vectors {vectors.shape} don't fit together")
        for digest, vector in zip(digests, vectors, strict=True):
            self._vectors[digest.tobytes()] = vector
