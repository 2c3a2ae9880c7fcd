"""The commands in the log, and which of their examples the next one covers again.

A gate that can't tell a version from its parent says that it saw too few clicks. Were those clicks left behind, an
index of little traffic would give one small command after the other, none of which could ever be told from its
parent. So what no gate has decided on comes again with what is new, until it is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

from clickloop.commands import Strategy
from clickloop.events import OffsetRange, VersionKind
from streams.buffer import merge_ranges

FROM_CLICKS: frozenset[Strategy] = frozenset({"incremental", "full_retrain", "contrastive"})
"""Strategies that learn from the examples of their ranges; with the others those only judge."""


@dataclass(slots=True)
class Commanded:
    """A command in the log, and what is known of its end. Whichever is read first makes the entry.

    Times are seconds since the epoch.
    """

    ranges: list[OffsetRange] = field(default_factory=list)
    strategy: Strategy = "incremental"
    issued: float | None = None
    ended: set[VersionKind] = field(default_factory=set)
    heard: float = 0.0
    """The last end of a rung."""
    passed: bool = False
    failed: bool = False
    versions: set[str] = field(default_factory=set)
    """That it made."""
    broken_at: float | None = None
    """When its run failed, before or after a gate."""

    def judged(self, verdict: str | None) -> None:
        """Of one of its rungs."""
        self.passed = self.passed or verdict == "pass"
        self.failed = self.failed or verdict == "fail"


def in_order(commands: Iterable[Commanded]) -> list[Commanded]:
    """Those that are in the log, the oldest first."""
    return sorted((c for c in commands if c.issued is not None), key=lambda c: c.issued or 0.0)


def undecided_ranges(commands: Iterable[Commanded], *, promoted: Set[str], most: int) -> list[OffsetRange]:
    """Where the examples lie that were commanded, and on which no gate has decided.

    A gate has where it was passed or failed; so has the operator who ``promoted`` what it could not tell. A run
    that breaks is given its examples once more; where the next breaks as well, they may be why, and are left
    alone. Of more than ``most`` messages the oldest are left out, of each partition the same share.
    """
    settled: dict[tuple[str, int], int] = {}
    open_: list[OffsetRange] = []
    broken = 0
    for command in in_order(commands):
        open_ += command.ranges
        if command.strategy not in FROM_CLICKS:
            continue
        decided = command.passed or command.failed or not promoted.isdisjoint(command.versions)
        broken = 0 if decided or command.broken_at is None else broken + 1
        if decided or broken > 1:
            for done in command.ranges:
                place = done.topic, done.partition
                settled[place] = max(done.end, settled.get(place, 0))
    kept = [
        _between(one, max(one.start, settled.get((one.topic, one.partition), 0)), one.end)
        for one in merge_ranges(open_)
    ]
    surplus = 1.0 - most / max(messages(kept), 1)
    if surplus > 0.0:
        kept = [_between(one, one.end - int((one.end - one.start) * (1.0 - surplus)), one.end) for one in kept]
    return [one for one in kept if one.start < one.end]


def messages(ranges: Sequence[OffsetRange]) -> int:
    """How many offsets there are in them."""
    return sum(max(0, one.end - one.start) for one in ranges)


def _between(one: OffsetRange, start: int, end: int) -> OffsetRange:
    return OffsetRange(topic=one.topic, partition=one.partition, start=start, end=end)
