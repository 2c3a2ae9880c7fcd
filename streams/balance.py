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


def summed(slices: Iterable[SliceCounts]) -> list[SliceCounts]:
    """One count for each domain and difficulty."""
    sums: Counter[tuple[str, str | None]] = Counter()
    kept: dict[tuple[str, str | None], SliceCounts] = {}
    for part in slices:
        key = (part.domain, part.difficulty)
        kept[key] = part
        sums[key] += part.examples
    return [
        SliceCounts(examples=sums[key], domain=part.domain, difficulty=part.difficulty)
        for key, part in kept.items()
    ]


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

    def lacking(self, slices: Iterable[SliceCounts]) -> str:
        """What there is too little of, in words; "" where there is enough of everything."""
        if not self.domains and not self.difficulties:
            return ""
        domains: Counter[str] = Counter()
        difficulties: Counter[str] = Counter()
        for part in slices:
            domains[part.domain] += part.examples
            difficulties[part.difficulty or ""] += part.examples
        sides = (("domain", self.domains, domains), ("difficulty", self.difficulties, difficulties))
        return ", ".join(
            f"{have[name]} of {least} new examples of {kind} {name!r}"
            for kind, minimums, have in sides
            for name, least in minimums.items()
            if have[name] < least
        )
