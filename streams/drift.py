"""Has the world moved? A window is measured against a reference; the figures decide nothing.

The reference of a partition is its earlier windows, whichever versions answered. What depends on the version that
answered, clicks and ratings, is compared with what the same version earned before, so that neither a new version
nor a change of its share of the traffic is taken for a change of the world.

Windows that a detector found to be different don't join the reference, so that what is new stays new until a model
has learnt it. That is once most queries are answered by a version that came later: it starts the reference afresh.
Where a search of one's own does not tell its version, what is new is taken for known after some windows.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from clickloop.events import Measurement
from streams.detectors import Detector, default_detectors
from streams.windows import MIN_QUERIES, Reference, Sample

SEEN = 1000
"""Versions that are remembered to have answered."""
UNTOLD_WINDOWS = 6
"""For so many windows what is new stays new where no one tells which version answered."""


class DriftWatch:
    """One partition's reference, and the detectors' figures for each window that is put to it."""

    def __init__(self, *, detectors: tuple[Detector, ...] | None = None, seed: int = 0) -> None:
        self._detectors = default_detectors() if detectors is None else detectors
        self._rng = np.random.default_rng(seed)
        self._seen: OrderedDict[str, None] = OrderedDict()
        """Every version that answered, the latest last."""
        self._unlearnt: frozenset[str] = frozenset()
        """While windows are different: the versions that had answered when the first one was."""
        self._different = 0
        """Windows in a row that were."""
        self.reference = Reference()

    def measure(self, window: Sample) -> list[Measurement]:
        """Compare a window with the reference, which it joins unless it is different. Empty for the first one."""
        if window.queries < MIN_QUERIES:
            return []
        self._remember(window)
        if not self.reference.sample.queries or self._is_learnt(window):
            self._unlearnt, self._different = frozenset(), 0
            self.reference.restart()
            self.reference.add(window, self._rng)
            return []
        found = [d.measure(window, self.reference.sample, self._rng) for d in self._detectors]
        measurements = [m for m in found if m is not None]
        if not any(m.exceeded for m in measurements):
            self._unlearnt, self._different = frozenset(), 0
            self.reference.add(window, self._rng)
            return measurements
        self._different += 1
        if not self._unlearnt:
            self._unlearnt = frozenset(self._seen)
        return measurements

    def _remember(self, window: Sample) -> None:
        for version in window.answered:
            self._seen[version] = None
            self._seen.move_to_end(version)
        while len(self._seen) > SEEN:
            self._seen.popitem(last=False)

    def _is_learnt(self, window: Sample) -> bool:
        """Whether a version that can have learnt what is new has taken over."""
        if not window.version:
            return self._different >= UNTOLD_WINDOWS
        return bool(self._unlearnt) and window.version not in self._unlearnt
