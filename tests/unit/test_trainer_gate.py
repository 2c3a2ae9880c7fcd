from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clickloop.evaluation import compare
from clickloop.events import Estimate, GateResult, Verdict
from tests.unit.trainer_facts import errs_elsewhere, in_slices, world
from trainer.dataset import SHOWN, Clicks
from trainer.gate import (
    FEWEST_CONFIRMED,
    GoldenTrial,
    Side,
    Thresholds,
    Trial,
    decide,
    judge,
    measure,
    ranks,
)
from trainer.model import Vectors, normalised
from trainer.slices import Clicked, Slices

THRESHOLDS = Thresholds(min_queries=50, max_lost_recall=0.1)


def turned(vectors: Vectors, documents: Vectors, share: float) -> Vectors:
    """Queries moved towards the documents that they want, or away from them."""
    return normalised(vectors + share * documents[: len(vectors)])


def verdict(share: float, *, queries: int = 600, seed: int = 0, wrong: float = 0.2) -> str:
    clicks, corpus = world(queries=queries, seed=seed, wrong=wrong)
    before = Side(clicks.vectors, corpus.vectors)
    after = Side(turned(clicks.vectors, corpus.vectors, share), corpus.vectors)
    return judge([measure(clicks, before, after)], thresholds=THRESHOLDS, seed=0).verdict


def test_a_better_candidate_passes_on_noisy_position_biased_clicks():
    assert verdict(0.5) == "pass"


def test_a_worse_candidate_fails():
    assert verdict(-0.3) == "fail"


def test_the_parent_itself_does_not_pass():
    assert verdict(0.0) == "inconclusive"


def test_of_a_dozen_random_changes_hardly_one_passes():
    passed = 0
    for seed in range(12):
        clicks, corpus = world(queries=300, seed=seed)
        rng = np.random.default_rng(1000 + seed)
        shaken = normalised(clicks.vectors + 0.1 * rng.normal(size=clicks.vectors.shape))
        trial = measure(clicks, Side(clicks.vectors, corpus.vectors), Side(shaken, corpus.vectors))
        passed += judge([trial], thresholds=THRESHOLDS, seed=0).verdict == "pass"
    assert passed <= 1


@pytest.mark.parametrize("wrong", [0.2, 0.8])
def test_of_a_dozen_random_changes_to_a_version_that_did_not_show_what_was_clicked_hardly_one_passes(wrong: float):
    """BM25 did, or another version: what the parent has below its first ten can only rise among those."""
    passed = 0
    for seed in range(12):
        clicks, corpus = world(queries=300, seed=seed, wrong=wrong)
        rng = np.random.default_rng(1000 + seed)
        parent = normalised(clicks.vectors + 0.3 * rng.normal(size=clicks.vectors.shape))
        shaken = normalised(parent + 0.2 * rng.normal(size=clicks.vectors.shape))
        trial = measure(clicks, Side(parent, corpus.vectors), Side(shaken, corpus.vectors))
        passed += judge([trial], thresholds=THRESHOLDS, seed=0).verdict == "pass"
    assert passed <= 1


def apart(correlation: float, *, noise: float, seed: int) -> tuple[Verdict, float]:
    """The verdict on a candidate whose errors are so much like its parent's, and its true change of MRR@10."""
    trial, change = errs_elsewhere(correlation, noise=noise, seed=seed)
    return judge([trial], thresholds=THRESHOLDS, seed=0, apart=True).verdict, change


def test_a_worse_candidate_that_errs_elsewhere_does_not_pass_and_a_better_one_does():
    """Among the ten that the parent shows, what stands above the clicked one are the parent's errors alone."""
    worse = [apart(0.5, noise=2.1, seed=seed) for seed in range(6)]
    assert all(change < -0.05 for _, change in worse)
    assert [verdict for verdict, _ in worse].count("pass") <= 1
    better = [apart(0.5, noise=1.4, seed=seed) for seed in range(6)]
    assert [verdict for verdict, _ in better].count("pass") >= 5


def test_what_the_parent_did_not_show_is_ranked_in_the_whole_corpus():
    """Eleven lie above it, ten of which the parent shows. The candidate lifts it above those, and three others."""
    documents = np.eye(14, dtype=np.float32)
    once = np.ones(2, dtype=np.float32)
    clicks = Clicks(["q"], query=np.asarray([0, 0]), document=np.asarray([11, 3]), weight=once, evidence=once)
    falling = np.linspace(1.0, 0.1, 14, dtype=np.float32)
    lifted = falling.copy()
    lifted[[10, 11, 12, 13]] = [3.0, 2.0, 4.0, 5.0]
    before, after = ranks(clicks, Side(falling[None], documents), Side(lifted[None], documents), among=10)
    assert before.tolist() == [12, 4]
    assert after.tolist() == [4, 4], "of what is new above it, it counts; above what was shown, it does not"


