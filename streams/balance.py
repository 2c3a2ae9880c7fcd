"""Enough of everything before a retrain: least counts of new examples by domain and by difficulty.

The least count for the whole index is the policy ``threshold``; this holds back what any policy would let go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from clickloop.events import Difficulty, SliceCounts

MAX_SLICES = 400
"""Of a report, so that it fits into a message however many domains there are, and however long their names."""


def parsed(minimums: Iterable[str]) -> dict[str, int]:
    """From ``name=count``. Raises ValueError for what is not of that form.

    >>> parsed(["shoes=50", "hats=20"])
    {'shoes': 50, 'hats': 20}
    """
    found = {}
    for one in minimums:
        name, _, count = one.rpartition("=")
        if not name.strip() or not count.strip().isdecimal():
            raise ValueError(f"{one!r} is not of the form name=count")
        found[name.strip()] = int(count)
    return found


def bounded(
    counts: Mapping[tuple[str, Difficulty | None], int], wanted: Collection[str] = ()
) -> list[SliceCounts]:
    """At most MAX_SLICES of these, those of ``wanted`` domains and the largest. The others are summed up by
    difficulty, as if of no domain.

    >>> many = {(f"d{n}", "easy"): n + 1 for n in range(1000)}
    >>> found = bounded(many, {"d0"})
    >>> len(found) <= MAX_SLICES, sum(part.examples for part in found), found[0].domain
    (True, 500500, 'd0')
    """
    known = [(key, count) for key, count in counts.items() if count > 0]
    known.sort(key=lambda one: (one[0][0] in wanted, not one[0][0], one[1]), reverse=True)
    room = MAX_SLICES - len(get_args(Difficulty)) - 1
    kept = Counter(dict(known[:room]))
    for (_, difficulty), count in known[room:]:
        kept["", difficulty] += count
    return [
        SliceCounts(examples=count, domain=domain, difficulty=difficulty)
        for (domain, difficulty), count in kept.items()
    ]


@dataclass(frozen=True)
class Balance:
    """The minimums of an index: least counts by domain, and by difficulty."""

    domains: Mapping[str, int]
    difficulties: Mapping[str, int]

    def counts(self, slices: Iterable[SliceCounts]) -> Counter[tuple[str, str]]:
        """The examples of what there is a minimum for, by kind and name; of other names, however many, nothing."""
        found: Counter[tuple[str, str]] = Counter()
        for part in slices:
            if part.domain in self.domains:
                found["domain", part.domain] += part.examples
            if part.difficulty is not None and part.difficulty in self.difficulties:
                found["difficulty", part.difficulty] += part.examples
        return found

    def lacking(self, counts: Mapping[tuple[str, str], int]) -> str:
        """What there is too little of, in words; "" where there is enough of everything."""
        return ", ".join(
            f"{have} of {least} new examples of {kind} {name!r}"
            for kind, minimums in (("domain", self.domains), ("difficulty", self.difficulties))
            for name, least in minimums.items()
            if (have := counts.get((kind, name), 0)) < least
        )
