"""The gate: may a candidate be shown to users? Pure: it takes vectors and later clicks, and gives a verdict.

What was clicked depends on what was shown, and the parent chose that. Two consequences:

* A click says which of the *shown* documents was wanted, so both sides rank the clicked document among the
  documents that the parent shows (condensed lists, Sakai 2007), not in the whole corpus: a document that was
  never shown can't have been clicked, and counting it as irrelevant would punish every candidate that finds
  something new, better or not. What was clicked though the parent does not show it, since BM25 or another version
  did, is ranked in the whole corpus: among ten documents that all beat it, it could only rise. (A little is left
  of that: it has no place among the first ten to lose.)
* What is on top gets more clicks, so each click carries the inverse of its chance to be examined (Joachims,
  Swaminathan and Schnabel 2017) as its weight. Wrong clicks, spread evenly over the list by that, move neither.

What condensed lists can't see is a candidate that pushes the wanted document out of the results by documents
that were never shown. Two guards see it. Of the documents that are wanted beyond doubt (see ``trainer/wanted.py``)
and that the parent finds in the whole corpus, the candidate must find nearly all. And a candidate that errs
elsewhere than the parent, as one of another space or another training does, looks too good among the parent's ten:
what stands above the clicked one there are the parent's errors. So it must not be worse, either, where all
documents count, though it looks too bad there: what it finds instead was not shown, and could not be clicked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from clickloop.accounts import changed, interval
from clickloop.evaluation import Floats, compare, middle_ranks, per_query_metrics, recall
from clickloop.events import (
    CostResult,
    Estimate,
    GateResult,
    GoldenResult,
    LiveResult,
    SliceResult,
    SwapResult,
    Verdict,
)
from trainer.dataset import SHOWN, Clicks
from trainer.model import Vectors
from trainer.slices import DOMAIN
from trainer.swaps import Agreement, swap_result
from trainer.wanted import surely_wanted

LADDER_CONFIDENCE = 0.9
"""Of the interval that must lie above 0 for a rung on top of one of the same command that has just passed: a
one-sided test at 5 %, where the first rung's is two-sided."""
FEWEST_CONFIRMED = 30
_BLOCK = 512
_CELLS = 1 << 25
"""Of a block's table of queries and documents, at most: each takes some 30 bytes."""


@dataclass(frozen=True)
class Thresholds:
    min_queries: int
    max_lost_recall: float
    max_golden_loss: float = 0.01
    max_domain_loss: float = 0.03
    max_slowdown: float = 1.5


@dataclass(frozen=True)
class Side:
    """One version's view of the queries that came after a moment."""

    queries: Vectors
    """(queries, dim), adapter applied"""
    documents: Vectors
    """(documents, dim) of the version's space"""


@dataclass(frozen=True)
class SliceTrial:
    """The queries that were clicked in one slice, by the clicks there alone: another may want other documents."""

    weight: Floats
    """(queries,)"""
    before: Floats
    """(queries,) MRR@10"""
    after: Floats


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
    slices: Mapping[str, SliceTrial] = field(default_factory=dict)
    agreement: Agreement | None = None
    """With the clicks on randomised traffic, where there are some."""
    among_all: tuple[Floats, Floats] | None = None
    """(queries,) MRR@10 of parent and candidate where all documents count."""


@dataclass(frozen=True)
class GoldenTrial:
    """The golden set as both sides answer it, from the whole corpus."""

    digest: str
    left_out: int
    """Queries none of whose relevant documents are in the corpus."""
    before: dict[str, Floats]
    """Metric → (queries,); empty where all queries are left out."""
    after: dict[str, Floats]
    held: float = 1.0
    """What the parent has of the MRR@10 that there was before the set was first tried: each version since may have
    lost a little."""


