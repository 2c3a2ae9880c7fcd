"""Recorded traffic from files: documents, judged queries, and events in the order of their own times.

A log is rarely in that order, and may be larger than memory: what is beyond AT_ONCE events is sorted in parts,
which wait in unnamed files and are merged.
"""

from __future__ import annotations

import heapq
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from clickloop import codec, topics
from clickloop.errors import MessageError, SettingsError
from clickloop.events import (
    DocumentChanged,
    Estimate,
    ExampleFormed,
    GateResult,
    QueryServed,
    ResultClicked,
    ResultPreferred,
    ResultRated,
    Text,
    Verdict,
    VersionKind,
)
from clickloop.files import rows
from clickloop.importing import Read, read_files
from clickloop.settings import Settings, load_mappings
from clickloop.sources import Sources, time_of, topic_of
from clickloop.sources.values import identity

AT_ONCE = 100_000
"""Events that are sorted in memory, some 100 MB."""
UNNAMED = "unnamed"
"""Index of the events that name none, while they are read."""
SHOWN_ROWS = 10
"""Rows that can't be used are told one by one up to here, and counted beyond."""
KINDS = (QueryServed, ResultClicked, ResultRated, ResultPreferred)

Event = QueryServed | ResultClicked | ResultRated | ResultPreferred
Unusable = Callable[[str, str], None]
"""Told the place and the reason of each row that can't be used."""
Say = Callable[[str], None]


MOST_GRADE = 1e9
GRADES = f"a grade is above 0, and at most {MOST_GRADE:,.0f}"
"""Sums of larger ones would be no numbers."""


class Judged(msgspec.Struct, frozen=True):
    """A query with what it should find, by grade: the truth that clicks only hint at."""

    query: Text
    relevant: dict[str, float]
    slice: str | None = None


class SliceTruth(msgspec.Struct, frozen=True):
    queries: int
    metrics: dict[str, Estimate]


class RungResult(msgspec.Struct, frozen=True):
    """What became of one rung. ``gate`` is None, and ``version`` empty, where there was too little to train on."""

    kind: VersionKind
    verdict: Verdict
    reasons: list[str]
    version: str
    parent: str
    train_seconds: float
    gate: GateResult | None
    truth: dict[str, Estimate] = {}
    """On the judged queries, against the version that the replay started from; empty without any."""
    over_parent: dict[str, Estimate] = {}
    """The same against its parent."""
    slices: dict[str, SliceTruth] = {}
    """``truth`` by the queries' slices."""


class Climbed(msgspec.Struct, frozen=True):
    rungs: list[RungResult]
    start: str
    """The version that the replay started from."""
    live: str
    """The version that would be live now: of the last rung that passed, else ``start``."""
    examples: int
    """That weigh anything, in their last revision."""
    quarantined: int
    """That weigh nothing."""
    dropped: int = 0
    """The oldest ones, for which there was no room; in none of the other counts."""
    judged: int = 0
    """Judged queries that were measured."""


class Events:
    """Events as they are put in, to be had again by time. ``folder`` has room for those beyond ``at_once``."""

    def __init__(self, folder: Path, *, at_once: int = AT_ONCE) -> None:
        self._folder = folder
        self._at_once = at_once
        self._parts: list[IO[bytes]] = []
        self._waiting: list[Event] = []
        self.of_index: Counter[str] = Counter()
        self.ignored = 0
        """Events of actions that carry no feedback, which are not among these."""

    def add(self, event: Event) -> None:
        """Raises OSError where the folder has no room."""
        self.of_index[event.index] += 1
        self._waiting.append(event)
        if len(self._waiting) >= self._at_once:
            part = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it goes with this object
            for one in sorted(self._waiting, key=_order):
                part.write(codec.encode(one) + b"\n")
            self._parts.append(part)
            self._waiting = []

    def ordered(self, index: str) -> Iterator[Event]:
        """The events of one index and those that name none, oldest first; of one time, queries first."""
        waiting = iter(sorted(self._waiting, key=_order))
        for event in heapq.merge(*map(_read_part, self._parts), waiting, key=_order):
            if event.index in (index, UNNAMED):
                yield event

    def the_index(self) -> str:
        """The one index that the events are of; "" where they name none. Raises SettingsError."""
        named = sorted(set(self.of_index) - {UNNAMED})
        if len(named) > 1:
            raise SettingsError(f"the events are of the indexes {', '.join(named[:5])}: choose one by --index")
        return named[0] if named else ""


