"""What the detectors look at: a window of traffic, and the reference that it is measured against."""

from __future__ import annotations

import re
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from clickloop.text import normal_text
from streams.buffer import MAX_SKETCH

T = TypeVar("T")

MIN_QUERIES = 50
"""Below this a window's figures say too little to be calibrated."""
MAX_VERSIONS = 16
"""Versions whose answers are told apart; beyond it, the one that has answered nothing for longest is forgotten."""
MAX_WINDOW = 500
MAX_REFERENCE = 1000
"""Queries of a window and of the reference that are compared: enough to see, few enough to be cheap."""
CLICK_SECONDS = 60.0
"""A click counts for its query's rank if it was made so soon."""
DELIVERY_SECONDS = 15.0
"""So long it may be on its way: then its query is settled."""
MAX_SETTLING = 20 * MAX_WINDOW
"""Queries that wait to be settled, where an input is behind; beyond it, no more are taken."""

_WORDS = re.compile(r"\w{2,}")


def number(name: str) -> int:
    """A word or an id as a 32-bit number that is the same in every process."""
    return zlib.crc32(name.encode())


def terms(query: str) -> tuple[int, ...]:
    """The distinct words of a query, each as its number.

    >>> len(terms("to sort a list, to sort")), len(terms("\u0e27\u0e34\u0e18\u0e35 sort"))
    (3, 2)
    >>> terms("C++ lists") == terms("lists")
    False
    """
    plain = query.isascii() and "+" not in query and "#" not in query
    words = _WORDS.findall(query.lower()) if plain else normal_text(query).split()
    return tuple({number(word) for word in words if len(word) > 1})


@dataclass(slots=True)
class Sums:
    """Count, sum and sum of squares: enough for a mean and its error, and they add up."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value

    def merge(self, other: Sums) -> None:
        self.count += other.count
        self.total += other.total
        self.squares += other.squares

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        return max(0.0, self.squares / self.count - self.mean**2) if self.count else 0.0


class Strata:
    """Sums of each version's answers apart. Of versions, only like is compared with like."""

    def __init__(self) -> None:
        self._sums: OrderedDict[str, Sums] = OrderedDict()

    def of(self, version: str) -> Sums:
        """To be added to; empty for a version that is new here."""
        sums = self._sums.get(version)
        if sums is None:
            sums = self._sums[version] = Sums()
            if len(self._sums) > MAX_VERSIONS:
                self._sums.popitem(last=False)
        else:
            self._sums.move_to_end(version)
        return sums

    def merge(self, other: Strata) -> None:
        for version in other:
            self.of(version).merge(other[version])

    def __getitem__(self, version: str) -> Sums:
        return self._sums.get(version) or Sums()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)


@dataclass(slots=True)
class Asked:
    """One query of a sample."""

    version: str
    """That answered it."""
    sketch: bytes
    terms: tuple[int, ...]


@dataclass(slots=True)
class Settled:
    """One query of a sample some time after it was asked, as ``Settling`` has it."""

    version: str
    """That answered it."""
    sketch: bytes
    reciprocal_rank: float = 0.0
    """Of the topmost result that was clicked soon; 0 where none was."""


@dataclass(slots=True)
class Clicked:
    """One click of a sample."""

    version: str
    """That answered its query."""
    document: int


