"""The buffer: a view on the log. Offset ranges of ``training-examples`` plus statistics that add up.

Everything here merges exactly: however the log is cut into parts, and in whatever order they are told and merged,
the statistics are the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from clickloop.events import ArmCounts, ExampleFormed, OffsetRange

RESERVOIR = 4096
FOLD_SKETCHES = 1024
MAX_SKETCH = 1024
MAX_ARMS, MAX_NAME = 64, 256
SLICES = ("label", "arm", "difficulty", "origin")
"""Fields of an example by which it is counted, where it has them."""


def merge_ranges(ranges: Iterable[OffsetRange]) -> list[OffsetRange]:
    """One range per partition, from its smallest start to its largest end, sorted.

    >>> a = OffsetRange(topic="t", partition=0, start=5, end=9)
    >>> b = OffsetRange(topic="t", partition=0, start=0, end=6)
    >>> [(r.start, r.end) for r in merge_ranges([a, b])]
    [(0, 9)]
    """
    merged: dict[tuple[str, int], OffsetRange] = {}
    for one in ranges:
        key = (one.topic, one.partition)
        other = merged.get(key, one)
        merged[key] = OffsetRange(
            topic=one.topic,
            partition=one.partition,
            start=min(one.start, other.start),
            end=max(one.end, other.end),
        )
    return sorted(merged.values())


def covers(outer: Iterable[OffsetRange], inner: Iterable[OffsetRange]) -> bool:
    """Every offset of ``inner`` lies in ``outer``, which has at most one range for each partition."""
    known = {(r.topic, r.partition): r for r in outer}
    for one in inner:
        other = known.get((one.topic, one.partition))
        if other is None or one.start < other.start or one.end > other.end:
            return False
    return True


@dataclass(slots=True)
class Counts:
    """What happened in one partition's window. Sums, so that windows and partitions add up."""

    queries: int = 0
    clicks: int = 0
    ratings: int = 0
    rating_sum: float = 0.0
    reciprocal_rank_sum: float = 0.0
    reciprocal_rank_squares: float = 0.0
    abandoned: int = 0
    examples: int = 0
    arms: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """By (arm, version): queries, clicked queries, sum of reciprocal ranks. Of at most MAX_ARMS, with names of at
    most MAX_NAME characters: a report must fit into a message whatever a query's sender wrote there."""
    sketches: SketchSum = field(default_factory=lambda: SketchSum())

    def query(self, arm: str, version: str, sketch: bytes = b"") -> None:
        self.queries += 1
        self._arm(arm, version)[0] += 1
        if sketch:
            self.sketches.add(sketch)

    def click(self, arm: str, version: str, *, best_before: int | None, best_now: int) -> None:
        """A trusted click, which moves its query's topmost click from ``best_before`` to ``best_now``."""
        self.clicks += 1
        old = 1.0 / best_before if best_before else 0.0
        new = 1.0 / best_now
        self.reciprocal_rank_sum += new - old
        self.reciprocal_rank_squares += new * new - old * old
        counts = self._arm(arm, version)
        counts[1] += best_before is None
        counts[2] += new - old

    def rating(self, value: float) -> None:
        self.ratings += 1
        self.rating_sum += value

    def by_arm(self) -> list[ArmCounts]:
        return [
            ArmCounts(
                arm=arm,
                version=version,
                queries=int(queries),
                clicked_queries=int(clicked),
                reciprocal_rank_sum=reciprocal,
            )
            for (arm, version), (queries, clicked, reciprocal) in sorted(self.arms.items())
        ]

    @property
    def empty(self) -> bool:
        return not (self.queries or self.clicks or self.ratings or self.abandoned or self.examples)

    def _arm(self, arm: str, version: str) -> list[float]:
        counts = self.arms.get((arm, version))
        if counts is None:
            counts = [0.0, 0.0, 0.0]
            if len(self.arms) < MAX_ARMS and len(arm) <= MAX_NAME and len(version) <= MAX_NAME:
                self.arms[arm, version] = counts
        return counts


class SketchSum:
    """Count and sum of the queries' sketches: their mean says what the buffer is about. Exact, in integers.

    Sketches are int8 vectors. ``count`` and ``total`` are those of the length that most have; a search node
    writes one length only.
    """

    def __init__(self, count: int = 0, total: Sequence[int] = ()) -> None:
        self._counts: Counter[int] = Counter({len(total): count} if total else {})
        self._totals = {len(total): np.array(total, dtype=np.int64)} if total else {}
        self._waiting: list[bytes] = []

    def add(self, sketch: bytes) -> None:
        waiting = self._waiting
        waiting.append(sketch)
        if len(waiting) >= FOLD_SKETCHES:
            self._fold()

    def merge(self, other: SketchSum) -> None:
        self._fold()
        other._fold()
        self._counts += other._counts
        for length, total in other._totals.items():
            self._totals[length] = total + self._totals.get(length, 0)

    @property
    def count(self) -> int:
        return self._counts[len(self.total)]

    @property
    def total(self) -> list[int]:
        self._fold()
        if not self._totals:
            return []
        return [int(value) for value in self._totals[max(self._totals, key=lambda n: (self._counts[n], n))]]

    def _fold(self) -> None:
        waiting, self._waiting = self._waiting, []
        for length, count in Counter(map(len, waiting)).items():
            if not 0 < length <= MAX_SKETCH:
                continue
            raw = b"".join(sketch for sketch in waiting if len(sketch) == length)
            total = np.frombuffer(raw, dtype=np.int8).reshape(count, length).sum(axis=0, dtype=np.int64)
            self._counts[length] += count
            self._totals[length] = total + self._totals.get(length, 0)


