"""A limit on dead letters: better a worker that stops loudly than a topic that drains into ``dead-letters``."""

from __future__ import annotations

from collections import deque

MINUTE = 60.0


class DeadLetterLimit:
    """Counts unusable messages within the last minute. Times are seconds.

    >>> limit = DeadLetterLimit(2)
    >>> [limit.exceeded_by_one_more(at) for at in (0.0, 1.0, 2.0, 100.0)]
    [False, False, True, False]
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._times: deque[float] = deque()

    def exceeded_by_one_more(self, now: float) -> bool:
        self._times.append(now)
        while self._times[0] <= now - MINUTE:
            self._times.popleft()
        return len(self._times) > self._per_minute
