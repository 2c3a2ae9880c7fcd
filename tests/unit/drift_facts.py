"""Windows of simulated traffic, and what the drift detectors say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from streams.detectors import Detector, default_detectors
from streams.drift import DriftWatch
from streams.windows import Sample, Settled

DIMENSIONS = 32


def window(
    rng: np.random.Generator,
    n: int,
    *,
    topic: int = 0,
    clicked: float | Mapping[str, float] = 0.5,
    version: str | Sequence[str] = "v1",
) -> Sample:
    """``n`` queries about one of several topics: sketches around its direction, words of its own (Zipf).

    Of several versions each query is answered by one, by chance; ``clicked`` may be another for each.
    """
    sample = Sample()
    versions = [version] if isinstance(version, str) else version
    vectors = rng.normal(size=(n, DIMENSIONS))
    vectors[:, topic] += 3.0
    vectors *= 127 / np.abs(vectors).max(axis=1, keepdims=True)
    for vector in vectors.astype(np.int8):
        words = " ".join(f"w{w}" for w in rng.zipf(1.4, size=6) % 800 + 800 * topic)
        by = versions[int(rng.integers(len(versions)))]
        sample.query(words, vector.tobytes(), by)
        chance = clicked if isinstance(clicked, float) else clicked[by]
        best = int(rng.integers(1, 6)) if rng.random() < chance else None
        if best is not None:
            sample.click(f"d{topic}-{rng.zipf(1.4) % 100}", by)
        sample.settle(Settled(by, vector.tobytes(), 1.0 / best if best else 0.0))
        sample.close(by, best)
    return sample


def alarms(watch: DriftWatch, *windows: Sample) -> list[set[str]]:
    """Detectors that exceeded, of each window; "unmeasured" where it was compared with nothing."""
    found = [watch.measure(w) for w in windows]
    return [{m.detector for m in ms if m.exceeded} if ms else {"unmeasured"} for ms in found]


def mean_of(name: str) -> Detector:
    return next(d for d in default_detectors() if d.name == name)
