"""Detectors: each compares a window with the reference and gives one figure with its calibration.

They know no policy, and decide nothing. Every detector has one method, ``measure(window, reference, rng)``, and
its own level: the share of windows of an unmoving world in which it may be wrong. ``default_detectors`` budgets
the levels so that all of them together stay below 1 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clickloop.events import Measurement
from streams.windows import Sample, Sums

Floats = NDArray[np.float32]
Statistic = Callable[[Floats], NDArray[np.floating]]
"""Takes labels (b, n + m), 1 for the window's and 0 for the reference's, and gives (b,) figures."""

MIN_QUERIES = 50
"""Below this a window's figures say too little to be calibrated."""
MIN_RATINGS = 30
MIN_IN_TOPIC = 10
TOPICS = 8


class Detector(Protocol):
    """One figure with its calibration."""

    name: str

    def measure(self, window: Sample, reference: Sample, rng: np.random.Generator) -> Measurement | None:
        """None where there is too little to say anything."""


def load() -> None:
    """Import what detectors need, river, which takes seconds. A worker calls it before it is given partitions: one
    that waits for an import waits with all that has come for it."""
    import river.drift  # noqa: F401


def default_detectors() -> tuple[Detector, ...]:
    """All detectors. Their levels add up to 0.55 % of windows; ``click_trend`` has no level, and adds little."""
    return (
        QueryDistance(level=0.001),
        NewShare("new_terms", lambda sample: [query.terms for query in sample.asked], level=0.001),
        NewShare("new_documents", lambda sample: sample.documents, level=0.001),
        TopicShares(level=0.0005),
        TopicClicks(level=0.0005),
        MeanMoved("click_mrr", lambda sample: sample.clicks, level=0.0005),
        MeanMoved("rating_mean", lambda sample: sample.ratings, level=0.0005, least=MIN_RATINGS),
        MeanMoved("abandonment", lambda sample: sample.abandoned, level=0.0005, worse=1.0),
        ClickTrend(),
    )


def _permuted(
    name: str, statistic: Statistic, sizes: tuple[int, int], *, level: float, rng: np.random.Generator
) -> Measurement:
    """The statistic of the window with its permutation p-value; large ones are unusual.

    ``sizes`` are those of window and reference, n and m. There are as many shuffles as tell a p-value of
    ``level``, and fewer where it is clearly large (Besag and Clifford, "Sequential Monte Carlo p-values",
    Biometrika 1991).
    """
    shuffles = round(1.0 / level) - 1
    labels = np.zeros((1, sum(sizes)), dtype=np.float32)
    labels[0, : sizes[0]] = 1.0
    observed = float(statistic(labels)[0])
    beyond, done, chunk, p = 0, 0, 25, 0.0
    while done < shuffles and not p:
        size = min(chunk, shuffles - done)
        shuffled = rng.permuted(np.repeat(labels, size, axis=0), axis=1)
        for count, hit in enumerate(np.asarray(statistic(shuffled)) >= observed - 1e-9, start=1):
            beyond += int(hit)
            if beyond >= 10:
                p = beyond / (done + count)
                break
        done += size
        chunk = min(chunk * 2, 200)
    p = min(1.0, p or (beyond + 1) / (done + 1))
    return Measurement(detector=name, value=round(observed, 6), p_value=p, exceeded=p <= level)


class QueryDistance:
    """Energy distance between the queries' sketches (Székely and Rizzo, "Energy statistics", 2013).

    Sketches are int8 vectors of one length, as the search node sends them; they are brought to length 1.
    """

    name = "query_distance"

    def __init__(self, *, level: float = 0.001) -> None:
        self._level = level

    def measure(self, window: Sample, reference: Sample, rng: np.random.Generator) -> Measurement | None:
        found = _sketches(window, reference)
        if found is None:
            return None
        pooled, _, (n, m) = found
        squared = 2.0 - 2.0 * (pooled @ pooled.T)
        distances = np.sqrt(np.maximum(squared, 0.0), out=squared)
        everything = distances.sum()

        def energy(labels: Floats) -> NDArray[np.floating]:
            to_window = labels @ distances
            inside = np.einsum("bn,bn->b", to_window, labels)
            row_sums = to_window.sum(axis=1)
            between = row_sums - inside
            outside = everything - 2.0 * row_sums + inside
            return np.asarray(2.0 * between / (n * m) - inside / (n * n) - outside / (m * m), dtype=np.float64)

        return _permuted(self.name, energy, (n, m), level=self._level, rng=rng)


