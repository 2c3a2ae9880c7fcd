"""Stand-ins for the search node's tests: an encoder of words, published versions, leases that can be scripted."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from clickloop import codec
from clickloop.events import Arm, ModelVersionPublished, SplitChanged
from clickloop.model_store import Manifest, ModelStore
from search.encoder import ADAPTER, Encoder, LoadedVersion, Vectors

DIM = 256


def words(texts: Sequence[str], *, dim: int = DIM, seed: str = "") -> Vectors:
    """(n, dim): texts that share words lie near one another."""
    vectors = np.full((len(texts), dim), 0.001, dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            digest = hashlib.blake2b(f"{seed}{word}".encode(), digest_size=4).digest()
            vectors[row, int.from_bytes(digest) % dim] += 1.0
    return vectors


async def eventually(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Return once ``condition`` holds; raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.002)


class CountingEncoder:
    """Makes encoders and remembers what they were asked."""

    def __init__(self) -> None:
        self.queries: list[list[str]] = []
        self.documents: list[list[str]] = []

    def encoder(self, version: str = "base-1", *, dim: int = DIM) -> Encoder:
        def queries(texts: list[str]) -> Vectors:
            self.queries.append(texts)
            return words(texts, dim=dim, seed=version)

        def documents(texts: list[str]) -> Vectors:
            self.documents.append(texts)
            return words(texts, dim=dim, seed=version)

        return Encoder(version, dim, queries, documents)


def loaded(version: str = "base-1", *, encoder: Encoder | None = None, space: str | None = None) -> LoadedVersion:
    kind = "full" if space in (None, version) else "adapter"
    made = encoder or CountingEncoder().encoder(version)
    return LoadedVersion(version, "full" if kind == "full" else "adapter", space or version, made)


def announcement(
    version: str, *, kind: str = "adapter", space: str = "base-1", digest: str = "", parent: str | None = None
) -> ModelVersionPublished:
    assert kind in ("adapter", "query_encoder", "full")
    return ModelVersionPublished(
        event_id=f"e-{version}",
        index="default",
        version=version,
        kind=kind,  # type: ignore[arg-type]
        space=space,
        artifact_uri=f"memory://{version}",
        digest=digest,
        published_at=codec.now(),
        parent=parent,
    )


def split(sequence: int, *arms: tuple[str, str, int], salt: str = "salt") -> SplitChanged:
    return SplitChanged(
        event_id=f"split-{sequence}",
        index="default",
        split_id=f"split-{sequence}",
        salt=salt,
        arms=[Arm(name=name, version=version, buckets=buckets) for name, version, buckets in arms],
        changed_at=codec.now(),
        sequence=sequence,
    )


def publish(
    store: ModelStore,
    scratch: Path,
    version: str,
    *,
    kind: str,
    space: str,
    encoder: str,
    weight: Vectors | None = None,
) -> ModelVersionPublished:
    """An artifact in the store, with an adapter where ``weight`` is given, and its announcement."""
    folder = scratch / version
    (folder / "encoder").mkdir(parents=True)
    if encoder == version:
        (folder / "encoder" / "config.json").write_text("{}")
    if weight is not None:
        bias = np.zeros(weight.shape[0], dtype=np.float32)
        save_file({"weight": weight, "bias": bias}, str(folder / ADAPTER))
    manifest = Manifest(version=version, kind=kind, space=space, encoder=encoder)  # type: ignore[arg-type]
    published = store.publish(folder, manifest)
    return announcement(version, kind=kind, space=space, digest=published.digest)
