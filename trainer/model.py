"""A version in memory: an encoder, and, where it has one, the linear map on the query vector."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers.utils.logging import disable_progress_bar

from clickloop import lora
from clickloop.errors import ArtifactError, SettingsError
from clickloop.model_store import ModelStore
from trainer.workers import Workers

Vectors = NDArray[np.float32]

ADAPTER_FILE = "adapter.safetensors"
_BATCH = 32


@dataclass(frozen=True)
class Adapter:
    """Query vector = normalise(weight @ e + bias), with e the encoder's normalised vector."""

    weight: Vectors
    """(dim, dim) float32"""
    bias: Vectors
    """(dim,) float32"""

    def apply(self, vectors: Vectors) -> Vectors:
        """(n, dim) float32, normalised."""
        return normalised(vectors @ self.weight.T + self.bias)

    def save(self, folder: Path) -> None:
        save_file({"weight": self.weight, "bias": self.bias}, folder / ADAPTER_FILE)

    @staticmethod
    def identity(dimension: int) -> Adapter:
        return Adapter(np.eye(dimension, dtype=np.float32), np.zeros(dimension, dtype=np.float32))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """While inside, what the disk refuses to take in ``folder``, be it full, is an ArtifactError that says so."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder} can't be written: {error}") from error


@dataclass(frozen=True)
class LowRank:
    """An encoder as low-rank changes of another one."""

    base: SentenceTransformer
    config: lora.LoraConfig
    factors: dict[str, torch.Tensor]
    """peft's name → (rank, in) or (out, rank)"""

    def save(self, folder: Path) -> None:
        """The files of a version: the other encoder, and the changes. Of a space's encoder nothing is stored twice
        (clickloop/model_store.py)."""
        self.base.save_pretrained(str(folder / "encoder"), create_model_card=False)
        lora.write(folder, self.config, self.factors)

    def merged(self) -> SentenceTransformer:
        """The encoder that both make: a copy."""
        encoder = copy.deepcopy(self.base)
        lora.inject(transformer_of(encoder), self.config, self.factors).merge_and_unload()
        return encoder


@dataclass(frozen=True)
class Model:
    """How a version encodes queries, and the names that put it together."""

    version: str
    space: str
    encoder_version: str
    encoder: SentenceTransformer
    """For queries, with its low-rank changes where it has some."""
    adapter: Adapter | None = None
    low_rank: LowRank | None = None

    @property
    def dimension(self) -> int:
        return int(self.encoder.get_embedding_dimension() or 0)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """(n, dim) float32, normalised, adapter applied."""
        vectors = encode(self.encoder, texts)
        return self.adapter.apply(vectors) if self.adapter else vectors


def normalised(vectors: NDArray[Any]) -> Vectors:
    """Rows of length 1; a row of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def encode(
    encoder: SentenceTransformer,
    texts: Sequence[str],
    *,
    on_batch: Callable[[int], None] | None = None,
    on_vectors: Callable[[NDArray[np.int64], Vectors], None] | None = None,
) -> Vectors:
    """(n, dim) float32, normalised. Long texts go together with long ones, so little is padding.

    ``on_batch`` is told after each batch how many texts are done; what it raises ends the work. ``on_vectors`` is
    given the batch's rows and their vectors before that.
    """
    out = np.zeros((len(texts), int(encoder.get_embedding_dimension() or 0)), dtype=np.float32)
    order = np.argsort([-len(text) for text in texts], kind="stable")
    size = _BATCH if encoder.device.type == "cpu" else 8 * _BATCH
    batches = [order[start : start + size] for start in range(0, len(texts), size)]

    def encoded(rows: NDArray[np.int64]) -> Vectors:
        with autocast(encoder.device):
            found = encoder.encode(
                [texts[i] for i in rows], batch_size=_BATCH, show_progress_bar=False, convert_to_tensor=True
            )
        return np.asarray(found.float().cpu().numpy())

    done = 0
    with Workers(encoder.device) as workers:
        # The first one alone: a fast tokeniser changes its settings then, which no other thread may see happen.
        vectors = chain(map(encoded, batches[:1]), workers.each(encoded, batches[1:]))
        for rows, found in zip(batches, vectors, strict=True):
            out[rows] = found
            done += len(rows)
            if on_vectors is not None:
                on_vectors(rows, normalised(found))
            if on_batch is not None:
                on_batch(done)
    return normalised(out)


def autocast(device: torch.device) -> Any:
    """bf16 where it is faster: on CUDA that has it, and on CPUs with AMX or avx512_bf16. Else a no-op.

    Without torch's cache of cast weights: its threads share it, and what a gradient is rounded from would hang on
    which of them was first.
    """
    if fast_bf16(device):
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
    return nullcontext()


def fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu":
        return False
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def pick_device(name: str) -> str:
    """The device's name as torch knows it; ``auto`` takes an accelerator where there is one.

    Raises SettingsError for one that isn't there.
    """
    cuda, mps = torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.backends.mps.is_available()
    kind, _, number = name.partition(":")
    if kind == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    if (kind == "cuda" and int(number or 0) >= cuda) or (kind == "mps" and not mps):
        raise SettingsError(f"device {name}: torch finds no such device here; use auto or cpu")
    return name


def load_encoder(folder: Path, device: str) -> SentenceTransformer:
    """A sentence-transformers folder as it lies on disk. Raises ArtifactError where it can't be loaded."""
    # A folder that lacks a file must fail here, and not send the library to look for it on a hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    disable_progress_bar()
    try:
        model = SentenceTransformer(
            str(folder), device=device, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{folder} can't be loaded as an encoder: {error}") from error
    return model.float()


def load_adapter(folder: Path) -> Adapter | None:
    """The folder's linear map, or None where it has none. Raises ArtifactError for one of another shape."""
    path = folder / ADAPTER_FILE
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        weight, bias = tensors["weight"], tensors["bias"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path} is no adapter: {error}") from None
    if weight.ndim != 2 or weight.shape != (len(bias), len(bias)):
        raise ArtifactError(f"{path}: weight {weight.shape} and bias {bias.shape} don't fit")
    return Adapter(weight.astype(np.float32), bias.astype(np.float32))


def load_model(store: ModelStore, version: str, device: str) -> Model:
    """A version, fetched and verified, put together from the versions that its manifest names."""
    folder, manifest = store.fetch(version)
    encoder_folder = folder if manifest.encoder == version else store.fetch(manifest.encoder)[0]
    encoder = load_encoder(encoder_folder / "encoder", device)
    low_rank = None
    if config := lora.read(encoder_folder):
        low_rank = LowRank(encoder, config, lora.weights(encoder_folder))
        encoder = low_rank.merged()
    return Model(
        version=version,
        space=manifest.space,
        encoder_version=manifest.encoder,
        encoder=encoder,
        adapter=load_adapter(folder),
        low_rank=low_rank,
    )


def transformer_of(encoder: SentenceTransformer) -> Any:
    """The encoder's first module as transformers knows it. Raises ArtifactError where it is none."""
    found = getattr(encoder[0], "model", None)
    if not isinstance(found, torch.nn.Module):
        raise ArtifactError(f"its encoder begins with a {type(encoder[0]).__name__}, which is no transformer")
    return found


def load_space(store: ModelStore, model: Model, device: str) -> SentenceTransformer:
    """The encoder of documents in the model's space: another one than for queries after a query-side rung."""
    if model.space == model.encoder_version:
        return model.encoder
    return load_encoder(store.fetch(model.space)[0] / "encoder", device)
