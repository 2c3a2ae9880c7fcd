"""The base model: found on this machine, and the store's first version."""

from __future__ import annotations

from pathlib import Path

import pytest

from clickloop.base_model import base_model_folder
from clickloop.errors import ArtifactError
from clickloop.model_store import ModelStore
from tests.unit.version_facts import make_base_model


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")


def test_base_model_is_published_once_under_a_name_made_from_its_content(
    store: ModelStore, tmp_path: Path
) -> None:
    lean, full = make_base_model(tmp_path, "lean"), make_base_model(tmp_path, "full")
    for stray in ("pytorch_model.bin", "onnx/model.onnx", ".gitattributes", ".cache/huggingface/x.lock"):
        (full / stray).parent.mkdir(parents=True, exist_ok=True)
        (full / stray).write_text("x")
    first = store.ensure_base(lean, name="tiny")
    assert store.ensure_base(full, name="tiny") == first
    assert first.manifest.version.startswith("base-")
    assert first.manifest.space == first.manifest.encoder == first.manifest.version
    local, manifest = store.fetch(first.manifest.version)
    assert sorted(manifest.files) == [
        "encoder/1_Pooling/config.json",
        "encoder/model.safetensors",
        "encoder/modules.json",
    ]
    assert base_model_folder(str(local / "encoder")) == local / "encoder"
    (lean / "model.safetensors").write_bytes(b"other weights")
    assert store.ensure_base(lean, name="tiny").manifest.version != first.manifest.version


def test_base_model_without_safetensors_is_refused(store: ModelStore, tmp_path: Path) -> None:
    folder = make_base_model(tmp_path, "old")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="safetensors"):
        store.ensure_base(folder, name="old")
    assert store.versions() == []


def test_packaged_base_model_is_found() -> None:
    assert (base_model_folder("sentence-transformers/all-MiniLM-L6-v2") / "modules.json").is_file()
