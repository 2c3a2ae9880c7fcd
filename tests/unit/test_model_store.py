"""Artifacts: complete or not there, what the manifest says or not loaded, signed by the right key or refused."""

from __future__ import annotations

import base64
import hashlib
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from clickloop.errors import ArtifactError, SettingsError, StoreUnavailableError
from clickloop.events import Estimate, GateResult, Lineage
from clickloop.model_store import (
    FileEntry,
    Manifest,
    ModelStore,
    check_files,
    iter_lineage,
)
from tests.unit.version_facts import make_base_model

VERSION = "adapter-3f9d2c1b7a60"
BASE = "base-8c1e55d0f3a2"
MANIFEST = Manifest(
    version=VERSION,
    kind="adapter",
    space=BASE,
    encoder=BASE,
    parent=BASE,
    lineage=Lineage(command_id="k-1", examples=310, settings={"epochs": 30}),
    gate=GateResult(verdict="pass", queries=120),
)


def make_folder(root: Path, content: str = "weights") -> Path:
    folder = root / f"built-{content}"
    (folder / "encoder" / "1_Pooling").mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(content.encode() * 100)
    (folder / "gate.json").write_text("{}")
    (folder / "encoder" / "config.json").write_text('{"a": 1}')
    (folder / "encoder" / "1_Pooling" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


@pytest.fixture(params=["file", "path", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "file": f"file://{tmp_path}/store",
        "path": f"{tmp_path}/store/",
        "memory": f"memory://{uuid4().hex}/store",
    }[request.param]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")


@pytest.fixture
def keys() -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    return (
        base64.b64encode(key.private_bytes_raw()).decode(),
        base64.b64encode(key.public_key().public_bytes_raw()).decode(),
    )


def in_store(tmp_path: Path) -> Path:
    return tmp_path / "store" / "versions" / VERSION


def rewrite_manifest(tmp_path: Path, **changes: Any) -> None:
    path = in_store(tmp_path) / "manifest.json"
    found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, **changes)))


def entry(content: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def test_what_is_published_is_fetched(url: str, folder: Path, tmp_path: Path) -> None:
    store = ModelStore(url, cache=tmp_path / "cache")
    published = store.publish(folder, MANIFEST)
    local, manifest = store.fetch(VERSION, digest=published.digest)
    assert (local / "adapter.safetensors").read_bytes() == b"weights" * 100
    assert (local / "encoder" / "1_Pooling" / "config.json").read_text() == "{}"
    assert sorted(manifest.files) == [
        "adapter.safetensors",
        "encoder/1_Pooling/config.json",
        "encoder/config.json",
        "gate.json",
    ]
    assert msgspec.structs.replace(manifest, files={}) == MANIFEST
    assert published.manifest == store.manifest(VERSION) == manifest
    assert published.digest == hashlib.sha256((local / "manifest.json").read_bytes()).hexdigest()
    assert store.versions() == [VERSION]


def test_announced_uri_is_absolute_whatever_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    published = ModelStore("file://.clickloop/store", cache=tmp_path / "c").publish(folder, MANIFEST)
    assert published.uri == f"file://{tmp_path}/.clickloop/store/versions/{VERSION}"
    fs, path = fsspec.core.url_to_fs(published.uri)
    assert fs.exists(f"{path}/manifest.json")


def test_publishing_twice_gives_the_same_announcement(url: str, folder: Path, tmp_path: Path) -> None:
    store = ModelStore(url, cache=tmp_path / "cache")
    first = store.publish(folder, MANIFEST)
    other = make_folder(tmp_path, "other weights")
    assert store.publish(other, MANIFEST) == first
    local, _ = store.fetch(VERSION, digest=first.digest)
    assert (local / "adapter.safetensors").read_bytes() == b"weights" * 100


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "a/b.pkl", "model.BIN", "model.Pth", "x.npy", "x.py"])
def test_files_that_may_run_code_are_neither_published_nor_fetched(
    name: str, store: ModelStore, folder: Path, tmp_path: Path
) -> None:
    store.publish(folder, MANIFEST)
    smuggled = in_store(tmp_path) / name
    smuggled.parent.mkdir(exist_ok=True)
    smuggled.write_bytes(b"x")
    files = {**store.manifest(VERSION).files, name: entry(b"x")}
    rewrite_manifest(tmp_path, files=files)
    with pytest.raises(ArtifactError, match="may run code"):
        store.fetch(VERSION)

    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(ArtifactError, match="safetensors"):
        store.publish(folder, msgspec.structs.replace(MANIFEST, version="adapter-2"))
    assert not store.has("adapter-2")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [Path.unlink, _truncate, _flip, _into_folder], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["adapter.safetensors", "encoder/1_Pooling/config.json"])
