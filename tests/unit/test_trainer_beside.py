"""A candidate beside the live version: judged by what neither has learnt from, and told in the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace as changed

from clickloop.accounts import gate_rows
from clickloop.errors import ArtifactError, TrainingError
from clickloop.events import CostResult, Estimate, GateResult, LiveResult, Verdict
from clickloop.golden import GoldenSet
from clickloop.recorded import Judged
from tests.unit.trainer_facts import START, example, world
from tests.unit.version_facts import manifest
from trainer.beside import Beside, Candidate, first_answered
from trainer.cost import Served
from trainer.dataset import Clicks, First, Prepared, prepare
from trainer.gate import GoldenTrial, Side, Thresholds, judge
from trainer.methods.base import Parent, StoppedError
from trainer.model import Vectors
from trainer.truth import Truth, top

CLICKS, CORPUS = world(queries=400, seed=3)
GATE = GateResult(verdict="pass", queries=300, reasons=["better than its parent"])
PERFECT = CORPUS.vectors
"""The best queries there are: each lies where its document is."""
POOR = np.roll(CLICKS.vectors, 1, axis=0)


def prepared(answered: Mapping[int, str] = {}) -> Prepared:
    first = {text: First(answered.get(n, "live-1"), minute(n)) for n, text in enumerate(CLICKS.queries)}
    return Prepared(CLICKS, CLICKS.of_queries([]), 400, 0, None, 0, first=first)


def minute(number: int) -> datetime:
    return START + timedelta(minutes=number)


class Known:
    """A store and a loader that know one version, which sees queries as ``sees`` does."""

    def __init__(self, sees: Callable[[Clicks], Vectors], newest: datetime | None) -> None:
        made = manifest("live-1", "adapter", manifest("base-1", "full", None))
        self._manifest = changed(made, lineage=changed(made.lineage, newest_example_at=newest))
        self._sees = sees
        self.asked: list[str] = []
        self.error: Exception | None = None

    def created(self, version: str) -> datetime:
        if version != "live-1":
            raise ArtifactError(f"{version}: no complete artifact")
        return minute(320)

    def manifest(self, version: str) -> Any:
        assert version == "live-1"
        return self._manifest

    def searched_by(self, version: str, *_: object, **__: object) -> tuple[Parent, Vectors]:
        assert version == "live-1"
        if self.error is not None:
            raise self.error
        encoder: Any = self
        return Parent(version, encoder, None, encoder), CORPUS.vectors

    def encode(self, texts: list[str]) -> Vectors:
        self.asked = list(texts)
        rows = [int(text.split()[-1]) for text in texts]
        return self._sees(CLICKS)[rows]


COST = CostResult(
    encode_seconds=Estimate(before=0.01, after=0.01, change=0.0, low=-0.01, high=0.01),
    bytes_before=1,
    bytes_after=1,
)


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.beside.encode", lambda encoder, texts: encoder.encode(texts))
    monkeypatch.setattr("trainer.beside.cost_of", lambda *_, **__: COST)


def beside(
    known: Known,
    candidate: Vectors,
    *,
    gate: GateResult = GATE,
    live: str = "live-1",
    golden: GoldenSet | None = None,
    trial: GoldenTrial | None = None,
    held: Clicks = CLICKS,
    most: int = 0,
    left: float = 1.0,
) -> GateResult:
    store: Any = known
    encoder: Any = object()
    place = {text: number for number, text in enumerate(CLICKS.queries)}

    def side(clicks: Clicks) -> Side:
        return Side(candidate[[place[text] for text in clicks.queries]], CORPUS.vectors)

    made = Candidate(held, side, Served(encoder, encoder, None), golden or GoldenSet([]), trial)
    thresholds = Thresholds(min_queries=50, max_lost_recall=0.1)
    return Beside(store, store, thresholds, most, 0)(
        gate, live, made, CORPUS, prepared(), on_text=lambda *_: None, seconds_left=lambda: left
    )


def raw(clicks: Clicks) -> Vectors:
    return clicks.vectors


def test_it_passes_only_if_it_beats_the_live_version_too() -> None:
    better = beside(Known(raw, START), PERFECT)
    assert better.verdict == "pass"
    assert better.reasons[0] == "better than its parent"
    assert better.reasons[1].startswith("beside live-1, which is live: better than it: MRR@10 +")
    worse = beside(Known(raw, START), POOR)
    assert worse.verdict == "fail"
    assert worse.reasons[1].startswith("beside live-1, which is live: worse than it: MRR@10 -")
    level = beside(Known(raw, START), CLICKS.vectors)
    assert level.verdict == "inconclusive"
    assert level.reasons[1].startswith("beside live-1, which is live: can't be told from it: ")


def test_the_result_keeps_the_gate_and_tells_both_figures() -> None:
    found = beside(Known(raw, START), PERFECT)
    assert (found.queries, found.metrics) == (GATE.queries, GATE.metrics)
    assert found.live is not None
    assert found.live.version == "live-1"
    mrr = found.live.metrics["mrr_at_10"]
    assert mrr.before < mrr.after
    [row] = [row for row in gate_rows(found) if "live-1" in row[0]]
    assert row[0] == f"mrr_at_10 beside live-1, which is live ({found.live.queries} queries)"
    assert row[1] == f"{mrr.before:.4f}"


def test_what_errs_elsewhere_than_the_live_version_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def judging(*given: Any, apart: bool = False, **more: Any) -> GateResult:
        told.append(apart)
        return judge(*given, apart=apart, **more)

    monkeypatch.setattr("trainer.beside.judge", judging)
    beside(Known(raw, START), PERFECT)
    assert told == [True]


def test_it_judges_by_what_was_asked_after_the_newest_example_of_the_live_version() -> None:
    known = Known(raw, minute(299))
    found = beside(known, PERFECT)
    assert known.asked == [f"query {number}" for number in range(300, 400)]
    assert found.live is not None
    assert 50 <= found.live.queries <= 100, "those of them that were clicked"
    few = beside(Known(raw, minute(370)), PERFECT)
    assert few.verdict == "inconclusive"
    assert "held-out queries, 50 are needed" in few.reasons[1]
    none = beside(Known(raw, minute(400)), PERFECT)
    assert (none.verdict, none.reasons[1]) == (
        "inconclusive",
        "beside live-1, which is live: of the queries that were held out, it was the first to answer none",
    )
    assert none.live is not None
    assert none.live.queries == 0
    assert not [row for row in gate_rows(none) if "live-1" in row[0]]


def test_what_has_seen_no_example_has_learnt_from_none() -> None:
    known = Known(raw, None)
    beside(known, PERFECT)
    assert len(known.asked) == 400


def test_a_query_in_other_words_than_one_that_the_live_version_knows_is_not_new() -> None:
    vectors = CLICKS.vectors.copy()
    vectors[350] = vectors[10]
    known = replace(CLICKS, vectors=vectors)
    new = first_answered("live-1", known, prepared().first, newest=minute(299), since=START)
    assert len(new.queries) == 99
    assert "query 350" not in new.queries


def test_it_judges_by_what_the_live_version_was_the_first_to_answer() -> None:
    """Between its newest example and its first share another one answered. Some apps don't tell."""
    first = prepared({300: "before-1", 301: "before-1", 302: "", 350: ""}).first

    def answered(version: str, newest: datetime | None) -> list[str]:
        return first_answered(version, CLICKS, first, newest=newest, since=minute(320)).queries

    assert answered("live-1", minute(299)) == [f"query {number}" for number in range(303, 400)]
    assert answered("live-2", minute(299)) == ["query 350"], "untold, and after it was published"
    assert len(answered("live-1", None)) == 397


