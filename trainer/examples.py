"""What a run reads from Kafka: the examples of exact offset ranges, and the documents as they are now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

from clickloop import codec, topics
from clickloop.errors import MessageError, TrainingError
from clickloop.events import DocumentChanged, ExampleFormed, ModelVersionPublished, OffsetRange, SplitChanged
from clickloop.kafka import Follower, Record, end_offsets, read_range
from clickloop.retention import candidate_of, live_of
from clickloop.sources import Sources
from clickloop.vector_store import content_digest, document_text

MOST_UNREADABLE = 1000
"""A range with more unreadable messages than this is no training data, but a fault upstream."""
MOST_TEXT = 20_000
"""Characters of a document that are kept: several times what any encoder here reads."""


Unreadable = tuple[Record, MessageError]


@dataclass(frozen=True)
class ReadExamples:
    """The last revision of each example, oldest impression first, and what was left out."""

    examples: list[ExampleFormed]
    unreadable: list[Unreadable] = field(default_factory=list)
    of_other_indexes: int = 0
    dropped: int = 0
    """Oldest examples beyond the memory bound."""
    replayed: Set[str] = frozenset()
    """Ids of those that are older than what was to be read."""


@dataclass(frozen=True)
class Document:
    doc_id: str
    text: str
    """What the encoder reads, cut to MOST_TEXT characters."""
    digest: bytes


def document_of(change: DocumentChanged) -> Document:
    text = document_text(change.title, change.text)[:MOST_TEXT]
    return Document(change.doc_id, text, content_digest(change.title, change.text))


class ExampleCollector:
    """Takes records in the order of the log and keeps each example's highest revision, within a bound.

    ``forgotten`` holds the split keys of users who asked for that: their examples are left out.
    """

    def __init__(self, *, index: str, most: int, forgotten: Set[str] = frozenset()) -> None:
        self._index = index
        self._most = most
        self._forgotten = forgotten
        self._examples: dict[str, ExampleFormed] = {}
        self._others = 0
        self._dropped = 0
        self.unreadable: list[Unreadable] = []

    def add(self, record: Record) -> None:
        """Raises TrainingError where nearly everything is unreadable."""
        try:
            example = codec.decode(record.value, ExampleFormed)
        except MessageError as error:
            self.unreadable.append((record, error))
            if len(self.unreadable) > MOST_UNREADABLE:
                raise TrainingError(
                    f"more than {MOST_UNREADABLE} messages of {record.topic} can't be read: {error}"
                ) from None
            return
        self.keep(example)

    def keep(self, example: ExampleFormed) -> None:
        if example.index != self._index:
            self._others += 1
            return
        if example.split_key and example.split_key in self._forgotten:
            return
        known = self._examples.get(example.example_id)
        if known is None or example.revision > known.revision:
            self._examples[example.example_id] = example
        if len(self._examples) > 2 * self._most:
            self._shrink()

    def result(self) -> ReadExamples:
        self._shrink()
        ordered = sorted(self._examples.values(), key=lambda e: (e.served_at, e.example_id))
        return ReadExamples(ordered, self.unreadable, self._others, self._dropped)

    def _shrink(self) -> None:
        surplus = len(self._examples) - self._most
        if surplus <= 0:
            return
        oldest = sorted(self._examples.values(), key=lambda e: (e.served_at, e.example_id))[:surplus]
        for example in oldest:
            del self._examples[example.example_id]
        self._dropped += surplus


class Reservoir:
    """A sample of at most ``most`` examples in their last revision: those whose ids have the smallest hash.

    So it is the same whatever was read before it, and an example that is in it once stays as long as the sample
    doesn't shrink.
    """

    def __init__(self, *, index: str, most: int, forgotten: Set[str] = frozenset()) -> None:
        self._index = index
        self._most = most
        self._forgotten = forgotten
        self._examples: dict[str, tuple[bytes, ExampleFormed]] = {}
        self._limit = b"\xff" * 9

    def add(self, record: Record) -> None:
        """What can't be read was quarantined when it was new."""
        with suppress(MessageError):
            self.keep(codec.decode(record.value, ExampleFormed))

    def keep(self, example: ExampleFormed) -> None:
        chance = hashlib.blake2b(example.example_id.encode(), digest_size=8).digest()
        if example.index != self._index or chance > self._limit:
            return
        if example.split_key and example.split_key in self._forgotten:
            return
        known = self._examples.get(example.example_id)
        if known is None or example.revision > known[1].revision:
            self._examples[example.example_id] = (chance, example)
        if len(self._examples) > 2 * self._most:
            self._shrink()

    def result(self) -> list[ExampleFormed]:
        """Oldest impression first."""
        self._shrink()
        return sorted((e for _, e in self._examples.values()), key=lambda e: (e.served_at, e.example_id))

    def _shrink(self) -> None:
        kept = sorted(self._examples.values(), key=lambda found: found[0])[: self._most]
        if len(kept) == self._most and kept:
            self._limit = kept[-1][0]
        self._examples = {example.example_id: (chance, example) for chance, example in kept}


