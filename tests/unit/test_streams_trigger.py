"""When a retrain is commanded, over what, and why not otherwise."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from clickloop.commands import Pause
from clickloop.events import OffsetRange, SliceCounts
from streams.balance import Balance
from streams.buffer import covers, merge_ranges
from streams.pending import Pending
from streams.trigger import NotNow, Trigger
from tests.unit.streams_facts import NOON, at, node, progress, range_, report, trained
from tests.unit.trigger_facts import commanded, refused, tell, trigger


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
    rule.training(progress(wish.command_id, "query_encoder", "done", when=7, verdict="pass"))
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
    for kind in wish.kinds:
        rule.training(progress(wish.command_id, kind, "done", when=4))
    tell(rule, 3, 50, drift=["query_distance"])
    assert "no drift" in refused(rule, 5)


def test_drift_that_began_is_over_only_below_a_third_of_the_windows() -> None:
    rule = trigger()
    for number, drift in enumerate([["new_terms"], ["new_terms"], []]):
        tell(rule, number, 5, drift=drift)
    assert "fewer than 40" in refused(rule, 3)
    tell(rule, 3, 0, drift=[])
    assert "drift (new_terms)" in refused(rule, 4), "one of three keeps it, though two were needed to begin"
    tell(rule, 4, 0, drift=[])
    assert "no drift" in refused(rule, 5)


def test_falling_clicks_are_the_performance_policys_case_and_no_drift() -> None:
    rule, without = trigger(), trigger(policies=["threshold", "drift"])
    for number in range(3):
        for one in (rule, without):
            tell(one, number, 20, drift=["click_mrr"])
    wish = commanded(rule, 3)
    assert wish.reason.policies == ["performance"]
    assert "clicks or ratings fell in 3 of the last 3 windows: click_mrr" in wish.reason.text
    assert "no drift" in refused(without, 3)


def test_documents_that_no_version_was_trained_with_trigger_once_there_are_enough() -> None:
    rule = trigger(policies=["new_documents"], document_threshold=500)
    tell(rule, 0, 60)
    assert "no node has counted" in refused(rule, 1)
    rule.hear(node("n1", documents=1400), offset=0)
    assert "no version was trained" in refused(rule, 1)
    rule.hear(trained("v1", "k1", documents=1000), offset=0)
    assert "400 of 500 new documents" in refused(rule, 1)
    rule.hear(node("n2", documents=1500), offset=1)
    assert commanded(rule, 1).reason.policies == ["new_documents"]
    rule.hear(trained("v2", "k2", documents=1500), offset=1)
    assert "0 of 500 new documents" in refused(rule, 1)


def test_an_interval_is_counted_from_the_last_command() -> None:
    rule = trigger(policies=["schedule"], schedule="2h", cool_down_seconds=0.0)
    assert "nothing has been reported" in refused(rule, 0)
    tell(rule, 0, 60, when=0)
    assert "due in 3600 s" in refused(rule, 3600)
    wish = commanded(rule, 7200)
    assert wish.reason.policies == ["schedule"]
    rule.retrain(wish)
    rule.training(progress(wish.command_id, "adapter", "failed", when=7300))
    tell(rule, 1, 60, when=7400)
    assert "due in" in refused(rule, 14_300)
    assert commanded(rule, 14_400)


def test_a_time_of_day_comes_once_a_day() -> None:
    rule = trigger(policies=["schedule"], schedule="22:30", cool_down_seconds=0.0)  # NOON is 22:13:20 UTC
    tell(rule, 0, 60, when=0)
    assert "due in 1000 s" in refused(rule, 0)
    wish = commanded(rule, 1000)
    rule.retrain(wish)
    rule.training(progress(wish.command_id, "adapter", "failed", when=1100))
    tell(rule, 1, 60, when=1200)
    assert "due in" in refused(rule, 86_000)
    assert commanded(rule, 1000 + 86_400)


def test_a_schedule_without_examples_waits_for_some() -> None:
    rule = trigger(policies=["schedule"], schedule="10m")
    tell(rule, 0, 5, when=0)
    assert "due, but 5 new examples, fewer than 40" in refused(rule, 700)


def test_manual_alone_never_triggers() -> None:
    rule = trigger(policies=["manual"])
    tell(rule, 0, 10_000, drift=["new_terms"])
    assert "an operator may ask" in refused(rule, 1)


def fail(rule: Trigger, number: int, when: float, *, verdict: str = "fail") -> None:
    """A command whose gate ends with the verdict, one second after it was given."""
    tell(rule, number, 100, when=when)
    wish = commanded(rule, when)
    rule.retrain(wish)
    for kind in wish.kinds:
        rule.training(progress(wish.command_id, kind, "done", when=when + 1, verdict=verdict))


def test_the_cool_down_doubles_with_each_failed_gate_and_a_pass_ends_that() -> None:
    rule = trigger(failed_cool_down_seconds=100.0)
    fail(rule, 0, 0)
    assert "cooling down for another 51 s after 1 failed command" in refused(rule, 50)
    fail(rule, 1, 200)
    assert "after 2 failed commands" in refused(rule, 201 + 199)
    fail(rule, 2, 401)
    assert "cooling down" in refused(rule, 402 + 399)
    fail(rule, 3, 803, verdict="pass")
    assert "cooling down for another 26 s" in refused(rule, 808)
    tell(rule, 4, 100)
    assert commanded(rule, 834)


@pytest.mark.parametrize("verdict", ["fail", "pass"])
def test_what_someone_tried_by_hand_does_not_change_how_far_the_cool_down_has_grown(verdict: str) -> None:
    """A training anew is compared with other versions than the next command is."""
    rule = trigger(failed_cool_down_seconds=100.0)
    fail(rule, 0, 0)
    tell(rule, 1, 100, when=150)
    anew = replace(commanded(rule, 150), command_id="by-hand", strategy="full_retrain")
    rule.retrain(anew)
    for kind in anew.kinds:
        rule.training(progress(anew.command_id, kind, "done", when=151, verdict=verdict))
    assert "cooling down for another 51 s after 1 failed command" in refused(rule, 200)


def test_an_inconclusive_gate_is_no_failure() -> None:
    rule = trigger(failed_cool_down_seconds=1000.0)
    fail(rule, 0, 0, verdict="inconclusive")
    tell(rule, 1, 100)
    assert commanded(rule, 32)


def test_a_version_tells_the_verdict_where_the_runs_message_is_gone() -> None:
    rule = trigger(failed_cool_down_seconds=100.0)
    tell(rule, 0, 100)
    wish = commanded(rule, 0)
    rule.hear(trained("v1", wish.command_id, verdict="fail"), offset=0)
    for kind in wish.kinds:
        rule.training(progress(wish.command_id, kind, "done", when=1))
    rule.retrain(wish)
    assert "after 1 failed command" in refused(rule, 50)


def test_a_days_budget_is_kept_over_the_last_24_hours() -> None:
    rule = trigger(daily_budget_seconds=1000.0, kinds=["adapter"], budget_seconds=600.0)
    rule.hear(trained("v1", "k1", seconds=700, when=0), offset=0)
    rule.hear(trained("v1", "k1", seconds=700, when=0), offset=1)
    tell(rule, 0, 100)
    assert "300 of 1000 s are left" in refused(rule, 10)
    assert "takes about 700 s" in refused(rule, 10)
    assert commanded(rule, 86_401).budget_seconds == 600.0


def test_a_command_may_not_spend_more_than_the_day_has_left() -> None:
    rule = trigger(daily_budget_seconds=100.0, kinds=["adapter"], budget_seconds=600.0)
    rule.hear(trained("v1", "k1", seconds=40, when=0), offset=0)
    tell(rule, 0, 100)
    assert commanded(rule, 10).budget_seconds == 60.0


def test_a_failed_run_costs_the_day_its_time_too() -> None:
    rule = trigger(daily_budget_seconds=400.0, failed_cool_down_seconds=0.0, cool_down_seconds=0.0)
    tell(rule, 0, 100)
    wish = commanded(rule, 0)
    rule.retrain(wish)
    rule.training(progress(wish.command_id, "adapter", "waiting", when=10))
    rule.training(progress(wish.command_id, "adapter", "reading", when=100))
    rule.version(trained("adapter-1", wish.command_id, seconds=200.0, when=350))
    rule.training(progress(wish.command_id, "query_encoder", "failed", when=450))
    tell(rule, 1, 100)
    assert "50 of 400 s are left" in refused(rule, 460), (
        "what it waited costs nothing, and what made a version once"
    )


def test_the_reason_carries_what_the_retrain_should_bring_and_cost() -> None:
    rule = trigger(kinds=["adapter"])
    tell(rule, 0, 100)
    before = commanded(rule, 1).reason.figures
    assert before["expected_gain"] > 0.0
    assert before["learnt_from_runs"] == 0.0
    rule.hear(trained("v1", "k1", gain=0.2, seconds=33), offset=0)
    after = commanded(rule, 1).reason.figures
    assert after["learnt_from_runs"] == 1.0
    assert after["expected_seconds"] == 33.0
    assert after["expected_gain"] > before["expected_gain"]


def test_auto_takes_the_rungs_that_pay_and_none_where_none_does() -> None:
    cheap, dear, never = (trigger(kinds="auto", gain_per_hour=g) for g in (0.001, 0.4, 1e9))
    for rule in (cheap, dear, never):
        tell(rule, 0, 1000)
    assert commanded(cheap, 1).kinds == ["adapter", "query_encoder", "full"]
    assert commanded(dear, 1).kinds == ["adapter", "full"]
    assert "no rung is expected to pay" in refused(never, 1)


def test_deciding_changes_nothing() -> None:
    rule = trigger()
    tell(rule, 0, 100, drift=["new_terms"])
    assert len({repr(rule.decide(NOON + 1)) for _ in range(3)}) == 1


def test_a_pause_in_the_log_is_heard() -> None:
    rule = trigger()
    tell(rule, 0, 100)
    rule.hear(Pause(command_id="p", index="default", issued_at=at(0), paused=True), offset=0)
    assert "paused" in refused(rule, 1)


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


def test_reports_that_became_one_add_up_and_wait_for_a_command_over_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.pending.MAX_PENDING", 2)
    pending = Pending(Balance(dict.fromkeys(("d0", "d1", "d2", "d3"), 1), {}))
    for number in range(4):
        one = report(number, examples=10, ranges=[range_(number, 0, 10)], when=number)
        pending.add(replace(one, slices=[SliceCounts(examples=10, domain=f"d{number}")]), offset=number)
    assert len(pending) == 2
    totals = pending.totals
    assert (totals.queries, totals.examples, pending.low_water) == (40, 40, 0)
    assert totals.ranges == [range_(number, 0, 10) for number in range(4)]
    assert totals.counts == {("domain", f"d{number}"): 10 for number in range(4)}
    pending.drop_covered([range_(0, 0, 10), range_(3, 0, 10)], NOON + 9)
    assert (len(pending), pending.totals.examples) == (1, 30)


def test_windows_without_examples_that_became_one_wait_for_a_command_after_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.pending.MAX_PENDING", 1)
    pending = Pending(Balance({}, {}))
    for number in range(2):
        pending.add(report(number, when=number), offset=number)
    pending.drop_covered([], NOON + 0.5)
    assert len(pending) == 1
    pending.drop_covered([], NOON + 1.0)
    assert len(pending) == 0


def test_a_report_that_is_told_again_is_where_it_was_told_first() -> None:
    rule = trigger()
    for offset in (3, 9):
        rule.report(report(0, examples=20, ranges=[range_(0, 0, 20)]), offset=offset)
    assert rule.low_water == 3


def test_reports_that_are_told_one_by_one_add_up_as_they_do_after_a_restart() -> None:
    watched = trigger(threshold=10**9)
    told: list[tuple[int, int]] = []
    for number, examples in [(0, 60), (1, 20), (1, 30), (2, 0), (3, 50)]:
        told.append((number, examples))
        tell(watched, number, examples, when=number)
        restarted = trigger(threshold=10**9)
        for one in told:
            tell(restarted, *one, when=one[0])
        for rule in (watched, restarted):
            assert isinstance(rule.decide(NOON + 5), NotNow)
        assert watched.outlook(NOON + 5) == restarted.outlook(NOON + 5)
    wish = commanded(trigger_with(told[:2]), 2)
    watched.retrain(wish)
    assert watched.ranges == [range_(0, 100, 350)]
    assert watched.new_examples == 80


def trigger_with(told: list[tuple[int, int]]) -> Trigger:
    rule = trigger(threshold=10)
    for number, examples in told:
        tell(rule, number, examples, when=number)
    return rule


def test_ranges_merge_to_one_for_each_partition() -> None:
    merged = merge_ranges([range_(1, 5, 9), range_(0, 3, 4), range_(1, 0, 6)])
    assert merged == [range_(0, 3, 4), range_(1, 0, 9)]
    assert covers(merged, [range_(1, 2, 9)])
    assert not covers(merged, [range_(1, 2, 10)])
    assert not covers(merged, [range_(2, 0, 1)])
    assert not covers(merged, [OffsetRange(topic="another", partition=0, start=3, end=4)])
