"""What the trainer publishes, harmed: refused with a reason by whoever loads it, and never half there."""

from __future__ import annotations

import base64
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clickloop.base_model import base_model_folder
from clickloop.errors import ArtifactError
from clickloop.events import GateResult
from clickloop.manifest import FileEntry, Manifest
from clickloop.model_store import ModelStore
from search.encoder import EncoderPool
from search.sentence_model import loader
from tests.unit.trainer_facts import START
from tests.unit.version_facts import put
from trainer.model import load_model
from trainer.publish import announcement

UPPER = "query-encoder-1"
MAP = "adapter-1"
DELTA = "encoder/model.delta.safetensors"
KILLS = 20


def key_pair() -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    return base64.b64encode(key.private_bytes_raw()).decode(), public


PRIVATE, PUBLIC = key_pair()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the real base and two signed versions on top, as the trainer publishes them."""
    folder = tmp_path_factory.mktemp("signed")
    program = f"""
import copy, sys
from pathlib import Path
import numpy as np, torch
from clickloop.events import GateResult, Lineage
from clickloop.base_model import base_model_folder
from clickloop.model_store import ModelStore
from trainer.methods.base import Parent, Trained
from trainer.methods.upper_layers import layer_stack
from trainer.model import Adapter, load_model
from trainer.publish import describe, publish
store = ModelStore("file://{folder}/store", cache=Path("{folder}/cache"), private_key="{PRIVATE}")
base = store.ensure_base(base_model_folder("all-MiniLM-L6-v2"), name="all-MiniLM-L6-v2").manifest
model = load_model(store, base.version, "cpu")
parent = Parent(base.version, model.encoder, None, model.encoder)
encoder = copy.deepcopy(model.encoder)
with torch.no_grad():
    for weights in layer_stack(encoder)[-1].parameters():
        weights.mul_(1.01)
gate = GateResult(verdict="pass", queries=100)
def new(version, kind, of):
    return describe(version=version, kind=kind, parent=of, lineage=Lineage(command_id=version), gate=gate)
upper = publish(store, Path("{folder}"), new("{UPPER}", "query_encoder", base), parent, Trained(encoder=encoder))
publish(store, Path("{folder}"), new("{MAP}", "adapter", upper.manifest), parent,
    Trained(adapter=Adapter.identity(384)))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
    return folder / "store"


@pytest.fixture
def store(signed: Path, tmp_path: Path) -> ModelStore:
    """A copy to harm, and no cache that would hide it."""
    shutil.copytree(signed, tmp_path / "store")
    return ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache", public_key=PUBLIC)


def by_the_trainer(store: ModelStore, version: str) -> None:
    load_model(store, version, "cpu")


def by_a_node(store: ModelStore, version: str) -> None:
    event = announcement(store.published(version), index="default", at=START)
    EncoderPool(store, load=loader(1)).version(event)


def by_an_operator(store: ModelStore, version: str) -> None:
    program = [sys.executable, "-m", "clickloop", "versions", "verify", version, "--store-url", store.url]
    environment = {"PATH": "/usr/bin:/bin", "CLICKLOOP_PUBLIC_KEY": PUBLIC, "PYTHONPATH": ":".join(sys.path)}
    environment["TMPDIR"] = str(Path(store.url.removeprefix("file://")).parent)
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        assert len(done.stderr.splitlines()) == 1, done.stderr
        raise ArtifactError(done.stderr)


LOADERS = pytest.mark.parametrize("load", [by_the_trainer, by_a_node, by_an_operator], ids=lambda f: f.__name__)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-50] ^= 1
    path.write_bytes(raw)


def empty(path: Path) -> None:
    path.write_bytes(b"")


HARMS = pytest.mark.parametrize("harm", [truncate, flip, empty, Path.unlink], ids=lambda f: f.__name__)


@LOADERS
def test_what_is_whole_is_loaded(load: Callable[[ModelStore, str], None], store: ModelStore) -> None:
    load(store, UPPER)
    load(store, MAP)


@LOADERS
@HARMS
@pytest.mark.parametrize(
    ("version", "name"), [(MAP, "adapter.safetensors"), (UPPER, DELTA)], ids=["adapter", "delta"]
)
def test_torn_or_altered_weights_are_refused_by_name(
    load: Callable[[ModelStore, str], None],
    harm: Callable[[Path], None],
    version: str,
    name: str,
    store: ModelStore,
    tmp_path: Path,
) -> None:
    harm(tmp_path / "store" / "versions" / version / name)
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        load(store, version)
    assert not list((tmp_path / "cache").glob(f"{version}-*"))


