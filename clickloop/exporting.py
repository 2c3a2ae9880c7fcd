"""Training data out of the log, for other trainers: pairs, triplets, preferences.

The log holds every revision of an example, in no order that helps. So both topics go into a temporary SQLite file
first, where the highest revision stays, and what is asked for is read from there: memory stays small.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from clickloop import codec, topics
from clickloop.documents import document_text
from clickloop.errors import MessageError
from clickloop.events import DocumentChanged, ExampleFormed
from clickloop.kafka import Follower, Record
from clickloop.sources import Sources

Shape = Literal["pairs", "triplets", "preferences"]
Columns = list[tuple[str, type]]

_IDS: Columns = [("weight", float), ("query_id", str)]
COLUMNS: dict[Shape, Columns] = {
    "pairs": [("query", str), ("document", str), ("label", int), *_IDS, ("doc_id", str), ("origin", str)],
    "triplets": [
        *[("query", str), ("positive", str), ("negative", str), *_IDS],
        *[("positive_id", str), ("negative_id", str), ("origin", str)],
    ],
    # TRL's explicit-prompt preference format; its trainers leave further columns alone.
    "preferences": [
        *[("prompt", str), ("chosen", str), ("rejected", str), *_IDS],
        *[("chosen_id", str), ("rejected_id", str), ("origin", str)],
    ],
}

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE documents (doc_id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID;
CREATE TABLE examples (
    example_id TEXT PRIMARY KEY, revision INT, query_id TEXT, query TEXT, doc_id TEXT, label TEXT, weight REAL,
    served_at REAL, origin TEXT, negatives TEXT, worse TEXT
);
CREATE INDEX of_query ON examples (query_id, doc_id);
"""
_ADD = """
INSERT INTO examples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (example_id) DO UPDATE SET
    (revision, query_id, query, doc_id, label, weight, served_at, origin, negatives, worse)
    = (excluded.revision, excluded.query_id, excluded.query, excluded.doc_id, excluded.label, excluded.weight,
       excluded.served_at, excluded.origin, excluded.negatives, excluded.worse)
WHERE excluded.revision > examples.revision
"""
_SERVED = "weight > 0 AND served_at >= :since AND served_at < :until"
_WANTED = f"{_SERVED} AND weight >= :least"
_COUNT = f"SELECT count(*) FROM examples WHERE {_WANTED}"  # noqa: S608 - nothing in it comes from outside
_GONE = f"{_COUNT} AND doc_id NOT IN (SELECT doc_id FROM documents)"  # noqa: S608 - nor in it
_PAIRS = f"""
SELECT e.query, d.text, e.label = 'positive', e.weight, e.query_id, e.doc_id, e.origin
FROM examples e JOIN documents d USING (doc_id) WHERE {_WANTED} ORDER BY e.served_at, e.example_id
"""  # noqa: S608 - nothing in it comes from outside
# What was named as worse, and weighs what that says. Then what was passed over, and what was rated low for the
# same query; not what is a positive of it as well.
_COMPARED = f"""
WITH wanted AS (SELECT * FROM examples WHERE {_WANTED}),
implied AS (
    SELECT e.example_id, e.query_id, n.value AS doc_id, e.weight FROM wanted e, json_each(e.negatives) n
    WHERE e.label = 'positive' AND NOT EXISTS (SELECT 1 FROM json_each(e.worse) w WHERE w.key = n.value)
    UNION
    SELECT e.example_id, e.query_id, x.doc_id, e.weight FROM wanted e JOIN wanted x USING (query_id)
    WHERE e.label = 'positive' AND x.label = 'negative' AND x.doc_id <> e.doc_id
    AND NOT EXISTS (SELECT 1 FROM json_each(e.worse) w WHERE w.key = x.doc_id AND w.value > 0)
),
compared AS (
    SELECT e.example_id, w.key AS doc_id, w.value AS weight FROM examples e, json_each(e.worse) w
    WHERE {_SERVED} AND w.value > 0 AND w.value >= :least
    UNION ALL
    SELECT i.example_id, i.doc_id, i.weight FROM implied i WHERE NOT EXISTS (
        SELECT 1 FROM wanted o WHERE o.query_id = i.query_id AND o.doc_id = i.doc_id AND o.label = 'positive'
    )
)
SELECT e.query, good.text, bad.text, c.weight, e.query_id, good.doc_id, bad.doc_id, e.origin
FROM compared c
JOIN examples e USING (example_id)
JOIN documents good ON good.doc_id = e.doc_id
JOIN documents bad ON bad.doc_id = c.doc_id
ORDER BY e.served_at, e.example_id, bad.doc_id
"""  # noqa: S608 - nothing in it comes from outside