def _order(event: Event) -> tuple[datetime, bool, str]:
    """The same whatever order a file has."""
    return time_of(event), not isinstance(event, QueryServed), event.event_id


def _read_part(part: IO[bytes]) -> Iterator[Event]:
    part.seek(0)
    for line in part:
        event: Any = codec.decode(line, *KINDS)
        yield event


def read_events(
    path: Path, sources: Sources, folder: Path, *, now: datetime, unusable: Unusable, at_once: int = AT_ONCE
) -> Events:
    """The events of a file. ``sources`` should know them by UNNAMED. Raises SettingsError."""
    events = Events(folder, at_once=at_once)
    for read in read_files([path], sources, None, now=now):
        if isinstance(read.message, KINDS):
            events.add(read.message)
        elif read.message is None and not read.reason:
            events.ignored += 1
        else:
            unusable(read.row.place, _reason(read))
    return events


def _reason(read: Read) -> str:
    return read.reason or f"a {type(read.message).__name__}, which is no query, click or rating"


def read_documents(
    path: Path, sources: Sources, *, now: datetime, unusable: Unusable
) -> dict[str, dict[str, DocumentChanged]]:
    """The file's documents by index and id; of several of one id the last counts. Raises SettingsError."""
    found: defaultdict[str, dict[str, DocumentChanged]] = defaultdict(dict)
    for read in read_files([path], sources, topics.DOCUMENTS, now=now):
        if not isinstance(read.message, DocumentChanged):
            unusable(read.row.place, _reason(read))
        elif read.message.deleted:
            found[read.message.index].pop(read.message.doc_id, None)
        else:
            found[read.message.index][read.message.doc_id] = read.message
    return {index: documents for index, documents in found.items() if documents}


def of_one_index(
    path: Path, found: Mapping[str, dict[str, DocumentChanged]], index: str
) -> dict[str, DocumentChanged]:
    """Those of the index and those that name none. Raises SettingsError where there are none."""
    documents = found.get(UNNAMED, {}) | found.get(index, {})
    if not documents and found:
        raise SettingsError(f"{path}: the documents are of {', '.join(sorted(found)[:5])}, and none of {index}")
    if not documents:
        raise SettingsError(f"{path}: no document that can be read")
    return documents


def read_judged(path: Path, known: Iterable[str], *, unusable: Unusable) -> list[Judged]:
    """The file's queries, with those of their relevant documents that are ``known``. Raises SettingsError."""
    found, there = list[Judged](), set(known)
    for row in rows(path):
        if row.value is None:
            unusable(row.place, row.reason)
            continue
        try:
            judged = judged_of(row.value)
        except SettingsError as error:
            unusable(row.place, str(error))
            continue
        relevant = {doc_id: grade for doc_id, grade in judged.relevant.items() if doc_id in there}
        if judged.query.strip() and relevant:
            found.append(msgspec.structs.replace(judged, relevant=relevant))
        else:
            unusable(row.place, "a query without text, or with no relevant document among the documents")
    return found


def judged_of(value: bytes) -> Judged:
    """The judged query in a row of a file, whatever kind of file that is. Raises SettingsError.

    A grade of 0 or below is a judgement, too, but no document that the query should find: it is left out.
    """
    try:
        row = msgspec.json.decode(value)
        if isinstance(row, dict) and "relevant" in row:
            row["relevant"] = _grades(row["relevant"])
        judged = msgspec.convert(row, Judged, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MessageError) as error:
        raise SettingsError(f"not a judged query: {error}") from None
    for doc_id, grade in judged.relevant.items():
        if not grade <= MOST_GRADE:  # nor is nan a grade
            raise SettingsError(f"{judged.query!r}: document {doc_id!r} with grade {grade:g}; {GRADES}")
    relevant = {doc_id: grade for doc_id, grade in judged.relevant.items() if grade > 0.0}
    return msgspec.structs.replace(judged, relevant=relevant)


