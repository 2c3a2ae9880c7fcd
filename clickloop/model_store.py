"""Model artifacts behind an fsspec URL: immutable folders whose ``manifest.json`` is written last.

Layout under the store's URL::

    versions/<version>/manifest.json     digests of every file and the lineage; without it, there is no version
                       encoder/          sentence-transformers folder (kinds query_encoder and full)
                       lora/             low-rank changes to that encoder, where it was trained so
                       adapter.safetensors   linear map on the query vector, where the version has one
                       gate.json  README.md  examples.jsonl.zst
    vectors/<space>/...                  document vectors by content digest (clickloop/vector_store.py)
    removed/<version>.json               manifest of a version that was pruned: it stays part of others' lineage

How a version is put together from these is told by two names in its manifest: ``encoder`` is the version
whose ``encoder/`` folder encodes queries, ``space`` is the version whose ``encoder/`` encodes documents. An
encoder that differs from its space's in part is stored as that part; ``fetch`` gives it back whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from uuid import uuid4

import fsspec
import msgspec
from msgspec import Struct

from clickloop import deltas, lora
from clickloop.errors import ArtifactError, SettingsError, StoreUnavailableError
from clickloop.events import Lineage
from clickloop.logs import logger
from clickloop.manifest import FORBIDDEN_SUFFIXES as FORBIDDEN_SUFFIXES
from clickloop.manifest import (
    MANIFEST,
    SIGNATURE,
    VERSION_NAME,
    check_file,
    check_keys,
    entry_of,
    inside,
    parse,
    sha256_file,
    sign,
    verify,
)
from clickloop.manifest import FileEntry as FileEntry
from clickloop.manifest import Manifest as Manifest
from clickloop.manifest import SharedFile as SharedFile
from clickloop.manifest import check_files as check_files
from clickloop.model_copies import folder_name, own_folder, remove_others, scratch_folder

ENCODER = "encoder/"
LEFT_BEHIND = timedelta(hours=1)
"""What a publisher, or a fetch, has not touched for so long it won't finish: it was killed."""
_STAGING = re.compile(r"\..+-[0-9a-f]{32}")

