"""Ranking metrics and their paired comparison. Needs numpy and scipy; imported by services only.

All metrics are of known-item search: one relevant document a query, found at ``rank`` (1 is the top).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from clickloop.events import Estimate

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]
Scores = NDArray[np.float32]

RESAMPLES = 2000
NOT_FOUND = np.iinfo(np.int64).max


def middle_ranks(scores: Scores, own: Scores, counted: NDArray[np.bool_] | None = None) -> Ranks:
    """(rows,) ranks of ``own`` (rows, 1), itself one of ``scores`` (rows, n), among those that are ``counted``.

    Of equal scores each has the middle rank, rounded up to the better one: a model to which all are alike has
    nothing on top.
    """
    # A score that is no number, as after a descent out of bounds, must not pass for the best one.
    above, equal = ~(scores <= own), scores == own
    if counted is not None:
        above, equal = above & counted, equal & counted
    beside = np.maximum(equal.sum(axis=1) - 1, 0)
    return np.asarray(above.sum(axis=1) + beside // 2 + 1, dtype=np.int64)


def reciprocal_rank(ranks: Ranks, k: int = 10) -> Floats:
    """(n,) 1/rank where rank <= k, else 0: the mean is MRR@k."""
    return np.where(ranks <= k, 1.0 / np.maximum(ranks, 1), 0.0)


def recall(ranks: Ranks, k: int) -> Floats:
    """(n,) 1 where rank <= k, else 0: the mean is recall@k (success@k) for one relevant document a query."""
    return (ranks <= k).astype(np.float64)


def discounted_gain(ranks: Ranks, k: int = 10) -> Floats:
    """(n,) 1/log2(rank + 1) where rank <= k, else 0: nDCG@k for one relevant document a query."""
    return np.where(ranks <= k, 1.0 / np.log2(np.clip(ranks, 1, k) + 1.0), 0.0)


def per_query_metrics(ranks: Ranks) -> dict[str, Floats]:
    """The figures that every report shows, per query."""
    return {
        "mrr_at_10": reciprocal_rank(ranks, 10),
        "recall_at_1": recall(ranks, 1),
        "recall_at_5": recall(ranks, 5),
        "recall_at_10": recall(ranks, 10),
        "ndcg_at_10": discounted_gain(ranks, 10),
    }


def compare(
    before: Floats, after: Floats, *, weights: Floats | None = None, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """Weighted means of one metric for the same queries, with an interval of the relative change.

    Paired bootstrap over queries (Efron and Tibshirani 1993): both systems are resampled together. The percentile
    interval is too narrow where few queries have most of the weight, and is widened as far as Student's t is wider
    than the normal distribution (Hesterberg 2015, "What Teachers Should Know About the Bootstrap").

    A resample without anything before has the sign of its difference, told in parts of the mean of ``before``.
    Where that is 0 itself (or below, as a mean similarity may be), all is the difference.
    """
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"paired samples of one shape are needed, got {before.shape} and {after.shape}")
    w = np.ones_like(before) if weights is None else weights
    if before.size == 0 or w.sum() <= 0:
        return Estimate(before=0.0, after=0.0, change=0.0, low=0.0, high=0.0)
    b, a = float(np.average(before, weights=w)), float(np.average(after, weights=w))
    unit = b if b > 0.0 else 1.0
    rng = np.random.default_rng(seed)
    both = np.stack([before * w, after * w], axis=1)
    changes = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        times = np.bincount(rng.integers(0, before.size, before.size), minlength=before.size)
        base, new = times @ both
        changes[i] = new / base - 1.0 if base > 0.0 < b else (new - base) / (unit * w.sum())
    tail = tail_of(w, confidence)
    low, high = np.quantile(changes, [tail, 1.0 - tail])
    change = a / b - 1.0 if b > 0.0 else a - b
    return Estimate(before=b, after=a, change=change, low=float(low), high=float(high))


def tail_of(weights: Floats, confidence: float) -> float:
    """Share of the resamples that lies below the interval, as there is above it.

    It is (1 - ``confidence``) / 2 for very many queries, and less for as few as the weights count for (Kish 1965).
    """
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    if effective <= 1.0:
        return 0.0
    widest = stdtrit(effective - 1.0, (1.0 + confidence) / 2.0) * np.sqrt(effective / (effective - 1.0))
    return float(ndtr(-widest))
