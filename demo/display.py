"""What the demo shows while it runs: live rows on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 10.0
"""How often a plain display repeats its counters."""


@dataclass(frozen=True)
class Row:
    """One counter of the picture: a name, how far it is, and a word about it."""

    name: str
    done: float = 0.0
    total: float | None = None
    detail: str = ""


Rows = Callable[[], list[Row]]


class Display(Protocol):
    """``rows`` is asked for the counters whenever the picture is drawn."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, subject: str, text: str) -> None:
        """Something happened."""

    def tick(self) -> None:
        """Redraw, or repeat, if it is time."""


class PlainDisplay:
    """Lines with the seconds since the start, for CI, pipes and log files."""

    def __init__(self, stream: TextIO, rows: Rows) -> None:
        self._stream = stream
        self._rows = rows
        self._start = time.monotonic()
        self._repeated = self._start
        self._last: list[str] = []

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def say(self, subject: str, text: str) -> None:
        elapsed = time.monotonic() - self._start
        print(f"[{elapsed:6.1f} s] {subject:<10} {text}", file=self._stream, flush=True)

    def tick(self) -> None:
        if time.monotonic() - self._repeated < PLAIN_SECONDS:
            return
        self._repeated = time.monotonic()
        lines = [f"{row.name} {_amount(row)}" for row in self._rows() if row.done or row.total]
        if lines and lines != self._last:
            self.say("progress", ", ".join(lines))
            self._last = lines


class LiveDisplay:
    """The counters as bars that grow, under the latest lines."""

    def __init__(self, console: Console, rows: Rows) -> None:
        self._console = console
        self._rows = rows
        self._start = time.monotonic()
        self._live = Live(console=console, refresh_per_second=5, transient=False, get_renderable=self._picture)

    def __enter__(self) -> LiveDisplay:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def say(self, subject: str, text: str) -> None:
        elapsed = time.monotonic() - self._start
        line = Text.assemble((f"{elapsed:6.1f} s  ", "dim"), (f"{subject:<10} ", "bold cyan"), text)
        self._live.console.print(line)

    def tick(self) -> None:
        """The picture redraws itself."""

    def _picture(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for row in self._rows():
            total = row.total or max(row.done, 1.0)
            bar = ProgressBar(total=total, completed=min(row.done, total), width=24)
            table.add_row(Text(row.name, style="bold"), bar, Text(_amount(row)))
        return Group(Text(""), table)


def _amount(row: Row) -> str:
    count = f"{row.done:,.0f}" + (f" of {row.total:,.0f}" if row.total else "")
    return f"{count} ({row.detail})" if row.detail else count


def make_display(stream: TextIO, rows: Rows) -> Display:
    if stream.isatty():
        return LiveDisplay(Console(file=stream), rows)
    return PlainDisplay(stream, rows)