# Other formats of the same weights, and what version control and editors leave.
_NOT_NEEDED = ("*.bin", "*.onnx", "*.h5", "*.ot", "*.py", "*.pyc", "__pycache__", "openvino*", "onnx*", ".*")


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
        check_keys(private_key, public_key)
        self._root = str(root).rstrip("/")
        self._is_local = "file" in (
            [self._fs.protocol] if isinstance(self._fs.protocol, str) else self._fs.protocol
        )
        # Announced to processes with another working directory, so never relative.
        self.url = f"file://{self._root}" if self._is_local else url.rstrip("/")
        self._cache = cache or Path(tempfile.gettempdir()) / f"clickloop-models-{os.getuid()}"
        self._is_default = cache is None
        self._private_key = private_key
        self._public_key = public_key

    def uri(self, version: str) -> str:
        return f"{self.url}/versions/{version}"

    def versions(self) -> list[str]:
        """Names of complete versions, sorted."""
        self._fs.invalidate_cache()
        return sorted(path.name for path in self._children("versions") if self._is_version(path.name))

    def has(self, version: str) -> bool:
        # Of a local folder that may not be entered, exists() says that there is none.
        with self._reached(f"{self.url} can't be reached"), suppress(FileNotFoundError, NotADirectoryError):
            return bool(self._fs.info(f"{self._folder(version)}/{MANIFEST}"))
        return False

    def manifest(self, version: str) -> Manifest:
        """The manifest as it lies in the store, unverified. Raises ArtifactError."""
        return parse(self._read_manifest(version), version)

    def publish(self, folder: Path, manifest: Manifest) -> Published:
        """Copy ``folder`` into the store as ``manifest.version`` and return what to announce.

        Writing the same version again is harmless: a complete version is left as it is, an unfinished one is
        written anew. On a local file system the folder appears in one step, so of two publishers at once the
        first one wins; elsewhere the manifest appears last, and publishers of one version must take turns.
        Raises ArtifactError for files that may run code, and where the store refuses to write.
        """
        if self.has(manifest.version):
            return self.published(manifest.version)
        sources: dict[str, Path] = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            if path.suffix.lower() in FORBIDDEN_SUFFIXES:
                raise ArtifactError(
                    f"{name} may not be part of an artifact: only safetensors weights are published"
                )
            if name != MANIFEST:
                sources[name] = path
        with scratch_folder(self._own_cache(), "deltas") as scratch:
            complete = self._sharing(manifest, sources, scratch)
            raw = msgspec.json.format(msgspec.json.encode(complete), indent=2)
            parse(raw, complete.version)  # what can't be read again must not get into the store
            signature = sign(raw, self._private_key) if self._private_key else ""
            with self._reached(f"{manifest.version}: can't be written to {self.url}", missing=True):
                self._write(complete.version, raw, sources, signature)
        self._sweep_quietly()
        return self.published(manifest.version)

    def _sharing(self, manifest: Manifest, sources: dict[str, Path], scratch: Path) -> Manifest:
        """The manifest with its files; ``sources`` loses what the space's version stores, and gets the deltas."""
        files = {name: entry_of(path) for name, path in sources.items()}
        shared: dict[str, SharedFile] = {}
        known: dict[str, FileEntry] = {}
        if manifest.space != manifest.version and self.has(manifest.space):
            known = self.manifest(manifest.space).files
        for name in [name for name in files if name.startswith(ENCODER) and name in known]:
            delta, made = "", scratch / str(len(shared))
            if files[name] != known[name]:
                delta = name.removesuffix(".safetensors") + deltas.SUFFIX
                if delta in files or not self._delta(sources[name], manifest.space, name, made):
                    continue
                sources[delta], files[delta] = made, entry_of(made)
            whole = files.pop(name)
            shared[name] = SharedFile(sha256=whole.sha256, bytes=whole.bytes, of=manifest.space, delta=delta)
            del sources[name]
        schema = 3 if f"{lora.FOLDER}/{lora.CONFIG}" in files else 2 if shared else 1
        return msgspec.structs.replace(manifest, files=files, shared=shared, schema_version=schema)

    def _delta(self, whole: Path, of: str, name: str, made: Path) -> bool:
        if not name.endswith(".safetensors"):
            return False
        try:
            folder, _ = self.fetch(of)
            return deltas.write_delta(whole, folder / name, made)
        except ArtifactError as error:
            logger().warning("stored whole, for want of what it differs from", file=name, reason=str(error))
            return False

    def _write(self, version: str, raw: bytes, sources: dict[str, Path], signature: str) -> None:
        target = self._folder(version)
        if not self._is_local:
            self._put(target, raw, sources, signature)
            return
        staging = f"{self._root}/versions/.{version}-{uuid4().hex}"
        try:
            self._put(staging, raw, sources, signature)
            self._move_into_place(Path(staging), Path(target))
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def published(self, version: str) -> Published:
        """What to announce about a version that the store holds. Raises ArtifactError."""
        raw = self._read_manifest(version)
        signature = self.read(f"versions/{version}/{SIGNATURE}") or b""
        return Published(
            uri=self.uri(version),
            digest=hashlib.sha256(raw).hexdigest(),
            signature=signature.decode("ascii", errors="replace").strip(),
            manifest=parse(raw, version),
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
        manifest = parse(raw, version)
        target = self._own_cache() / folder_name(version, found)
        if target.is_dir():
            try:
                check_files(target, manifest)
            except ArtifactError:
                # A disk error or a stranger's hand; the store's copy may still be good.
                shutil.rmtree(target)
            else:
                return target, manifest
        with scratch_folder(self._cache, version) as staging:
            self._download(version, manifest, staging)
            (staging / MANIFEST).write_bytes(raw)
            try:
                staging.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
                check_files(target, manifest)
        return target, manifest

    def _own_cache(self) -> Path:
        if self._is_default:
            own_folder(self._cache)
        self._cache.mkdir(parents=True, exist_ok=True)
        return self._cache

    def keep_copies(self, versions: Collection[str]) -> None:
        """Of the local copies, keep these versions' and those of what they are made of.

        For a cache of one's own, and while nothing is fetched into it.
        """
        remove_others(self._cache, versions, before=datetime.now(UTC) - LEFT_BEHIND)

    def ensure_base(self, model_folder: Path, *, name: str) -> Published:
        """Publish the base model as the first version, once, and return what to announce.

        The version is named by the model's content, so every process that starts with the same model agrees.
        """
        version = f"base-{folder_digest(model_folder)[:12]}"
        if self.has(version):
            return self.published(version)
        with scratch_folder(self._own_cache(), "base") as scratch:
            encoder = scratch / "encoder"
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
            return self.publish(scratch, manifest)

    def read(self, name: str) -> bytes | None:
        """An object beside the versions, None where there is none. Raises ArtifactError."""
        try:
            with self._reached(f"{self.url}/{name} can't be read"):
                self._fs.invalidate_cache()
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def write(self, name: str, raw: bytes) -> None:
        """Put such an object in the place of what was there, whole. Raises ArtifactError."""
        path = f"{self._root}/{name}"
        with self._reached(f"{self.url}/{name} can't be written", missing=True):
            self._fs.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
            if self._is_local:
                temporary = Path(f"{path}.{uuid4().hex}")
                try:
                    temporary.write_bytes(raw)
                    temporary.rename(path)
                finally:
                    temporary.unlink(missing_ok=True)
            else:
                self._fs.pipe_file(path, raw)

    def created(self, version: str) -> datetime:
        """When the version was complete, by the store's clock. Raises ArtifactError."""
        with self._reached(f"{version}: {self.uri(version)} can't be read", missing=True):
            at: datetime = self._fs.modified(f"{self._folder(version)}/{MANIFEST}")
        return at.astimezone(UTC)

    def remembered(self, version: str) -> Manifest | None:
        """The manifest of a version that was removed, None where none was. Raises ArtifactError."""
        if not VERSION_NAME.fullmatch(version):
            raise ArtifactError(f"{version!r} is no version's name")
        try:
            with self._reached(f"{version}: what is left of it in {self.url} can't be read"):
                return parse(bytes(self._fs.cat_file(f"{self._root}/removed/{version}.json")), version)
        except FileNotFoundError:
            return None

    def remove(self, version: str) -> None:
        """Take a version's files and its vectors away; its manifest stays, as a record. Raises ArtifactError.

        Whether it may go is the caller's to know (clickloop/retention.py).
        """
        raw = self._read_manifest(version)
        folder = self._folder(version)
        told = f"{version}: can't be removed from {self.url}"
        # An object store's folder goes with its last file, and another process may be at it, too.
        with suppress(FileNotFoundError), self._reached(told):
            for vectors in (version, f"{version}-pieces"):
                if self._fs.exists(f"{self._root}/vectors/{vectors}"):
                    self._fs.rm(f"{self._root}/vectors/{vectors}", recursive=True)
            self._fs.makedirs(f"{self._root}/removed", exist_ok=True)
            self._fs.pipe_file(f"{self._root}/removed/{version}.json", raw)
            if self._is_local:
                # In one step, so that whoever is killed here leaves no half of a version.
                staging = Path(f"{self._root}/versions/.{version}-{uuid4().hex}")
                Path(folder).rename(staging)
                shutil.rmtree(staging)
            else:
                self._fs.rm_file(f"{folder}/{MANIFEST}")
                self._fs.rm(folder, recursive=True)

    def sweep(self, *, now: datetime) -> list[str]:
        """Remove what killed publishers have left, LEFT_BEHIND after their last write; returns the names.

        On a file system that is what they write before it gets its name. Elsewhere it is a version without its
        manifest, which is written last.
        """
        self._fs.invalidate_cache()
        left = [
            path
            for path in self._children("versions")
            if (_STAGING.fullmatch(path.name) if self._is_local else self._is_torn(path.name))
        ]
        spaces = self._children("vectors")
        left += [p for space in spaces for p in self._children(f"vectors/{space.name}") if p.name.startswith(".")]
        gone = []
        for path in left:
            with self._reached(f"{self.url} can't be reached"):
                files = self._fs.find(str(path)) or [str(path)]
                if max(self._fs.modified(file) for file in files).astimezone(UTC) < now - LEFT_BEHIND:
                    self._fs.rm(str(path), recursive=True)
                    gone.append(path.name)
        return gone

    def _sweep_quietly(self) -> None:
        """Housekeeping on the way: what can't be swept now is swept next time, and is never loaded."""
        try:
            gone = self.sweep(now=datetime.now(UTC))
        except (OSError, ArtifactError) as error:
            logger().warning("leftovers not swept", reason=str(error))
        else:
            if gone:
                logger().info("leftovers swept", names=gone)

    def _children(self, folder: str) -> list[PurePosixPath]:
        path, found = PurePosixPath(f"{self._root}/{folder}"), list[str]()
        with self._reached(f"{self.url} can't be reached"), suppress(FileNotFoundError):
            found = self._fs.ls(str(path), detail=False)
        # An empty object that stands for the folder is listed as if it lay in it.
        return [inside for inside in map(PurePosixPath, found) if inside != path]

    def _is_torn(self, name: str) -> bool:
        return bool(VERSION_NAME.fullmatch(name)) and not self.has(name)

    @contextmanager
    def _reached(self, told: str, *, missing: bool = False) -> Iterator[None]:
        """What a file system that can't be reached raises, as StoreUnavailableError with what is ``told`` of it.

        That a file is missing is another matter, and passes; if ``missing``, it is an ArtifactError, too.
        """
        try:
            yield
        except FileNotFoundError as error:
            if missing:
                raise ArtifactError(f"{told}: {error}") from error
            raise
        except Exception as error:
            # Some of what s3fs lets through is no OSError.
            if isinstance(error, OSError) or type(error).__module__.startswith("botocore."):
                raise StoreUnavailableError(f"{told}: {error}") from error
            raise

    def _is_version(self, name: str) -> bool:
        return bool(VERSION_NAME.fullmatch(name)) and self.has(name)

    def _folder(self, version: str) -> str:
        if not VERSION_NAME.fullmatch(version):
            raise ArtifactError(f"{version!r} is no version's name")
        return f"{self._root}/versions/{version}"

    def _read_manifest(self, version: str) -> bytes:
        path = f"{self._folder(version)}/{MANIFEST}"
        try:
            with self._reached(f"{version}: {self.uri(version)} can't be read"):
                return bytes(self._fs.cat_file(path))
        except FileNotFoundError:
            raise ArtifactError(f"{version}: no complete artifact at {self.uri(version)}") from None

    def _download(self, version: str, manifest: Manifest, folder: Path) -> None:
        """A complete copy in ``folder``, with every file checked."""
        for name in manifest.files:
            local = inside(folder, name)
            try:
                with self._reached(f"{version}: {name} can't be copied"):
                    local.parent.mkdir(parents=True, exist_ok=True)
                    self._fs.get_file(f"{self._folder(version)}/{name}", str(local))
            except FileNotFoundError:
                raise ArtifactError(f"{version}: {name} is in the manifest but not in the store") from None
        for name, file in manifest.shared.items():
            self._take(version, name, file, manifest, folder)
        for delta in {file.delta for file in manifest.shared.values()} - {""}:
            (folder / delta).unlink()
        check_files(folder, manifest)

    def _take(self, version: str, name: str, file: SharedFile, manifest: Manifest, folder: Path) -> None:
        """Make a shared file from the version that it is shared with."""
        other = self.manifest(file.of)
        if name not in other.files or other.shared:
            raise ArtifactError(f"{version}: {name} is shared with {file.of}, which doesn't store it")
        if file.delta and file.delta not in manifest.files:
            raise ArtifactError(f"{version}: {file.delta} is not in the manifest")
        there, _ = self.fetch(file.of)
        local = inside(folder, name)
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            if file.delta:
                check_file(folder, file.delta, manifest.files[file.delta], version)
                deltas.apply_delta(folder / file.delta, there / name, local)
            else:
                shutil.copyfile(there / name, local)
        except OSError as error:
            raise ArtifactError(f"{version}: {name} can't be put together: {error}") from error

    def _put(self, target: str, raw: bytes, sources: dict[str, Path], signature: str) -> None:
        """The files, then the signature, then the manifest, whose presence makes it a version."""
        self._fs.makedirs(target, exist_ok=True)
        for name, path in sources.items():
            destination = f"{target}/{name}"
            self._fs.makedirs(str(PurePosixPath(destination).parent), exist_ok=True)
            self._fs.put_file(str(path), destination)
        if signature:
            self._fs.pipe_file(f"{target}/{SIGNATURE}", signature.encode())
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
