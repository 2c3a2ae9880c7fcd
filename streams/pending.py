"""The drift reports that no command covers yet, and what they add up to."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from clickloop.events import DriftMeasured, OffsetRange
from streams.balance import Balance
from streams.buffer import covers, merge_ranges

MAX_PENDING = 20_000
"""Reports that are kept apart; beyond it the two oldest become one."""


@dataclass(slots=True)
class _Report:
    offset: int
    window_end: float
    queries: int
    examples: int
    ranges: list[OffsetRange]
    counts: Counter[tuple[str, str]]


@dataclass(slots=True)
class Totals:
    """Sums over reports. ``oldest`` is the earliest end of a window, infinite where there is none."""

    queries: int = 0
    examples: int = 0
    ranges: list[OffsetRange] = field(default_factory=list)
    oldest: float = math.inf
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of what there is a minimum for."""

    def add(self, reports: Collection[_Report]) -> None:
        self.queries += sum(p.queries for p in reports)
        self.examples += sum(p.examples for p in reports)
        self.ranges = merge_ranges([*self.ranges, *(r for p in reports for r in p.ranges)])
        self.oldest = min([self.oldest, *(p.window_end for p in reports)])
        for report in reports:
            self.counts.update(report.counts)


class Pending:
    """Reports by their ids, the oldest first. Times are seconds since the epoch."""

    def __init__(self, balance: Balance) -> None:
        self._balance = balance
        self._reports: OrderedDict[str, _Report] = OrderedDict()
        self._totals: Totals | None = None

    def __len__(self) -> int:
        return len(self._reports)

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._reports

    def add(self, event: DriftMeasured, *, offset: int) -> None:
        """A report with a known id takes the place of that one, and keeps its ranges."""
        known = self._reports.get(event.event_id)
        ranges = merge_ranges([*event.ranges, *(known.ranges if known else [])])
        end = event.window_end.timestamp()
        report = self._reports[event.event_id] = _Report(
            known.offset if known else offset,
            end,
            event.queries,
            event.examples,
            ranges,
            self._balance.counts(event.slices),
        )
        if known is not None:
            self._totals = None
        elif self._totals is not None:
            self._totals.add([report])
        if len(self._reports) > MAX_PENDING:
            self._fold()

    def drop_covered(self, ranges: Sequence[OffsetRange], issued_at: float) -> None:
        """A command over ``ranges`` was given."""
        self._reports = OrderedDict(
            (event_id, p)
            for event_id, p in self._reports.items()
            if not is_covered(p.ranges, p.window_end, ranges, issued_at)
        )
        self._totals = None

    @property
    def totals(self) -> Totals:
        """Kept, since there may be many reports, and they are asked for at every tick."""
        if self._totals is None:
            self._totals = Totals()
            self._totals.add(self._reports.values())
        return self._totals

    @property
    def low_water(self) -> int | None:
        """Offset of the oldest report."""
        return min((p.offset for p in self._reports.values()), default=None)

    def _fold(self) -> None:
        _, first = self._reports.popitem(last=False)
        _, second = self._reports.popitem(last=False)
        self._reports["folded"] = _Report(
            min(first.offset, second.offset),
            max(first.window_end, second.window_end),
            first.queries + second.queries,
            first.examples + second.examples,
            merge_ranges([*first.ranges, *second.ranges]),
            first.counts + second.counts,
        )
        self._reports.move_to_end("folded", last=False)
        self._totals = None


def is_covered(
    ranges: Sequence[OffsetRange], window_end: float, command: Sequence[OffsetRange], issued_at: float
) -> bool:
    """Its examples are in the command's ranges; a window without examples was over when the command came."""
    return covers(command, ranges) if ranges else window_end <= issued_at