def test_a_candidate_whose_weights_are_no_numbers_fails():
    clicks, corpus = world()
    broken = np.full_like(clicks.vectors, np.nan)
    trial = measure(clicks, Side(clicks.vectors, corpus.vectors), Side(broken, corpus.vectors))
    assert trial.found_after == 0
    assert judge([trial], thresholds=THRESHOLDS, seed=0).verdict == "fail"


@pytest.mark.parametrize("what", ["queries", "documents", "both"])
def test_a_candidate_to_which_all_are_alike_fails(what: str):
    """Nothing scores higher than what was clicked there, so it had it on top of all."""
    clicks, corpus = world()
    queries, documents = clicks.vectors, corpus.vectors
    if what != "documents":
        queries = np.zeros_like(queries)
    if what != "queries":
        documents = np.repeat(documents[:1], len(documents), axis=0)
    trial = measure(clicks, Side(clicks.vectors, corpus.vectors), Side(queries, documents))
    assert trial.after["mrr_at_10"].max() < 0.3
    assert judge([trial], thresholds=THRESHOLDS, seed=0).verdict == "fail"


def test_of_equally_near_documents_the_clicked_one_is_in_the_middle():
    documents = np.asarray([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 2 + [[0.6, 0.8]], np.float32)
    asked = np.asarray([[1.0, 0.0]], np.float32)
    clicked = np.asarray([3, 7, 5], dtype=np.int64)
    clicks = replace(
        world(queries=60)[0],
        query=np.zeros(3, np.int64),
        document=clicked,
        **{part: np.ones(3, np.float32) for part in ("weight", "evidence")},
    )
    side = Side(asked, documents)
    before, after = ranks(clicks, side, side, among=None)
    assert before.tolist() == after.tolist() == [3, 6, 7]


def test_thirty_clicks_are_too_few_to_say():
    result = verdict(0.5, queries=40)
    assert result == "inconclusive"


def test_no_clicks_at_all_are_inconclusive():
    result = judge([], thresholds=THRESHOLDS, seed=0)
    assert (result.verdict, result.queries) == ("inconclusive", 0)


def test_a_candidate_that_finds_what_was_never_shown_is_not_punished_for_it():
    clicks, corpus = world()
    # Ever so near to each query lies a new document that the parent had, for once, not in its list.
    before = Side(clicks.vectors, np.concatenate([corpus.vectors, -clicks.vectors]))
    after = Side(turned(clicks.vectors, corpus.vectors, 0.5), np.concatenate([corpus.vectors, clicks.vectors[:5]]))
    after = replace(after, documents=np.concatenate([after.documents, -clicks.vectors[5:]]))
    trial = measure(clicks, before, after)
    assert judge([trial], thresholds=THRESHOLDS, seed=0).verdict == "pass"


def test_a_candidate_that_buries_surely_wanted_documents_fails_however_it_orders_the_rest():
    clicks, corpus = world()
    sure = replace(clicks, evidence=clicks.evidence * 2)
    # Twenty documents that were never shown crowd around every query, after training.
    crowd = np.repeat(clicks.vectors.mean(axis=0, keepdims=True), 20, axis=0)
    common = normalised(clicks.vectors.mean(axis=0, keepdims=True))
    queries = normalised(turned(clicks.vectors, corpus.vectors, 0.5) + 5.0 * common)
    before = Side(clicks.vectors, np.concatenate([corpus.vectors, -crowd]))
    after = Side(queries, np.concatenate([corpus.vectors, np.repeat(common, 20, axis=0)]))
    result = judge([measure(sure, before, after)], thresholds=THRESHOLDS, seed=0)
    assert result.verdict == "fail"
    assert "no longer found" in result.reasons[0]


def test_that_queries_are_asked_often_does_not_fail_a_candidate_for_dropping_what_was_clicked_by_mistake():
    rng = np.random.default_rng(0)
    queries, wrong_ones = 100, 9
    # Each query has one document of its own and nine that are clicked by mistake, up to a few times each.
    mistakes = rng.poisson(2.0, size=(queries, wrong_ones)).astype(np.float32)
    evidence = np.concatenate([np.full((queries, 1), 12.0, np.float32), mistakes], axis=1)
    query, place = np.nonzero(evidence)
    clicks = Clicks(
        [f"q{n}" for n in range(queries)],
        query=query,
        document=query * SHOWN + place,
        weight=evidence[query, place],
        evidence=evidence[query, place],
        looks=np.full(len(query), 1.0 / SHOWN, dtype=np.float32),
    )
    # Of its ten the candidate keeps the wanted one alone: others, that no one has seen, stand where the nine were.
    eye = np.eye(queries, dtype=np.float32)
    mine, strangers = np.repeat(eye, SHOWN, axis=0), np.repeat(eye, SHOWN, axis=0)
    before = Side(eye, np.concatenate([mine, -strangers]))
    kept = np.where((np.arange(len(mine)) % SHOWN == 0)[:, None], mine, -mine)
    after = Side(eye, np.concatenate([kept, 0.9 * strangers]))
    result = judge([measure(clicks, before, after)], thresholds=THRESHOLDS, seed=0)
    assert result.verdict == "pass"
    assert 100 <= result.confirmed < 110
    counted = replace(clicks, looks=clicks.looks[:0])
    assert judge([measure(counted, before, after)], thresholds=THRESHOLDS, seed=0).verdict == "fail"


@pytest.mark.parametrize("found", [0, FEWEST_CONFIRMED - 1, FEWEST_CONFIRMED])
def test_no_share_of_lost_documents_is_told_that_too_few_were_there_to_measure(found: int):
    better = {"mrr_at_10": np.full(60, 0.6)}
    trial = Trial(np.ones(60), {"mrr_at_10": np.full(60, 0.5)}, better, found_before=found, found_after=0)
    result = judge([trial], thresholds=THRESHOLDS, seed=0)
    measured = found == FEWEST_CONFIRMED
    assert (result.verdict, result.confirmed) == ("fail" if measured else "pass", found)
    assert result.kept == (0.0 if measured else None)
    assert any("no longer found" in reason for reason in result.reasons) == measured
    assert any(f"not measured: {found} documents" in reason for reason in result.reasons) != measured


def test_what_is_lost_is_told_of_all_moments_together():
    def trial(after: int) -> Trial:
        better = {"mrr_at_10": np.full(60, 0.6)}
        return Trial(np.ones(60), {"mrr_at_10": np.full(60, 0.5)}, better, found_before=20, found_after=after)

    result = judge([trial(20), trial(18)], thresholds=THRESHOLDS, seed=0)
    assert (result.verdict, result.confirmed, result.kept) == ("pass", 40, 0.95)
    assert judge([trial(20), trial(10)], thresholds=THRESHOLDS, seed=0).verdict == "fail"


def test_only_what_the_parent_found_can_be_kept():
    clicks, corpus = world()
    sure = replace(clicks, evidence=clicks.evidence * 2, query=clicks.query, document=clicks.query)
    trial = measure(sure, Side(-clicks.vectors, corpus.vectors), Side(corpus.vectors, corpus.vectors))
    assert trial.found_after == trial.found_before < 60


@pytest.mark.parametrize(("bound", "value"), [("_BLOCK", 7), ("_CELLS", 300), ("_CELLS", 1)])
def test_ranks_of_very_many_rows_or_documents_are_those_of_each(
    bound: str, value: int, monkeypatch: pytest.MonkeyPatch
):
    clicks, corpus = world(queries=100)
    sides = [Side(v, corpus.vectors) for v in (clicks.vectors, turned(clicks.vectors, corpus.vectors, 0.5))]
    whole = [ranks(clicks, *sides, among=among) for among in (None, 10)]
    monkeypatch.setattr(f"trainer.gate.{bound}", value)
    assert np.array_equal(whole, [ranks(clicks, *sides, among=among) for among in (None, 10)])


def test_reasons_name_the_figures():
    mrr = Estimate(before=0.4, after=0.42, change=0.05, low=0.01, high=0.09)
    found, reasons = decide(mrr, 200, 0.98, THRESHOLDS)
    assert found == "pass"
    assert "+5.0%" in reasons[0]
    assert "+1.0% to +9.0%" in reasons[0]
    assert reasons[1] == "2.0% of the documents that users surely want are no longer found"
    assert decide(estimate(0.05, -0.01, 0.09), 200, 0.98, THRESHOLDS, one_sided=mrr)[1][1] == reasons[1]


def test_where_the_parent_finds_nothing_the_reason_says_so():
    found, reasons = decide(compare(np.zeros(200), np.full(200, 0.5)), 200, None, THRESHOLDS)
    assert found == "pass"
    assert reasons == [
        "better than its parent: MRR@10 0.500, 95 % interval 0.500 to 0.500, where its parent finds none"
    ]


@pytest.mark.parametrize("kept", [1.0, 0.0])
def test_with_too_few_queries_nothing_is_said_however_much_is_lost(kept: float):
    better = estimate(0.05, 0.01, 0.09)
    assert decide(better, THRESHOLDS.min_queries - 1, kept, THRESHOLDS)[0] == "inconclusive"
    assert decide(better, THRESHOLDS.min_queries, kept, THRESHOLDS)[0] == ("pass" if kept else "fail")


def test_the_verdict_is_the_same_for_the_same_seed():
    clicks, corpus = world()
    trial = measure(
        clicks,
        Side(clicks.vectors, corpus.vectors),
        Side(turned(clicks.vectors, corpus.vectors, 0.2), corpus.vectors),
    )
    assert judge([trial], thresholds=THRESHOLDS, seed=3) == judge([trial], thresholds=THRESHOLDS, seed=3)


def estimate(change: float, low: float, high: float) -> Estimate:
    return Estimate(before=0.5, after=0.5 * (1 + change), change=change, low=low, high=high)


def test_on_top_of_a_rung_that_has_just_passed_a_one_sided_test_is_enough():
    level = estimate(0.007, -0.01, 0.025)

    def says(one_sided: Estimate | None, *, two_sided: Estimate = level) -> str:
        return decide(two_sided, 900, 1.0, THRESHOLDS, one_sided=one_sided)[0]

    assert says(estimate(0.007, 0.001, 0.02)) == "pass"
    assert says(None) == "inconclusive", "the first rung must beat its parent beyond chance"
    assert says(estimate(0.007, -0.008, 0.02)) == "inconclusive", "level may as well be worse"
    assert says(estimate(-0.03, -0.045, -0.015), two_sided=estimate(-0.03, -0.05, -0.01)) == "fail"


@pytest.mark.parametrize(
    ("gain", "first", "on_top"),
    [(0.024, "pass", "pass"), (0.018, "inconclusive", "pass"), (0.013, "inconclusive", "inconclusive")],
)
def test_the_one_sided_test_is_at_five_per_cent(gain: float, first: str, on_top: str):
    """The mean's standard error is 0.01: these are 2.4, 1.8 and 1.3 of it; 1.96 are asked first, 1.64 on top."""
    rng = np.random.default_rng(0)
    before, noise = rng.uniform(0.0, 1.0, 400), rng.normal(0.0, 1.0, 400)
    after = before + gain + 0.2 * (noise - noise.mean()) / noise.std()
    trial = Trial(np.ones(400), {"mrr_at_10": before}, {"mrr_at_10": after}, found_before=0, found_after=0)
    two_sided, one_sided = (judge([trial], thresholds=THRESHOLDS, seed=0, on_top=t) for t in (False, True))
    assert (two_sided.verdict, one_sided.verdict) == (first, on_top)
    assert two_sided.metrics == one_sided.metrics
    assert ["90 % interval" in judged.reasons[0] for judged in (two_sided, one_sided)] == [False, True]


# The golden set and slices


def golden(change: float, *, queries: int = 20) -> GoldenTrial:
    before = np.full(queries, 0.5)
    return GoldenTrial("ab" * 32, 3, {"mrr_at_10": before}, {"mrr_at_10": before * (1.0 + change)})


def test_what_loses_more_than_a_hundredth_on_the_golden_set_fails_whatever_the_clicks_say():
    clicks, corpus = world()
    before = Side(clicks.vectors, corpus.vectors)
    after = Side(turned(clicks.vectors, corpus.vectors, 0.5), corpus.vectors)
    trial = measure(clicks, before, after)

    def says(change: float) -> GateResult:
        return judge([trial], thresholds=THRESHOLDS, seed=0, golden=golden(change))

    assert [says(c).verdict for c in (0.2, 0.0, -0.009, -0.011)] == ["pass", "pass", "pass", "fail"]
    failed = says(-0.2)
    assert failed.reasons[0] == "MRR@10 -20.0% on the 20 queries of the golden set, at most 1.0% may be lost"
    assert failed.golden is not None
    assert (failed.golden.digest, failed.golden.queries, failed.golden.left_out) == ("ab" * 32, 20, 3)
    assert judge([], thresholds=THRESHOLDS, seed=0, golden=golden(-0.2)).verdict == "fail"
    assert judge([], thresholds=THRESHOLDS, seed=0, golden=golden(0.2)).verdict == "inconclusive"


def sliced(*, hurt: range, label: range, name: str = "domain shoes") -> GateResult:
    """A candidate that is much better but for the queries in ``hurt``; those in ``label`` are a slice."""
    clicks, corpus = world(queries=800)
    queries = turned(clicks.vectors, corpus.vectors, 0.8)
    queries[list(hurt)] = normalised(clicks.vectors[list(hurt)] - 0.4 * corpus.vectors[list(hurt)])
    of = in_slices(clicks, {q: {name if q in label else "domain books"} for q in range(800)})
    trial = measure(of, Side(clicks.vectors, corpus.vectors), Side(queries, corpus.vectors))
    return judge([trial], thresholds=THRESHOLDS, seed=0)


def test_a_slice_that_gets_worse_beyond_chance_fails_a_version_that_is_better_on_the_whole():
    result = sliced(hurt=range(150), label=range(150))
    assert result.metrics["mrr_at_10"].low > 0.0
    assert result.verdict == "fail"
    assert result.reasons[0].startswith("domain shoes: MRR@10 -")
    assert [one.slice for one in result.slices] == ["domain shoes", "domain books"]
    assert sliced(hurt=range(0), label=range(150)).verdict == "pass"


def test_what_was_easy_for_the_parent_may_get_worse():
    result = sliced(hurt=range(150), label=range(150), name="difficulty easy")
    assert result.slices[0].slice == "difficulty easy"
    assert result.slices[0].mrr_at_10.high < 0.0
    assert result.verdict == "pass"


def test_the_more_domains_there_are_the_less_does_one_of_them_tell():
    clicks, corpus = world(queries=800)
    side = Side(clicks.vectors, corpus.vectors)

    def width(domains: int) -> float:
        of = in_slices(clicks, {q: {f"domain {q % 8 if q % 8 < domains - 1 else 7}"} for q in range(800)})
        trial = measure(of, side, Side(turned(clicks.vectors, corpus.vectors, 0.3), corpus.vectors))
        [one] = [s for s in judge([trial], thresholds=THRESHOLDS, seed=0).slices if s.slice == "domain 0"]
        return one.mrr_at_10.high - one.mrr_at_10.low

    assert width(2) < width(4) < width(8)


def test_a_domain_is_measured_by_its_own_clicks_where_others_ask_the_same():
    """Grown-ups click the first document ten times for each time that children click the second."""
    asked, documents = 200, np.eye(400, dtype=np.float32)
    rows = np.repeat(np.arange(asked), 2)
    wanted = np.stack([np.arange(asked), asked + np.arange(asked)], axis=1).ravel()
    weight = np.tile(np.asarray([10.0, 1.0], np.float32), asked)
    names = ("domain adults", "domain kids")
    weights = {
        Clicked(names[int(d >= asked)], q, d): w for q, d, w in zip(rows, wanted, weight.tolist(), strict=True)
    }
    texts = [f"query {n}" for n in range(asked)]
    clicks = Clicks(texts, rows, wanted, weight, weight, slices=Slices.made_of(weights))

    def side(adults: float, kids: float) -> Side:
        others = 0.3 * sum(np.roll(documents[:asked, :asked], n, axis=1) for n in range(1, 9))
        own = np.concatenate([adults * documents[:asked, :asked] + others, kids * np.eye(asked)], axis=1)
        return Side(normalised(own), documents)

    result = judge([measure(clicks, side(0.9, 1.0), side(1.0, 0.1))], thresholds=THRESHOLDS, seed=0)
    told = {one.slice: (one.queries, one.mrr_at_10.before, one.mrr_at_10.after) for one in result.slices}
    assert told == {"domain adults": (200, 0.5, 1.0), "domain kids": (200, 1.0, pytest.approx(0.1))}
    assert result.verdict == "fail"
    assert result.reasons[0].startswith("domain kids: MRR@10 -90.0%")


def test_a_slice_of_a_few_queries_says_nothing():
    result = sliced(hurt=range(30), label=range(30))
    assert result.verdict == "pass"
    assert [one.slice for one in result.slices] == ["domain books"]


def test_the_figures_are_those_that_were_promised():
    clicks, corpus = world()
    side = Side(clicks.vectors, corpus.vectors)
    result = judge([measure(clicks, side, side)], thresholds=THRESHOLDS, seed=0)
    names = {"recall_at_1", "recall_at_5", "recall_at_10", "mrr_at_10", "ndcg_at_10", "pair_similarity"}
    assert set(result.metrics) == names
    near = (clicks.vectors[clicks.query] * corpus.vectors[clicks.document]).sum(axis=1)
    per_query = {q: np.average(near[clicks.query == q], weights=clicks.weight[clicks.query == q])
                 for q in set(clicks.query.tolist())}  # fmt: skip
    weights = [clicks.weight[clicks.query == q].sum() for q in per_query]
    mean = np.average(list(per_query.values()), weights=weights)
    assert abs(result.metrics["pair_similarity"].before - mean) < 1e-6
