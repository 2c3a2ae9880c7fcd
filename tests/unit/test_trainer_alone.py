"""Where the lock of ``work_dir`` can't be had, and where another trainer has it."""

from __future__ import annotations

import asyncio
import errno
import fcntl
from pathlib import Path

import pytest

from clickloop.errors import SettingsError
from trainer.alone import alone


async def test_a_file_system_without_locks_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(SettingsError, match="can't be locked: No locks available"):
        async with alone(tmp_path, "products", asyncio.Event()):
            pass


async def test_the_next_one_waits_until_the_first_has_ended_and_another_indexs_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.alone.LOOK_SECONDS", 0.01)
    stop, order = asyncio.Event(), list[str]()

    async def second() -> None:
        async with alone(tmp_path, "products", stop) as free:
            order.append(f"second {free}")

    async with alone(tmp_path, "products", stop) as free:
        assert free
        waiting = asyncio.create_task(second())
        async with alone(tmp_path, "news", stop) as other:
            assert other
        await asyncio.sleep(0.05)
        order.append("first ends")
    await waiting
    assert order == ["first ends", "second True"]


async def test_who_is_stopped_while_it_stands_by_is_not_free(tmp_path: Path) -> None:
    first, stop = asyncio.Event(), asyncio.Event()
    stop.set()
    async with alone(tmp_path, "products", first), alone(tmp_path, "products", stop) as free:
        assert not free