class NewShare:
    """Share of what is used in the window (words, clicked documents) that the reference never uses.

    ``of`` gives a sample's rows, each a query's or a click's numbers. Against shuffled splits of the two samples:
    a young reference knows little, and the shuffling accounts for that.
    """

    def __init__(self, name: str, of: Callable[[Sample], Sequence[tuple[int, ...]]], *, level: float) -> None:
        self.name = name
        self._of = of
        self._level = level

    def measure(self, window: Sample, reference: Sample, rng: np.random.Generator) -> Measurement | None:
        rows = [*self._of(window), *self._of(reference)]
        n = len(self._of(window))
        m = len(rows) - n
        if n < MIN_QUERIES or m < MIN_QUERIES:
            return None
        known: dict[int, int] = {}
        places = [(row, known.setdefault(one, len(known))) for row, used in enumerate(rows) for one in used]
        if not places:
            return None
        used = np.zeros((n + m, len(known)), dtype=np.float32)
        used[tuple(np.array(places).T)] = 1.0
        uses = used.sum(axis=1)
        # Most words are used once, and are new wherever their row goes: they need no column each.
        once = used[:, used.sum(axis=0) < 1.5].sum(axis=1)
        used = used[:, used.sum(axis=0) > 1.5]
        total = used.sum(axis=0)

        def new_share(labels: Floats) -> NDArray[np.floating]:
            in_window = labels @ used
            fresh = np.where(in_window >= total - 0.5, in_window, 0.0).sum(axis=1) + labels @ once
            return np.asarray(fresh / np.maximum(labels @ uses, 1.0), dtype=np.float64)

        return _permuted(self.name, new_share, (n, m), level=self._level, rng=rng)


class TopicShares:
    """How much traffic moved between topics: the total variation of their shares, from 0 to 1.

    Topics are clusters of the sketches of both samples together (k-means, which doesn't see which is which: so
    shuffling stays exact). At least this share of the traffic has moved.
    """

    name = "topic_shares"

    def __init__(self, *, level: float = 0.0005, topics: int = TOPICS) -> None:
        self._level = level
        self._topics = topics

    def measure(self, window: Sample, reference: Sample, rng: np.random.Generator) -> Measurement | None:
        found = _sketches(window, reference)
        if found is None:
            return None
        pooled, _, (n, m) = found
        member = _clusters(pooled, self._topics, rng)
        total = member.sum(axis=0)

        def variation(labels: Floats) -> NDArray[np.floating]:
            inside = labels @ member
            return np.asarray(0.5 * np.abs(inside / n - (total - inside) / m).sum(axis=1), dtype=np.float64)

        return _permuted(self.name, variation, (n, m), level=self._level, rng=rng)


class TopicClicks:
    """Whether clicks got worse in one topic, whatever they are over all of them.

    The figure is the largest fall of a topic's mean reciprocal click rank, in standard errors. Topics are those of
    ``TopicShares``; ones with fewer than 10 queries on either side are passed over.
    """

    name = "topic_clicks"

    def __init__(self, *, level: float = 0.0005, topics: int = TOPICS) -> None:
        self._level = level
        self._topics = topics

    def measure(self, window: Sample, reference: Sample, rng: np.random.Generator) -> Measurement | None:
        found = _sketches(window, reference)
        if found is None:
            return None
        pooled, ranks, sizes = found
        member = _clusters(pooled, self._topics, rng)
        ranked = member * ranks[:, None]
        total, rank_sums = member.sum(axis=0), ranked.sum(axis=0)
        many = np.maximum(total, 1.0)
        variance = (member * (ranks[:, None] ** 2)).sum(axis=0) / many - (rank_sums / many) ** 2
        if not (variance > 1e-9).any():
            return None

        def largest_fall(labels: Floats) -> NDArray[np.floating]:
            inside, rank_inside = labels @ member, labels @ ranked
            outside, rank_outside = total - inside, rank_sums - rank_inside
            enough = (inside >= MIN_IN_TOPIC) & (outside >= MIN_IN_TOPIC) & (variance > 1e-9)
            inside, outside = np.maximum(inside, 1.0), np.maximum(outside, 1.0)
            error = np.sqrt(np.maximum(variance, 1e-9) * (1.0 / inside + 1.0 / outside))
            fall = (rank_outside / outside - rank_inside / inside) / error
            return np.asarray(np.where(enough, fall, 0.0).max(axis=1), dtype=np.float64)

        return _permuted(self.name, largest_fall, sizes, level=self._level, rng=rng)