def test_a_query_is_as_old_as_its_first_impression() -> None:
    examples = [example("sort a list", "d0000", number=1), example("Sort a  list", "d0001", number=50)]
    examples += [changed(example("join two paths", "d0002", number=60), version="live-1")]
    found = prepare(examples, CORPUS.documents)
    assert found.first == {
        "sort a list": First("", START + timedelta(seconds=1)),
        "join two paths": First("live-1", START + timedelta(seconds=60)),
    }


def test_where_nothing_was_held_out_or_the_live_version_is_gone_no_one_can_tell() -> None:
    nothing = beside(Known(raw, START), PERFECT, held=CLICKS.of_queries([]))
    assert nothing.verdict == "inconclusive"
    assert nothing.reasons[1].endswith("it was the first to answer none")
    gone = beside(Known(raw, START), PERFECT, live="gone")
    assert gone.verdict == "inconclusive"
    assert gone.reasons[1:] == ["beside gone, which is live: gone: no complete artifact"]
    assert gone.live == LiveResult(version="gone")
    known = Known(raw, START)
    known.error = TrainingError("the budget of time was spent")
    assert beside(known, PERFECT, left=0.0).verdict == "inconclusive"
    with pytest.raises(TrainingError):
        beside(known, PERFECT)
    known.error = StoppedError()
    with pytest.raises(StoppedError):
        beside(known, PERFECT, left=0.0)


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_what_did_not_beat_its_parent_is_not_looked_at_but_the_way_back_is_told(verdict: Verdict) -> None:
    known = Known(raw, START)
    found = beside(known, PERFECT, gate=changed(GATE, verdict=verdict))
    assert found == changed(GATE, verdict=verdict, live=LiveResult(version="live-1"))
    assert known.asked == []


