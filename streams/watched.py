"""What drift reports have told since the latest command: which detectors find the traffic different."""

from __future__ import annotations

from collections import Counter, defaultdict, deque

from clickloop.events import DriftMeasured

LATEST = 3
"""Windows of each partition that count for drift."""
ENTER, LEAVE = 2 / 3, 1 / 3
"""A detector must find so many of them different before it is drift, and fewer than so many before it is over."""


class Watched:
    """The latest windows of each partition. A command answers what was measured before it, whatever is told first.

    Times are seconds since the epoch.
    """

    def __init__(self) -> None:
        self.drifting: set[str] = set()
        """Detectors that find enough of the windows different."""
        self._latest: dict[int, deque[tuple[float, tuple[str, ...]]]] = defaultdict(lambda: deque(maxlen=LATEST))
        """Ends of windows, and who found them different."""
        self._moved: deque[tuple[float, float]] = deque(maxlen=LATEST)
        """Ends of windows, and the share of traffic that had moved between topics."""
        self._commanded_at = 0.0

    def report(self, event: DriftMeasured) -> None:
        """A window was measured."""
        end = event.window_end.timestamp()
        if event.measurements and end > self._commanded_at:
            self._latest[event.partition].append(
                (end, tuple(m.detector for m in event.measurements if m.exceeded))
            )
            self._moved += [
                (end, m.value) for m in event.measurements if m.detector == "topic_shares" and m.exceeded
            ]
            self._decide()

    def command(self, issued: float) -> None:
        """A command was given then."""
        self._commanded_at = max(self._commanded_at, issued)
        for partition, latest in self._latest.items():
            self._latest[partition] = deque((window for window in latest if window[0] > issued), LATEST)
        self._moved = deque((moved for moved in self._moved if moved[0] > issued), LATEST)
        self.drifting.clear()
        self._decide()

    @property
    def counts(self) -> Counter[str]:
        """How many of the latest windows each detector found different."""
        return Counter(name for latest in self._latest.values() for _, window in latest for name in set(window))

    @property
    def windows(self) -> int:
        return sum(len(latest) for latest in self._latest.values())

    @property
    def most_moved(self) -> float:
        """The largest share of traffic that moved between topics lately."""
        return max((share for _, share in self._moved), default=0.0)

    def _decide(self) -> None:
        """Drift begins with two of three windows, and is over with fewer than one of three: no flicker between."""
        counts, windows = self.counts, self.windows
        self.drifting = {name for name in self.drifting if counts[name] >= windows * LEAVE}
        self.drifting |= {name for name, count in counts.items() if count >= max(2.0, windows * ENTER)}