def test_torn_artifact_is_refused_and_leaves_nothing_behind(
    harm: Callable[[Path], None], name: str, store: ModelStore, folder: Path, tmp_path: Path
) -> None:
    store.publish(folder, MANIFEST)
    harm(in_store(tmp_path) / name)
    with pytest.raises(ArtifactError, match=VERSION):
        store.fetch(VERSION)
    assert list((tmp_path / "cache").iterdir()) == []


def test_version_without_a_manifest_is_no_version(store: ModelStore, folder: Path, tmp_path: Path) -> None:
    store.publish(folder, MANIFEST)
    (in_store(tmp_path) / "manifest.json").unlink()
    assert store.versions() == []
    with pytest.raises(ArtifactError, match="no complete artifact"):
        store.fetch(VERSION)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"version": "x"}'], ids=lambda r: repr(r[:8])
)
def test_manifest_that_cannot_be_read_is_an_artifact_error(
    raw: bytes, store: ModelStore, folder: Path, tmp_path: Path
) -> None:
    store.publish(folder, MANIFEST)
    (in_store(tmp_path) / "manifest.json").write_bytes(raw)
    with pytest.raises(ArtifactError, match="not valid"):
        store.fetch(VERSION)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..", ".", "", "a//b", "./a", "a\0b"])
def test_manifest_cannot_name_files_outside_its_folder(
    name: str, store: ModelStore, folder: Path, tmp_path: Path
) -> None:
    store.publish(folder, MANIFEST)
    rewrite_manifest(tmp_path, files={name: entry(b"x")})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArtifactError, match="folder"):
        store.fetch(VERSION)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["n" * 5000, "gate.json/x"])
def test_file_name_that_no_disk_takes_is_an_artifact_error(
    name: str, store: ModelStore, folder: Path, tmp_path: Path
) -> None:
    store.publish(folder, MANIFEST)
    rewrite_manifest(tmp_path, files={**store.manifest(VERSION).files, name: entry(b"x")})
    with pytest.raises(ArtifactError):
        store.fetch(VERSION)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "adapter-of-another-name"}, "is of"),
        ({"schema_version": 99}, "newer Clickloop"),
        ({"encoder": "../../etc"}, "no version's name"),
        ({"space": ""}, "no version's name"),
    ],
)
def test_manifest_that_contradicts_itself_is_refused(
    changes: dict[str, Any], reason: str, store: ModelStore, folder: Path, tmp_path: Path
) -> None:
    store.publish(folder, MANIFEST)
    rewrite_manifest(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=reason):
        store.fetch(VERSION)


@pytest.mark.parametrize("version", ["../x", "", "A", "a/b", ".hidden", "a\n", "x" * 200])
def test_version_names_that_could_be_paths_are_refused(version: str, store: ModelStore) -> None:
    for call in (store.has, store.manifest, store.fetch, store.published):
        with pytest.raises(ArtifactError, match="no version's name"):
            call(version)


def test_announced_digest_must_be_the_manifests(store: ModelStore, folder: Path) -> None:
    store.publish(folder, MANIFEST)
    with pytest.raises(ArtifactError, match="announced"):
        store.fetch(VERSION, digest="0" * 64)


def test_stray_files_in_the_store_are_no_versions(store: ModelStore, folder: Path, tmp_path: Path) -> None:
    store.publish(folder, MANIFEST)
    (tmp_path / "store" / "versions" / ".DS_Store").write_text("")
    (tmp_path / "store" / "versions" / "Notes of Anna").mkdir()
    (in_store(tmp_path) / "extra.txt").write_text("not in the manifest, so never copied")
    assert store.versions() == [VERSION]
    local, _ = store.fetch(VERSION)
    assert not (local / "extra.txt").exists()


def test_file_that_the_manifest_does_not_name_is_refused_in_a_local_copy(store: ModelStore, folder: Path) -> None:
    store.publish(folder, MANIFEST)
    local, manifest = store.fetch(VERSION)
    (local / "more.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not in the manifest"):
        check_files(local, manifest)


def test_harmed_local_copy_is_replaced_by_the_stores(store: ModelStore, folder: Path) -> None:
    store.publish(folder, MANIFEST)
    local, _ = store.fetch(VERSION)
    _flip(local / "adapter.safetensors")
    again, _ = store.fetch(VERSION)
    assert again == local
    assert (again / "adapter.safetensors").read_bytes() == b"weights" * 100


# Signatures


