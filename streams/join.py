"""Which feedback belongs to which impression: the join by query_id, within the window.

Two clocks rule it, and neither is the worker's. Whether feedback is in time is told by the events' own times
(event time). When an impression may be closed is told by the log: once every one of the three topics has been
read past the record's append time plus the window. So a worker that starts again after an hour joins what it
finds exactly as if it had never been away.

The state is the open impressions, and feedback that came before its query. Both are bounded; what goes for
lack of room is counted. There may be a million open impressions, and most are never touched again: what was served
lies on a shelf as packed records (streams/shelf.py), and what was said about it beside them.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from clickloop.codec import short_key
from clickloop.events import QueryServed, ResultClicked, ResultPreferred, ResultRated
from clickloop.propensity import swap_chance
from streams.examples import Feedback
from streams.shelf import Shelf

Fate = Literal["joined", "waiting", "duplicate", "late", "not_shown", "too_many"]

_FIRST = list(range(1, 1001))
MAX_FEEDBACK_PER_IMPRESSION = 200
"""No person sends more; what a machine sends on top would only cost memory."""


class Impression(msgspec.Struct, array_like=True, gc=False, eq=False):
    """One served query while its window is open. ``results`` and ``positions`` are in the order of positions."""

    query_id: str
    log_time: float
    """When the broker appended it, seconds since the epoch."""
    offset: int
    live: bool
    """False: read again after a restart, and its effects are in the log already."""
    query: str
    served_at: float
    """Event time, seconds since the epoch."""
    results: list[str]
    positions: list[int]
    split_key: str
    version: str
    space: str
    arm: str
    feedback: Feedback | None = None
    domain: str = ""
    scores: bytes = b""
    """Of each result, as 32-bit floats; empty where they are not known."""
    swapped: int = 0
    """Position of the upper one of the two results that exploration swapped; 0 where it did not."""
    swap_chance: float | None = None
    """Probability of each such swap; None where there was no exploration."""

    @classmethod
    def of(cls, event: QueryServed, *, offset: int, log_time: float, live: bool) -> Impression:
        positions = [result.position for result in event.results]
        results = [result.doc_id for result in event.results]
        scores = array("f", [result.score for result in event.results])
        count = len(results)
        if (positions != _FIRST[:count] and sorted(positions) != positions) or len(set(results)) != count:
            # A document that is listed twice counts where it was seen first.
            first: dict[str, int] = {}
            for position, doc_id in sorted(zip(positions, results, strict=True), key=lambda shown: shown[0]):
                first.setdefault(doc_id, position)
            results, positions, scores = list(first), list(first.values()), array("f")
        explored = event.results and event.results[0].propensity < 1.0
        return cls(
            event.query_id,
            log_time,
            offset,
            live,
            event.query,
            event.served_at.timestamp(),
            results,
            positions,
            short_key(event.split_key),
            event.version,
            event.space,
            event.arm,
            None,
            event.domain,
            scores.tobytes(),
            event.swapped or 0,
            swap_chance(event) if explored else None,
        )


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Impression).decode
_unpack_feedback = msgspec.msgpack.Decoder(Feedback).decode


@dataclass(slots=True)
class Arrival:
    """A click or rating with where it came from. ``source`` is handed back untouched."""

    event: ResultClicked | ResultRated | ResultPreferred
    log_time: float
    live: bool
    source: Any = None
    at: float = field(init=False)
    """Event time, seconds since the epoch."""

    def __post_init__(self) -> None:
        event = self.event
        if isinstance(event, ResultClicked):
            self.at = event.clicked_at.timestamp()
        else:
            self.at = (event.rated_at if isinstance(event, ResultRated) else event.preferred_at).timestamp()

    def unseen(self, shown: Sequence[str]) -> str:
        """A document that the event speaks of and that is not in ``shown``; "" where all are."""
        event = self.event
        if isinstance(event, ResultPreferred) and event.alternative not in shown:
            return event.alternative
        return "" if event.doc_id in shown else event.doc_id


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
        self._open = Shelf()
        """What was served, in the order of the log."""
        self._feedback: dict[str, bytes] = {}
        """By query_id, where there is some."""
        self._oldest: Impression | None = None
        """The first open one, without its feedback, once someone has asked for it."""
        self._closed = _Remembered(max_open)
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
        """Open an impression, and join what has waited for it. None where it is open already, or was."""
        query_id = impression.query_id
        if query_id in self._closed or not self._open.put(query_id, _pack(impression)):
            self.counts["duplicate_query"] += 1
            return None
        while len(self._open) > self._max_open:
            self._close_oldest()
            self.counts["evicted"] += 1
        if not self._waiting:
            return []
        early = self._waiting.pop(impression.query_id, [])
        self._waiting_count -= len(early)
        return [self._join(impression, arrival) for arrival in early]

    def feedback(self, arrival: Arrival) -> Joined:
        """Join a click or a rating with its impression, or let it wait for it.

        What the caller then changes in the impression lasts once it was handed to ``keep``.
        """
        query_id = arrival.event.query_id
        record = self._open.get(query_id)
        impression = None if record is None else self._unpacked(record)
        if impression is not None and impression.query_id == query_id:
            return self._join(impression, arrival)
        if query_id in self._closed:
            return self._fate("late", arrival)
        self._waiting.setdefault(query_id, []).append(arrival)
        self._waiting_count += 1
        while self._waiting_count > self._max_waiting:
            self._drop_waiting()
        return self._fate("waiting", arrival)

    def keep(self, impression: Impression) -> None:
        """Remember the feedback on an open impression as it is now."""
        if impression.query_id in self._open:
            self._feedback[impression.query_id] = _pack(impression.feedback)

    def close(self, watermark: float) -> list[Impression]:
        """Close every impression whose window has passed. ``watermark``: all is read up to this append time."""
        closed = []
        while (oldest := self._first()) is not None and oldest.log_time + self._window <= watermark:
            closed.append(self._close_oldest())
        while self._waiting:
            first = next(iter(self._waiting.values()))
            if first[0].log_time + self._window > watermark:
                break
            self._drop_waiting()
        return closed

    def forget(self, split_key: str) -> None:
        """Close this key's open impressions; nothing more is formed from them."""
        for impression in [i for i in self if i.split_key == split_key]:
            self._open.remove(impression.query_id)
            self._feedback.pop(impression.query_id, None)
        self._oldest = None

    @property
    def oldest_open_offset(self) -> int | None:
        """Offset of the oldest open impression: what lies below it in ``queries`` is done with."""
        oldest = self._first()
        return None if oldest is None else oldest.offset

    def feedback_horizon(self, watermark: float) -> float:
        """Append time before which no click or rating can matter any more.

        An open impression may own feedback that came up to a window before it; and some still waits.
        """
        oldest = self._first()
        horizon = (watermark if oldest is None else min(watermark, oldest.log_time)) - self._window
        if self._waiting:
            horizon = min(horizon, next(iter(self._waiting.values()))[0].log_time)
        return horizon

    def __iter__(self) -> Iterator[Impression]:
        return map(self._unpacked, self._open)

    def _unpacked(self, record: bytes) -> Impression:
        impression = _unpack(record)
        feedback = self._feedback.get(impression.query_id)
        if feedback is not None:
            impression.feedback = _unpack_feedback(feedback)
        return impression

    def _join(self, impression: Impression, arrival: Arrival) -> Joined:
        event = arrival.event
        if abs(arrival.at - impression.served_at) > self._window:
            return self._fate("late", arrival, impression)
        if arrival.unseen(impression.results):
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

    def _first(self) -> Impression | None:
        """The oldest open impression as it was served."""
        if self._oldest is None:
            record = self._open.oldest()
            self._oldest = None if record is None else _unpack(record)
        return self._oldest

    def _close_oldest(self) -> Impression:
        first = self._first()
        if first is None:
            raise IndexError("no impression is open")
        self._oldest = None
        self._closed.add(first.query_id)
        closed = self._unpacked(self._open.pop_oldest(first.query_id))
        self._feedback.pop(first.query_id, None)
        return closed

    def _drop_waiting(self) -> None:
        _, dropped = self._waiting.popitem(last=False)
        self._waiting_count -= len(dropped)
        self.counts["unmatched"] += len(dropped)


class _Remembered:
    """Of the last ``size`` query ids at least the later half, by their hashes."""

    def __init__(self, size: int) -> None:
        self._half = max(1, size // 2)
        self._new: set[int] = set()
        self._old: set[int] = set()

    def __contains__(self, query_id: str) -> bool:
        number = hash(query_id)
        return number in self._new or number in self._old

    def add(self, query_id: str) -> None:
        self._new.add(hash(query_id))
        if len(self._new) >= self._half:
            self._old, self._new = self._new, set()
