"""What the detectors look at: a window of traffic, and the reference that it is measured against."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from clickloop.text import normal_text

T = TypeVar("T")

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


@dataclass(slots=True)
class Asked:
    """One query of a sample."""

    sketch: bytes
    terms: tuple[int, ...]
    reciprocal_rank: float = 0.0
    """Of its topmost click so far."""


@dataclass(slots=True)
class Sample:
    """A window, or the reference: sums over all of it, and at most ``limit`` of its queries and clicks.

    Outcomes are counted of impressions that ``outcomes_of`` answered: those that close while another version
    has taken over say nothing about that one.
    """

    limit: int = MAX_WINDOW
    outcomes_of: str = ""
    asked: list[Asked] = field(default_factory=list)
    """The first queries of a window; a uniform sample of the reference's."""
    documents: list[tuple[int, ...]] = field(default_factory=list)
    """Of each click, the document's number."""
    versions: Counter[str] = field(default_factory=Counter)
    clicks: Sums = field(default_factory=Sums)
    """Reciprocal rank of the topmost click of each query, 0 where there was none."""
    ratings: Sums = field(default_factory=Sums)
    abandoned: Sums = field(default_factory=Sums)
    """1 for each impression whose window passed without a click, 0 for the others."""
    outcomes: list[float] = field(default_factory=list)
    """Reciprocal ranks with which impressions closed, in that order."""
    _places: dict[str, int] = field(default_factory=dict)

    def query(self, query_id: str, text: str, sketch: bytes, version: str) -> None:
        self.clicks.count += 1
        self.versions[version] += 1
        if len(self.asked) < self.limit:
            self._places[query_id] = len(self.asked)
            self.asked.append(Asked(sketch, terms(text)))

    def click(self, query_id: str, doc_id: str, *, best_before: int | None, best_now: int) -> None:
        """A trusted click, which moves its query's topmost click from ``best_before`` to ``best_now``."""
        now = 1.0 / best_now
        self.clicks.change(1.0 / best_before if best_before else 0.0, now)
        place = self._places.get(query_id)
        if place is not None:
            self.asked[place].reciprocal_rank = now
        if len(self.documents) < self.limit:
            self.documents.append((number(doc_id),))

    def close(self, version: str, best: int | None) -> None:
        """An impression's window has passed; ``best`` is the position of its topmost trusted click."""
        if version != self.outcomes_of:
            return
        self.abandoned.add(float(best is None))
        if len(self.outcomes) < self.limit:
            self.outcomes.append(1.0 / best if best else 0.0)

    @property
    def queries(self) -> int:
        return self.clicks.count

    @property
    def version(self) -> str:
        """The version that served most of it."""
        return self.versions.most_common(1)[0][0] if self.versions else ""


class Reference:
    """The windows since the served version changed: sums, and bounded uniform samples (Vitter's Algorithm R)."""

    def __init__(self, limit: int = MAX_REFERENCE) -> None:
        self._limit = limit
        self.restart("")

    def restart(self, version: str) -> None:
        self.sample = Sample(self._limit)
        self.version = version
        self._asked = 0
        self._clicked = 0

    def add(self, window: Sample, rng: np.random.Generator) -> None:
        kept = self.sample
        self._sample(kept.asked, window.asked, self._asked, rng)
        self._sample(kept.documents, window.documents, self._clicked, rng)
        self._asked += len(window.asked)
        self._clicked += len(window.documents)
        kept.clicks.merge(window.clicks)
        kept.ratings.merge(window.ratings)
        if window.outcomes_of == self.version:
            kept.abandoned.merge(window.abandoned)

    def _sample(self, kept: list[T], new: Sequence[T], seen: int, rng: np.random.Generator) -> None:
        for count, one in enumerate(new, start=seen + 1):
            if len(kept) < self._limit:
                kept.append(one)
                continue
            place = int(rng.integers(count))
            if place < self._limit:
                kept[place] = one
