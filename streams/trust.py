"""How far feedback is believed.

A click on what was not shown can't have happened: it goes to ``dead-letters``. All else stays, with a weight in
[0, 1], so that the log still shows what was believed how far. Times are seconds, and event time.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass

from streams.examples import Feedback

MINUTE = 60.0
MAX_KEYS = 50_000
"""Split keys whose rates are remembered; the one that was silent the longest goes first."""
FAST_WEIGHT = 0.5
"""One click faster than a person may be a skewed clock."""
FAST_REPEATS = 3
"""So many of one key within a minute are a machine."""
EVERYTHING_CLICKS = 5
EVERYTHING_SHARE = 0.6
EVERYTHING_SECONDS = 2.0


@dataclass(slots=True)
class _Habits:
    clicks: deque[float]
    fast: deque[float]


class Trust:
    """The weight of each click, from what its split key did within the last minute.

    ``counts`` tells how often each rule took weight away: ``too_fast``, ``rate``, ``everything``.
    """

    def __init__(self, *, min_click_seconds: float, clicks_per_minute: int) -> None:
        self._min_click_seconds = min_click_seconds
        self._clicks_per_minute = clicks_per_minute
        self._habits: OrderedDict[str, _Habits] = OrderedDict()
        self.counts: Counter[str] = Counter()

    def click(self, split_key: str, *, at: float, served_at: float) -> float:
        """Weight of one click in [0, 1]. Without a key, only the click's own speed is judged."""
        # Far before its answer it is a clock that is wrong, not a hand that is quick.
        fast = -1.0 <= at - served_at < self._min_click_seconds
        if not split_key:
            return self._lowered("too_fast", FAST_WEIGHT) if fast else 1.0
        habits = self._habits_of(split_key)
        _add(habits.clicks, at, limit=self._clicks_per_minute + 1)
        if fast:
            _add(habits.fast, at, limit=FAST_REPEATS)
        _prune(habits.fast, at)
        if len(habits.clicks) > self._clicks_per_minute:
            return self._lowered("rate", 0.0)
        if len(habits.fast) >= FAST_REPEATS:
            return self._lowered("too_fast", 0.0)
        return self._lowered("too_fast", FAST_WEIGHT) if fast else 1.0

    def rating(self, split_key: str, *, at: float) -> float:
        """Weight of one rating, which counts against the key's rate as a click does."""
        if not split_key:
            return 1.0
        habits = self._habits_of(split_key)
        _add(habits.clicks, at, limit=self._clicks_per_minute + 1)
        return self._lowered("rate", 0.0) if len(habits.clicks) > self._clicks_per_minute else 1.0

    def believed(self, feedback: Feedback, shown: int) -> bool:
        """False for an impression nearly all of whose results were clicked within two seconds.

        More feedback never makes it believed again.
        """
        if len(feedback.results) < EVERYTHING_CLICKS:
            return True
        enough = max(EVERYTHING_CLICKS, round(EVERYTHING_SHARE * shown))
        clicks = sorted((at, doc) for doc, result in feedback.results.items() for at in result.clicks)
        recent: deque[tuple[float, str]] = deque()
        for at, doc in clicks:
            recent.append((at, doc))
            while recent[0][0] < at - EVERYTHING_SECONDS:
                recent.popleft()
            if len({doc for _, doc in recent}) >= enough:
                self.counts["everything"] += 1
                return False
        return True

    def _habits_of(self, split_key: str) -> _Habits:
        habits = self._habits.get(split_key)
        if habits is None:
            habits = self._habits[split_key] = _Habits(deque(), deque())
            if len(self._habits) > MAX_KEYS:
                self._habits.popitem(last=False)
        else:
            self._habits.move_to_end(split_key)
        return habits

    def _lowered(self, rule: str, weight: float) -> float:
        self.counts[rule] += 1
        return weight


def _add(times: deque[float], at: float, *, limit: int) -> None:
    """Add a time to those of the last minute; of the oldest beyond ``limit`` nothing more can be learnt."""
    times.append(at)
    if len(times) > limit:
        times.popleft()
    _prune(times, at)


def _prune(times: deque[float], now: float) -> None:
    while times and times[0] < now - MINUTE:
        times.popleft()