class MeanMoved:
    """A mean, and whether it got worse than the reference's (one-sided two-sample test).

    The variance is that of both samples together: a window with few clicks has a small one of its own, and would
    be believed too soon. ``worse`` is -1 where falling is worse, 1 where rising is. The value is the window's
    mean; ``threshold`` is the mean from which on it would be beyond chance.
    """

    def __init__(
        self,
        name: str,
        of: Callable[[Sample], Sums],
        *,
        level: float = 0.0005,
        worse: float = -1.0,
        least: int = MIN_QUERIES,
    ) -> None:
        self.name = name
        self._of = of
        self._level = level
        self._worse = worse
        self._least = least

    def measure(
        self,
        window: Sample,
        reference: Sample,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Measurement | None:
        new, old = self._of(window), self._of(reference)
        if new.count < self._least or old.count < self._least:
            return None
        both = Sums(new.count + old.count, new.total + old.total, new.squares + old.squares)
        error = math.sqrt(both.variance * (1.0 / new.count + 1.0 / old.count))
        if error == 0.0:
            return None
        p = _normal_tail(self._worse * (new.mean - old.mean) / error)
        return Measurement(
            detector=self.name,
            value=round(new.mean, 6),
            threshold=round(old.mean + self._worse * _normal_quantile(self._level) * error, 6),
            p_value=p,
            exceeded=p <= self._level,
        )


class ClickTrend:
    """Whether the click MRR has fallen, at once or bit by bit, since the served version came.

    ADWIN over the outcomes of the impressions, as they close (Bifet and Gavaldà, "Learning from time-changing data
    with adaptive windowing", SDM 2007; river's). It tells a change once; a fall stays exceeded for ``windows``
    windows, so that who looks at several of them sees it. The value is the mean since the last change, the
    threshold the mean before the fall.
    """

    name = "click_trend"

    def __init__(self, *, delta: float = 0.002, windows: int = 3) -> None:
        self._delta = delta
        self._windows = windows
        self._version = ""
        self._left = 0
        self._restart()

    def measure(
        self,
        window: Sample,
        reference: Sample,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Measurement | None:
        if window.outcomes_of != self._version:
            self._version = window.outcomes_of
            self._restart()
        self._left = max(0, self._left - 1)
        for outcome in window.outcomes:
            before = self._adwin.estimation
            self._adwin.update(outcome)
            if self._adwin.drift_detected and self._adwin.estimation < before:
                self._left, self._before = self._windows, before
        if self._adwin.width < MIN_QUERIES:
            return None
        fallen = self._left > 0
        return Measurement(
            detector=self.name,
            value=round(self._adwin.estimation, 6),
            threshold=round(self._before, 6) if fallen else None,
            exceeded=fallen,
        )

    def _restart(self) -> None:
        from river.drift import ADWIN

        self._adwin: Any = ADWIN(delta=self._delta)
        self._left = 0
        self._before = 0.0


def _normal_tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def _normal_quantile(level: float) -> float:
    """z with P(Z > z) = level.

    >>> round(_normal_quantile(0.025), 3)
    1.96
    """
    from statistics import NormalDist

    return NormalDist().inv_cdf(1.0 - level)


def _sketches(window: Sample, reference: Sample) -> tuple[Floats, Floats, tuple[int, int]] | None:
    """Sketches of both samples as unit vectors (n + m, length), their reciprocal click ranks, and (n, m).

    Sketches of another length than most of the window's, and zeros, are left out. None where too few remain.
    """
    lengths = Counter(len(query.sketch) for query in window.asked if query.sketch).most_common(1)
    if not lengths:
        return None
    vectors, ranks, sizes = [], [], []
    for sample in (window, reference):
        kept = [query for query in sample.asked if len(query.sketch) == lengths[0][0] and any(query.sketch)]
        raw = np.frombuffer(b"".join(query.sketch for query in kept), dtype=np.int8)
        vectors.append(raw.reshape(len(kept), -1).astype(np.float32) if kept else None)
        ranks += [query.reciprocal_rank for query in kept]
        sizes.append(len(kept))
    if min(sizes) < MIN_QUERIES:
        return None
    pooled = np.concatenate([part for part in vectors if part is not None])
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    return pooled, np.array(ranks, dtype=np.float32), (sizes[0], sizes[1])


def _clusters(vectors: Floats, count: int, rng: np.random.Generator, *, rounds: int = 8) -> Floats:
    """Membership (n, count) of unit vectors in clusters: spherical k-means, seeded far apart (k-means++, 2007)."""
    centres = vectors[[int(rng.integers(len(vectors)))]]
    nearest = 1.0 - vectors @ centres[0]
    for _ in range(count - 1):
        weight = np.maximum(nearest, 0.0).astype(np.float64) + 1e-12
        chosen = vectors[int(rng.choice(len(vectors), p=weight / weight.sum()))]
        centres = np.vstack([centres, chosen])
        nearest = np.minimum(nearest, 1.0 - vectors @ chosen)
    member = np.zeros((len(vectors), count), dtype=np.float32)
    for _ in range(rounds):
        member[:] = 0.0
        member[np.arange(len(vectors)), np.argmax(vectors @ centres.T, axis=1)] = 1.0
        sums = member.T @ vectors
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0.0, sums / np.maximum(norms, 1e-9), centres)
    return member