@dataclass(slots=True)
class Sample:
    """A window, or the reference: each version's sums over all of it, and at most ``limit`` queries and clicks."""

    limit: int = MAX_WINDOW
    queries: int = 0
    asked: list[Asked] = field(default_factory=list)
    """The first queries of a window; a uniform sample of the reference's."""
    answered: Strata = field(default_factory=Strata)
    """Nothing but how many queries were asked."""
    settled: list[Settled] = field(default_factory=list)
    """Those of the sampled queries, of this window and of earlier ones, that were settled in this one."""
    clicks: Strata = field(default_factory=Strata)
    """Reciprocal rank of each settled query."""
    clicked: list[Clicked] = field(default_factory=list)
    ratings: Strata = field(default_factory=Strata)
    abandoned: Strata = field(default_factory=Strata)
    """1 for each impression whose window passed without a click, 0 for the others."""
    outcomes: list[tuple[str, float]] = field(default_factory=list)
    """Versions and reciprocal ranks with which impressions closed, in that order."""

    def query(self, text: str, sketch: bytes, version: str) -> Asked | None:
        """A query was asked. None where the sample has enough without it."""
        self.queries += 1
        self.answered.of(version).count += 1
        if len(self.asked) >= self.limit:
            return None
        # One that is longer than any that a report could sum up is no sketch of ours.
        asked = Asked(version, sketch if len(sketch) <= MAX_SKETCH else b"", terms(text))
        self.asked.append(asked)
        return asked

    def settle(self, query: Settled) -> None:
        """A query's clicks are in."""
        self.clicks.of(query.version).add(query.reciprocal_rank)
        if len(self.settled) < self.limit:
            self.settled.append(query)

    def click(self, doc_id: str, version: str) -> None:
        """A person clicked what ``version`` had answered."""
        if len(self.clicked) < self.limit:
            self.clicked.append(Clicked(version, number(doc_id)))

    def close(self, version: str, best: int | None) -> None:
        """An impression's window has passed; ``best`` is the position of its topmost click."""
        self.abandoned.of(version).add(float(best is None))
        if len(self.outcomes) < self.limit:
            self.outcomes.append((version, 1.0 / best if best else 0.0))

    @property
    def version(self) -> str:
        """The version that served most of it."""
        return max(self.answered, key=lambda version: self.answered[version].count, default="")


class Settling:
    """Sampled queries until their clicks are in. Each has the same time for it, however busy the hour is.

    Were clicks counted in the window that they come in, then growing traffic would look like fewer clicks: the
    clicks of fewer queries beside more of them.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[float, Settled]] = OrderedDict()

    def query(self, query_id: str, asked: Asked, *, log_time: float) -> None:
        """``log_time`` is when the broker appended it, seconds since the epoch."""
        if len(self._open) < MAX_SETTLING:
            self._open[query_id] = (log_time, Settled(asked.version, asked.sketch))

    def click(self, query_id: str, position: int, *, seconds: float) -> None:
        """A click on what lay at ``position``, made ``seconds`` after the answer was served."""
        found = self._open.get(query_id)
        if found is not None and seconds <= CLICK_SECONDS:
            _, query = found
            query.reciprocal_rank = max(query.reciprocal_rank, 1.0 / position)

    def over(self, watermark: float) -> Iterator[Settled]:
        """What is settled now that all was read up to the append time ``watermark``, in the order of the log."""
        until = watermark - CLICK_SECONDS - DELIVERY_SECONDS
        while self._open and next(iter(self._open.values()))[0] <= until:
            _, (_, query) = self._open.popitem(last=False)
            yield query


class Reference:
    """The windows so far: sums, and bounded uniform samples (Vitter's Algorithm R).

    When a version is new, what was sampled before counts only as much as it holds, however long it took: a sample
    of many months would hardly ever take up what that version answers.
    """

    def __init__(self, limit: int = MAX_REFERENCE) -> None:
        self._limit = limit
        self.restart()

    def restart(self) -> None:
        self.sample = Sample(self._limit)
        self._asked = 0
        self._settled = 0
        self._clicked = 0

    def add(self, window: Sample, rng: np.random.Generator) -> None:
        kept = self.sample
        if self._meets_a_version(window):
            self._asked, self._settled, self._clicked = len(kept.asked), len(kept.settled), len(kept.clicked)
        self._sample(kept.asked, window.asked, self._asked, rng)
        self._sample(kept.settled, window.settled, self._settled, rng)
        self._sample(kept.clicked, window.clicked, self._clicked, rng)
        self._asked += len(window.asked)
        self._settled += len(window.settled)
        self._clicked += len(window.clicked)
        kept.queries += window.queries
        kept.answered.merge(window.answered)
        kept.clicks.merge(window.clicks)
        kept.ratings.merge(window.ratings)
        kept.abandoned.merge(window.abandoned)

    def _meets_a_version(self, window: Sample) -> bool:
        """One that answered hardly any query before this window has now answered enough to be compared."""
        return any(
            old[version].count < MIN_QUERIES <= old[version].count + new[version].count
            for old, new in (
                (self.sample.answered, window.answered),
                (self.sample.clicks, window.clicks),
            )
            for version in new
        )

    def _sample(self, kept: list[T], new: Sequence[T], seen: int, rng: np.random.Generator) -> None:
        for count, one in enumerate(new, start=seen + 1):
            if len(kept) < self._limit:
                kept.append(one)
                continue
            place = int(rng.integers(count))
            if place < self._limit:
                kept[place] = one
