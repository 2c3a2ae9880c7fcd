"""A golden set on which nothing can be tried guards nothing, and that is told."""

from __future__ import annotations

from typing import Any

from clickloop.accounts import gate_rows
from clickloop.golden import GoldenSet
from clickloop.recorded import Judged
from tests.unit.trainer_facts import world
from trainer.dataset import Corpus
from trainer.gate import GoldenTrial, Side, Thresholds, judge, measure
from trainer.rung import golden_trial

THRESHOLDS = Thresholds(min_queries=50, max_lost_recall=0.1)
GONE = GoldenSet([Judged("waterproof jacket", {"sku-17": 1.0}), Judged("tent", {"sku-4": 1.0})])
NOT_TRIED = "the golden set guards nothing: none of its 2 queries has a document in the index"


def tried(golden: GoldenSet, corpus: Corpus) -> GoldenTrial | None:
    """No model is asked where no query is left."""
    none: Any = None
    return golden_trial(golden, none, none, corpus, none)


def test_a_golden_set_whose_documents_have_all_left_the_index_is_told_and_counted() -> None:
    clicks, corpus = world()
    side = Side(clicks.vectors, corpus.vectors)
    better = Side(clicks.vectors + corpus.vectors[: len(clicks.vectors)], corpus.vectors)
    found = tried(GONE, corpus)
    for trials, verdict in (
        ([measure(clicks, side, better)], "pass"),
        ([measure(clicks, better, side)], "fail"),
        ([], "inconclusive"),
    ):
        gate = judge(trials, thresholds=THRESHOLDS, seed=0, golden=found)
        assert gate.verdict == verdict, "it decides nothing, as without a set"
        assert NOT_TRIED in gate.reasons
        assert gate.golden is not None
        assert (gate.golden.digest, gate.golden.queries, gate.golden.left_out) == (GONE.digest, 0, 2)
        [row] = [row for row in gate_rows(gate) if "golden" in row[0]]
        assert row == ["golden set, none of 2 queries tried", "-", "-", "-", "-"]


def test_without_a_golden_set_nothing_is_said_of_one() -> None:
    _, corpus = world()
    assert tried(GoldenSet([]), corpus) is None
    assert not any("golden" in reason for reason in judge([], thresholds=THRESHOLDS, seed=0).reasons)
