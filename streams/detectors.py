"""Detectors: each compares a window with the reference and gives one figure with its calibration.

They know no policy, and decide nothing. Every detector has one method, ``measure(window, reference, rng)``, and
its own level: the share of windows of an unmoving world in which it may be wrong. ``default_detectors`` budgets
the levels so that all of them together stay below 1 %.

What people ask is the same whichever version answers. What comes of it is not: there the versions are strata, and
a window's answers are compared with those that the same version gave before. A version that gave too few of them
is left out.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from clickloop.events import Measurement
from streams.windows import MAX_VERSIONS, MIN_QUERIES, Asked, Sample, Settled, Strata, Sums

Q = TypeVar("Q", bound=Asked | Settled)

Floats = NDArray[np.float32]
Statistic = Callable[[Floats], NDArray[np.floating]]
"""Takes labels (b, n + m), 1 for the window's and 0 for the reference's, and gives (b,) figures."""
Row = tuple[str, tuple[int, ...]]
"""What is used in one query or click, each as its number, and the stratum that it is compared in."""

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
        NewShare("new_terms", used_terms, level=0.001),
        NewShare("new_documents", clicked_documents, level=0.001),
        TopicShares(level=0.0005),
        TopicClicks(level=0.0005),
        MeanMoved("click_mrr", lambda sample: sample.clicks, level=0.0005),
        MeanMoved("rating_mean", lambda sample: sample.ratings, level=0.0005, least=MIN_RATINGS),
        MeanMoved("abandonment", lambda sample: sample.abandoned, level=0.0005, worse=1.0),
        ClickTrend(),
    )


def used_terms(sample: Sample) -> list[Row]:
    """The words of each query. They are the same whichever version answers."""
    return [("", query.terms) for query in sample.asked]


def clicked_documents(sample: Sample) -> list[Row]:
    """The document of each click."""
    return [(click.version, (click.document,)) for click in sample.clicked]


def _permuted(
    name: str,
    statistic: Statistic,
    sizes: tuple[int, int],
    *,
    level: float,
    rng: np.random.Generator,
    strata: Sequence[str] = (),
) -> Measurement:
    """The statistic of the window with its permutation p-value; large ones are unusual.

    ``sizes`` are those of window and reference, n and m. Where ``strata`` names one for each of the n + m, labels
    are shuffled within it. There are as many shuffles as tell a p-value of ``level``, and fewer where it is
    clearly large (Besag and Clifford, "Sequential Monte Carlo p-values", Biometrika 1991).
    """
    shuffles = round(1.0 / level) - 1
    named = np.array(strata or [""] * sum(sizes))
    groups = [np.flatnonzero(named == name) for name in np.unique(named)]
    labels = np.zeros((1, sum(sizes)), dtype=np.float32)
    labels[0, : sizes[0]] = 1.0
    observed = float(statistic(labels)[0])
    beyond, done, chunk, p = 0, 0, 25, 0.0
    while done < shuffles and not p:
        size = min(chunk, shuffles - done)
        shuffled = np.repeat(labels, size, axis=0)
        for group in groups:
            shuffled[:, group] = rng.permuted(shuffled[:, group], axis=1)
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
        found = _sketches(window.asked, reference.asked)
        if found is None:
            return None
        pooled, n, m = found.vectors, *found.sizes
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

    ``of`` gives a sample's rows. Against shuffled splits of the two samples: a young reference knows little, and
    the shuffling accounts for that.
    """

    def __init__(self, name: str, of: Callable[[Sample], Sequence[Row]], *, level: float) -> None:
        self.name = name
        self._of = of
        self._level = level

    def measure(self, window: Sample, reference: Sample, rng: np.random.Generator) -> Measurement | None:
        new, old = self._of(window), self._of(reference)
        kept = _known([stratum for stratum, _ in old])
        new, old = ([row for row in rows if row[0] in kept] for rows in (new, old))
        n, m = len(new), len(old)
        if n < MIN_QUERIES or m < MIN_QUERIES:
            return None
        rows = [*new, *old]
        known: dict[int, int] = {}
        places = [(row, known.setdefault(one, len(known))) for row, (_, used) in enumerate(rows) for one in used]
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

        strata = [stratum for stratum, _ in rows]
        return _permuted(self.name, new_share, (n, m), level=self._level, rng=rng, strata=strata)


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
        found = _sketches(window.asked, reference.asked)
        if found is None:
            return None
        n, m = found.sizes
        member = _clusters(found.vectors, self._topics, rng)
        total = member.sum(axis=0)

        def variation(labels: Floats) -> NDArray[np.floating]:
            inside = labels @ member
            return np.asarray(0.5 * np.abs(inside / n - (total - inside) / m).sum(axis=1), dtype=np.float64)

        return _permuted(self.name, variation, (n, m), level=self._level, rng=rng)


class TopicClicks:
    """Whether clicks got worse in one topic, whatever they are over all of them.

    The figure is the largest fall of a topic's mean reciprocal click rank, in standard errors. Topics are clusters
    of the settled queries' sketches; ones with fewer than 10 queries on either side are passed over.
    """

    name = "topic_clicks"

    def __init__(self, *, level: float = 0.0005, topics: int = TOPICS) -> None:
        self._level = level
        self._topics = topics

    def measure(self, window: Sample, reference: Sample, rng: np.random.Generator) -> Measurement | None:
        kept = _known([query.version for query in reference.settled])
        new, old = ([q for q in sample.settled if q.version in kept] for sample in (window, reference))
        found = _sketches(new, old)
        if found is None:
            return None
        member = _clusters(found.vectors, self._topics, rng)
        ranks = np.array([query.reciprocal_rank for query in found.queries], dtype=np.float32)
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

        strata = [query.version for query in found.queries]
        return _permuted(self.name, largest_fall, found.sizes, level=self._level, rng=rng, strata=strata)


