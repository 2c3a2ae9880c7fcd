"""Slices of the clicks, by the domain that an app names and by difficulty: what was clicked in each of them.

One query may be asked in several domains and mean another document in each, so a slice knows its own clicks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clickloop.events import ExampleFormed

Indexes = NDArray[np.int64]
Floats = NDArray[np.float32]

DOMAIN = "domain "
"""How the names of the slices begin that an app has named by itself."""


class Clicked(NamedTuple):
    """A pair that was clicked in a slice; numbers of query and document."""

    slice: str
    query: int
    document: int


def slices_of(example: ExampleFormed) -> list[str]:
    """Names of the slices that an example belongs to."""
    domain = [f"{DOMAIN}{example.domain}"] if example.domain else []
    return domain + ([f"difficulty {example.difficulty}"] if example.difficulty else [])


def _none() -> Indexes:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Slices:
    """One row for each slice and pair of query and document that was clicked in it."""

    names: tuple[str, ...] = ()
    of: Indexes = field(default_factory=_none)
    """(rows,) index into ``names``"""
    query: Indexes = field(default_factory=_none)
    """(rows,) index into the clicks' queries"""
    document: Indexes = field(default_factory=_none)
    """(rows,) index into the corpus' documents"""
    weight: Floats = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """(rows,) what the pair's clicks in that slice weigh, as ``Clicks.weight`` has it for all of them"""

    @staticmethod
    def made_of(weights: Mapping[Clicked, float]) -> Slices:
        ordered = sorted(weights)
        names = tuple(sorted({pair.slice for pair in ordered}))
        number = {name: i for i, name in enumerate(names)}
        rows = np.asarray([(number[pair.slice], pair.query, pair.document) for pair in ordered], dtype=np.int64)
        of, query, document = rows.reshape(-1, 3).T
        weight = np.asarray([weights[pair] for pair in ordered], dtype=np.float32)
        return Slices(names, of, query, document, weight)

    def renumbered(self, number: Indexes) -> Slices:
        """Of the queries that have a ``number`` (queries,), which is theirs from now on; -1 is none."""
        query = number[self.query] if len(self.query) else self.query
        kept = query >= 0
        return Slices(self.names, self.of[kept], query[kept], self.document[kept], self.weight[kept])

    def behind(self, queries: int) -> Slices:
        """With so many other queries before its own."""
        return Slices(self.names, self.of, self.query + queries, self.document, self.weight)

    def of_query(self, query: int) -> frozenset[str]:
        """The names of those that this query belongs to."""
        return frozenset(self.names[i] for i in self.of[self.query == query])

    def domains(self) -> dict[int, str]:
        """Query → the first of its domains by name."""
        found: dict[int, str] = {}
        # Rows are ordered by slice, and slices by name.
        for number, query in zip(self.of.tolist(), self.query.tolist(), strict=True):
            if self.names[number].startswith(DOMAIN):
                found.setdefault(query, self.names[number])
        return found

    def each(self, query: Indexes, document: Indexes) -> Iterator[tuple[str, Indexes, Floats]]:
        """Each slice's name, the numbers of the pairs that were clicked in it, and what those clicks weigh.

        ``query`` and ``document`` (pairs,) are all that may be named, each once.
        """
        if not len(self.of) or not len(query):
            return
        span = int(max(self.document.max(), document.max())) + 1
        wanted, pairs = self.query * span + self.document, query * span + document
        order = np.argsort(pairs, kind="stable")
        place = order[np.minimum(np.searchsorted(pairs, wanted, sorter=order), len(pairs) - 1)]
        known = pairs[place] == wanted
        of, place, weight = self.of[known], place[known], self.weight[known]
        starts = np.flatnonzero(np.diff(of, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(of)], strict=True):
            yield self.names[of[start]], place[start:end], weight[start:end]
