"""Has the world moved? A window is measured against a reference; the figures decide nothing.

The reference of a partition is its earlier windows since the served version last changed: what the model
that serves now has been seeing. A new version starts it afresh. Windows that a detector found to be different
don't join it, so that what is new stays new until a model has learnt it.

Every detector has one method, ``measure(window, reference, rng)``, and its own level: the share of
windows of an unmoving world in which it may be wrong. Together the three stay below 1 %.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clickloop.events import Measurement

Floats = NDArray[np.float32]

MIN_QUERIES = 50
"""Below this a window's figures say too little to be calibrated."""
MAX_WINDOW = 250
MAX_REFERENCE = 750
"""Queries of a window and of the reference that are compared: enough to see, few enough to be cheap."""

_WORDS = re.compile(r"\w{2,}")


def terms(query: str) -> tuple[int, ...]:
    """The distinct words of a query, each as a 32-bit number that is the same in every process."""
    return tuple({zlib.crc32(word.encode()) for word in _WORDS.findall(query.lower())})


@dataclass(slots=True)
class Sample:
    """What the detectors look at, of a window or of the reference. At most ``limit`` queries, the first ones."""

    limit: int = MAX_WINDOW
    sketches: list[bytes] = field(default_factory=list)
    terms: list[tuple[int, ...]] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    queries: int = 0
    reciprocal_rank_sum: float = 0.0
    reciprocal_rank_squares: float = 0.0

    def query(self, text: str, sketch: bytes, version: str) -> None:
        self.queries += 1
        self.versions[version] += 1
        if len(self.terms) < self.limit:
            self.terms.append(terms(text))
            self.sketches.append(sketch)

    @property
    def version(self) -> str:
        """The version that served most of it."""
        return self.versions.most_common(1)[0][0] if self.versions else ""


class Reference:
    """A bounded, uniform sample of the windows since the served version changed (Vitter's Algorithm R)."""

    def __init__(self, limit: int = MAX_REFERENCE) -> None:
        self._limit = limit
        self.sample = Sample(limit)
        self.version = ""

    def restart(self, version: str) -> None:
        self.sample = Sample(self._limit)
        self.version = version

    def add(self, window: Sample, rng: np.random.Generator) -> None:
        kept = self.sample
        for number, (sketch, words) in enumerate(zip(window.sketches, window.terms, strict=True)):
            if len(kept.terms) < self._limit:
                kept.sketches.append(sketch)
                kept.terms.append(words)
                continue
            place = int(rng.integers(kept.queries + number + 1))
            if place < self._limit:
                kept.sketches[place] = sketch
                kept.terms[place] = words
        kept.queries += window.queries
        kept.reciprocal_rank_sum += window.reciprocal_rank_sum
        kept.reciprocal_rank_squares += window.reciprocal_rank_squares


class Detector(Protocol):
    """One figure with its calibration."""

    name: str

    def measure(self, window: Sample, reference: Sample, rng: np.random.Generator) -> Measurement | None:
        """None where there is too little to say anything."""


def _p_value(
    statistic: Callable[[Floats], NDArray[np.floating]],
    *,
    window: int,
    total: int,
    rng: np.random.Generator,
    permutations: int,
) -> tuple[float, float]:
    """The observed statistic and its permutation p-value.

    ``statistic`` takes labels (b, total), 1 for the window and 0 for the reference, and gives (b,) figures. It
    stops early once the p-value is clearly large (Besag and Clifford, "Sequential Monte Carlo p-values",
    Biometrika 1991).
    """
    labels = np.zeros((1, total), dtype=np.float32)
    labels[0, :window] = 1.0
    observed = float(statistic(labels)[0])
    beyond, done, chunk = 0, 0, 25
    while done < permutations:
        size = min(chunk, permutations - done)
        shuffled = rng.permuted(np.repeat(labels, size, axis=0), axis=1)
        figures = np.asarray(statistic(shuffled))
        for count, hit in enumerate(figures >= observed - 1e-9, start=1):
            beyond += int(hit)
            if beyond >= 10:
                return observed, beyond / (done + count)
        done += size
        chunk = min(chunk * 2, 200)
    return observed, (beyond + 1) / (done + 1)


class QueryDistance:
    """Energy distance between the queries' sketches (Székely and Rizzo, "Energy statistics", 2013).

    Sketches are int8 vectors of one length, as the search node sends them; they are brought to length 1.
    """

    name = "query_distance"

    def __init__(self, *, level: float = 0.002, permutations: int = 999) -> None:
        self._level = level
        self._permutations = permutations

    def measure(self, window: Sample, reference: Sample, rng: np.random.Generator) -> Measurement | None:
        length = Counter(len(s) for s in window.sketches if s).most_common(1)
        if not length:
            return None
        new = _vectors(window.sketches, length[0][0])
        old = _vectors(reference.sketches, length[0][0])
        if len(new) < MIN_QUERIES or len(old) < MIN_QUERIES:
            return None
        pooled = np.concatenate([new, old])
        squared = 2.0 - 2.0 * (pooled @ pooled.T)
        distances = np.sqrt(np.maximum(squared, 0.0), out=squared)
        n, m = len(new), len(old)

        def energy(labels: Floats) -> NDArray[np.floating]:
            to_window = labels @ distances
            inside = np.einsum("bn,bn->b", to_window, labels)
            row_sums = to_window.sum(axis=1)
            between = row_sums - inside
            outside = distances.sum() - 2.0 * row_sums + inside
            return np.asarray(2.0 * between / (n * m) - inside / (n * n) - outside / (m * m), dtype=np.float64)

        value, p = _p_value(energy, window=n, total=n + m, rng=rng, permutations=self._permutations)
        return Measurement(
            detector=self.name,
            value=round(value, 6),
            threshold=self._level,
            p_value=min(1.0, p),
            exceeded=p <= self._level,
        )


