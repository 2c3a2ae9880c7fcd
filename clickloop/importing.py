"""History from files, by the same path as live events: read, validated, sent under its key, in its order.

The events keep their own times, by which the join works; the records get the broker's, by which retention works.
"""

from __future__ import annotations

import base64
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from clickloop import topics
from clickloop.errors import MessageError, SettingsError
from clickloop.events import Message
from clickloop.files import Row, rows
from clickloop.kafka import Producer
from clickloop.sources import Sources, time_of, topic_of

AT_ONCE = 2000
"""Messages that may wait for the broker's acknowledgement."""
_START = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Read:
    """A row, and the message in it or the reason why there is none; neither where it carries no feedback."""

    row: Row
    message: Message | None
    reason: str
    at: datetime
    """The event's time; of a row without, that of the one before."""


@dataclass
class Report:
    """What became of the rows."""

    sent: Counter[str] = field(default_factory=Counter)
    """By topic."""
    ignored: int = 0
    """Events of actions that carry no feedback."""
    rejected: int = 0

    @property
    def rows(self) -> int:
        return self.sent.total() + self.ignored + self.rejected

    def line(self, *, dry_run: bool = False) -> str:
        """
        >>> Report(Counter(queries=1200, clicks=34), rejected=2).line()
        '1,236 rows: 1,200 queries, 34 clicks sent; 2 rejected'
        >>> Report(Counter(clicks=34), ignored=1000).line()
        '1,034 rows: 34 clicks sent; 1,000 ignored; 0 rejected'
        """
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in self.sent.items()) or "nothing"
        done = "would be sent" if dry_run else "sent"
        ignored = f"; {self.ignored:,} ignored" if self.ignored else ""
        return f"{self.rows:,} rows: {counts} {done}{ignored}; {self.rejected:,} rejected"


def read_files(
    paths: Iterable[Path], sources: Sources, topic: topics.Topic | None, *, now: datetime
) -> Iterator[Read]:
    """The rows of all files, merged by their events' times; each file keeps its own order.

    ``now`` is the time of documents that have none. Raises SettingsError where a file can't be read.
    """
    return heapq.merge(*(_read(path, sources, topic, now) for path in paths), key=lambda read: read.at)


def _read(path: Path, sources: Sources, topic: topics.Topic | None, now: datetime) -> Iterator[Read]:
    at = _START
    for row in rows(path):
        message, reason = None, row.reason
        if row.value is not None:
            try:
                message = sources.read_row(row.value, topic, now=now)
                at = at if message is None else time_of(message)
            except MessageError as error:
                reason = str(error)
        yield Read(row, message, reason, at)


async def send(
    found: Iterable[Read],
    producer: Producer | None,
    *,
    reject: Callable[[Read], None],
    progress: Callable[[Report], None],
) -> Report:
    """Send what is valid, in order, and hand the rest to ``reject``. Without a producer, only count.

    Raises BrokerError; what was sent by then may be sent again.
    """
    report = Report()
    waiting: list[tuple[topics.Topic, Message]] = []
    for read in found:
        if read.message is not None:
            topic = topic_of(read.message)
            report.sent[topic.suffix] += 1
            waiting.append((topic, read.message))
        elif read.reason:
            report.rejected += 1
            reject(read)
        else:
            report.ignored += 1
        if len(waiting) >= AT_ONCE:
            await _flush(producer, waiting)
        progress(report)
    await _flush(producer, waiting)
    return report


async def _flush(producer: Producer | None, waiting: list[tuple[topics.Topic, Message]]) -> None:
    if producer is not None:
        await producer.send_all(waiting)
    waiting.clear()


def check_apart(option: str, written: Path, files: Iterable[Path]) -> None:
    """Raises SettingsError where what ``option`` names would be written over a file that is to be read."""
    for path in files:
        if _is_same(written, path):
            raise SettingsError(f"{option} {written} is a file to read, too: name another one")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there yet
        return one.absolute() == other.absolute()


class Rejects:
    """Tells the first rejected rows, and keeps all of them in a file where one is given.

    A line of it holds ``at`` (file and line), ``reason``, and ``row``, or ``row_base64`` where the row is no text.
    What an earlier run left in the file goes with the first rejected row.
    """

    SHOWN = 20

    def __init__(self, path: Path | None, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._stream: IO[bytes] | None = None
        self._count = 0

    def __enter__(self) -> Rejects:
        if self._path is not None:
            with self._written():
                self._stream = self._path.open("ab")
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            with self._written():
                self._stream.close()
        if self._count > self.SHOWN:
            where = f"all are in {self._path}" if self._path else "--rejected FILE keeps all of them"
            self._say(f"... and {self._count - self.SHOWN:,} more rejected rows; {where}")

    def __call__(self, read: Read) -> None:
        self._count += 1
        if self._count <= self.SHOWN:
            self._say(f"{read.row.place}: {read.reason}")
        if self._stream is not None:
            content: dict[str, Any] = {"at": read.row.place, "reason": read.reason}
            try:
                content["row"] = read.row.original.decode()
            except UnicodeDecodeError:
                content["row_base64"] = base64.b64encode(read.row.original).decode()
            with self._written():
                if self._count == 1 and self._path is not None and self._path.is_file():
                    self._stream.truncate(0)
                self._stream.write(msgspec.json.encode(content) + b"\n")

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SettingsError(f"{self._path} can't be written: {error.strerror}") from None
