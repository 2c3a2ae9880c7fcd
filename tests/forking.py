"""Starts the trainer as often as a test likes without importing torch each time.

``python -m tests.forking`` imports what the trainer imports, and then forks a trainer for each line that it reads.
Each is a process of its own with nothing done yet, to be killed like any other.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo.processes import Process, end_with_parent

ROOT = Path(__file__).parents[1]


class _Child:
    """What ``Process`` needs of a Popen, of a process that another one has forked and waits for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and not Path(f"/proc/{self.pid}").exists():
            self.returncode = -1
        return self.returncode

    def wait(self, timeout: float = 30.0) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("trainer", timeout)
            time.sleep(0.01)
        return -1


class ForkedTrainer(Process):
    def __init__(self, server: subprocess.Popen[str], *, log: Path, env: Mapping[str, str]) -> None:
        super().__init__("trainer", ["trainer"], log=log, env=env)
        self._server = server

    def start(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps({"log": str(self.log), "env": self._env}), file=self._server.stdin, flush=True)
        child: Any = _Child(int(self._server.stdout.readline()))
        self._child = child


@contextmanager
def trainer_forks() -> Iterator[subprocess.Popen[str]]:
    """The process that forks; its children end with it."""
    command = [sys.executable, "-m", "tests.forking"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        yield server


def main() -> None:
    import trainer.service  # noqa: F401 - for the children

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    for line in sys.stdin:
        wish = json.loads(line)
        pid = os.fork()
        if not pid:
            _become_trainer(Path(wish["log"]), wish["env"])
        print(pid, flush=True)


def _become_trainer(log: Path, env: Mapping[str, str]) -> None:
    os.setsid()
    end_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source.fileno(), target)
    os.environ.update(env)
    sys.argv = ["trainer"]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
