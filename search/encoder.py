"""Model artifacts as objects that encode.

An ``Encoder`` is one loaded ``encoder/`` folder. Versions that differ in their adapter only share one, so
a hundred adapters cost one model's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from clickloop.errors import ArtifactError
from clickloop.events import ModelVersionPublished, VersionKind
from clickloop.model_store import Manifest, ModelStore

Vectors = NDArray[np.float32]
Encode = Callable[[list[str]], Vectors]

ADAPTER = "adapter.safetensors"
WARM_UP = ["a", "how do I open a file", "the quick brown fox jumps over the lazy dog " * 3]
FINITE_NORM = 1e-12


@dataclass(frozen=True, eq=False)
class Encoder:
    """Turns texts into normalised vectors, (n, dim) float32. Safe to call from several threads."""

    version: str
    dim: int
    queries: Encode
    documents: Encode
    lengths: Callable[[list[str]], list[int]] = lambda texts: [len(text) for text in texts]
    """What encoding each text costs, in tokens: texts of like length are encoded together."""

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return normalise(self.queries(list(texts)))

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        return normalise(self.documents(list(texts)))


@dataclass(frozen=True)
class Adapter:
    """Linear map on the query vector: ``weight`` (dim, dim) and ``bias`` (dim,), float32."""

    weight: Vectors
    bias: Vectors

    def __call__(self, vector: Vectors) -> Vectors:
        mapped = self.weight @ vector + self.bias
        return mapped / np.float32(max(float(np.linalg.norm(mapped)), FINITE_NORM))


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """A version that can answer: its encoder, its adapter where it has one, and the space it speaks."""

    version: str
    kind: VersionKind
    space: str
    encoder: Encoder
    adapter: Adapter | None = None

    def query_vector(self, encoded: Vectors) -> Vectors:
        """From the encoder's vector (dim,) to the one that is searched with."""
        return encoded if self.adapter is None else self.adapter(encoded)

    def warm_up(self) -> None:
        """Encode a little, so that no user pays for first calls. Raises ArtifactError for a model of NaNs."""
        for size in (1, len(WARM_UP)):
            vectors = self.encoder.encode_queries(WARM_UP[:size])
            mapped = np.stack([self.query_vector(v) for v in vectors])
            if mapped.shape != (size, self.encoder.dim) or not np.isfinite(mapped).all():
                raise ArtifactError(f"{self.version}: its vectors are not {self.encoder.dim} finite numbers")


class EncoderPool:
    """Loads versions from the store; an encoder that is in memory is not loaded twice."""

    def __init__(self, store: ModelStore, *, load: Callable[[Path, str], Encoder]) -> None:
        self._store = store
        self._load = load
        self._encoders: WeakValueDictionary[str, Encoder] = WeakValueDictionary()
        self._lock = Lock()

    def version(self, published: ModelVersionPublished) -> LoadedVersion:
        """Fetch, verify and load. Blocking: call it on a thread. Raises ArtifactError, whatever is broken."""
        folder, manifest = self._store.fetch(published.version, digest=published.digest)
        _check_manifest(manifest, published)
        encoder = self.encoder(manifest.encoder)
        adapter = _load_adapter(folder / ADAPTER, encoder.dim) if (folder / ADAPTER).is_file() else None
        if manifest.kind == "adapter" and adapter is None:
            raise ArtifactError(f"{manifest.version}: an adapter version without {ADAPTER}")
        return LoadedVersion(manifest.version, manifest.kind, manifest.space, encoder, adapter)

    def encoder(self, version: str) -> Encoder:
        """The ``encoder/`` folder of ``version``, loaded."""
        with self._lock:
            known = self._encoders.get(version)
            if known is not None:
                return known
            folder, _ = self._store.fetch(version)
            try:
                encoder = self._load(folder / "encoder", version)
            except ArtifactError:
                raise
            except Exception as error:  # a broken model raises whatever its libraries raise
                raise ArtifactError(
                    f"{version}: its encoder can't be loaded: {type(error).__name__}: {error}"
                ) from error
            self._encoders[version] = encoder
            return encoder


def normalise(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = (vectors / np.maximum(norms, FINITE_NORM)).astype(np.float32, copy=False)
    return unit


def _check_manifest(manifest: Manifest, published: ModelVersionPublished) -> None:
    """What was announced must be what lies in the store, and must fit together."""
    for name in ("version", "kind", "space"):
        found, announced = getattr(manifest, name), getattr(published, name)
        if found != announced:
            raise ArtifactError(
                f"{published.version}: announced with {name} {announced!r}, its manifest says {found!r}"
            )
    own_space = manifest.space == manifest.version
    if own_space != (manifest.kind == "full"):
        raise ArtifactError(f"{manifest.version}: a version of kind {manifest.kind} in space {manifest.space}")
    if manifest.kind == "full" and manifest.encoder != manifest.version:
        raise ArtifactError(f"{manifest.version}: a full version must bring the encoder of its queries")


def _load_adapter(path: Path, dim: int) -> Adapter:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        weight, bias = tensors["weight"], tensors["bias"]
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise ArtifactError(f"{path.parent.name}: {ADAPTER} can't be read: {error!r}") from None
    if weight.shape != (dim, dim) or bias.shape != (dim,):
        raise ArtifactError(
            f"{path.parent.name}: its adapter maps {weight.shape} and {bias.shape}, its encoder has {dim}"
        )
    if weight.dtype != np.float32 or bias.dtype != np.float32:
        raise ArtifactError(f"{path.parent.name}: its adapter is {weight.dtype}, not float32")
    return Adapter(weight, bias)