class MeanMoved:
    """A mean, and whether it got worse than the reference's (one-sided two-sample test, stratified by version).

    The reference's means are weighted by what each version answered in the window (direct standardisation), so a
    change of the shares is no change of the mean. The variance is that of both samples together: a window with few
    clicks has a small one of its own, and would be believed too soon. ``worse`` is -1 where falling is worse, 1
    where rising is. The value is the window's mean; ``threshold`` is the mean from which on it would be beyond
    chance.
    """

    def __init__(
        self,
        name: str,
        of: Callable[[Sample], Strata],
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
        strata = [(self._of(window)[version], self._of(reference)[version]) for version in self._of(window)]
        strata = [(new, old) for new, old in strata if old.count >= self._least]
        count = sum(new.count for new, _ in strata)
        if count < self._least:
            return None
        mean = sum(new.total for new, _ in strata) / count
        expected = sum(new.count * old.mean for new, old in strata) / count
        variance = sum(
            _together(new, old).variance * (new.count + new.count**2 / old.count) for new, old in strata
        )
        error = math.sqrt(variance) / count
        if error == 0.0:
            return None
        p = _normal_tail(self._worse * (mean - expected) / error)
        return Measurement(
            detector=self.name,
            value=round(mean, 6),
            threshold=round(expected + self._worse * _normal_quantile(self._level) * error, 6),
            p_value=p,
            exceeded=p <= self._level,
        )


class ClickTrend:
    """Whether the click MRR of a version has fallen, at once or bit by bit, since that version came.

    ADWIN over the outcomes of a version's impressions, as they close (Bifet and Gavaldà, "Learning from
    time-changing data with adaptive windowing", SDM 2007; river's). It tells a change once; a fall stays exceeded
    for ``windows`` windows, so that who looks at several of them sees it. The value is the mean since the last
    change, the threshold the mean before the fall. Of several versions that answer, it tells of one that fell, or
    else of the one that answers most.
    """

    name = "click_trend"

    def __init__(self, *, delta: float = 0.002, windows: int = 3) -> None:
        self._delta = delta
        self._windows = windows
        self._trends: OrderedDict[str, _Trend] = OrderedDict()

    def measure(
        self,
        window: Sample,
        reference: Sample,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Measurement | None:
        for trend in self._trends.values():
            trend.left = max(0, trend.left - 1)
        for version, outcome in window.outcomes:
            trend = self._trend(version)
            if trend.fell(outcome):
                trend.left = self._windows
        answering = sorted(window.answered, key=lambda version: window.answered[version].count, reverse=True)
        known = [self._trends[version] for version in answering if version in self._trends]
        known = [trend for trend in known if trend.adwin.width >= MIN_QUERIES]
        if not known:
            return None
        told = next((trend for trend in known if trend.left), known[0])
        return Measurement(
            detector=self.name,
            value=round(told.adwin.estimation, 6),
            threshold=round(told.before, 6) if told.left else None,
            exceeded=told.left > 0,
        )

    def _trend(self, version: str) -> _Trend:
        if version not in self._trends:
            self._trends[version] = _Trend(self._delta)
            if len(self._trends) > MAX_VERSIONS:
                self._trends.popitem(last=False)
        self._trends.move_to_end(version)
        return self._trends[version]


class _Trend:
    """One version's outcomes. A fall is told for ``left`` more windows; ``before`` is the mean until then."""

    def __init__(self, delta: float) -> None:
        from river.drift import ADWIN

        self.adwin: Any = ADWIN(delta=delta)
        self.left = 0
        self.before = 0.0

    def fell(self, outcome: float) -> bool:
        before = self.adwin.estimation
        self.adwin.update(outcome)
        if not self.adwin.drift_detected or self.adwin.estimation >= before:
            return False
        self.before = before
        return True


def _normal_tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def _normal_quantile(level: float) -> float:
    """z with P(Z > z) = level.

    >>> round(_normal_quantile(0.025), 3)
    1.96
    """
    from statistics import NormalDist

    return NormalDist().inv_cdf(1.0 - level)


def _together(one: Sums, other: Sums) -> Sums:
    return Sums(one.count + other.count, one.total + other.total, one.squares + other.squares)


def _known(strata: Sequence[str]) -> set[str]:
    """Those that are often enough in the reference for a window to be compared with it."""
    return {stratum for stratum, count in Counter(strata).items() if count >= MIN_QUERIES}


@dataclass(frozen=True)
class _Sketched(Generic[Q]):
    """The queries of both samples, the window's first, with their sketches as unit vectors (n + m, length)."""

    queries: Sequence[Q]
    vectors: Floats
    sizes: tuple[int, int]


def _sketches(window: Sequence[Q], reference: Sequence[Q]) -> _Sketched[Q] | None:
    """Sketches of another length than most of the window's, and zeros, are left out. None where too few remain."""
    lengths = Counter(len(query.sketch) for query in window if query.sketch).most_common(1)
    if not lengths:
        return None
    new, old = (
        [query for query in queries if len(query.sketch) == lengths[0][0] and any(query.sketch)]
        for queries in (window, reference)
    )
    if min(len(new), len(old)) < MIN_QUERIES:
        return None
    queries = [*new, *old]
    raw = np.frombuffer(b"".join(query.sketch for query in queries), dtype=np.int8)
    vectors = raw.reshape(len(queries), -1).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return _Sketched(queries, vectors, (len(new), len(old)))


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
