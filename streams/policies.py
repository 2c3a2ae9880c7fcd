"""The reasons to retrain. Each policy takes the facts and says whether they make its case, and why or why not.

A policy knows nothing of the others, of costs, or of what stands between a case and a command: that is for the
trigger to know.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from clickloop.commands import Policy

PERFORMANCE = frozenset({"click_mrr", "click_trend", "topic_clicks", "rating_mean", "abandonment"})
"""Detectors of what people make of the answers; the others are about what they ask for."""
DAY_SECONDS = 86_400.0
MORE = 0.1
"""New examples beside those that no gate could decide on: with fewer, another look would hardly tell more."""

_INTERVAL = re.compile(r"([1-9]\d{0,5})([mhd])")
_TIME_OF_DAY = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_UNITS = {"m": 60.0, "h": 3600.0, "d": DAY_SECONDS}


@dataclass(frozen=True)
class Facts:
    """What the policies decide by. Times are seconds since the epoch."""

    now: float
    examples: int
    """New ones."""
    undecided: int
    """Older ones that would be covered again."""
    drifting: Sequence[str]
    """Detectors that find the world different."""
    drifted_windows: int
    measured_windows: int
    documents: int | None
    """In the index now; None where no node has said so."""
    trained_documents: int | None
    """In the index when the newest version was trained; None where none was."""
    since: float | None
    """The latest command, or where there was none, the oldest report."""


@dataclass(frozen=True)
class Case:
    """One policy's verdict. ``text`` says why, or why not."""

    policy: Policy
    holds: bool
    text: str
    due: float | None = None
    """When time alone may change the verdict; None where it doesn't."""


class Rule(Protocol):
    def case(self, facts: Facts) -> Case: ...


@dataclass(frozen=True)
class Threshold:
    """Enough new examples."""

    examples: int

    def case(self, facts: Facts) -> Case:
        more = math.ceil(MORE * facts.undecided)
        if facts.examples >= max(self.examples, more):
            return Case("threshold", True, f"{facts.examples} new examples (threshold {self.examples})")
        if more <= self.examples:
            return Case("threshold", False, f"{facts.examples} of {self.examples} new examples")
        why = f"a tenth of the {facts.undecided} that no gate has decided on"
        return Case("threshold", False, f"{facts.examples} of {more} new examples, {why}")


@dataclass(frozen=True)
class Moved:
    """Detectors agree that something moved, and there are examples to learn it from.

    Two policies: ``drift``, by the detectors of what is asked for, and ``performance``, by those of how it went.
    """

    policy: Policy
    least: int

    def case(self, facts: Facts) -> Case:
        watched = self.policy == "performance"
        names = [name for name in facts.drifting if (name in PERFORMANCE) == watched]
        what = "clicks or ratings fell" if watched else "drift"
        if not names:
            return Case(self.policy, False, "no fall of clicks or ratings" if watched else "no drift")
        listed = ", ".join(names)
        if facts.examples < self.least:
            few = f"{facts.examples} new examples, fewer than {self.least} to learn from"
            return Case(self.policy, False, f"{what} ({listed}), but {few}")
        windows = f"{facts.drifted_windows} of the last {facts.measured_windows} windows"
        return Case(self.policy, True, f"{what} in {windows}: {listed}")


@dataclass(frozen=True)
class NewDocuments:
    """Enough documents came since the newest version was trained, and there are examples to learn from."""

    documents: int
    least: int

    def case(self, facts: Facts) -> Case:
        if facts.documents is None or facts.trained_documents is None:
            missing = "no node has counted documents" if facts.documents is None else "no version was trained"
            return Case("new_documents", False, f"{missing} yet")
        new = max(0, facts.documents - facts.trained_documents)
        if new < self.documents:
            return Case("new_documents", False, f"{new} of {self.documents} new documents")
        if facts.examples < self.least:
            few = f"{facts.examples} new examples, fewer than {self.least}"
            return Case("new_documents", False, f"{new} new documents, but {few}")
        return Case("new_documents", True, f"{new} new documents (threshold {self.documents})")


@dataclass(frozen=True)
class Schedule:
    """At an interval (``every`` seconds since the last command), or at a time of day (``at`` seconds, UTC)."""

    text: str
    least: int
    every: float | None = None
    at: float | None = None

    @classmethod
    def parse(cls, text: str, *, least: int = 1) -> Schedule:
        """From "90m", "12h", "7d", or "03:00". Raises ValueError.

        >>> Schedule.parse("12h").every, Schedule.parse("03:30").at
        (43200.0, 12600.0)
        """
        interval, time_of_day = _INTERVAL.fullmatch(text), _TIME_OF_DAY.fullmatch(text)
        if interval is not None:
            return cls(text, least, every=int(interval[1]) * _UNITS[interval[2]])
        if time_of_day is not None:
            return cls(text, least, at=int(time_of_day[1]) * 3600.0 + int(time_of_day[2]) * 60.0)
        raise ValueError('give an interval such as "90m", "12h" or "7d", or a time of day (UTC) such as "03:00"')

    def case(self, facts: Facts) -> Case:
        since = facts.since
        if since is None:
            return Case("schedule", False, f"schedule {self.text}: nothing has been reported yet")
        if self.every is not None:
            due = since + self.every
        else:
            due = (since - (self.at or 0.0)) // DAY_SECONDS * DAY_SECONDS + DAY_SECONDS + (self.at or 0.0)
        if facts.now < due:
            return Case("schedule", False, f"schedule {self.text}: due in {due - facts.now:.0f} s", due)
        if facts.examples < self.least:
            few = f"{facts.examples} new examples, fewer than {self.least}"
            return Case("schedule", False, f"schedule {self.text}: due, but {few}")
        return Case("schedule", True, f"schedule {self.text}: due")


@dataclass(frozen=True)
class Manual:
    """Only when an operator says so, who doesn't ask the trigger."""

    def case(self, facts: Facts) -> Case:  # noqa: ARG002
        return Case("manual", False, "an operator may ask for one")
