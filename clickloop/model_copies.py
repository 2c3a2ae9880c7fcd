"""A folder of versions that were fetched: how the copies are called, and which of them may go.

A copy lies in ``<version>-<first digits of its manifest's digest>``, and while it is being made in a folder with a
dot before its name.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from clickloop.errors import ArtifactError
from clickloop.logs import logger
from clickloop.manifest import MANIFEST, parse

_COPY = re.compile(r"([a-z0-9][a-z0-9_.-]*)-[0-9a-f]{16}")
_STAGING = re.compile(r"\.[a-z0-9][a-z0-9_.-]*-[a-z0-9_]{8}")


def folder_name(version: str, digest: str) -> str:
    return f"{version}-{digest[:16]}"


def own_folder(cache: Path) -> None:
    """Make a folder that is this user's alone. Raises ArtifactError where another user made it, or it is none.

    Whoever may write there could exchange weights between their check and their use.
    """
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        if cache.lstat().st_uid == os.getuid() and not cache.is_symlink():
            cache.chmod(0o700)
            return
    except OSError as error:
        raise ArtifactError(f"{cache} can't hold copies of versions: {error.strerror or error}") from None
    raise ArtifactError(f"{cache} was made by another user, so no version is loaded from it; set TMPDIR")


@contextmanager
def scratch_folder(cache: Path, name: str) -> Iterator[Path]:
    """A folder for unfinished work. What a killed process leaves of it goes with ``remove_others``."""
    folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_others(cache: Path, versions: Collection[str], *, before: datetime) -> None:
    """Remove the copies that none of ``versions`` is, or is made of, and what was left unfinished ``before``.

    What can't be removed now is removed next time.
    """
    try:
        folders = [path for path in cache.iterdir() if path.is_dir()]
        copies = {path: match[1] for path in folders if (match := _COPY.fullmatch(path.name))}
        needed = _needed(copies, versions)
        gone = [path for path, version in copies.items() if version not in needed]
        gone += [path for path in folders if _STAGING.fullmatch(path.name) and _touched(path) < before]
        for path in gone:
            shutil.rmtree(path)
    except OSError as error:
        logger().warning("local copies of versions not removed", reason=str(error))
    else:
        if gone:
            logger().info("local copies of versions removed", names=sorted(path.name for path in gone))


def _needed(copies: Mapping[Path, str], versions: Collection[str]) -> set[str]:
    """The versions, what they are made of, and what that is made of."""
    needed: set[str] = set()
    found = set(versions)
    while found:
        needed |= found
        parts = (_made_of(path, version) for path, version in copies.items() if version in found)
        found = set[str]().union(*parts) - needed
    return needed


def _made_of(copy: Path, version: str) -> set[str]:
    try:
        manifest = parse((copy / MANIFEST).read_bytes(), version)
    except (OSError, ArtifactError):
        return set()
    return {manifest.encoder, manifest.space, *(file.of for file in manifest.shared.values())}


def _touched(folder: Path) -> datetime:
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))), UTC)
