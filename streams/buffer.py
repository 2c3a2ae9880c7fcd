"""The buffer: a view on the log. Offset ranges of ``training-examples`` plus statistics that add up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from clickloop.events import ArmCounts, OffsetRange


def merge_ranges(ranges: Iterable[OffsetRange]) -> list[OffsetRange]:
    """One range per partition, from its smallest start to its largest end, sorted.

    >>> a = OffsetRange(topic="t", partition=0, start=5, end=9)
    >>> b = OffsetRange(topic="t", partition=0, start=0, end=6)
    >>> [(r.start, r.end) for r in merge_ranges([a, b])]
    [(0, 9)]
    """
    merged: dict[tuple[str, int], OffsetRange] = {}
    for one in ranges:
        key = (one.topic, one.partition)
        other = merged.get(key, one)
        merged[key] = OffsetRange(
            topic=one.topic,
            partition=one.partition,
            start=min(one.start, other.start),
            end=max(one.end, other.end),
        )
    return sorted(merged.values())


def covers(outer: Iterable[OffsetRange], inner: Iterable[OffsetRange]) -> bool:
    """Every offset of ``inner`` lies in ``outer``, which has at most one range for each partition."""
    known = {(r.topic, r.partition): r for r in outer}
    for one in inner:
        other = known.get((one.topic, one.partition))
        if other is None or one.start < other.start or one.end > other.end:
            return False
    return True


@dataclass(slots=True)
class Counts:
    """What happened in one partition's window. Sums, so that windows and partitions add up."""

    queries: int = 0
    clicks: int = 0
    ratings: int = 0
    rating_sum: float = 0.0
    reciprocal_rank_sum: float = 0.0
    reciprocal_rank_squares: float = 0.0
    abandoned: int = 0
    examples: int = 0
    arms: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """By (arm, version): queries, clicked queries, sum of reciprocal ranks."""

    def query(self, arm: str, version: str) -> None:
        self.queries += 1
        self._arm(arm, version)[0] += 1

    def click(self, arm: str, version: str, *, best_before: int | None, best_now: int) -> None:
        """A trusted click, which moves its query's topmost click from ``best_before`` to ``best_now``."""
        self.clicks += 1
        old = 1.0 / best_before if best_before else 0.0
        new = 1.0 / best_now
        self.reciprocal_rank_sum += new - old
        self.reciprocal_rank_squares += new * new - old * old
        counts = self._arm(arm, version)
        counts[1] += best_before is None
        counts[2] += new - old

    def rating(self, value: float) -> None:
        self.ratings += 1
        self.rating_sum += value

    def by_arm(self) -> list[ArmCounts]:
        return [
            ArmCounts(
                arm=arm,
                version=version,
                queries=int(queries),
                clicked_queries=int(clicked),
                reciprocal_rank_sum=reciprocal,
            )
            for (arm, version), (queries, clicked, reciprocal) in sorted(self.arms.items())
        ]

    @property
    def empty(self) -> bool:
        return not (self.queries or self.clicks or self.ratings or self.abandoned or self.examples)

    def _arm(self, arm: str, version: str) -> list[float]:
        return self.arms.setdefault((arm, version), [0.0, 0.0, 0.0])
