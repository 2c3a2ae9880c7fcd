"""Enough of everything before a retrain: least counts of new examples by domain and by difficulty.

The least count for the whole index is the policy ``threshold``; this holds back what any policy would let go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clickloop.events import SliceCounts


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
