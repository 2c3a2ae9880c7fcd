"""A golden set on which nothing can be tried guards nothing, and that is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from clickloop.accounts import gate_rows
from clickloop.events import GateResult, GoldenResult, Lineage
from clickloop.golden import GoldenSet
from clickloop.model_store import Manifest
from clickloop.recorded import Judged
from tests.unit.trainer_facts import world
from trainer.dataset import Corpus
from trainer.gate import GoldenTrial, Side, Thresholds, judge, measure
from trainer.rung import golden_trial, held_on_golden

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


@pytest.mark.parametrize(
    ("held", "change", "said"),
    [
        (1.0, -0.009, None),
        (1.03, -0.009, None),
        (1.0, -0.011, "-1.1% on the 20 queries of the golden set, at most 1.0% may be lost"),
        (
            0.995,
            -0.009,
            "-0.9% on the 20 queries of the golden set, -1.4% since it was first tried, at most 1.0% ",
        ),
        (0.98, 0.0, None),
        (0.98, 0.001, None),
    ],
    ids=["a little", "of what was won", "more than allowed", "more than was left", "nothing", "some is won back"],
)
def test_small_losses_on_the_golden_set_do_not_add_up(held: float, change: float, said: str | None) -> None:
    before, after = ({"mrr_at_10": np.full(20, 0.5 * share)} for share in (1.0, 1.0 + change))
    trial = GoldenTrial("ab", 0, before, after, held)
    gate = judge([], thresholds=THRESHOLDS, seed=0, golden=trial)
    assert (gate.verdict == "fail") is (said is not None)
    assert said is None or gate.reasons[0].startswith(f"MRR@10 {said}")


def version(digest: str, held: object) -> Manifest:
    gate = GateResult(verdict="pass", queries=60, golden=GoldenResult(digest=digest, queries=20))
    settings: Any = {} if held is None else {"golden_held": held}
    lineage = Lineage(settings=settings)
    return Manifest(version="a-1", kind="adapter", space="b", encoder="b", lineage=lineage, gate=gate)


def test_what_is_left_of_the_golden_set_is_told_by_the_version_that_was_tried_on_the_same_one() -> None:
    assert held_on_golden(version("ab", 0.97), "ab") == 0.97
    assert held_on_golden(version("ab", 0.97), "cd") == 1.0, "another set starts anew"
    assert held_on_golden(version("ab", None), "ab") == 1.0, "it is from before this was noted"
    assert held_on_golden(replace(version("ab", 0.97), gate=None), "ab") == 1.0
