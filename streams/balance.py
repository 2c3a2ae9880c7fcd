"""Enough of everything before a retrain: least counts of new examples by domain and by difficulty.

The least count for the whole index is the trigger's threshold; this holds back what the threshold would let go.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clickloop.commands import Retrain
from clickloop.events import DriftMeasured, OffsetRange, SliceCounts
from streams.buffer import covers, merge_ranges

MAX_REPORTS = 20_000
"""Reports that are kept apart until a command covers them; beyond it the oldest go, and only delay a retrain."""


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


def summed(slices: Iterable[SliceCounts]) -> tuple[Counter[str], Counter[str]]:
    """Examples by domain, and by difficulty."""
    domains: Counter[str] = Counter()
    difficulties: Counter[str] = Counter()
    for part in slices:
        domains[part.domain] += part.examples
        difficulties[part.difficulty or ""] += part.examples
    return domains, difficulties


@dataclass(frozen=True)
class _Report:
    ranges: Sequence[OffsetRange]
    slices: Sequence[SliceCounts]


class Balance:
    """What the reports that no command covers yet hold, against the minimums. The log rebuilds it at a restart."""

    def __init__(self, *, domains: Mapping[str, int], difficulties: Mapping[str, int]) -> None:
        self._minimums = {"domain": dict(domains), "difficulty": dict(difficulties)}
        self._is_on = bool(domains or difficulties)
        self._pending: OrderedDict[str, _Report] = OrderedDict()
        self._commands: deque[list[OffsetRange]] = deque(maxlen=1000)

    def report(self, event: DriftMeasured) -> None:
        """A report with a known id takes the place of that one."""
        if not self._is_on or not event.slices or any(covers(c, event.ranges) for c in self._commands):
            return
        self._pending[event.event_id] = _Report(event.ranges, event.slices)
        if len(self._pending) > MAX_REPORTS:
            self._pending.popitem(last=False)

    def retrain(self, command: Retrain) -> None:
        ranges = merge_ranges(command.ranges)
        self._commands.append(ranges)
        for event_id in [i for i, report in self._pending.items() if covers(ranges, report.ranges)]:
            del self._pending[event_id]

    def lacking(self) -> str:
        """What there is too little of, in words; "" where there is enough of everything."""
        if not self._is_on:
            return ""
        sums = summed(part for report in self._pending.values() for part in report.slices)
        return ", ".join(
            f"{have[name]} of {least} new examples of {kind} {name!r}"
            for (kind, minimums), have in zip(self._minimums.items(), sums, strict=True)
            for name, least in minimums.items()
            if have[name] < least
        )