class NewTerms:
    """Share of the window's words that the reference never uses, against shuffled splits of the two.

    A young reference knows few words; the shuffling accounts for that.
    """

    name = "new_terms"

    def __init__(self, *, level: float = 0.003, permutations: int = 399) -> None:
        self._level = level
        self._permutations = permutations

    def measure(self, window: Sample, reference: Sample, rng: np.random.Generator) -> Measurement | None:
        n, m = len(window.terms), len(reference.terms)
        if n < MIN_QUERIES or m < MIN_QUERIES:
            return None
        queries = window.terms + reference.terms
        vocabulary: dict[int, int] = {}
        rows, columns = [], []
        for row, words in enumerate(queries):
            for word in words:
                rows.append(row)
                columns.append(vocabulary.setdefault(word, len(vocabulary)))
        if not vocabulary:
            return None
        used = np.zeros((n + m, len(vocabulary)), dtype=np.float32)
        used[rows, columns] = 1.0
        total = used.sum(axis=0)

        def new_share(labels: Floats) -> NDArray[np.floating]:
            in_window = labels @ used
            fresh = np.where(in_window >= total - 0.5, in_window, 0.0)
            return np.asarray(fresh.sum(axis=1) / np.maximum(in_window.sum(axis=1), 1.0), dtype=np.float64)

        value, p = _p_value(new_share, window=n, total=n + m, rng=rng, permutations=self._permutations)
        return Measurement(
            detector=self.name,
            value=round(value, 6),
            threshold=self._level,
            p_value=min(1.0, p),
            exceeded=p <= self._level,
        )


class ClickRank:
    """Mean reciprocal rank of the topmost click, and whether it fell below the reference's (one-sided Welch test).

    The value is the window's mean; ``threshold`` is the mean at which the fall would be beyond chance.
    """

    name = "click_mrr"

    def __init__(self, *, z: float = 3.0) -> None:
        self._z = z

    def measure(
        self,
        window: Sample,
        reference: Sample,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Measurement | None:
        if window.queries < MIN_QUERIES or reference.queries < MIN_QUERIES:
            return None
        new, new_error = _mean(window)
        old, old_error = _mean(reference)
        error = math.sqrt(new_error + old_error)
        if error == 0.0:
            return None
        fall = (old - new) / error
        return Measurement(
            detector=self.name,
            value=round(new, 6),
            threshold=round(old - self._z * error, 6),
            p_value=0.5 * math.erfc(fall / math.sqrt(2.0)),
            exceeded=fall > self._z,
        )


def _mean(sample: Sample) -> tuple[float, float]:
    """Mean reciprocal rank a query, and its squared standard error."""
    mean = sample.reciprocal_rank_sum / sample.queries
    variance = max(0.0, sample.reciprocal_rank_squares / sample.queries - mean * mean)
    return mean, variance / sample.queries


def _vectors(sketches: Iterable[bytes], length: int) -> Floats:
    """Sketches of one length as unit vectors, (n, length) float32. Others, and zeros, are left out."""
    raw = b"".join(s for s in sketches if len(s) == length)
    vectors = np.frombuffer(raw, dtype=np.int8).reshape(-1, length).astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors[norms[:, 0] > 0] / norms[norms[:, 0] > 0], dtype=np.float32)


def default_detectors() -> tuple[Detector, ...]:
    return (QueryDistance(), NewTerms(), ClickRank())


class DriftWatch:
    """One partition's reference, and the detectors' figures for each window that is put to it."""

    def __init__(self, *, detectors: tuple[Detector, ...] | None = None, seed: int = 0) -> None:
        self._detectors = default_detectors() if detectors is None else detectors
        self._rng = np.random.default_rng(seed)
        self.reference = Reference()

    def measure(self, window: Sample) -> list[Measurement]:
        """Compare a window with the reference, which it joins unless it is different. Empty for the first ones."""
        if window.queries < MIN_QUERIES:
            return []
        if window.version != self.reference.version:
            self.reference.restart(window.version)
        found = [d.measure(window, self.reference.sample, self._rng) for d in self._detectors]
        measurements = [m for m in found if m is not None]
        if not any(m.exceeded for m in measurements):
            self.reference.add(window, self._rng)
        return measurements
