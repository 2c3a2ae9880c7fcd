"""A worker that catches up reads clicks and ratings no further than their queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from streams.backlog import AHEAD_SECONDS, Backlog


@dataclass
class Fetched:
    topic: str
    last: float
    partition: int = 0
    records: list[SimpleNamespace] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.records = [
            SimpleNamespace(timestamp=1000 * (self.last - 60)),
            SimpleNamespace(timestamp=1000 * self.last),
        ]


def test_feedback_within_reach_of_its_queries_passes() -> None:
    assert not Backlog().holds(Fetched("clicks", 100.0 + AHEAD_SECONDS), 100.0)


def test_what_is_ahead_waits_until_the_queries_are_read_that_far_in_its_order() -> None:
    backlog, first, second = Backlog(), Fetched("clicks", 200.0), Fetched("clicks", 300.0)
    assert backlog.holds(first, 100.0)
    assert backlog.holds(second, 100.0)
    assert backlog.is_held("clicks", 0)
    assert backlog.released(0, 150.0) == []
    assert backlog.released(0, 250.0) == [first]
    assert backlog.released(0, 250.0) == []
    assert backlog.released(0, float("inf")) == [second]
    assert not backlog.is_held("clicks", 0)


def test_nothing_overtakes_what_waits_on_its_own_topic() -> None:
    backlog, first = Backlog(), Fetched("clicks", 200.0)
    assert backlog.holds(first, 100.0)
    late = Fetched("clicks", 201.0)
    assert backlog.holds(late, 199.0), "the one before it is still there"
    assert not backlog.holds(Fetched("ratings", 201.0), 199.0)
    assert not backlog.holds(Fetched("clicks", 201.0, partition=1), 199.0)
    assert backlog.released(0, 199.0) == [first, late]


def test_a_new_assignment_starts_with_nothing() -> None:
    backlog = Backlog()
    backlog.holds(Fetched("clicks", 200.0), 100.0)
    backlog.clear()
    assert backlog.released(0, float("inf")) == []
