"""The commands in the log, and which of their examples the next one covers again.

A gate that can't tell a version from its parent says that it saw too few clicks. Were those clicks left behind, an
index of little traffic would give one small command after the other, none of which could ever be told from its
parent. So what no gate has decided on comes again with what is new, until it is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from msgspec.structs import replace

from clickloop.commands import Strategy
from clickloop.events import OffsetRange, VersionKind
from streams.buffer import merge_ranges

FROM_LIVE: frozenset[Strategy] = frozenset({"incremental", "contrastive"})
"""Strategies that learn from the examples of their ranges, and whose gate compares with the live version."""
FROM_CLICKS = FROM_LIVE | {"full_retrain"}
"""Those that learn from them. A full_retrain is compared with the base model first, and mostly beats that."""


@dataclass(slots=True)
class Commanded:
    """A command in the log, and what is known of its end. Whichever is read first makes the entry.

    Times are seconds since the epoch.
    """

    ranges: list[OffsetRange] = field(default_factory=list)
    strategy: Strategy = "incremental"
    new_examples: float | None = None
    """Of the ranges, those that no command before it covered; None where it does not say."""
    issued: float | None = None
    ended: set[VersionKind] = field(default_factory=set)
    told: float = 0.0
    """When anything was told of it last."""
    heard: float = 0.0
    """When its run was heard of last."""
    began: float | None = None
    """When its run was first heard to do more than wait."""
    passed: bool = False
    failed: bool = False
    versions: set[str] = field(default_factory=set)
    """That it made."""
    learnt: float | None = None
    """Examples that one of them learnt from; None where none has told."""
    held_out: int | None = None
    """Queries that a gate looked at; None where none has told."""
    broken_at: float | None = None
    """When its run failed, for another reason than too few examples."""

    def judged(self, verdict: str | None) -> None:
        """Of one of its rungs."""
        self.passed = self.passed or verdict == "pass"
        self.failed = self.failed or verdict == "fail"


def in_order(commands: Iterable[Commanded]) -> list[Commanded]:
    """Those that are in the log, the oldest first."""
    return sorted((c for c in commands if c.issued is not None), key=lambda c: c.issued or 0.0)


@dataclass(frozen=True)
class Undecided:
    """Examples that were commanded, and on which no gate has decided."""

    ranges: Sequence[OffsetRange] = ()
    examples: int = 0
    """Of this index, where the commands say so; those on which a gate has looked."""


def undecided(commands: Iterable[Commanded], *, served: Set[str], most: int) -> Undecided:
    """What the next command covers again.

    A gate has decided where it was passed or failed; so has an operator where what it could not tell was
    ``served`` all the same. A run that breaks is given its examples once more; where the next breaks as well, they
    may be why, and are left alone. Of more than ``most`` examples the oldest are left out, of each partition the
    same share.
    """
    settled: dict[tuple[str, int], int] = {}
    ordered = in_order(commands)
    broken = 0
    for command in ordered:
        decided = command.strategy in FROM_CLICKS and not served.isdisjoint(command.versions)
        if command.strategy in FROM_LIVE:
            decided = decided or command.passed or command.failed
            broken = 0 if decided or command.broken_at is None else broken + 1
            decided = decided or broken > 1
        if decided:
            for done in command.ranges:
                place = done.topic, done.partition
                settled[place] = max(done.end, settled.get(place, 0))
    ranges, examples, weighed = list[OffsetRange](), 0.0, 0.0
    for command in ordered:
        left = [open_ for one in command.ranges if (open_ := _after(one, settled))]
        ranges += left
        if left:
            # Offsets are those of all indexes: they only count where nothing better is known.
            told = (n for n in (command.new_examples, command.learnt) if n is not None)
            count = next(told, float(messages(left)))
            examples += count
            weighed += count if command.held_out != 0 else 0.0
    ranges = merge_ranges(ranges)
    examples = min(examples, float(messages(ranges)))
    kept = min(1.0, most / examples) if examples else 1.0
    if kept < 1.0:
        ranges = [replace(one, start=one.end - int((one.end - one.start) * kept)) for one in ranges]
    return Undecided([one for one in ranges if one.start < one.end], int(min(weighed, examples) * kept))


def _after(one: OffsetRange, settled: Mapping[tuple[str, int], int]) -> OffsetRange | None:
    """What of it lies beyond what is settled; None for nothing."""
    start = max(one.start, settled.get((one.topic, one.partition), 0))
    return replace(one, start=start) if start < one.end else None


def messages(ranges: Sequence[OffsetRange]) -> int:
    """How many offsets there are in them."""
    return sum(max(0, one.end - one.start) for one in ranges)
