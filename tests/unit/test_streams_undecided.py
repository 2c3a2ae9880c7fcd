"""Examples on which no gate has decided: which the next command covers again, and which it leaves alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import replace

from clickloop.commands import Promote, Retrain, Strategy
from clickloop.events import Arm, GateResult, Message, OffsetRange, SplitChanged
from streams.advice import recommendations
from streams.commanded import Commanded, undecided
from streams.settings import StreamsSettings
from streams.trigger import NotNow, Trigger
from tests.unit.streams_facts import NOON, at, progress, range_, report, trained

BOTH = ("adapter", "query_encoder")


class Index:
    """A trigger that is told of a hundred examples after the other, and of what became of each command."""

    def __init__(self, **settings: Any) -> None:
        options = {"cool_down_seconds": 0.0, "failed_cool_down_seconds": 0.0, "budget_seconds": 60.0}
        self.settings = StreamsSettings(**(options | settings))
        self.trigger = Trigger(self.settings)
        self.log: list[tuple[Message, int]] = []
        self.now = 0.0
        self._reports = 0

    def hear(self, message: Message, offset: int = 0) -> None:
        self.log.append((message, offset))
        self.trigger.hear(message, offset=offset)

    def clicks(self, count: int = 100, *, partition: int = 0, start: int | None = None) -> None:
        """So many new examples."""
        number = self._reports
        self._reports += 1
        start = number * 100 if start is None else start
        ranges = [range_(partition, start, start + count)]
        self.hear(report(number, examples=count, partition=partition, ranges=ranges), offset=number)

    def wish(self) -> Retrain:
        self.now += 10.0
        wish = self.trigger.decide(NOON + self.now)
        assert isinstance(wish, Retrain), wish
        return wish

    def command(self, *verdicts: str | None, strategy: Strategy = "incremental") -> Retrain:
        """The next command, which ends with these verdicts of its rungs; with None the run fails there."""
        wish = replace(self.wish(), strategy=strategy)
        self.hear(wish)
        for kind, verdict in zip(BOTH, verdicts, strict=False):
            self.now += 1.0
            stage = "failed" if verdict is None else "done"
            if verdict is not None:
                made = trained(
                    f"{kind}-{wish.command_id}", wish.command_id, kind=kind, verdict=verdict, when=self.now
                )
                self.hear(made)
            self.hear(progress(wish.command_id, kind, stage, when=self.now, verdict=verdict))
        return wish

    def covered(self) -> list[OffsetRange]:
        """By the next command, when another hundred have come."""
        self.clicks()
        return self.wish().ranges


def test_what_no_gate_could_tell_comes_again_with_what_is_new() -> None:
    index = Index()
    for number in range(3):
        index.clicks()
        wish = index.command("inconclusive", "inconclusive")
        assert wish.ranges == [range_(0, 0, 100 * (number + 1))]
        assert wish.reason.figures["examples"] == 100
        assert wish.reason.figures["undecided"] == 100 * number
    assert "200 again on which no gate has decided" in wish.reason.text


@pytest.mark.parametrize(
    "verdicts", [("pass", "inconclusive"), ("inconclusive", "pass"), ("inconclusive", "fail"), ("fail", None)]
)
def test_what_one_rung_was_decided_on_does_not(verdicts: tuple[str | None, ...]) -> None:
    index = Index()
    index.clicks()
    index.command("inconclusive", "inconclusive")
    index.clicks()
    index.command(*verdicts)
    assert index.covered() == [range_(0, 200, 300)]
    assert "again" not in index.wish().reason.text


def test_a_run_that_breaks_is_given_its_examples_once_more() -> None:
    index = Index()
    index.clicks()
    index.command("inconclusive", "inconclusive")
    index.clicks()
    index.command(None)
    index.clicks()
    assert index.command(None).ranges == [range_(0, 0, 300)]
    assert index.covered() == [range_(0, 300, 400)]


def test_breaking_now_and_then_leaves_nothing_alone() -> None:
    index = Index()
    for verdicts in ((None,), ("inconclusive", "inconclusive"), (None,)):
        index.clicks()
        index.command(*verdicts)
    assert index.covered() == [range_(0, 0, 400)]


def test_a_command_that_nobody_ends_is_covered_again_once_it_is_given_up() -> None:
    index = Index()
    index.clicks()
    wish = index.command()
    index.hear(progress(wish.command_id, "adapter", "training", when=index.now))
    index.clicks()
    assert index.trigger.outlook(NOON + index.now).undecided == 0
    index.now += 700.0
    assert index.wish().ranges == [range_(0, 0, 200)]


@pytest.mark.parametrize("first", [True, False])
def test_an_operator_decides_by_a_promotion(first: bool) -> None:
    """Whichever of the topics is read first."""
    index = Index()
    index.clicks()
    wish = index.command("inconclusive", "inconclusive")
    promoted = Promote(
        command_id="p", index="default", issued_at=at(0), version=f"adapter-{wish.command_id}", reason="it is good"
    )
    index.hear(replace(promoted, version="another"))
    assert index.trigger.outlook(NOON + index.now).undecided == 100
    index.hear(promoted)
    again = Index()
    for message, offset in reversed(index.log) if first else index.log:
        again.hear(message, offset)
    again.now = index.now
    again.clicks(start=100)
    assert again.wish().ranges == [range_(0, 100, 200)]


def test_clicks_that_a_strategy_did_not_learn_from_come_again() -> None:
    index = Index()
    index.clicks()
    index.command("pass", "pass", strategy="fine_tune")
    index.clicks()
    index.command("pass", "pass", strategy="contrastive")
    assert index.trigger.outlook(NOON + index.now).undecided == 0
    index.clicks()
    index.command("fail", "fail", strategy="domain_adaptation")
    assert index.covered() == [range_(0, 200, 400)]


def test_an_operators_run_over_all_opens_nothing_that_was_decided() -> None:
    index = Index()
    index.clicks()
    index.command("pass", "pass")
    index.clicks()
    everything = replace(index.wish(), command_id="all", ranges=[range_(0, 0, 200), range_(1, 0, 7)])
    index.hear(everything)
    for kind in BOTH:
        index.hear(progress("all", kind, "done", when=index.now, verdict="inconclusive"))
    assert index.covered() == [range_(0, 100, 300), range_(1, 0, 7)]


@pytest.mark.parametrize(("most", "first", "second"), [(1000, 0, 0), (600, 80, 40), (0, 200, 100)])
def test_of_more_than_is_wanted_each_partitions_newest_are_covered(most: int, first: int, second: int) -> None:
    commands = [Commanded(ranges=[range_(0, 0, 200), range_(1, 0, 100)], issued=1.0)]
    found = undecided(commands, served=set(), most=300 * most // 1000)
    wanted = [range_(0, first, 200), range_(1, second, 100)]
    assert found.ranges == [one for one in wanted if one.start < one.end]
    assert found.examples == 300 * most // 1000


def test_the_setting_bounds_what_comes_again_and_0_ends_it() -> None:
    for most, start in ((150, 50), (0, 200)):
        index = Index(undecided_examples=most)
        for _ in range(2):
            index.clicks()
            index.command("inconclusive", "inconclusive")
        assert index.covered() == [range_(0, start, 300)]


def test_another_look_waits_for_a_tenth_more() -> None:
    index = Index(threshold=20)
    index.clicks(1000, start=0)
    index.command("inconclusive", "inconclusive")
    index.clicks(99, start=1000)
    told = index.trigger.decide(NOON + index.now + 10.0)
    assert isinstance(told, NotNow)
    assert told.reason.startswith("99 of 100 new examples, a tenth of the 1000 that no gate has decided on")
    index.clicks(1, start=1099)
    assert index.wish().ranges == [range_(0, 0, 1100)]


def test_what_other_indexes_wrote_between_is_not_counted() -> None:
    """Examples of all indexes lie in one log."""
    index = Index(undecided_examples=150)
    for number in range(2):
        index.hear(report(number, examples=100, ranges=[range_(0, number * 60_000, (number + 1) * 60_000)]))
        index.command("inconclusive", "inconclusive")
    outlook = index.trigger.outlook(NOON + index.now)
    assert outlook.undecided == 150
    index._reports = 2
    index.clicks(start=120_000)
    assert index.wish().ranges == [range_(0, 30_000, 120_100)]


def test_too_few_examples_add_up_however_often_they_were_too_few() -> None:
    index = Index(threshold=20)
    for number in range(6):
        index.clicks(20, start=20 * number)
        wish = index.wish()
        assert wish.ranges == [range_(0, 0, 20 * (number + 1))]
        index.hear(wish)
        index.hear(progress(wish.command_id, "adapter", "failed", when=index.now, verdict="inconclusive"))
    assert index.trigger.outlook(NOON + index.now).failures == 0


def test_what_no_gate_has_looked_at_does_not_make_the_next_look_wait() -> None:
    """Examples that were made from documents before the first click judge nothing."""
    index = Index()
    index.clicks(5000, start=0)
    wish = index.wish()
    index.hear(wish)
    made = trained("adapter-1", wish.command_id, verdict="inconclusive")
    index.hear(replace(made, gate=GateResult(verdict="inconclusive", queries=0)))
    for kind in BOTH:
        index.hear(progress(wish.command_id, kind, "done", when=index.now, verdict="inconclusive"))
    index.clicks(100, start=5000)
    then = index.wish()
    assert then.ranges == [range_(0, 0, 5100)]
    assert then.reason.figures["undecided"] == 0


def test_a_training_anew_decides_for_no_one_before_it_is_promoted() -> None:
    """It may have beaten no more than the base model: whoever named that as its parent asked for no other look."""
    index = Index()
    index.clicks()
    wish = index.command("pass", "pass", strategy="full_retrain")
    assert index.trigger.outlook(NOON + index.now).undecided == 100
    made = f"adapter-{wish.command_id}"
    index.hear(Promote(command_id="p", index="default", issued_at=at(0), version=made, reason="good"))
    assert index.trigger.outlook(NOON + index.now).undecided == 0


def test_a_training_anew_that_went_live_by_itself_has_decided() -> None:
    """Where the base model was live, it was compared with what users had."""
    index = Index()
    index.clicks()
    wish = index.command("pass", "pass", strategy="full_retrain")
    split = SplitChanged(
        event_id="s",
        index="default",
        split_id="s",
        salt="s",
        arms=[Arm(name="live", version=f"adapter-{wish.command_id}", buckets=10_000)],
        changed_at=at(index.now),
        sequence=2,
    )
    index.hear(split)
    assert index.trigger.outlook(NOON + index.now).undecided == 0


def test_a_promotion_decides_nothing_for_clicks_that_it_did_not_learn_from() -> None:
    index = Index()
    for strategy in ("incremental", "fine_tune"):
        index.clicks()
        wish = index.command("inconclusive", "inconclusive", strategy=strategy)
    made = f"adapter-{wish.command_id}"
    index.hear(Promote(command_id="p", index="default", issued_at=at(0), version=made, reason="good"))
    assert index.covered() == [range_(0, 0, 300)]


def test_an_operators_run_over_the_log_counts_what_it_learnt_from() -> None:
    """Not the offsets, which are those of all indexes."""
    index = Index()
    index.hear(report(0, examples=100, ranges=[range_(0, 0, 100_000)]))
    wish = index.wish()
    everything = replace(
        wish, command_id="all", ranges=[range_(0, 0, 1_000_000)], reason=replace(wish.reason, figures={})
    )
    index.hear(everything)
    index.hear(trained("adapter-all", "all", verdict="inconclusive", examples=120))
    for kind in BOTH:
        index.hear(progress("all", kind, "done", when=index.now, verdict="inconclusive"))
    assert index.trigger.outlook(NOON + index.now).undecided == 120
    index.clicks(start=1_000_000)
    assert index.wish().ranges == [range_(0, 0, 1_000_100)]


def test_old_versions_push_no_command_out_of_memory() -> None:
    index = Index()
    for _ in range(3):
        index.clicks()
        index.command("inconclusive", "inconclusive")
    for number in range(1100):
        index.hear(trained(f"old-{number}", f"long-ago-{number}"))
    assert index.covered() == [range_(0, 0, 400)]


def test_without_new_examples_nothing_comes_again() -> None:
    index = Index(policies=["schedule"], schedule="1h", drift_min_examples=1)
    index.clicks()
    index.now += 7200.0
    index.command("inconclusive", "inconclusive")
    assert index.trigger.outlook(NOON + index.now + 7200.0).ranges == []


def test_what_comes_again_counts_in_what_is_expected_and_advised() -> None:
    gains = {}
    for verdict in ("inconclusive", "fail"):
        index = Index(failed_cool_down_seconds=0.0)
        for _ in range(4):
            index.clicks()
            index.command(verdict, verdict)
        index.clicks()
        gains[verdict] = index.trigger.outlook(NOON + index.now).expected.gain
        advice = recommendations(index.trigger, index.settings, now=NOON + index.now)
        what = next(one.what for one in advice if one.what.startswith("train"))
        again = " and 400 that no gate has decided on" if verdict == "inconclusive" else ""
        assert what == f"train adapter, query_encoder on 100 new examples{again}"
    assert gains["inconclusive"] > 2.0 * gains["fail"]


@pytest.mark.parametrize("seed", range(20))
def test_in_whatever_order_the_log_is_read_the_next_command_is_the_same(seed: int) -> None:
    rng = random.Random(seed)
    index = Index()
    for _ in range(6):
        index.clicks()
        index.command(*rng.choices(["inconclusive", "inconclusive", "pass", "fail"], k=2))
    index.clicks()
    wanted = index.trigger.decide(NOON + 1e5)
    again = Index()
    for message, offset in rng.sample(index.log, len(index.log)):
        again.hear(message, offset)
    found = again.trigger.decide(NOON + 1e5)
    assert isinstance(found, Retrain)
    assert isinstance(wanted, Retrain)
    assert (found.ranges, found.command_id) == (wanted.ranges, wanted.command_id)