@dataclass(frozen=True)
class Filter:
    """Which examples are wanted: served in ``[since, until)``, of this weight at least. None weighs nothing."""

    since: datetime | None = None
    until: datetime | None = None
    min_weight: float = 0.0

    def parameters(self) -> dict[str, float]:
        return {
            "since": self.since.timestamp() if self.since else float("-inf"),
            "until": self.until.timestamp() if self.until else float("inf"),
            "least": self.min_weight,
        }


class Collected:
    """The last revision of each example, and the documents as they are now."""

    def __init__(self, database: sqlite3.Connection, index: str, sources: Sources) -> None:
        self._database = database
        self._index = index
        self._sources = sources
        self.unreadable: list[str] = []
        """The first of them, by place and reason."""
        database.executescript(_TABLES)

    def add(self, topic: topics.Topic, record: Record) -> None:
        try:
            if topic is topics.DOCUMENTS:
                self._document(record)
            else:
                self._example(codec.decode(record.value, ExampleFormed))
        except (MessageError, OverflowError) as error:
            # JSON has larger integers than SQLite.
            if len(self.unreadable) < 1000:
                self.unreadable.append(f"{record.topic}/{record.partition} offset {record.offset}: {error}")

    def _document(self, record: Record) -> None:
        if record.value is None:
            self._remove((record.key or b"").decode(errors="replace"))
            return
        change: DocumentChanged = self._sources.read(
            record.value, record.headers, topics.DOCUMENTS, logged=codec.now().timestamp()
        )
        if change.index != self._index:
            return
        if change.deleted:
            self._remove(change.doc_id)
            return
        text = document_text(change.title, change.text)
        self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?)", (change.doc_id, text))

    def _remove(self, doc_id: str) -> None:
        self._database.execute("DELETE FROM documents WHERE doc_id = ?", (doc_id,))

    def _example(self, e: ExampleFormed) -> None:
        if e.index == self._index:
            negatives, worse = (msgspec.json.encode(told).decode() for told in (e.negatives, e.worse))
            row = (e.example_id, e.revision, e.query_id, e.query, e.doc_id, e.label, e.weight)
            self._database.execute(_ADD, (*row, e.served_at.timestamp(), e.origin, negatives, worse))

    def counts(self, wanted: Filter) -> tuple[int, int]:
        """Examples that are wanted, and those of them whose document is not there."""
        return self._count(_COUNT, wanted), self._count(_GONE, wanted)

    def rows(self, shape: Shape, wanted: Filter) -> Iterator[dict[str, Any]]:
        """Oldest impression first, with the columns of COLUMNS."""
        names = [name for name, _ in COLUMNS[shape]]
        query = _PAIRS if shape == "pairs" else _COMPARED
        for row in self._database.execute(query, wanted.parameters()):
            yield dict(zip(names, row, strict=True))

    def _count(self, query: str, wanted: Filter) -> int:
        (count,) = self._database.execute(query, wanted.parameters()).fetchone()
        return int(count)


@contextmanager
def collected(index: str, sources: Sources) -> Iterator[Collected]:
    """An empty collection in a temporary file, which goes in the end."""
    with tempfile.TemporaryDirectory(prefix="clickloop-export-") as folder:
        database = sqlite3.connect(Path(folder) / "examples.sqlite", isolation_level=None)
        try:
            yield Collected(database, index, sources)
        finally:
            database.close()


async def read_topics(bootstrap_servers: str, *, prefix: str, into: Collected) -> None:
    """Everything that the topics hold now. Raises BrokerError."""
    wanted = [topics.TRAINING_EXAMPLES, topics.DOCUMENTS]
    async with Follower(bootstrap_servers, wanted, prefix=prefix) as follower:
        async for topic, record in follower.held(max_records=5000):
            into.add(topic, record)
