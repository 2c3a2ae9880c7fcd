"""One service, several processes, since Python's use one core each: they end together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable

STOP_SECONDS = 15.0
"""For all to end once they are asked to, or one of them has ended; then they are killed."""

Work = Callable[[int, int], int]
"""Is told its number and a file descriptor that ends (reads as empty) when it is to stop; returns an exit code."""


def together(name: str, count: int, work: Work) -> int:
    """Run ``work`` in ``count`` forked processes until SIGTERM, SIGINT, or the end of one. Returns an exit code.

    That is 0 where they were asked to stop and did, else that of the first which ended otherwise; one that was
    killed by signal N counts as 128 + N. When this process is killed they stop as well, without any signal.
    Call it before threads are started; what is in memory is shared.
    """
    lifeline, held = os.pipe()
    alive: dict[int, int] = {}
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            os.close(held)
            os._exit(_ended(work, number, lifeline))
        alive[pid] = number
    os.close(lifeline)
    return _Crew(name, alive, held).wait()


def stop_at_end_of(lifeline: int, stop: asyncio.Event) -> None:
    """Set ``stop`` once ``lifeline`` ends. Call it in the running loop."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(lifeline)
        stop.set()

    loop.add_reader(lifeline, ended)


def _ended(work: Work, number: int, lifeline: int) -> int:
    """The exit code of this process's work, whatever comes of it."""
    try:
        return work(number, lifeline)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - the outermost edge of a process: told, and it ends
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()


class _Crew:
    """The processes that are still there, and how they are ended."""

    def __init__(self, name: str, alive: dict[int, int], held: int) -> None:
        self._name = name
        self._alive = alive
        self._count = len(alive)
        self._held: int | None = held
        self._asked = False

    def wait(self) -> int:
        before = {one: signal.signal(one, self._on_signal) for one in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        first = 0
        try:
            while self._alive:
                pid, status = os.wait()
                number, code = self._alive.pop(pid, None), os.waitstatus_to_exitcode(status)
                if number is None:
                    continue
                code = 128 - code if code < 0 else code
                if self._held is not None:
                    code = code or 1
                    which = f"process {number + 1} of {self._count}"
                    said = f"clickloop {self._name}: {which} ended with exit code {code}; the others stop as well"
                    print(said, file=sys.stderr, flush=True)
                    self._let_go()
                first = first or code
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            for one, handler in before.items():
                signal.signal(one, handler)
        return first

    def _let_go(self) -> None:
        """Ask all to stop."""
        if self._held is not None:
            os.close(self._held)
            self._held = None
            signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS)

    def _on_signal(self, *_: object) -> None:
        if self._asked:
            self._on_alarm()
        self._asked = True
        self._let_go()

    def _on_alarm(self, *_: object) -> None:
        for pid in self._alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
