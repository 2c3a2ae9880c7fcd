"""Document vectors: encoded once per space, shared by every process, and never harmed by a torn write."""

from __future__ import annotations

import threading
from pathlib import Path
from unittest.mock import Mock
from uuid import uuid4

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from clickloop.vector_store import VectorStore, content_digest, document_text

SPACE = "base-8c1e55d0f3a2"


def some(count: int, *, seed: int = 0) -> dict[bytes, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {content_digest("", f"{seed}-{i}"): rng.normal(size=8).astype(np.float32) for i in range(count)}


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{uuid4().hex}"


def test_vectors_that_one_process_added_are_seen_by_another(url: str) -> None:
    writer, reader = VectorStore(url, SPACE), VectorStore(url, SPACE)
    assert reader.load_new() == 0
    added = some(5)
    writer.add(added)
    assert reader.load_new() == 5
    assert reader.load_new() == 0
    for digest, vector in added.items():
        np.testing.assert_array_equal(reader.get(digest), vector)
        np.testing.assert_array_equal(writer.get(digest), vector)
    assert len(reader) == len(writer) == 5
    writer.add(some(3, seed=1))
    assert reader.load_new() == 3


def test_spaces_do_not_see_one_another(url: str) -> None:
    VectorStore(url, SPACE).add(some(2))
    assert VectorStore(url, "full-1").load_new() == 0


def test_missing_names_each_unknown_content_once_and_in_order(url: str) -> None:
    store = VectorStore(url, SPACE)
    known, unknown, other = list(some(3))
    store.add({known: np.ones(8, np.float32)})
    assert store.missing([other, known, unknown, other]) == [other, unknown]
    assert store.get(unknown) is None


def test_adding_nothing_or_the_same_again_changes_nothing(url: str) -> None:
    store = VectorStore(url, SPACE)
    store.add({})
    store.add(some(3))
    store.add(some(3))
    reader = VectorStore(url, SPACE)
    assert reader.load_new() == 3


def test_vectors_are_kept_as_float32(url: str) -> None:
    store = VectorStore(url, SPACE)
    store.add({content_digest("", "x"): np.ones(4, np.float64)})  # type: ignore[dict-item]
    fresh = VectorStore(url, SPACE)
    fresh.load_new()
    found = fresh.get(content_digest("", "x"))
    assert found is not None
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"torn",
        save({"digests": np.zeros((2, 32), np.uint8)}),
        save({"digests": np.zeros((2, 32), np.uint8), "vectors": np.zeros((3, 8), np.float32)}),
        save({"digests": np.zeros((2, 16), np.uint8), "vectors": np.zeros((2, 8), np.float32)}),
    ],
    ids=["empty", "no-safetensors", "no-vectors", "counts-differ", "short-digests"],
)
def test_segment_that_makes_no_sense_is_left_out_whole(raw: bytes, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    VectorStore(url, SPACE).add(some(2))
    (tmp_path / "store" / "vectors" / SPACE / "aaaa.safetensors").write_bytes(raw)
    reader = VectorStore(url, SPACE)
    assert reader.load_new() == 2
    assert len(reader) == 2


def test_segment_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    VectorStore(url, SPACE).add(some(2))
    folder = tmp_path / "store" / "vectors" / SPACE
    [segment] = folder.iterdir()
    (folder / f".{segment.name}.0").write_bytes(segment.read_bytes()[:10])
    assert VectorStore(url, SPACE).load_new() == 2


def test_threads_that_add_the_same_vectors_at_once_leave_one_segment(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    errors: list[BaseException] = []

    def work() -> None:
        try:
            VectorStore(url, SPACE).add(some(200))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(list((tmp_path / "store" / "vectors" / SPACE).iterdir())) == 1
    assert VectorStore(url, SPACE).load_new() == 200


def test_digest_follows_what_the_encoder_reads() -> None:
    assert document_text("Shoe", "Light.") == "Shoe\nLight."
    assert document_text("Shoe", "") == document_text("", "Shoe") == "Shoe"
    assert content_digest("Shoe", "") == content_digest("", "Shoe")
    assert content_digest("Shoe", "Light.") != content_digest("Shoe", "Heavy.")
    assert len(content_digest("", "")) == 32


def test_what_can_not_be_written_is_known_here_alone_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, added = VectorStore(str(tmp_path), SPACE), some(2)
    with monkeypatch.context() as full:
        full.setattr(store._fs, "mv", Mock(side_effect=OSError("No space left on device")))
        with pytest.raises(OSError, match="No space"):
            store.add(added)
    assert store.missing(added) == []
    assert VectorStore(str(tmp_path), SPACE).load_new() == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
