"""When a retrain is commanded, over what, and why not otherwise."""

from __future__ import annotations

from typing import Any

from clickloop.commands import Retrain
from clickloop.events import OffsetRange
from streams.buffer import covers, merge_ranges
from streams.trigger import NotNow, Trigger
from tests.unit.streams_facts import NOON, progress, range_, report


def trigger(**changes: Any) -> Trigger:
    options: dict[str, Any] = {
        "policies": ["threshold", "drift"],
        "kinds": ["adapter", "query_encoder"],
        "threshold": 100,
        "drift_min_examples": 40,
        "cool_down_seconds": 30.0,
        "budget_seconds": 60.0,
    }
    return Trigger("default", **(options | changes))


def tell(rule: Trigger, number: int, examples: int, **more: Any) -> None:
    start = more.pop("start", number * 100)
    partition = more.get("partition", 0)
    rule.report(
        report(
            number,
            examples=examples,
            ranges=[range_(partition, start, start + examples)] if examples else [],
            **more,
        ),
        offset=number,
    )


def commanded(rule: Trigger, now: float) -> Retrain:
    wish = rule.decide(NOON + now)
    assert isinstance(wish, Retrain), wish
    return wish


def refused(rule: Trigger, now: float) -> str:
    wish = rule.decide(NOON + now)
    assert isinstance(wish, NotNow), wish
    return wish.reason


def test_enough_new_examples_trigger_with_their_exact_ranges_and_a_reason() -> None:
    rule = trigger()
    tell(rule, 0, 60, start=10)
    tell(rule, 1, 20, start=70)
    assert "80 of 100" in refused(rule, 1)
    tell(rule, 2, 30, partition=1, start=5)
    wish = commanded(rule, 2)
    assert wish.ranges == [range_(0, 10, 90), range_(1, 5, 35)]
    assert wish.reason.policies == ["threshold"]
    assert wish.reason.figures["examples"] == 110
    assert wish.kinds == ["adapter", "query_encoder"]


def test_the_same_wish_is_the_same_command() -> None:
    ids = set()
    for order in ((0, 1), (1, 0)):
        rule = trigger()
        for number in order:
            tell(rule, number, 60)
        ids.add(commanded(rule, 5).command_id)
    assert len(ids) == 1


def test_one_command_is_in_flight_until_its_last_rung_is_done() -> None:
    rule = trigger(cool_down_seconds=0.0)
    tell(rule, 0, 100)
    wish = commanded(rule, 1)
    rule.retrain(wish)
    tell(rule, 1, 100)
    assert "in flight" in refused(rule, 2)
    rule.training(progress(wish.command_id, "adapter", "done", when=3))
    assert "in flight" in refused(rule, 4)
    rule.training(progress("another", "query_encoder", "done", when=5))
    assert "in flight" in refused(rule, 6)
    rule.training(progress(wish.command_id, "query_encoder", "done", when=7))
    assert commanded(rule, 8).ranges == [range_(0, 100, 200)]


def test_a_failed_run_ends_its_command_and_the_cool_down_starts() -> None:
    rule = trigger()
    tell(rule, 0, 100)
    wish = commanded(rule, 1)
    rule.retrain(wish)
    tell(rule, 1, 100)
    rule.training(progress(wish.command_id, "adapter", "failed", when=10))
    assert "cooling down" in refused(rule, 20)
    assert commanded(rule, 41)


def test_a_command_that_nobody_follows_is_given_up() -> None:
    rule = trigger(cool_down_seconds=0.0)
    tell(rule, 0, 100)
    rule.retrain(commanded(rule, 1))
    tell(rule, 1, 100)
    assert "in flight" in refused(rule, 600)
    assert commanded(rule, 700)


def test_an_operators_command_counts_as_in_flight_and_covers_its_reports() -> None:
    one, other = trigger(), trigger()
    for rule in (one, other):
        tell(rule, 0, 100)
    other.retrain(commanded(one, 1))
    assert other.new_examples == 0
    assert "in flight" in refused(other, 2)