@dataclass(frozen=True, order=True, slots=True)
class Kept:
    """One example of the reservoir, in its highest revision."""

    revision: int
    weight: float
    slices: tuple[tuple[str, str], ...]


class Reservoir:
    """A uniform sample of the distinct examples: those ``limit`` whose ids have the smallest hashes (bottom-k).

    The hash of an id is the same everywhere, so a sample of two parts is made from their samples alone, and an
    example is in it or not whatever its revisions. It tells how many distinct examples there are: exactly, below
    ``limit``, and beyond to about ``1 / sqrt(limit)`` (Beyer et al., "On Synopses for Distinct-Value Estimation
    Under Multiset Operations", SIGMOD 2007).
    """

    def __init__(self, limit: int = RESERVOIR) -> None:
        self._limit = limit
        self._kept: dict[tuple[int, str], Kept] = {}

    def add(self, example: ExampleFormed) -> None:
        self._keep((_hash(example.example_id), example.example_id), _kept(example))
        if len(self._kept) > 2 * self._limit:
            self._prune()

    def merge(self, other: Reservoir) -> None:
        for key, kept in other._kept.items():
            self._keep(key, kept)
        self._prune()

    @property
    def kept(self) -> dict[str, Kept]:
        """The sample by example id, in the order of the hashes."""
        self._prune()
        return {example_id: self._kept[number, example_id] for number, example_id in sorted(self._kept)}

    @property
    def distinct(self) -> int:
        """How many examples there are, about."""
        self._prune()
        if len(self._kept) < self._limit:
            return len(self._kept)
        largest, _ = max(self._kept)
        return round((self._limit - 1) * 2.0**64 / max(largest, 1))

    def by_slice(self) -> dict[tuple[str, str], int]:
        """How many examples there are of each slice, about."""
        kept = self.kept
        counts = Counter(one for example in kept.values() for one in example.slices)
        share = self.distinct / max(1, len(kept))
        return {one: round(count * share) for one, count in sorted(counts.items())}

    def _keep(self, key: tuple[int, str], kept: Kept) -> None:
        known = self._kept.get(key)
        self._kept[key] = kept if known is None else max(known, kept)

    def _prune(self) -> None:
        if len(self._kept) > self._limit:
            self._kept = {key: self._kept[key] for key in sorted(self._kept)[: self._limit]}


@dataclass(slots=True)
class Buffer:
    """What lies in some ranges of ``training-examples``."""

    ranges: list[OffsetRange] = field(default_factory=list)
    messages: int = 0
    """Revisions included."""
    oldest: float | None = None
    newest: float | None = None
    """When its examples' queries were served, seconds since the epoch."""
    reservoir: Reservoir = field(default_factory=Reservoir)
    sketches: SketchSum = field(default_factory=SketchSum)
    """Of the queries of its time, whether they became examples or not."""

    def add(self, example: ExampleFormed, place: OffsetRange) -> None:
        served = example.served_at.timestamp()
        self.ranges = merge_ranges([*self.ranges, place])
        self.messages += 1
        self.oldest = served if self.oldest is None else min(served, self.oldest)
        self.newest = served if self.newest is None else max(served, self.newest)
        self.reservoir.add(example)

    def merge(self, other: Buffer) -> None:
        self.ranges = merge_ranges([*self.ranges, *other.ranges])
        self.messages += other.messages
        self.oldest = min((t for t in (self.oldest, other.oldest) if t is not None), default=None)
        self.newest = max((t for t in (self.newest, other.newest) if t is not None), default=None)
        self.reservoir.merge(other.reservoir)
        self.sketches.merge(other.sketches)


def _hash(example_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(example_id.encode(), digest_size=8).digest(), "big")


def _kept(example: ExampleFormed) -> Kept:
    slices = [(name, str(value)) for name in SLICES if (value := getattr(example, name, None))]
    slices += [("feedback", "rating")] if example.rating is not None else []
    slices += [("feedback", "click")] if example.clicks else []
    return Kept(example.revision, example.weight, tuple(slices))