def measure(clicks: Clicks, parent: Side, candidate: Side) -> Trial:
    """Measure both sides on the ``clicks`` after one moment."""
    before, after = ranks(clicks, parent, candidate, among=SHOWN)
    weight = np.bincount(clicks.query, clicks.weight, len(clicks.queries)).astype(np.float64)
    seen = weight > 0.0
    confirmed = surely_wanted(clicks)
    among_all = ranks(clicks, parent, candidate, among=None)
    old, new = (recall(rank, SHOWN)[confirmed] for rank in among_all)

    def per_query(values: Floats) -> Floats:
        total = np.bincount(clicks.query, clicks.weight * values, len(weight)).astype(np.float64)
        return total[seen] / weight[seen]

    def of_all(rank: NDArray[np.int64]) -> Floats:
        return per_query(per_query_metrics(rank)["mrr_at_10"])

    def of_side(side: Side, rank: NDArray[np.int64]) -> dict[str, Floats]:
        near = (side.queries[clicks.query] * side.documents[clicks.document]).sum(axis=1).astype(np.float64)
        return {n: per_query(v) for n, v in {**per_query_metrics(rank), "pair_similarity": near}.items()}

    return Trial(
        weight=weight[seen],
        before=of_side(parent, before),
        after=of_side(candidate, after),
        found_before=int(old.sum()),
        found_after=int((old * new).sum()),
        slices=_of_slices(clicks, per_query_metrics(before)["mrr_at_10"], per_query_metrics(after)["mrr_at_10"]),
        agreement=Agreement.measured(clicks.votes, parent, candidate) if clicks.votes else None,
        among_all=(of_all(among_all[0]), of_all(among_all[1])),
    )


def judge(
    trials: Sequence[Trial],
    *,
    thresholds: Thresholds,
    seed: int,
    on_top: bool = False,
    golden: GoldenTrial | None = None,
    cost: CostResult | None = None,
    apart: bool = False,
    other: str = "its parent",
    nothing: str = "no clicks were held out",
) -> GateResult:
    """The verdict over all moments together. The bootstrap draws whole queries with all their clicks.

    What loses on the golden set, or beyond chance on one domain or on neighbours that were swapped at random, or
    is too slow, fails whatever it wins elsewhere. The golden set is no sample but what operators want to hold, so
    there the figure itself counts; one on which nothing can be tried is told, and decides nothing.

    ``on_top``: the parent is the rung below of the same command, which has just passed; then a one-sided test is
    enough (``LADDER_CONFIDENCE``). ``apart``: the candidate is no small change of the version before, and must not
    be worse beyond chance where all documents count. ``other`` is what the reasons call the version before, and
    ``nothing`` what they say without a trial.
    """
    queries = sum(len(t.weight) for t in trials)
    of_golden = _golden(golden, seed) if golden is not None else None
    held = golden.held if golden is not None else 1.0
    lost = [*_lost_on_golden(of_golden, thresholds, held), *_too_slow(cost, thresholds)]
    untried = list(_not_tried(of_golden))
    if not queries:
        reasons = [*lost, nothing, *untried]
        empty: Verdict = "fail" if lost else "inconclusive"
        return GateResult(verdict=empty, queries=0, reasons=reasons, golden=of_golden, cost=cost)
    weight = np.concatenate([t.weight for t in trials])

    def compared(name: str, confidence: float = 0.95) -> Estimate:
        before = np.concatenate([t.before[name] for t in trials])
        after = np.concatenate([t.after[name] for t in trials])
        return compare(before, after, weights=weight, seed=seed, confidence=confidence)

    metrics = {name: compared(name) for name in trials[0].before}
    found = sum(t.found_before for t in trials)
    kept = sum(t.found_after for t in trials) / found if found >= FEWEST_CONFIRMED else None
    one_sided = compared("mrr_at_10", LADDER_CONFIDENCE) if on_top else None
    verdict, reasons = decide(metrics["mrr_at_10"], queries, kept, thresholds, one_sided=one_sided, other=other)
    if kept is None:
        few = f"{found} documents are surely wanted and found, {FEWEST_CONFIRMED} are needed"
        reasons.append(f"whether documents were lost was not measured: {few}")
    if verdict == "pass" and apart:
        verdict, reasons = _unless_elsewhere(trials, reasons, seed=seed)
    slices = _slices(trials, fewest=thresholds.min_queries, seed=seed)
    swaps = swap_result([t.agreement for t in trials if t.agreement], seed=seed)
    lost += [*_lost_on_domains(slices, thresholds), *_lost_on_swaps(swaps)]
    return GateResult(
        verdict="fail" if lost else verdict,
        queries=queries,
        metrics=metrics,
        reasons=lost + reasons + untried,
        golden=of_golden,
        slices=slices,
        cost=cost,
        swaps=swaps,
        confirmed=found,
        kept=kept,
    )


def among_all(trials: Sequence[Trial], *, seed: int) -> Estimate | None:
    """MRR@10 where all documents count, shown or not; None where that was not measured."""
    pairs = [trial.among_all for trial in trials if trial.among_all is not None]
    if not pairs or len(pairs) < len(trials):
        return None
    before, after = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    return compare(before, after, weights=np.concatenate([trial.weight for trial in trials]), seed=seed)


