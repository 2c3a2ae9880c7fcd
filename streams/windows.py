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

_WORDS = re.compile(r"\w{2,}")


def number(name: str) -> int:
    """A word or an id as a 32-bit number that is the same in every process."""
    return zlib.crc32(name.encode())


def terms(query: str) -> tuple[int, ...]:
    """The distinct words of a query, each as its number.

    >>> len(terms("to sort a list, to sort")), len(terms("\u0e27\u0e34\u0e18\u0e35 sort"))
    (3, 2)
    """
    words = _WORDS.findall(query.lower()) if query.isascii() else normal_text(query).split()
    return tuple({number(word) for word in words if len(word) > 1})


@dataclass(slots=True)
class Sums:
    """Count, sum and sum of squares: enough for a mean and its error, and they add up."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.change(0.0, value)

    def change(self, old: float, new: float) -> None:
        """One of the values that were counted is another one now."""
        self.total += new - old
        self.squares += new * new - old * old

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
    reciprocal_rank: float = 0.0
    """Of its topmost click so far."""


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
    clicked: list[Clicked] = field(default_factory=list)
    clicks: Strata = field(default_factory=Strata)
    """Reciprocal rank of the topmost click of each query, 0 where there was none."""
    ratings: Strata = field(default_factory=Strata)
    abandoned: Strata = field(default_factory=Strata)
    """1 for each impression whose window passed without a click, 0 for the others."""
    outcomes: list[tuple[str, float]] = field(default_factory=list)
    """Versions and reciprocal ranks with which impressions closed, in that order."""
    _places: dict[str, int] = field(default_factory=dict)

    def query(self, query_id: str, text: str, sketch: bytes, version: str) -> None:
        self.queries += 1
        self.clicks.of(version).count += 1
        if len(self.asked) < self.limit:
            self._places[query_id] = len(self.asked)
            # One that is longer than any that a report could sum up is no sketch of ours.
            self.asked.append(Asked(version, sketch if len(sketch) <= MAX_SKETCH else b"", terms(text)))

    def click(self, query_id: str, doc_id: str, version: str, *, best_before: int | None, best_now: int) -> None:
        """A person's click, which moves its query's topmost one from ``best_before`` to ``best_now``."""
        now = 1.0 / best_now
        self.clicks.of(version).change(1.0 / best_before if best_before else 0.0, now)
        place = self._places.get(query_id)
        if place is not None:
            self.asked[place].reciprocal_rank = now
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
        return max(self.clicks, key=lambda version: self.clicks[version].count, default="")


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
        self._clicked = 0

    def add(self, window: Sample, rng: np.random.Generator) -> None:
        kept = self.sample
        if self._meets_a_version(window):
            self._asked, self._clicked = len(kept.asked), len(kept.clicked)
        self._sample(kept.asked, window.asked, self._asked, rng)
        self._sample(kept.clicked, window.clicked, self._clicked, rng)
        self._asked += len(window.asked)
        self._clicked += len(window.clicked)
        kept.queries += window.queries
        kept.clicks.merge(window.clicks)
        kept.ratings.merge(window.ratings)
        kept.abandoned.merge(window.abandoned)

    def _meets_a_version(self, window: Sample) -> bool:
        """One that answered hardly any query before this window has now answered enough to be compared."""
        known = {version: self.sample.clicks[version].count for version in window.clicks}
        return any(n < MIN_QUERIES <= n + window.clicks[version].count for version, n in known.items())

    def _sample(self, kept: list[T], new: Sequence[T], seen: int, rng: np.random.Generator) -> None:
        for count, one in enumerate(new, start=seen + 1):
            if len(kept) < self._limit:
                kept.append(one)
                continue
            place = int(rng.integers(count))
            if place < self._limit:
                kept[place] = one
