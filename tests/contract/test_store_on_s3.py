"""The store on S3, as moto's server answers: what holds on a file system holds there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from clickloop.errors import ArtifactError, StoreUnavailableError
from clickloop.model_store import ModelStore
from clickloop.vector_store import VectorStore, content_digest
from tests.unit.version_facts import put


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def url(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in (
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"models-{uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/clickloop"


@pytest.fixture
def store(url: str, tmp_path: Path) -> ModelStore:
    return ModelStore(url, cache=tmp_path / "cache")


def test_versions_are_published_listed_fetched_and_announced(store: ModelStore, url: str, tmp_path: Path) -> None:
    base = put(store, tmp_path, "base-1")
    made = put(store, tmp_path, "query-encoder-1", "query_encoder", base)
    assert ModelStore(url).versions() == ["base-1", "query-encoder-1"]
    published = ModelStore(url).published("query-encoder-1")
    assert published.uri == f"{url}/versions/query-encoder-1"
    reader = ModelStore(url, cache=tmp_path / "another")
    folder, manifest = reader.fetch("query-encoder-1", digest=published.digest)
    assert manifest == made
    whole = (tmp_path / "making-query-encoder-1" / "encoder" / "model.safetensors").read_bytes()
    assert (folder / "encoder" / "model.safetensors").read_bytes() == whole
    assert made.stored_bytes < base.stored_bytes / 2
    assert datetime.now(UTC) - store.created("base-1") < timedelta(minutes=5)


def test_publishing_again_leaves_the_complete_version(store: ModelStore, tmp_path: Path) -> None:
    base = put(store, tmp_path, "base-1")
    first = put(store, tmp_path, "adapter-1", "adapter", base, seed=1)
    assert put(store, tmp_path / "again", "adapter-1", "adapter", base, seed=2) == first


def test_an_altered_object_is_refused(store: ModelStore, tmp_path: Path) -> None:
    base = put(store, tmp_path, "base-1")
    put(store, tmp_path, "adapter-1", "adapter", base)
    store._fs.pipe_file(f"{store._root}/versions/adapter-1/adapter.safetensors", b"altered")
    with pytest.raises(ArtifactError, match="torn or altered"):
        store.fetch("adapter-1")
    assert not list((tmp_path / "cache").glob("adapter-1-*"))


def test_an_upload_that_broke_off_is_no_version_and_is_swept(store: ModelStore, tmp_path: Path) -> None:
    put(store, tmp_path, "base-1")
    store._fs.pipe_file(f"{store._root}/versions/adapter-9/adapter.safetensors", b"half")
    assert store.versions() == ["base-1"]
    now = datetime.now(UTC)
    assert store.sweep(now=now + timedelta(minutes=50)) == []
    assert store.sweep(now=now + timedelta(minutes=61)) == ["adapter-9"]
    assert not store._fs.exists(f"{store._root}/versions/adapter-9")


def test_a_removed_version_is_gone_and_remembered(store: ModelStore, tmp_path: Path) -> None:
    base = put(store, tmp_path, "base-1")
    made = put(store, tmp_path, "adapter-1", "adapter", base)
    store.remove("adapter-1")
    assert store.versions() == ["base-1"]
    assert not store._fs.exists(f"{store._root}/versions/adapter-1")
    assert store.remembered("adapter-1") == made


def test_a_bucket_that_is_not_there_is_an_artifact_error(url: str, tmp_path: Path) -> None:
    nowhere = ModelStore("s3://no-such-bucket-here/x", cache=tmp_path / "cache")
    assert nowhere.versions() == []
    with pytest.raises(ArtifactError, match=r"no complete artifact|can't be read") as missing:
        nowhere.fetch("base-1")
    assert not isinstance(missing.value, StoreUnavailableError)


def test_vectors_of_documents_are_shared_through_the_bucket(url: str) -> None:
    digest = content_digest("", "a document")
    VectorStore(url, "base-1").add({digest: np.ones(4, np.float32)})
    reader = VectorStore(url, "base-1")
    assert reader.load_new() == 1
    assert np.array_equal(reader.get(digest), np.ones(4, np.float32))


def test_an_empty_object_that_stands_for_a_folder_is_no_version_and_is_not_swept(
    store: ModelStore, url: str, tmp_path: Path
) -> None:
    put(store, tmp_path, "base-1")
    fs, root = s3fs.S3FileSystem(), url.removeprefix("s3://")
    fs.pipe_file(f"{root}/versions/", b"")
    assert fs.exists(f"{root}/versions/")
    assert ModelStore(url).sweep(now=datetime.now(UTC) + timedelta(days=400)) == []
    assert ModelStore(url).versions() == ["base-1"]


def test_a_store_that_does_not_answer_is_an_artifact_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    away = ModelStore("s3://models/away", cache=tmp_path)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("s3://models/away can't be reached: ", away.versions),
        ("s3://models/away can't be reached: ", lambda: away.has("base-1")),
        ("s3://models/away/golden/default.jsonl can't be read: ", lambda: away.read("golden/default.jsonl")),
        ("base-1: s3://models/away/versions/base-1 can't be read: ", lambda: away.manifest("base-1")),
        ("base-1: s3://models/away/versions/base-1 can't be read: ", lambda: away.created("base-1")),
        ("base-1: what is left of it in s3://models/away can't be read: ", lambda: away.remembered("base-1")),
        (
            "s3://models/away/golden/default.jsonl can't be written: ",
            lambda: away.write("golden/default.jsonl", b""),
        ),
    ]
    for told, call in calls:
        with pytest.raises(StoreUnavailableError, match=f"^{re.escape(told)}"):
            call()


def test_vectors_in_a_store_that_does_not_answer_are_an_error_of_the_operating_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_MAX_ATTEMPTS", "1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    away = VectorStore("s3://models/away", "base-1")
    with pytest.raises(OSError, match="Could not connect"):
        away.load_new()
    with pytest.raises(OSError, match="Could not connect"):
        away.add({content_digest("", "a document"): np.ones(4, np.float32)})
