"""Which feedback belongs to which impression: the join by query_id, within the window.

Two clocks rule it, and neither is the worker's. Whether feedback is in time is told by the events' own times
(event time). When an impression may be closed is told by the log: once every one of the three topics has been
read past the record's append time plus the window. So a worker that starts again after an hour joins what it
finds exactly as if it had never been away.

The state is the open impressions, and feedback that came before its query. Both are bounded; what goes for
lack of room is counted.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from clickloop.events import QueryServed, Result, ResultClicked, ResultRated
from streams.examples import Feedback

Fate = Literal["joined", "waiting", "duplicate", "late", "not_shown", "too_many"]

MAX_FEEDBACK_PER_IMPRESSION = 200
"""No person sends more; what a machine sends on top would only cost memory."""


def _position(result: Result) -> int:
    return result.position


@lru_cache(maxsize=4096)
def _shared(positions: tuple[int, ...]) -> tuple[int, ...]:
    """One object for the position lists that are all alike."""
    return positions


@dataclass(slots=True, eq=False)
class Impression:
    """One served query while its window is open. ``results`` and ``positions`` are in the order of positions."""

    query_id: str
    query: str
    served_at: float
    """Event time, seconds since the epoch."""
    results: tuple[str, ...]
    positions: tuple[int, ...]
    split_key: str
    version: str
    space: str
    arm: str
    offset: int
    log_time: float
    """When the broker appended it, seconds since the epoch."""
    live: bool
    """False: read again after a restart, and its effects are in the log already."""
    feedback: Feedback | None = None

    @classmethod
    def of(cls, event: QueryServed, *, offset: int, log_time: float, live: bool) -> Impression:
        # A document that is listed twice counts where it was seen first.
        first = {result.doc_id: result for result in sorted(event.results, key=_position, reverse=True)}
        results = sorted(first.values(), key=_position)
        return cls(
            query_id=event.query_id,
            query=event.query,
            served_at=event.served_at.timestamp(),
            # Documents, versions and arms recur in millions of impressions: interned, each is kept once.
            results=tuple(sys.intern(result.doc_id) for result in results),
            positions=_shared(tuple(result.position for result in results)),
            split_key=event.split_key,
            version=sys.intern(event.version),
            space=sys.intern(event.space),
            arm=sys.intern(event.arm),
            offset=offset,
            log_time=log_time,
            live=live,
        )


@dataclass(slots=True)
class Arrival:
    """A click or rating with where it came from. ``source`` is handed back untouched."""

    event: ResultClicked | ResultRated
    log_time: float
    live: bool
    source: Any = None

    @property
    def at(self) -> float:
        event = self.event
        return (event.clicked_at if isinstance(event, ResultClicked) else event.rated_at).timestamp()


@dataclass(slots=True)
class Joined:
    """What became of one arrival; with its impression where there is one."""

    fate: Fate
    arrival: Arrival
    impression: Impression | None = None


class Join:
    """The open impressions of one partition.

    ``window`` is in seconds. At most ``max_open`` impressions, and a quarter as much waiting feedback, are kept.
    ``counts`` holds how often each fate was met, and ``evicted``, ``unmatched`` and ``duplicate_query``.
    """

    def __init__(self, *, window: float, max_open: int) -> None:
        self._window = window
        self._max_open = max_open
        self._max_waiting = max(16, max_open // 4)
        self._open: dict[str, Impression] = {}
        self._order: deque[Impression] = deque()
        self._closed: OrderedDict[int, None] = OrderedDict()
        self._waiting: OrderedDict[str, list[Arrival]] = OrderedDict()
        self._waiting_count = 0
        self.counts: Counter[str] = Counter()

    @property
    def open_impressions(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        return self._waiting_count

    def query(self, impression: Impression) -> list[Joined] | None:
        """Open an impression, and join what has waited for it. None where it is open already."""
        if impression.query_id in self._open:
            self.counts["duplicate_query"] += 1
            return None
        while len(self._open) >= self._max_open:
            self._close_oldest()
            self.counts["evicted"] += 1
        self._open[impression.query_id] = impression
        self._order.append(impression)
        early = self._waiting.pop(impression.query_id, [])
        self._waiting_count -= len(early)
        return [self._join(impression, arrival) for arrival in early]

    def feedback(self, arrival: Arrival) -> Joined:
        """Join a click or a rating with its impression, or let it wait for it."""
        query_id = arrival.event.query_id
        impression = self._open.get(query_id)
        if impression is not None:
            return self._join(impression, arrival)
        if hash(query_id) in self._closed:
            return self._fate("late", arrival)
        self._waiting.setdefault(query_id, []).append(arrival)
        self._waiting_count += 1
        while self._waiting_count > self._max_waiting:
            self._drop_waiting()
        return self._fate("waiting", arrival)

    def close(self, watermark: float) -> list[Impression]:
        """Close every impression whose window has passed. ``watermark``: all is read up to this append time."""
        closed = []
        while self._order and self._order[0].log_time + self._window <= watermark:
            closed.append(self._close_oldest())
        while self._waiting:
            first = next(iter(self._waiting.values()))
            if first[0].log_time + self._window > watermark:
                break
            self._drop_waiting()
        return closed

    def forget(self, split_key: str) -> None:
        """Close this key's open impressions; nothing more is formed from them."""
        for impression in [i for i in self._order if i.split_key == split_key]:
            self._order.remove(impression)
            self._open.pop(impression.query_id, None)

    @property
    def oldest_open_offset(self) -> int | None:
        """Offset of the oldest open impression: what lies below it in ``queries`` is done with."""
        return self._order[0].offset if self._order else None

    def feedback_horizon(self, watermark: float) -> float:
        """Append time before which no click or rating can matter any more.

        An open impression may own feedback that came up to a window before it; and some still waits.
        """
        oldest = [watermark]
        if self._order:
            oldest.append(self._order[0].log_time)
        horizon = min(oldest) - self._window
        if self._waiting:
            horizon = min(horizon, next(iter(self._waiting.values()))[0].log_time)
        return horizon

    def __iter__(self) -> Iterator[Impression]:
        return iter(self._order)

    def _join(self, impression: Impression, arrival: Arrival) -> Joined:
        event = arrival.event
        if abs(arrival.at - impression.served_at) > self._window:
            return self._fate("late", arrival, impression)
        if event.doc_id not in impression.results:
            return self._fate("not_shown", arrival, impression)
        if impression.feedback is None:
            impression.feedback = Feedback()
        known = impression.feedback.event_ids
        if event.event_id in known:
            return self._fate("duplicate", arrival, impression)
        if len(known) >= MAX_FEEDBACK_PER_IMPRESSION:
            return self._fate("too_many", arrival, impression)
        known.add(event.event_id)
        return self._fate("joined", arrival, impression)

    def _fate(self, fate: Fate, arrival: Arrival, impression: Impression | None = None) -> Joined:
        self.counts[fate] += 1
        return Joined(fate, arrival, impression)

    def _close_oldest(self) -> Impression:
        impression = self._order.popleft()
        del self._open[impression.query_id]
        self._closed[hash(impression.query_id)] = None
        if len(self._closed) > self._max_open:
            self._closed.popitem(last=False)
        return impression

    def _drop_waiting(self) -> None:
        _, dropped = self._waiting.popitem(last=False)
        self._waiting_count -= len(dropped)
        self.counts["unmatched"] += len(dropped)