def _unless_elsewhere(trials: Sequence[Trial], reasons: list[str], *, seed: int) -> tuple[Verdict, list[str]]:
    """The verdict on a candidate that passes, once what no one was shown counts, too."""
    mrr = among_all(trials, seed=seed)
    if mrr is None:
        return "pass", reasons
    said = f"where all documents count, shown or not, MRR@10 {changed(mrr)}, 95 % interval {interval(mrr)}"
    if mrr.high < 0.0:
        return "inconclusive", [f"it may err elsewhere, not less: {said}", *reasons]
    return "pass", [*reasons, said]


def beside_live(gate: GateResult, version: str, found: GateResult | None) -> GateResult:
    """The gate with what was ``found`` beside the live ``version``, which decides; None where no one looked."""
    if found is None:
        return replace(gate, live=LiveResult(version=version))
    before = f"beside {version}, which is live: "
    return replace(
        gate,
        verdict=found.verdict,
        reasons=[*gate.reasons, *(before + reason for reason in found.reasons)],
        live=LiveResult(version=version, queries=found.queries, metrics=found.metrics),
    )


def _lost_on_swaps(swaps: SwapResult | None) -> Iterator[str]:
    if swaps is not None and swaps.agreement.high < 0.0:
        found = swaps.agreement
        yield (
            f"where neighbours were swapped at random, clicks speak {changed(found)} as often for its order, "
            f"95 % interval {interval(found)} ({swaps.clicks} clicks)"
        )


def _too_slow(cost: CostResult | None, thresholds: Thresholds) -> Iterator[str]:
    if cost is not None and 1.0 + cost.encode_seconds.low > thresholds.max_slowdown:
        slower = cost.encode_seconds
        yield (
            f"a query takes {1.0 + slower.change:.2f} times as long to encode, 95 % interval "
            f"{1.0 + slower.low:.2f} to {1.0 + slower.high:.2f}, at most {thresholds.max_slowdown:g} is allowed"
        )


def _golden(trial: GoldenTrial, seed: int) -> GoldenResult:
    metrics = {name: compare(trial.before[name], trial.after[name], seed=seed) for name in trial.before}
    queries = len(next(iter(trial.before.values()), ()))
    return GoldenResult(digest=trial.digest, queries=queries, left_out=trial.left_out, metrics=metrics)


def _lost_on_golden(golden: GoldenResult | None, thresholds: Thresholds, held: float) -> Iterator[str]:
    """Of what the parent has, and of what there was at first; who wins something back may have lost more."""
    mrr = golden.metrics.get("mrr_at_10") if golden else None
    if golden is None or mrr is None or mrr.change >= 0.0:
        return
    of_set = f"on the {golden.queries} queries of the golden set"
    allowed = f"at most {thresholds.max_golden_loss:.1%} may be lost"
    since = held * (1.0 + mrr.change) - 1.0
    if mrr.change < -thresholds.max_golden_loss:
        yield f"MRR@10 {mrr.change:+.1%} {of_set}, {allowed}"
    elif since < -thresholds.max_golden_loss:
        yield f"MRR@10 {mrr.change:+.1%} {of_set}, {since:+.1%} since it was first tried, {allowed}"


def _not_tried(golden: GoldenResult | None) -> Iterator[str]:
    if golden is not None and not golden.queries:
        yield f"the golden set guards nothing: none of its {golden.left_out} queries has a document in the index"


def _of_slices(clicks: Clicks, before: Floats, after: Floats) -> dict[str, SliceTrial]:
    """Of MRR@10 of each row of the clicks."""
    found = {}
    for name, rows, weight in clicks.slices.each(clicks.query, clicks.document):
        queries, query = np.unique(clicks.query[rows], return_inverse=True)
        total = np.bincount(query, weight, len(queries)).astype(np.float64)
        means = [np.bincount(query, weight * side[rows], len(queries)) for side in (before, after)]
        seen = total > 0.0
        found[name] = SliceTrial(total[seen], *(mean[seen] / total[seen] for mean in means))
    return found