def test_a_sample_is_drawn_from_what_the_live_version_answered() -> None:
    known = Known(raw, minute(299))
    found = beside(known, PERFECT, most=60)
    assert len(known.asked) == 60
    assert found.reasons[-1].endswith("held-out queries (gate_max_queries)")


def test_what_is_slower_than_the_live_version_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be as fast as its parent: the base model may be another one by now."""
    slow = changed(COST, encode_seconds=Estimate(before=0.01, after=0.05, change=4.0, low=3.5, high=4.5))
    monkeypatch.setattr("trainer.beside.cost_of", lambda *_, **__: slow)
    found = beside(Known(raw, START), PERFECT)
    assert found.verdict == "fail"
    assert "a query takes 5.00 times as long to encode" in found.reasons[1]


def test_it_may_not_lose_on_the_golden_set_beside_the_live_version() -> None:
    """It may have gained there beside its parent."""
    judged = [Judged(f"query {number}", {f"d{number:04}": 1.0}) for number in range(40)]
    truth = Truth(judged, CORPUS.documents)

    def measured(vectors: Vectors) -> dict[str, Any]:
        return truth.of_top(top(vectors[:40], CORPUS.vectors, 10))

    trial = GoldenTrial("ab" * 32, 0, measured(np.roll(PERFECT, 1, axis=0)), measured(CLICKS.vectors))

    def sees(clicks: Clicks) -> Vectors:
        return np.concatenate([PERFECT[:40], clicks.vectors[40:]])

    mixed = np.concatenate([CLICKS.vectors[:40], PERFECT[40:]])
    found = beside(Known(sees, minute(39)), mixed, golden=GoldenSet(judged), trial=trial)
    assert found.verdict == "fail"
    assert "on the 40 queries of the golden set" in found.reasons[1]
    assert beside(Known(sees, minute(39)), mixed).verdict == "pass"


def test_a_golden_set_that_could_not_be_tried_needs_no_trial_beside_the_live_version() -> None:
    """The gate has told of it, and there is nothing to encode."""
    trial = GoldenTrial("ab" * 32, 1, {}, {})
    gone = GoldenSet([Judged("tent", {"sku-4": 1.0})])
    found = beside(Known(raw, START), PERFECT, golden=gone, trial=trial)
    assert found == beside(Known(raw, START), PERFECT)