def test_a_restart_rebuilds_the_same_state_in_whatever_order_the_topics_are_read() -> None:
    first = trigger()
    tell(first, 0, 100)
    wish = commanded(first, 1)
    for order in ("reports first", "command first"):
        again = trigger()
        if order == "command first":
            again.training(progress(wish.command_id, "adapter", "done", when=2))
            again.training(progress(wish.command_id, "query_encoder", "done", when=2))
            again.retrain(wish)
        tell(again, 0, 100)
        tell(again, 1, 30)
        if order == "reports first":
            again.retrain(wish)
            again.training(progress(wish.command_id, "adapter", "done", when=2))
            again.training(progress(wish.command_id, "query_encoder", "done", when=2))
        assert again.new_examples == 30
        assert again.low_water == 1
        assert "30 of 100" in refused(again, 60)


def test_a_report_that_is_told_again_counts_once() -> None:
    rule = trigger()
    tell(rule, 0, 60)
    tell(rule, 0, 60)
    assert rule.new_examples == 60
    tell(rule, 0, 70, start=300)
    assert rule.new_examples == 70
    tell(rule, 1, 40)
    assert commanded(rule, 1).ranges == [range_(0, 0, 370)], "no range is lost"


def test_drift_in_two_of_the_last_three_windows_triggers_with_fewer_examples() -> None:
    rule = trigger()
    tell(rule, 0, 45, drift=["query_distance"])
    assert "no drift" in refused(rule, 1)
    tell(rule, 1, 0, drift=[])
    tell(rule, 2, 0, drift=["query_distance"])
    wish = commanded(rule, 3)
    assert wish.reason.policies == ["drift"]
    assert "query_distance" in wish.reason.text
    assert "2 of the last 3 windows" in wish.reason.text


def test_two_different_detectors_once_each_are_no_drift() -> None:
    rule = trigger()
    tell(rule, 0, 45, drift=["query_distance"])
    tell(rule, 1, 0, drift=["new_terms"])
    tell(rule, 2, 0, drift=[])
    assert "no drift" in refused(rule, 3)


def test_drift_in_one_partition_of_four_is_no_drift_of_the_index() -> None:
    one, most = trigger(threshold=1000), trigger(threshold=1000)
    for partition in range(4):
        for number in range(3):
            for rule, drifted in ((one, partition == 0), (most, number > 0)):
                drift = ["new_terms"] if drifted else []
                tell(rule, number, 15, partition=partition, drift=drift, start=number * 15)
    assert "no drift" in refused(one, 3)
    assert commanded(most, 3).reason.policies == ["drift"]


def test_drift_without_examples_to_learn_from_waits_and_says_so() -> None:
    rule = trigger()
    for number in range(3):
        tell(rule, number, 5, drift=["query_distance"])
    assert "fewer than 40" in refused(rule, 3)


def test_after_a_command_drift_must_be_seen_anew() -> None:
    rule = trigger(cool_down_seconds=0.0)
    for number in range(3):
        tell(rule, number, 20, drift=["query_distance"])
    wish = commanded(rule, 3)
    rule.retrain(wish)
    rule.training(progress(wish.command_id, "adapter", "failed", when=4))
    tell(rule, 3, 50, drift=["query_distance"])
    assert "no drift" in refused(rule, 5)


def test_policies_can_be_switched_off() -> None:
    rule = trigger(policies=["drift"])
    tell(rule, 0, 500)
    assert isinstance(rule.decide(NOON), NotNow)


def test_a_paused_trigger_collects_and_waits() -> None:
    rule = trigger()
    tell(rule, 0, 100)
    rule.paused = True
    assert "paused" in refused(rule, 1)
    rule.paused = False
    assert commanded(rule, 2)


def test_windows_without_examples_are_done_with_once_a_command_is_younger() -> None:
    rule = trigger()
    tell(rule, 0, 0, when=0)
    tell(rule, 1, 100, when=1)
    rule.retrain(commanded(rule, 2))
    assert rule.low_water is None


def test_pending_reports_are_bounded_and_no_range_is_lost() -> None:
    rule = trigger(threshold=10**9)
    for number in range(20_050):
        tell(rule, number, 1, start=number)
    assert len(rule._pending) <= 20_001
    assert rule.new_examples == 20_050
    assert rule.low_water == 0


def test_ranges_merge_to_one_for_each_partition() -> None:
    merged = merge_ranges([range_(1, 5, 9), range_(0, 3, 4), range_(1, 0, 6)])
    assert merged == [range_(0, 3, 4), range_(1, 0, 9)]
    assert covers(merged, [range_(1, 2, 9)])
    assert not covers(merged, [range_(1, 2, 10)])
    assert not covers(merged, [range_(2, 0, 1)])
    assert not covers(merged, [OffsetRange(topic="another", partition=0, start=3, end=4)])
