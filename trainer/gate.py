"""The gate: may a candidate be shown to users? Pure: it takes vectors and later clicks, and gives a verdict.

What was clicked depends on what was shown, and the parent chose that. Two consequences:

* A click says which of the *shown* documents was wanted, so both sides rank the clicked document among the
  documents that the parent shows (condensed lists, Sakai 2007), not in the whole corpus: a document that was
  never shown can't have been clicked, and counting it as irrelevant would punish every candidate that finds
  something new, better or not.
* What is on top gets more clicks, so each click carries the inverse of its chance to be examined (Joachims,
  Swaminathan and Schnabel 2017) as its weight. Wrong clicks, spread evenly over the list by that, move neither.

What condensed lists can't see is a candidate that pushes the wanted document out of the results by documents
that were never shown. The guard sees it: of the documents that are wanted beyond doubt and that the parent finds
in the whole corpus, the candidate must find nearly all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clickloop.evaluation import Floats, compare, per_query_metrics, recall
from clickloop.events import Estimate, GateResult, Verdict
from trainer.dataset import Clicks
from trainer.model import Vectors

SHOWN = 10
LADDER_MARGIN = 0.02
"""What a rung must be shown not to lose against the rung of the same command that has just passed below it."""
CONFIRMED = 2.0
"""Evidence from which a document is held to be wanted beyond doubt: two clicks, or a good rating."""
FEWEST_CONFIRMED = 30
_BLOCK = 512


@dataclass(frozen=True)
class Thresholds:
    min_queries: int
    max_lost_recall: float


@dataclass(frozen=True)
class Side:
    """One version's view of the queries that came after a moment."""

    queries: Vectors
    """(queries, dim), adapter applied"""
    documents: Vectors
    """(documents, dim) of the version's space"""


@dataclass(frozen=True)
class Trial:
    """One moment of the past: the ranks that parent and candidate gave to what was clicked afterwards."""

    weight: Floats
    """(queries,) of each query that has a click"""
    before: dict[str, Floats]
    """Metric → (queries,) weighted mean over the query's clicks"""
    after: dict[str, Floats]
    found_before: int
    """Confirmed documents that the parent has in its first SHOWN of the whole corpus."""
    found_after: int
    """Those of them that the candidate has, too."""


def measure(clicks: Clicks, parent: Side, candidate: Side) -> Trial:
    """Measure both sides on the ``clicks`` after one moment."""
    before, after = ranks(clicks, parent, candidate, among=SHOWN)
    weight = np.bincount(clicks.query, clicks.weight, len(clicks.queries)).astype(np.float64)
    seen = weight > 0.0
    confirmed = clicks.evidence >= CONFIRMED
    old, new = (recall(r, SHOWN)[confirmed] for r in ranks(clicks, parent, candidate, among=None))

    def per_query(values: Floats) -> Floats:
        total = np.bincount(clicks.query, clicks.weight * values, len(weight)).astype(np.float64)
        return total[seen] / weight[seen]

    return Trial(
        weight=weight[seen],
        before={name: per_query(values) for name, values in per_query_metrics(before).items()},
        after={name: per_query(values) for name, values in per_query_metrics(after).items()},
        found_before=int(old.sum()),
        found_after=int((old * new).sum()),
    )


def judge(trials: Sequence[Trial], *, thresholds: Thresholds, seed: int, margin: float = 0.0) -> GateResult:
    """The verdict over all moments together. The bootstrap draws whole queries with all their clicks.

    ``margin`` is 0 where the candidate must beat its parent beyond chance, and LADDER_MARGIN where the parent is
    the rung below, which has just done so: then it must be at least level, and not behind by the margin beyond
    chance (non-inferiority, Piaggio et al. 2012).
    """
    queries = sum(len(t.weight) for t in trials)
    if not queries:
        return GateResult(verdict="inconclusive", queries=0, reasons=["no clicks were held out"])
    weight = np.concatenate([t.weight for t in trials])
    metrics = {
        name: compare(
            np.concatenate([t.before[name] for t in trials]),
            np.concatenate([t.after[name] for t in trials]),
            weights=weight,
            seed=seed,
        )
        for name in trials[0].before
    }
    found = sum(t.found_before for t in trials)
    kept = sum(t.found_after for t in trials) / found if found >= FEWEST_CONFIRMED else 1.0
    verdict, reasons = decide(metrics["mrr_at_10"], queries, kept, thresholds, margin=margin)
    return GateResult(verdict=verdict, queries=queries, metrics=metrics, reasons=reasons)


def decide(
    mrr: Estimate, queries: int, kept: float, thresholds: Thresholds, *, margin: float = 0.0
) -> tuple[Verdict, list[str]]:
    """Verdict and reasons from the figures alone. ``kept`` is the guard's share of documents still found."""
    said = f"MRR@10 {mrr.change:+.1%}, 95 % interval {mrr.low:+.1%} to {mrr.high:+.1%}"
    guard = f"{1.0 - kept:.1%} of the documents that users surely want are no longer found"
    if queries < thresholds.min_queries:
        return "inconclusive", [f"{queries} held-out queries, {thresholds.min_queries} are needed", said]
    if 1.0 - kept > thresholds.max_lost_recall:
        return "fail", [f"{guard}, at most {thresholds.max_lost_recall:.1%} may be lost", said]
    if mrr.high < 0.0:
        return "fail", [f"worse than its parent: {said}"]
    if mrr.low > 0.0:
        return "pass", [f"better than its parent: {said}", guard]
    if margin and mrr.change > 0.0 and mrr.low > -margin:
        return "pass", [f"not behind the rung below, which has just passed: {said}", guard]
    return "inconclusive", [f"can't be told from its parent: {said}"]


def ranks(
    clicks: Clicks, parent: Side, candidate: Side, *, among: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank of each row's clicked document under both sides: among the parent's top ``among``, or the corpus."""
    before = np.empty(len(clicks), dtype=np.int64)
    after = np.empty(len(clicks), dtype=np.int64)
    for start in range(0, len(clicks), _BLOCK):
        part = slice(start, start + _BLOCK)
        q, d = clicks.query[part], clicks.document[part, None]
        old = parent.queries[q] @ parent.documents.T
        new = candidate.queries[q] @ candidate.documents.T
        old_clicked, new_clicked = np.take_along_axis(old, d, 1), np.take_along_axis(new, d, 1)
        if among is not None and among < old.shape[1]:
            shown = np.argpartition(-old, among, axis=1)[:, :among]
            old, new = np.take_along_axis(old, shown, 1), np.take_along_axis(new, shown, 1)
        # A score that is no number, as after a descent out of bounds, must not pass for the best one.
        before[part] = (~(old <= old_clicked)).sum(axis=1) + 1
        after[part] = (~(new <= new_clicked)).sum(axis=1) + 1
    return before, after