def test_signed_version_is_fetched_with_the_public_key(
    url: str, folder: Path, tmp_path: Path, keys: tuple[str, str]
) -> None:
    published = ModelStore(url, private_key=keys[0]).publish(folder, MANIFEST)
    assert published.signature
    reader = ModelStore(url, cache=tmp_path / "cache", public_key=keys[1])
    assert reader.published(VERSION).signature == published.signature
    reader.fetch(VERSION)


def test_unsigned_version_is_refused_where_a_key_is_set(
    url: str, folder: Path, tmp_path: Path, keys: tuple[str, str]
) -> None:
    ModelStore(url).publish(folder, MANIFEST)
    with pytest.raises(ArtifactError, match="signature"):
        ModelStore(url, cache=tmp_path / "cache", public_key=keys[1]).fetch(VERSION)


def test_strangers_signature_is_refused(
    store: ModelStore, folder: Path, tmp_path: Path, keys: tuple[str, str]
) -> None:
    stranger = base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
    ModelStore(store.url, private_key=stranger).publish(folder, MANIFEST)
    with pytest.raises(ArtifactError, match="signature"):
        ModelStore(store.url, cache=tmp_path / "cache", public_key=keys[1]).fetch(VERSION)


@pytest.mark.parametrize("raw", [b"", b"\xff\x00", b"bm8gc2lnbmF0dXJl", b"no base64!"])
def test_signature_file_with_rubbish_is_refused(
    raw: bytes, store: ModelStore, folder: Path, tmp_path: Path, keys: tuple[str, str]
) -> None:
    ModelStore(store.url, private_key=keys[0]).publish(folder, MANIFEST)
    (in_store(tmp_path) / "manifest.json.sig").write_bytes(raw)
    with pytest.raises(ArtifactError, match="signature"):
        ModelStore(store.url, cache=tmp_path / "cache", public_key=keys[1]).fetch(VERSION)


def test_manifest_altered_after_signing_is_refused(
    store: ModelStore, folder: Path, tmp_path: Path, keys: tuple[str, str]
) -> None:
    ModelStore(store.url, private_key=keys[0]).publish(folder, MANIFEST)
    rewrite_manifest(tmp_path, gate=GateResult(verdict="pass", queries=10_000))
    with pytest.raises(ArtifactError, match="signature"):
        ModelStore(store.url, cache=tmp_path / "cache", public_key=keys[1]).fetch(VERSION)


def test_local_copy_does_not_bypass_the_signature(
    store: ModelStore, folder: Path, tmp_path: Path, keys: tuple[str, str]
) -> None:
    store.publish(folder, MANIFEST)
    store.fetch(VERSION)
    with pytest.raises(ArtifactError, match="signature"):
        ModelStore(store.url, cache=tmp_path / "cache", public_key=keys[1]).fetch(VERSION)


@pytest.mark.parametrize("key", ["abc", "AAAA", "ü" * 32])
def test_key_that_is_none_is_a_settings_error_before_anything_is_trained(key: str, store: ModelStore) -> None:
    with pytest.raises(SettingsError, match="public key"):
        ModelStore(store.url, public_key=key)
    with pytest.raises(SettingsError, match="signing key"):
        ModelStore(store.url, private_key=key)


def test_keys_that_dont_belong_together_are_refused_before_anything_is_signed(
    keys: tuple[str, str], url: str
) -> None:
    """The trainer would publish versions, and refuse each of them as a parent."""
    stranger = base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
    with pytest.raises(SettingsError, match="don't belong together"):
        ModelStore(url, private_key=keys[0], public_key=stranger)
    ModelStore(url, private_key=keys[0], public_key=keys[1])


# Crashes and races


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_crash_before_the_manifest_leaves_no_version_and_publishing_again_heals(
    protocol: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/store" if protocol == "file" else f"memory://{uuid4().hex}"
    store = ModelStore(url, cache=tmp_path / "cache")
    fs: Any = store._fs

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "pipe_file", crash)
        with pytest.raises(KeyboardInterrupt):
            store.publish(folder, MANIFEST)
    assert not store.has(VERSION)
    assert store.versions() == []
    (folder / "adapter.safetensors").write_bytes(b"second try")
    store.publish(folder, MANIFEST)
    local, _ = store.fetch(VERSION)
    assert (local / "adapter.safetensors").read_bytes() == b"second try"


def test_unfinished_folder_that_someone_copied_is_written_anew(
    store: ModelStore, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, in_store(tmp_path))
    (in_store(tmp_path) / "half").write_bytes(b"x")
    store.publish(folder, MANIFEST)
    store.fetch(VERSION)
    assert not (in_store(tmp_path) / "half").exists()