def with_replayed(new: ReadExamples, old: Sequence[ExampleFormed]) -> ReadExamples:
    """Both, each example in its last revision, oldest impression first."""
    known = {example.example_id for example in new.examples}
    added = [example for example in old if example.example_id not in known]
    both = sorted([*added, *new.examples], key=lambda e: (e.served_at, e.example_id))
    return replace(new, examples=both, replayed=frozenset(example.example_id for example in added))


def before(ranges: Iterable[OffsetRange], held: Mapping[int, tuple[int, int]]) -> list[OffsetRange]:
    """What each of the ranges' partitions holds before the first of its ranges. ``held``: first and end offset."""
    starts: dict[tuple[str, int], int] = {}
    for r in ranges:
        place = (r.topic, r.partition)
        starts[place] = min(r.start, starts.get(place, r.start))
    return [
        OffsetRange(topic=topic, partition=partition, start=held[partition][0], end=start)
        for (topic, partition), start in sorted(starts.items())
        if partition in held and held[partition][0] < start
    ]


def merged(ranges: Iterable[OffsetRange]) -> list[OffsetRange]:
    """The same offsets with every one named once: overlapping and adjacent ranges become one."""
    out: list[OffsetRange] = []
    for r in sorted(ranges):
        if r.end <= r.start:
            continue
        last = out[-1] if out else None
        if last and (last.topic, last.partition) == (r.topic, r.partition) and r.start <= last.end:
            out[-1] = OffsetRange(
                topic=last.topic, partition=last.partition, start=last.start, end=max(last.end, r.end)
            )
        else:
            out.append(r)
    return out


async def read_examples(
    bootstrap_servers: str,
    ranges: Iterable[OffsetRange],
    *,
    prefix: str,
    index: str,
    most: int,
    forgotten: Set[str] = frozenset(),
) -> ReadExamples:
    """Every example of the ranges, in its last revision, but those of split keys that are to be forgotten.

    Raises TrainingError for ranges of another topic, RangeGoneError where the log no longer holds them, and
    BrokerError.
    """
    expected = topics.TRAINING_EXAMPLES.name(prefix)
    collector = ExampleCollector(index=index, most=most, forgotten=forgotten)
    for wanted in merged(ranges):
        if wanted.topic != expected:
            raise TrainingError(f"the command's range is of topic {wanted.topic}, examples lie in {expected}")
        await read_range(bootstrap_servers, wanted, on_record=collector.add)
    return collector.result()


