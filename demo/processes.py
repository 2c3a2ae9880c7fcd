"""Child processes that are ready when they say so, explain themselves when they fail, and never outlive us."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from clickloop.errors import StackError

STOP_SECONDS = 10.0
TAIL_LINES = 15
_PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def end_with_parent() -> None:
    """In the child: have the kernel end it when the demo dies, even by SIGKILL. Linux only; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """One child in a process group of its own, with its output in one log file."""

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self._env = dict(env or {})
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises StackError where the program can't be run at all."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            try:
                # The call is made from the main thread, which the parent-death signal is tied to.
                self._child = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | self._env,
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
            except OSError as error:
                raise StackError(f"{self.name} can't be started: {error}") from None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def check(self) -> None:
        """Raises StackError, with the log's tail, if the process has ended."""
        if self._child is not None and self._child.poll() is not None:
            raise StackError(f"{self.name} ended with exit code {self._child.returncode}\n{self.tail()}")

    async def ready(self, probe: Callable[[], Awaitable[bool]], *, seconds: float) -> None:
        """Wait until ``probe`` says yes. Raises StackError at the deadline or if the process ends first."""
        deadline = time.monotonic() + seconds
        while True:
            self.check()
            if await probe():
                return
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} is not ready after {seconds:.0f} s\n{self.tail()}")
            await asyncio.sleep(0.1)

    def tail(self) -> str:
        """The end of the log, for a person."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        except OSError:
            lines = []
        shown = "\n".join(f"    {line}" for line in lines) or "    (empty)"
        return f"  last lines of {self.log}:\n{shown}"

    def terminate(self) -> None:
        """Ask the whole group to end; ``wait_ended`` makes sure of it."""
        if self.running:
            self._signal(signal.SIGTERM)

    def wait_ended(self, *, deadline: float) -> None:
        """Wait until ``deadline`` (monotonic seconds), then end the group for good."""
        if self._child is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=max(0.05, deadline - time.monotonic()))
        self._signal(signal.SIGKILL)
        self._child.wait()

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self._signal(signal.SIGKILL)
        if self._child is not None:
            self._child.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)


class ProcessGroup:
    """All children of one run; leaving the block ends every one, in the reverse order of their start."""

    def __init__(self) -> None:
        self._all: list[Process] = []

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, process: Process) -> Process:
        self._all.append(process)
        process.start()
        return process

    def check(self) -> None:
        for process in self._all:
            process.check()

    def stop(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        for process in reversed(self._all):
            process.terminate()
        for process in reversed(self._all):
            process.wait_ended(deadline=deadline)
        self._all.clear()


async def port_open(port: int, host: str = "127.0.0.1") -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), timeout=1.0)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