@pytest.mark.parametrize("lost", ["manifest.json", "manifest.json.sig", "adapter.safetensors"])
def test_store_that_is_away_is_told_from_one_that_is_broken(
    lost: str,
    store: ModelStore,
    folder: Path,
    tmp_path: Path,
    keys: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ModelStore(store.url, private_key=keys[0]).publish(folder, MANIFEST)
    reader = ModelStore(store.url, cache=tmp_path / "cache", public_key=keys[1])

    def away(path: str, *_: str) -> bytes:
        if path.endswith(lost):
            raise TimeoutError("no answer")
        return Path(path).read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(reader._fs, "cat_file", away)
        patch.setattr(reader._fs, "get_file", away)
        with pytest.raises(StoreUnavailableError, match="no answer"):
            reader.fetch(VERSION)
    (in_store(tmp_path) / lost).unlink()
    with pytest.raises(ArtifactError) as broken:
        reader.fetch(VERSION)
    assert not isinstance(broken.value, StoreUnavailableError)


def test_store_that_cannot_be_written_is_an_artifact_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where a folder should be")
    with pytest.raises(ArtifactError, match="can't be written"):
        ModelStore(f"file://{tmp_path}/store").publish(folder, MANIFEST)


def _publish_in_a_process(url: str, folder: str, barrier: Any, answers: Any) -> None:
    store = ModelStore(url)
    barrier.wait(30)
    answers.put(store.publish(Path(folder), MANIFEST).digest)


def test_two_processes_that_publish_one_version_at_once_announce_the_same(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    url = f"file://{tmp_path}/store"
    barrier, answers = spawn.Barrier(2), spawn.Queue()
    contents = {str(make_folder(tmp_path, name)): name for name in ("ours", "theirs")}
    workers = [spawn.Process(target=_publish_in_a_process, args=(url, f, barrier, answers)) for f in contents]
    for worker in workers:
        worker.start()
    digests = {answers.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(30)
    assert len(digests) == 1
    local, _ = ModelStore(url, cache=tmp_path / "cache").fetch(VERSION, digest=digests.pop())
    assert (local / "adapter.safetensors").read_bytes() in {b"ours" * 100, b"theirs" * 100}
    assert [p.name for p in (tmp_path / "store" / "versions").iterdir()] == [VERSION]


def test_late_publisher_with_other_weights_does_not_touch_the_complete_version(
    store: ModelStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other one finishes after this one has looked, and before this one is done.
    late = ModelStore(store.url, cache=tmp_path / "cache")
    first = store.publish(folder, MANIFEST)
    monkeypatch.setattr(late, "has", lambda _: False)
    assert late.publish(make_folder(tmp_path, "late"), MANIFEST) == first
    store.fetch(VERSION, digest=first.digest)


# Base model and lineage


def test_lineage_leads_from_a_version_to_the_base(store: ModelStore, folder: Path, tmp_path: Path) -> None:
    base = store.ensure_base(make_base_model(tmp_path, "m"), name="m").manifest.version
    store.publish(folder, msgspec.structs.replace(MANIFEST, parent=base))
    assert [m.version for m in iter_lineage(store, VERSION)] == [VERSION, base]


def test_lineage_in_a_circle_is_an_artifact_error(store: ModelStore, folder: Path) -> None:
    store.publish(folder, msgspec.structs.replace(MANIFEST, parent=VERSION))
    with pytest.raises(ArtifactError, match="circle"):
        list(iter_lineage(store, VERSION))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_change_to_any_file_is_noticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("any")
    store = ModelStore(f"file://{root}/store", cache=root / "cache")
    published = store.publish(make_folder(root), MANIFEST)
    path = in_store(root) / data.draw(st.sampled_from([*published.manifest.files, "manifest.json"]))
    raw = path.read_bytes()
    at = data.draw(st.integers(0, len(raw) - 1))
    changed = raw[:at] + data.draw(st.binary(max_size=3).filter(lambda b: b != raw[at : at + 1])) + raw[at + 1 :]
    path.write_bytes(changed)
    with pytest.raises(ArtifactError):
        store.fetch(VERSION, digest=published.digest)


def test_figures_that_json_cannot_hold_are_refused_before_anything_is_there(
    store: ModelStore, folder: Path
) -> None:
    bad = Estimate(before=0.5, after=float("nan"), change=0.0, low=0.0, high=0.0)
    gate = GateResult(verdict="fail", queries=60, metrics={"mrr_at_10": bad})
    with pytest.raises(ArtifactError, match="is not valid"):
        store.publish(folder, msgspec.structs.replace(MANIFEST, gate=gate))
    assert store.versions() == []
