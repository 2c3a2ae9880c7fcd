"""Has the world moved? A window is measured against a reference; the figures decide nothing.

The reference of a partition is its earlier windows since the served version last changed: what the model
that serves now has been seeing. A new version starts it afresh. Windows that a detector found to be different
don't join it, so that what is new stays new until a model has learnt it.
"""

from __future__ import annotations

import numpy as np

from clickloop.events import Measurement
from streams.detectors import MIN_QUERIES, Detector, default_detectors
from streams.windows import Reference, Sample


class DriftWatch:
    """One partition's reference, and the detectors' figures for each window that is put to it."""

    def __init__(self, *, detectors: tuple[Detector, ...] | None = None, seed: int = 0) -> None:
        self._detectors = default_detectors() if detectors is None else detectors
        self._rng = np.random.default_rng(seed)
        self.reference = Reference()

    def window(self) -> Sample:
        """An empty window, to be filled and measured."""
        return Sample(outcomes_of=self.reference.version)

    def measure(self, window: Sample) -> list[Measurement]:
        """Compare a window with the reference, which it joins unless it is different. Empty for the first one."""
        if window.queries < MIN_QUERIES:
            return []
        if window.version != self.reference.version:
            self.reference.restart(window.version)
            self.reference.add(window, self._rng)
            return []
        found = [d.measure(window, self.reference.sample, self._rng) for d in self._detectors]
        measurements = [m for m in found if m is not None]
        if not any(m.exceeded for m in measurements):
            self.reference.add(window, self._rng)
        return measurements