async def read_before(
    bootstrap_servers: str,
    ranges: Sequence[OffsetRange],
    *,
    prefix: str,
    index: str,
    most: int,
    forgotten: Set[str] = frozenset(),
) -> list[ExampleFormed]:
    """A sample of what the log still holds before the ranges, of none that is to be forgotten."""
    if not most or not ranges:
        return []
    name = topics.TRAINING_EXAMPLES.name(prefix)
    reservoir = Reservoir(index=index, most=most, forgotten=forgotten)
    for earlier in before(ranges, await end_offsets(bootstrap_servers, name)):
        await read_range(bootstrap_servers, earlier, on_record=reservoir.add)
    return reservoir.result()


async def whole_history(
    bootstrap_servers: str, ranges: Sequence[OffsetRange], *, prefix: str
) -> list[OffsetRange]:
    """The ranges, and all that the log still holds before them."""
    name = topics.TRAINING_EXAMPLES.name(prefix)
    return merged([*before(ranges, await end_offsets(bootstrap_servers, name)), *ranges])


async def read_documents(
    bootstrap_servers: str, *, prefix: str, index: str, sources: Sources
) -> tuple[list[Document], list[Unreadable]]:
    """The index's documents as they are now, by id, and the records that could not be read."""
    documents: dict[str, Document] = {}
    unreadable: list[Unreadable] = []
    async with Follower(bootstrap_servers, [topics.DOCUMENTS], prefix=prefix) as follower:
        async for _, record in follower.held():
            if record.value is None:
                documents.pop((record.key or b"").decode(errors="replace"), None)
                continue
            try:
                change: DocumentChanged = sources.read(
                    record.value, record.headers, topics.DOCUMENTS, logged=codec.now().timestamp()
                )
            except MessageError as error:
                unreadable.append((record, error))
                continue
            if change.index != index:
                continue
            if change.deleted:
                documents.pop(change.doc_id, None)
                continue
            documents[change.doc_id] = document_of(change)
    return [documents[name] for name in sorted(documents)], unreadable


async def read_live_version(bootstrap_servers: str, *, prefix: str, index: str) -> str:
    """The version that all traffic goes to by the newest split, or is about to: its candidate, else what is live.

    Empty where no split was made yet.
    """
    newest: SplitChanged | None = None
    async with Follower(bootstrap_servers, [topics.TRAFFIC_SPLITS], prefix=prefix) as follower:
        async for one in follower.held():
            newest = _newest([one], newest, index)
    return (candidate_of(newest) or live_of(newest)) if newest else ""


async def read_passed_versions(bootstrap_servers: str, *, prefix: str, index: str) -> list[str]:
    """The versions of the index that passed their gate, the newest first."""
    found: dict[str, datetime] = {}
    async with Follower(bootstrap_servers, [topics.MODEL_VERSIONS], prefix=prefix) as follower:
        async for _, record in follower.held():
            # What can't be read, or was deleted, is no one's to start from.
            with suppress(MessageError):
                event = codec.decode(record.value, ModelVersionPublished)
                if event.index == index and event.gate is not None and event.gate.verdict == "pass":
                    found[event.version] = event.published_at
    return sorted(found, key=found.__getitem__, reverse=True)


async def follow_live_version(
    bootstrap_servers: str, *, prefix: str, index: str, on_live: Callable[[str], None]
) -> None:
    """Tell ``on_live`` what is live by the newest split, now and at every change. Raises BrokerError."""
    newest: SplitChanged | None = None
    told = ""
    async with Follower(bootstrap_servers, [topics.TRAFFIC_SPLITS], prefix=prefix) as follower:
        while True:
            batch = await follower.batch(timeout_seconds=1.0)
            newest = _newest(batch, newest, index)
            if not batch and newest and live_of(newest) != told:
                told = live_of(newest)
                on_live(told)


def _newest(
    batch: Iterable[tuple[topics.Topic, Record]], known: SplitChanged | None, index: str
) -> SplitChanged | None:
    newest = known
    for _, record in batch:
        try:
            split = codec.decode(record.value, SplitChanged)
        except MessageError:
            # The nodes that act on splits quarantine it; here it is only looked past.
            continue
        if split.index == index and (newest is None or split.sequence >= newest.sequence):
            newest = split
    return newest