@HARMS
def test_a_harmed_base_is_refused_with_all_that_is_made_of_it(
    harm: Callable[[Path], None], store: ModelStore, tmp_path: Path
) -> None:
    base = store.manifest(UPPER).space
    harm(tmp_path / "store" / "versions" / base / "encoder" / "model.safetensors")
    for version in (base, UPPER, MAP):
        with pytest.raises(ArtifactError, match=rf"{base}: encoder/model\.safetensors"):
            by_a_node(store, version)


def test_another_base_under_the_name_makes_no_other_encoder(signed: Path, tmp_path: Path) -> None:
    """Weights and manifest of the base changed together, with no key that would notice."""
    shutil.copytree(signed, tmp_path / "store")
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    base = store.manifest(UPPER).space
    folder = tmp_path / "store" / "versions" / base
    flip(folder / "encoder" / "model.safetensors")
    found = store.manifest(base)
    raw = (folder / "encoder" / "model.safetensors").read_bytes()
    weights = FileEntry(sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))
    forged = msgspec.structs.replace(found, files={**found.files, "encoder/model.safetensors": weights})
    (folder / "manifest.json").write_bytes(msgspec.json.encode(forged))
    store.fetch(base)
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not what the manifest says"):
        by_a_node(store, UPPER)


@LOADERS
def test_an_altered_manifest_is_refused_by_its_signature(
    load: Callable[[ModelStore, str], None], store: ModelStore, tmp_path: Path
) -> None:
    path = tmp_path / "store" / "versions" / MAP / "manifest.json"
    found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    better = msgspec.structs.replace(found, gate=GateResult(verdict="pass", queries=10_000))
    path.write_bytes(msgspec.json.encode(better))
    with pytest.raises(ArtifactError, match="signature"):
        load(store, MAP)


@LOADERS
@pytest.mark.parametrize("kind", ["none", "stranger"])
def test_a_version_that_no_one_or_a_stranger_signed_is_refused(
    load: Callable[[ModelStore, str], None], kind: str, tmp_path: Path
) -> None:
    private = "" if kind == "none" else key_pair()[0]
    writer = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "w", private_key=private)
    base = writer.ensure_base(base_model_folder("all-MiniLM-L6-v2"), name="m").manifest
    with pytest.raises(ArtifactError, match="signature"):
        load(ModelStore(writer.url, cache=tmp_path / "cache", public_key=PUBLIC), base.version)


def test_a_node_refuses_what_is_not_what_was_announced(store: ModelStore) -> None:
    event = announcement(store.published(MAP), index="default", at=START)
    with pytest.raises(ArtifactError, match="announced was 000000000000"):
        EncoderPool(store, load=loader(1)).version(msgspec.structs.replace(event, digest="0" * 64))


@pytest.mark.parametrize(
    ("of", "reason"),
    [("query-encoder-1", "doesn't store it"), ("base-nowhere", "no complete artifact"), ("../x", "no version's")],
)
def test_a_file_that_is_shared_with_what_does_not_have_it_is_refused(
    of: str, reason: str, signed: Path, tmp_path: Path
) -> None:
    shutil.copytree(signed, tmp_path / "store")
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    found = store.manifest(UPPER)
    shared = {name: msgspec.structs.replace(file, of=of) for name, file in found.shared.items()}
    path = tmp_path / "store" / "versions" / UPPER / "manifest.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, shared=shared)))
    with pytest.raises(ArtifactError, match=reason):
        store.fetch(UPPER)


# Killed while publishing

PUBLISHER = """
import sys
from pathlib import Path
from clickloop.model_store import ModelStore
from tests.unit.version_facts import put
folder = Path(sys.argv[1])
store = ModelStore(f"file://{folder}/store", cache=folder / "cache")
base = store.manifest("base-1")
print("ready", flush=True)
for number in range(100_000):
    put(store, folder / sys.argv[2], f"query-encoder-{sys.argv[2]}-{number}", "query_encoder", base)
"""


def test_whoever_is_killed_while_publishing_leaves_only_whole_versions(tmp_path: Path) -> None:
    """kill -9 at random moments of publishing; then everything that the store calls a version can be fetched."""
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    put(store, tmp_path, "base-1")
    rng = random.Random(0)
    for number in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(tmp_path), str(number)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.0, 0.08))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
    made = store.versions()
    assert len(made) > KILLS, "publishers came to publish something"
    for name in made:
        store.fetch(name)
    left = {p.name for p in (tmp_path / "store" / "versions").iterdir()} - set(made)
    assert all(name.startswith(".") for name in left)
    swept = store.sweep(now=datetime.now(UTC) + timedelta(hours=2))
    assert set(swept) == left
    assert sorted(p.name for p in (tmp_path / "store" / "versions").iterdir()) == store.versions() == made
    assert left, "no kill hit a publisher in the middle: the test has seen nothing"
