"""What a version is made of: its manifest, the digests and the signature that hold it to that.

Nothing is ever unpickled: weights are safetensors only, and any other binary weight file is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct, field

from clickloop.errors import ArtifactError, SettingsError
from clickloop.events import GateResult, Lineage, VersionKind

SCHEMA_VERSION = 3
"""Newest that is read. 2 shares files with another version, 3 has low-rank changes (clickloop/lora.py); what has
neither is still written as 1, for whoever doesn't know them."""
MANIFEST = "manifest.json"
SIGNATURE = f"{MANIFEST}.sig"
VERSION_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")
# Formats that run code when they are loaded, or may.
FORBIDDEN_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".py"}
)

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class FileEntry(Struct, frozen=True, kw_only=True):
    sha256: Digest
    bytes: Annotated[int, Meta(ge=0)]


class SharedFile(Struct, frozen=True, kw_only=True):
    """A file that isn't stored with the version, because it is another version's, whole or for the most part."""

    sha256: Digest
    bytes: Annotated[int, Meta(ge=0)]
    of: str
    """Version that stores a file of this name."""
    delta: str = ""
    """Stored file with what differs from that one (clickloop/deltas.py); empty where nothing does."""


class Manifest(Struct, frozen=True, kw_only=True):
    """What a version is and what it is made of."""

    schema_version: int = 1
    version: str
    kind: VersionKind
    space: str
    """Version whose encoder defines the vectors of documents."""
    encoder: str
    """Version whose encoder turns queries into vectors (before the adapter, if there is one)."""
    parent: str | None = None
    files: dict[str, FileEntry] = field(default_factory=dict)
    """What is stored."""
    shared: dict[str, SharedFile] = field(default_factory=dict)
    """What a fetched copy has besides, instead of the deltas."""
    lineage: Lineage = field(default_factory=Lineage)
    gate: GateResult | None = None

    @property
    def stored_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())

    @property
    def needs(self) -> set[str]:
        """Other versions without whose files this one can't be loaded."""
        return {self.space, self.encoder, *(file.of for file in self.shared.values())} - {self.version}

    @property
    def fetched(self) -> dict[str, FileEntry | SharedFile]:
        """The files of a complete copy."""
        deltas = {file.delta for file in self.shared.values()}
        return {name: entry for name, entry in self.files.items() if name not in deltas} | self.shared


def sha256_file(path: Path) -> str:
    """Digest of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def entry_of(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)


def sign(manifest: bytes, private_key: str) -> str:
    """Ed25519 signature of the manifest's bytes, base64. ``private_key`` is 32 bytes in base64."""
    return base64.b64encode(_private_key_of(private_key).sign(manifest)).decode()


def verify(manifest: bytes, signature: str, public_key: str) -> None:
    """Raises ArtifactError where ``signature`` is not ``public_key``'s over ``manifest``."""
    key = _public_key_of(public_key)
    try:
        key.verify(base64.b64decode(signature, validate=True), manifest)
    except (InvalidSignature, ValueError, binascii.Error):
        raise ArtifactError("the signature is not by the configured public key") from None


def check_keys(private_key: str, public_key: str) -> None:
    """Raises SettingsError for a key that is none, and where both are given and don't belong together."""
    public = _public_key_of(public_key) if public_key else None
    private = _private_key_of(private_key) if private_key else None
    if public and private and private.public_key() != public:
        raise SettingsError("private_key and public_key don't belong together: what is signed would be refused")


def _private_key_of(text: str) -> Ed25519PrivateKey:
    try:
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        raise SettingsError("the signing key is not an Ed25519 private key (32 bytes, base64)") from None


def _public_key_of(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        raise SettingsError("the public key is not an Ed25519 public key (32 bytes, base64)") from None


def parse(raw: bytes, version: str) -> Manifest:
    """The manifest of ``version`` from its bytes. Raises ArtifactError."""
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{version}: manifest.json is not valid: {error}") from None
    if manifest.schema_version > SCHEMA_VERSION:
        raise ArtifactError(f"{version}: written by a newer Clickloop (schema {manifest.schema_version})")
    if manifest.version != version:
        raise ArtifactError(f"{version}: the manifest is of {manifest.version!r}")
    for name in (manifest.space, manifest.encoder, *(file.of for file in manifest.shared.values())):
        if not VERSION_NAME.fullmatch(name):
            raise ArtifactError(f"{version}: {name!r} is no version's name")
    return manifest


def check_file(folder: Path, name: str, entry: FileEntry | SharedFile, version: str) -> None:
    """Raises ArtifactError unless ``folder`` has this file with its size and digest."""
    path = inside(folder, name)
    if PurePosixPath(name).suffix.lower() in FORBIDDEN_SUFFIXES:
        raise ArtifactError(f"{version}: {name} may run code when loaded, and is refused")
    if not path.is_file():
        raise ArtifactError(f"{version}: {name} is missing")
    if path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
        raise ArtifactError(f"{version}: {name} is not what the manifest says (torn or altered)")


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises ArtifactError unless ``folder`` is a complete copy: exactly these files with their digests."""
    for name, entry in manifest.fetched.items():
        check_file(folder, name, entry, manifest.version)
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    strangers = present - set(manifest.fetched)
    if strangers:
        raise ArtifactError(f"{manifest.version}: {min(strangers)} is not in the manifest")


def inside(folder: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != name or not pure.name or "\0" in name:
        raise ArtifactError(f"{name!r} leaves the artifact's folder")
    return folder / pure
