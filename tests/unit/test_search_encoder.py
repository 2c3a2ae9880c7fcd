"""Versions as objects: verified, sharing one encoder in memory, mapping queries as their manifest says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np
import pytest

from clickloop.base_model import base_model_folder
from clickloop.errors import ArtifactError
from clickloop.model_store import ModelStore
from search import sentence_model
from search.encoder import Encoder, EncoderPool
from search.sketch import SKETCH_DIM, projection, sketch
from tests.unit.search_fakes import DIM, CountingEncoder, publish


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(str(tmp_path / "store"), cache=tmp_path / "cache")


class Loads:
    """A loader that counts."""

    def __init__(self, dim: int = DIM) -> None:
        self.dim = dim
        self.versions: list[str] = []

    def __call__(self, folder: Path, version: str) -> Encoder:
        assert (folder / "config.json").is_file()
        self.versions.append(version)
        return CountingEncoder().encoder(version, dim=self.dim)


def test_adapter_versions_share_the_loaded_encoder_of_their_base(store: ModelStore, tmp_path: Path) -> None:
    loads = Loads()
    pool = EncoderPool(store, load=loads)
    base = pool.version(publish(store, tmp_path, "base-1", kind="full", space="base-1", encoder="base-1"))
    rotation = np.roll(np.eye(DIM, dtype=np.float32), 1, axis=0)
    one, two = (
        pool.version(publish(store, tmp_path, name, kind="adapter", space="base-1", encoder="base-1", weight=w))
        for name, w in (("adapter-1", np.eye(DIM, dtype=np.float32)), ("adapter-2", rotation))
    )
    assert loads.versions == ["base-1"]
    assert base.encoder is one.encoder is two.encoder
    encoded = base.encoder.encode_queries(["open a file"])[0]
    np.testing.assert_allclose(one.query_vector(encoded), encoded, rtol=1e-5)
    np.testing.assert_allclose(two.query_vector(encoded), np.roll(encoded, 1), rtol=1e-5)
    assert np.isclose(np.linalg.norm(two.query_vector(encoded)), 1.0)


def test_an_encoder_that_no_version_needs_leaves_the_memory(store: ModelStore, tmp_path: Path) -> None:
    loads = Loads()
    pool = EncoderPool(store, load=loads)
    event = publish(store, tmp_path, "base-1", kind="full", space="base-1", encoder="base-1")
    pool.version(event)
    pool.version(event)
    assert loads.versions == ["base-1", "base-1"]


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.eye(7, dtype=np.float32), "maps"),
        (np.eye(DIM, dtype=np.float64), "float32"),
        (None, "without"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    store: ModelStore, tmp_path: Path, weight: np.ndarray | None, reason: str
) -> None:
    pool = EncoderPool(store, load=Loads())
    publish(store, tmp_path, "base-1", kind="full", space="base-1", encoder="base-1")
    event = publish(store, tmp_path, "adapter-1", kind="adapter", space="base-1", encoder="base-1", weight=weight)
    with pytest.raises(ArtifactError, match=reason):
        pool.version(event)


def test_an_announcement_that_contradicts_the_manifest_is_refused(store: ModelStore, tmp_path: Path) -> None:
    pool = EncoderPool(store, load=Loads())
    publish(store, tmp_path, "base-1", kind="full", space="base-1", encoder="base-1")
    weight = np.eye(DIM, dtype=np.float32)
    event = publish(store, tmp_path, "adapter-1", kind="adapter", space="base-1", encoder="base-1", weight=weight)
    for change, reason in (
        ({"space": "other"}, "space"),
        ({"kind": "full"}, "kind"),
        ({"digest": "0" * 64}, "digest"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            pool.version(msgspec.structs.replace(event, **change))


def test_a_version_in_a_space_of_its_own_must_be_full(store: ModelStore, tmp_path: Path) -> None:
    pool = EncoderPool(store, load=Loads())
    event = publish(store, tmp_path, "qe-1", kind="query_encoder", space="qe-1", encoder="qe-1")
    with pytest.raises(ArtifactError, match="query_encoder in space qe-1"):
        pool.version(event)


def test_whatever_a_broken_encoder_raises_becomes_one_kind_of_error(store: ModelStore, tmp_path: Path) -> None:
    def load(_: Path, __: str) -> Encoder:
        raise RuntimeError("size mismatch for layer.3")

    event = publish(store, tmp_path, "base-1", kind="full", space="base-1", encoder="base-1")
    with pytest.raises(ArtifactError, match="size mismatch"):
        EncoderPool(store, load=load).version(event)


# The sketch


def test_the_sketch_s_projection_is_fixed_for_ever() -> None:
    signs = projection(384)
    assert signs.shape == (SKETCH_DIM, 384)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert signs[0, :8].tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_distances_of_sketches_follow_distances_of_vectors() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 384)).astype(np.float32)
    vectors[100:] = vectors[:100] + 0.5 * vectors[100:]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = np.stack([np.frombuffer(sketch(v), dtype=np.int8).astype(float) for v in vectors])
    near = np.linalg.norm(made[:100] - made[100:], axis=1) / (32 * 8)
    far = np.linalg.norm(made[:100] - np.roll(made[100:], 1, axis=0), axis=1) / (32 * 8)
    true_near = np.linalg.norm(vectors[:100] - vectors[100:], axis=1)
    assert abs(near.mean() - true_near.mean()) < 0.05
    assert near.max() < far.min()


# The real model


def loaded_minilm(*, bf16: bool) -> Encoder:
    """As on a processor with or without it."""
    with patch.object(sentence_model, "cpu_has_bf16", lambda: bf16):
        return sentence_model.loader(1)(base_model_folder("all-MiniLM-L6-v2"), "base-real")


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return loaded_minilm(bf16=False)


@pytest.mark.parametrize("bf16", sorted({False, sentence_model.cpu_has_bf16()}))
def test_packed_queries_have_the_vectors_of_queries_alone(bf16: bool) -> None:
    minilm = loaded_minilm(bf16=bf16)
    assert minilm.queries is not minilm.documents  # else the model was found not to pack
    texts = ["open a file", "Return the absolute value of the argument, please.", "", "日本語", "x " * 600, "a"]
    together = minilm.encode_queries(texts)
    alone = np.concatenate([minilm.encode_documents([text]) for text in texts])
    assert together.shape == (6, 384)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=0.01 if bf16 else 1e-5)
    assert ((together * alone).sum(axis=1) >= sentence_model.LEAST_COSINE).all()
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_token_counts_order_texts_and_stop_at_what_the_model_reads(minilm: Encoder) -> None:
    lengths = minilm.lengths(["a", "open a file for reading", "x " * 100_000])
    assert lengths[0] < lengths[1] < lengths[2] == 256
    assert minilm.lengths([]) == []


def test_a_model_that_asks_for_a_foreign_class_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(base_model_folder("all-MiniLM-L6-v2"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "os.system"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ArtifactError, match=r"os\.system"):
        sentence_model.loader(1)(folder, "bad")
