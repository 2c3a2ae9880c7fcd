"""One trainer of an index at a time in a ``work_dir``: another one would remove what the first is making there."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TextIO

from clickloop.errors import SettingsError
from clickloop.logs import logger

LOOK_SECONDS = 1.0
"""After so long does a stand-by look whether the other one has ended."""


@asynccontextmanager
async def alone(work_dir: Path, index: str, stop: asyncio.Event) -> AsyncIterator[bool]:
    """For the block, no other process trains for the index in this folder; while one does, this one stands by.

    Yields False where ``stop`` was set before it was free. Raises SettingsError where the folder can't be used.
    """
    with _lock(work_dir, index) as lock:
        free = _taken(lock, work_dir)
        if not free:
            logger().info("standing by: another trainer of the index works in this folder", work_dir=str(work_dir))
        while not free and not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
            free = _taken(lock, work_dir)
        yield free and not stop.is_set()


def _lock(work_dir: Path, index: str) -> TextIO:
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        return (work_dir / f"{index}.lock").open("a", encoding="ascii")
    except OSError as error:
        raise SettingsError(f"work_dir {work_dir} can't be used: {error.strerror}") from None


def _taken(lock: TextIO, work_dir: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # such as ENOLCK, of a file system that knows no locks
        raise SettingsError(f"work_dir {work_dir} can't be locked: {error.strerror}") from None
    return True