def _grades(relevant: Any) -> Any:
    """An object of grades as it is, as pairs (a map in Parquet), or as JSON text, without what has no grade.

    A structure in Parquet has the ids of all rows in each of them. Raises DecodeError and InvalidMessageError.
    """
    if isinstance(relevant, str):
        relevant = msgspec.json.decode(relevant)
    if isinstance(relevant, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in relevant):
        relevant = {identity(doc_id, "a relevant document"): grade for doc_id, grade in relevant}
    if isinstance(relevant, dict):
        return {doc_id: grade for doc_id, grade in relevant.items() if grade is not None}
    return relevant


def counts(events: Iterable[Event], into: Counter[str]) -> Iterator[Event]:
    """The events as they are, counted by topic on their way."""
    for event in events:
        into[topic_of(event).suffix] += 1
        yield event


class Recording:
    """The files of recorded traffic, read one after the other: documents, what is judged, and events last."""

    def __init__(self, work: Path, *, say: Say) -> None:
        """``work`` has room for what is larger than memory. Raises SettingsError where it has none."""
        if "::" in str(work.resolve()):
            raise SettingsError(f"--work {work} can't be used: in a store's URL '::' ends a file system's name")
        try:
            work.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=work):
                pass
        except OSError as error:
            raise SettingsError(f"--work {work} can't be used: {error.strerror or error}") from None
        self._work = work
        self._say = say
        self._now = codec.now()
        self._sources = Sources(UNNAMED, load_mappings())
        self.unreadable = 0
        self.index = ""
        self._of_documents = ""
        """The index that they name, if they do."""
        self.read = Counter[str]()
        """Events by topic."""
        self.fates = Counter[str]()
        """What became of the feedback, by the join's and the trust rules' words."""

    def documents(self, path: Path, *, index: str) -> dict[str, DocumentChanged]:
        """Those of the ``index``; where that is empty, of the one that they name. Raises SettingsError."""
        found = read_documents(path, self._sources, now=self._now, unusable=self._unusable)
        named = sorted(found.keys() - {UNNAMED})
        if not index and len(named) > 1:
            raise SettingsError(
                f"{path}: the documents are of the indexes {', '.join(named[:5])}: choose one by --index"
            )
        index = index or "".join(named)
        documents = of_one_index(path, found, index)
        if others := sum(map(len, found.values())) - len(documents):
            self._say(f"{path}: {others:,} documents of other indexes left out")
        self._of_documents = index if index in found else ""
        return documents

    def judged(self, path: Path, known: Iterable[str]) -> list[Judged]:
        """Raises SettingsError."""
        found = read_judged(path, known, unusable=self._unusable)
        if not found:
            raise SettingsError(f"{path}: no query with a relevant document among the documents")
        return found

    def examples(
        self, path: Path, *, index: str, form: Callable[..., Iterable[ExampleFormed]]
    ) -> Iterable[ExampleFormed]:
        """What the stream rules (``form``) make of the events; to be gone through once. Raises SettingsError."""
        try:
            events = read_events(path, self._sources, self._work, now=self._now, unusable=self._unusable)
        except OSError as error:
            raise SettingsError(
                f"--work {self._work} has no room for sorting: {error.strerror or error}"
            ) from None
        if not events.of_index:
            raise SettingsError(f"{path}: no query, click or rating that can be read")
        if self.unreadable > SHOWN_ROWS:
            self._say(f"... and {self.unreadable - SHOWN_ROWS:,} more rows that can't be used")
        if events.ignored:
            self.fates["ignored"] = events.ignored
        self.index = _index(index, events, self._of_documents)
        return form(counts(events.ordered(self.index), self.read), index=self.index, counts=self.fates)

    def _unusable(self, place: str, reason: str) -> None:
        self.unreadable += 1
        if self.unreadable <= SHOWN_ROWS:
            self._say(f"{place}: {reason}")


def _index(asked: str, events: Events, of_documents: str) -> str:
    """The asked one, else the one that events or documents name, else the settings'. Raises SettingsError."""
    index = Settings.load(index=asked or events.the_index() or of_documents or None).index
    if of_documents not in ("", index):
        raise SettingsError(f"the events are of {index}, and the documents of {of_documents}")
    if not events.of_index[index] and not events.of_index[UNNAMED]:
        raise SettingsError(f"--index {index}: the events are of {', '.join(sorted(events.of_index))}")
    return index
