"""When to retrain. Reads what was measured, decides, and says why, or why not.

Two policies. ``threshold``: enough new examples. ``drift``: a detector found at least two of every three of
the latest measured windows to be different, and there are examples to learn the new world from. Between them and
a command stand the pause switch, one command in flight, and a cool-down.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import get_args

from clickloop.commands import Policy, Reason, Retrain
from clickloop.events import DriftMeasured, OffsetRange, TrainingProgressed, VersionKind
from streams.buffer import covers, merge_ranges

ALL_KINDS = get_args(VersionKind)
LATEST = 3
"""Windows of each partition that the drift policy looks at."""
MAX_PENDING = 20_000
"""Reports that are kept apart while no command covers them; beyond it the two oldest become one."""
QUIET_SECONDS = 120.0
"""A command one of whose rungs has ended, and that is silent for so long, is over."""
GRACE_SECONDS = 600.0
"""A command that is silent for longer than its budget and this is lost."""


@dataclass(frozen=True)
class NotNow:
    """Why there is no retrain at this moment."""

    reason: str


@dataclass(slots=True)
class _Pending:
    """A report that no command covers yet."""

    offset: int
    window_end: float
    queries: int
    examples: int
    ranges: list[OffsetRange]


@dataclass(slots=True)
class _InFlight:
    command: Retrain
    last_heard: float
    ended: set[VersionKind] = field(default_factory=set)


class Trigger:
    """The trigger of one index. Everything it knows comes from the log, so a restart rebuilds it.

    Times are seconds since the epoch.
    """

    def __init__(
        self,
        index: str,
        *,
        policies: Sequence[Policy],
        kinds: Sequence[VersionKind],
        threshold: int,
        drift_min_examples: int,
        cool_down_seconds: float,
        budget_seconds: float,
    ) -> None:
        self._index = index
        self._policies = tuple(policies)
        self._kinds = list(kinds)
        self._threshold = threshold
        self._drift_min_examples = drift_min_examples
        self._cool_down_seconds = cool_down_seconds
        self._budget_seconds = budget_seconds
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._latest: dict[int, deque[tuple[str, ...]]] = defaultdict(lambda: deque(maxlen=LATEST))
        self._commands: deque[tuple[list[OffsetRange], float]] = deque(maxlen=1000)
        self._in_flight: _InFlight | None = None
        self._ended_at: float | None = None
        self._ended: OrderedDict[str, set[VersionKind]] = OrderedDict()
        self.paused = False

    def report(self, event: DriftMeasured, *, offset: int) -> None:
        """A window was measured. A report with a known id takes the place of that one."""
        end = event.window_end.timestamp()
        if any(_is_covered(event.ranges, end, *command) for command in self._commands):
            return
        known = self._pending.get(event.event_id)
        ranges = merge_ranges([*event.ranges, *(known.ranges if known else [])])
        self._pending[event.event_id] = _Pending(
            known.offset if known else offset, end, event.queries, event.examples, ranges
        )
        if event.measurements and known is None:
            exceeded = tuple(m.detector for m in event.measurements if m.exceeded)
            self._latest[event.partition].append(exceeded)
        if len(self._pending) > MAX_PENDING:
            self._fold()

    def retrain(self, command: Retrain) -> None:
        """A command is in the log, whoever sent it: the reports that it covers are done with."""
        if self._in_flight is not None and self._in_flight.command.command_id == command.command_id:
            return
        issued = command.issued_at.timestamp()
        ranges = merge_ranges(command.ranges)
        self._commands.append((ranges, issued))
        self._pending = OrderedDict(
            (event_id, p)
            for event_id, p in self._pending.items()
            if not _is_covered(p.ranges, p.window_end, ranges, issued)
        )
        self._latest.clear()
        ended = self._ended.pop(command.command_id, set())
        self._in_flight = _InFlight(command, issued, ended)
        self._maybe_end(issued)

    def training(self, event: TrainingProgressed) -> None:
        """A run moved on. Its command ends with its last rung done, or with the run failed."""
        at = event.at.timestamp()
        flight = self._in_flight
        over = set(ALL_KINDS) if event.stage == "failed" else {event.kind} if event.stage == "done" else set()
        if flight is None or flight.command.command_id != event.command_id:
            # Read before its command, which lies on another topic.
            if over:
                self._ended.setdefault(event.command_id, set()).update(over)
                while len(self._ended) > 1000:
                    self._ended.popitem(last=False)
            return
        flight.last_heard = max(flight.last_heard, at)
        if over:
            flight.ended |= over
            self._maybe_end(at)

    def decide(self, now: float) -> Retrain | NotNow:
        """A command with its ranges and reason, or the reason why there is none. Changes nothing."""
        if self.paused:
            return NotNow("paused by an operator")
        waiting = self._waiting_for(now)
        if waiting:
            return NotNow(waiting)
        examples = sum(p.examples for p in self._pending.values())
        queries = sum(p.queries for p in self._pending.values())
        ranges = merge_ranges(r for p in self._pending.values() for r in p.ranges)
        drifted, measured, detectors = self._drift()
        policies: list[Policy] = []
        if "threshold" in self._policies and examples >= self._threshold:
            policies.append("threshold")
        if "drift" in self._policies and detectors and examples >= self._drift_min_examples:
            policies.append("drift")
        if not policies or not ranges:
            return NotNow(self._too_little(examples, detectors))
        parts = [f"{examples} new examples (threshold {self._threshold})"]
        if detectors:
            parts.append(f"drift in {drifted} of the last {measured} windows: {', '.join(detectors)}")
        return Retrain(
            command_id=_command_id(self._index, ranges),
            index=self._index,
            issued_at=datetime.fromtimestamp(now, UTC),
            kinds=list(self._kinds),
            ranges=ranges,
            reason=Reason(
                policies=policies,
                text="; ".join(parts),
                figures={
                    "examples": float(examples),
                    "threshold": float(self._threshold),
                    "queries": float(queries),
                    "drifted_windows": float(drifted),
                    "measured_windows": float(measured),
                },
            ),
            budget_seconds=self._budget_seconds,
        )

    @property
    def low_water(self) -> int | None:
        """Offset of the oldest report that no command covers."""
        return min((p.offset for p in self._pending.values()), default=None)

    @property
    def new_examples(self) -> int:
        return sum(p.examples for p in self._pending.values())

    def _waiting_for(self, now: float) -> str:
        flight = self._in_flight
        if flight is not None:
            silent = now - flight.last_heard
            ended = bool(flight.ended) and silent > QUIET_SECONDS
            lost = silent > flight.command.budget_seconds + GRACE_SECONDS
            if not ended and not lost:
                return f"command {flight.command.command_id} is in flight"
        since = self._ended_at
        if since is not None and now - since < self._cool_down_seconds:
            return f"cooling down for another {self._cool_down_seconds - (now - since):.0f} s"
        return ""

    def _drift(self) -> tuple[int, int, list[str]]:
        """Windows that differ by the detector that says so most often, windows looked at, and the detectors
        that agree on at least two of three."""
        windows = [w for latest in self._latest.values() for w in latest]
        names = sorted({name for window in windows for name in window})
        counts = {name: sum(name in window for window in windows) for name in names}
        needed = max(2.0, len(windows) * 2 / 3)
        return max(counts.values(), default=0), len(windows), [n for n in names if counts[n] >= needed]

    def _too_little(self, examples: int, detectors: Sequence[str]) -> str:
        if detectors and "drift" in self._policies:
            return (
                f"drift ({', '.join(detectors)}), but {examples} new examples, "
                f"fewer than {self._drift_min_examples} to learn from"
            )
        return f"{examples} of {self._threshold} new examples, and no drift"

    def _maybe_end(self, at: float) -> None:
        flight = self._in_flight
        if flight is not None and flight.ended >= set(flight.command.kinds):
            self._in_flight = None
            self._ended_at = max(at, self._ended_at or 0.0)

    def _fold(self) -> None:
        _, first = self._pending.popitem(last=False)
        _, second = self._pending.popitem(last=False)
        folded = _Pending(
            min(first.offset, second.offset),
            max(first.window_end, second.window_end),
            first.queries + second.queries,
            first.examples + second.examples,
            merge_ranges([*first.ranges, *second.ranges]),
        )
        self._pending["folded"] = folded
        self._pending.move_to_end("folded", last=False)


def _is_covered(
    ranges: Sequence[OffsetRange], window_end: float, command: Sequence[OffsetRange], issued_at: float
) -> bool:
    """Its examples are in the command's ranges; a window without examples was over when the command came."""
    return covers(command, ranges) if ranges else window_end <= issued_at


def _command_id(index: str, ranges: Sequence[OffsetRange]) -> str:
    """Told by what is to be trained on, so that the same wish, sent twice, is one command."""
    text = index + "".join(f"|{r.topic}/{r.partition}/{r.start}/{r.end}" for r in ranges)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