def _slices(trials: Sequence[Trial], *, fewest: int, seed: int) -> list[SliceResult]:
    """Each slice with queries enough to say something, the worst first.

    The more domains there are, the wider their intervals, so that all of them together hold 95 times of 100
    (Bonferroni): with fifty domains one would seem worse in every other run.
    """
    of_name: defaultdict[str, list[SliceTrial]] = defaultdict(list)
    for trial in trials:
        for name, one in trial.slices.items():
            of_name[name].append(one)
    queries = {name: sum(len(one.weight) for one in of_it) for name, of_it in sorted(of_name.items())}
    enough = [name for name, count in queries.items() if count >= fewest]
    domains = sum(name.startswith(DOMAIN) for name in enough)
    found = []
    for name in enough:
        before, after, weight = (
            np.concatenate([getattr(one, part) for one in of_name[name]]) for part in ("before", "after", "weight")
        )
        confidence = 1.0 - 0.05 / domains if name.startswith(DOMAIN) else 0.95
        mrr = compare(before, after, weights=weight, seed=seed, confidence=confidence)
        found.append(SliceResult(slice=name, queries=queries[name], mrr_at_10=mrr))
    return sorted(found, key=lambda one: one.mrr_at_10.change)


def _lost_on_domains(slices: Sequence[SliceResult], thresholds: Thresholds) -> Iterator[str]:
    """One reason for each domain that is worse beyond chance, and by more than is allowed.

    Difficulties are told and decide nothing: easy is what the model that served had on top, so whatever ranks
    otherwise at all is worse on it, and better on the hard ones (regression to the mean).
    """
    for one in slices:
        mrr = one.mrr_at_10
        if one.slice.startswith(DOMAIN) and mrr.high < 0.0 and mrr.change < -thresholds.max_domain_loss:
            yield (
                f"{one.slice}: MRR@10 {changed(mrr)}, interval {interval(mrr)}, "
                f"at most {thresholds.max_domain_loss:.1%} may be lost on a domain"
            )


def decide(
    mrr: Estimate,
    queries: int,
    kept: float | None,
    thresholds: Thresholds,
    *,
    one_sided: Estimate | None = None,
    other: str = "its parent",
) -> tuple[Verdict, list[str]]:
    """Verdict and reasons from the figures alone. ``kept`` is the guard's share of documents still found, None
    where they are too few to tell; ``one_sided`` has the interval that decides on a rung on top of another."""
    said = f"MRR@10 {changed(mrr)}, 95 % interval {interval(mrr)}"
    if mrr.before <= 0.0:
        said = f"MRR@10 {mrr.after:.3f}, 95 % interval {mrr.low:.3f} to {mrr.high:.3f}, where {other} finds none"
    if one_sided is not None:
        said += f", {100 * LADDER_CONFIDENCE:g} % interval {interval(one_sided)}"
    lost = 0.0 if kept is None else 1.0 - kept
    guard = [] if kept is None else [f"{lost:.1%} of the documents that users surely want are no longer found"]
    if queries < thresholds.min_queries:
        return "inconclusive", [f"{queries} held-out queries, {thresholds.min_queries} are needed", said]
    if lost > thresholds.max_lost_recall:
        return "fail", [f"{guard[0]}, at most {thresholds.max_lost_recall:.1%} may be lost", said]
    if mrr.high < 0.0:
        return "fail", [f"worse than {other}: {said}"]
    if mrr.low > 0.0:
        return "pass", [f"better than {other}: {said}", *guard]
    if one_sided is not None and one_sided.low > 0.0:
        return "pass", [f"better than the rung below, which has just passed: {said}", *guard]
    return "inconclusive", [f"can't be told from {other}: {said}"]


def ranks(
    clicks: Clicks, parent: Side, candidate: Side, *, among: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank of each row's clicked document under both sides: among the parent's top ``among`` where it is one of
    them, else in the corpus. Of equally near ones each is in the middle."""
    before = np.empty(len(clicks), dtype=np.int64)
    after = np.empty(len(clicks), dtype=np.int64)
    rows = max(1, min(_BLOCK, _CELLS // max(len(parent.documents), 1)))
    for start in range(0, len(clicks), rows):
        part = slice(start, start + rows)
        q, d = clicks.query[part], clicks.document[part, None]
        old = parent.queries[q] @ parent.documents.T
        new = candidate.queries[q] @ candidate.documents.T
        old_clicked, new_clicked = np.take_along_axis(old, d, 1), np.take_along_axis(new, d, 1)
        counted = np.ones(old.shape, dtype=bool)
        if among is not None and among < old.shape[1]:
            shown = np.argpartition(-old, among, axis=1)[:, :among].copy()
            counted = np.zeros(old.shape, dtype=bool)
            np.put_along_axis(counted, shown, True, 1)
            counted |= ~np.take_along_axis(counted, d, 1)
        before[part] = middle_ranks(old, old_clicked, counted)
        after[part] = middle_ranks(new, new_clicked, counted)
    return before, after
