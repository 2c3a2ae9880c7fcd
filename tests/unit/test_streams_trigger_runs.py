"""When a command is over, whatever order its messages are read in and whoever's clock is wrong."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from streams.trigger import MAX_COMMANDS
from tests.unit.streams_facts import NOON, at, progress, trained
from tests.unit.trigger_facts import commanded, given, refused, tell, trigger, under_way


def test_a_command_whose_run_falls_silent_is_given_up() -> None:
    rule = trigger(cool_down_seconds=0.0)
    wish = under_way(rule)
    rule.training(progress(wish.command_id, "adapter", "training", when=1))
    assert "in flight" in refused(rule, 600)
    assert commanded(rule, 700)


def test_while_there_is_no_trainer_commands_do_not_pile_up() -> None:
    rule = trigger(cool_down_seconds=0.0)
    under_way(rule)
    assert "in flight" in refused(rule, 86_000)
    assert commanded(rule, 86_402)


def test_a_command_that_waits_for_anothers_run_is_not_lost() -> None:
    rule = trigger(cool_down_seconds=0.0)
    first = under_way(rule)
    by_hand = replace(first, command_id="by-hand", budget_seconds=1.0)
    rule.retrain(by_hand)
    rule.training(progress("by-hand", "adapter", "waiting", when=2))
    rule.training(progress(first.command_id, "adapter", "training", when=3000))
    tell(rule, 2, 100)
    assert "command by-hand is in flight" in refused(rule, 3500)


@pytest.mark.parametrize("off", [-150.0, 3600.0])
def test_the_brokers_clock_tells_when_a_run_was_heard_of(off: float) -> None:
    """Trainers and operators' machines have clocks of their own."""
    rule = trigger(budget_seconds=10.0)
    tell(rule, 0, 100)
    wish = replace(commanded(rule, 1), issued_at=at(off))
    rule.hear(wish, offset=0, appended=NOON + 1)
    tell(rule, 1, 100)
    for second in range(2, 1000, 100):
        told = progress(wish.command_id, "adapter", "done" if second < 100 else "training", when=second + off)
        rule.hear(told, offset=second, appended=NOON + second)
        assert "in flight" in refused(rule, second + 90)
    rule.hear(
        progress(wish.command_id, "query_encoder", "done", when=1000 + off), offset=1000, appended=NOON + 1000
    )
    assert "cooling down for another 29 s" in refused(rule, 1001)
    assert commanded(rule, 1031)


def test_progress_that_is_read_before_its_command_is_remembered() -> None:
    """After a restart the topics are read in any order."""
    rule, heard = trigger(cool_down_seconds=0.0), trigger(cool_down_seconds=0.0)
    tell(rule, 0, 100)
    wish = commanded(rule, 1)
    heard.training(progress(wish.command_id, "adapter", "training", when=900))
    heard.retrain(wish)
    tell(heard, 1, 100, when=950)
    assert "in flight" in refused(heard, 960)


def test_drift_that_came_after_a_command_is_known_though_the_command_is_read_last() -> None:
    found = []
    for order in (("command", "reports"), ("reports", "command")):
        rule = trigger(threshold=10_000)
        first = replace(given("c", when=50), ranges=[])
        for told in order:
            if told == "command":
                rule.hear(first, offset=0, appended=NOON + 50)
                continue
            for number in range(1, 5):
                tell(rule, number, 50, when=number * 20.0, drift=["new_terms"])
        found.append(rule.outlook(NOON + 5000).figures["drifted_windows"])
    assert found == [2.0, 2.0], "those of 60 and 80 seconds"


def test_of_very_many_commands_the_latest_are_known_in_whatever_order_they_are_told() -> None:
    made = [trained(f"v{n}", f"c{n}", when=n * 10.0 + 5) for n in range(MAX_COMMANDS + 500)]
    commands = [given(f"c{n}", when=n * 10.0, start=n) for n in range(len(made))]
    rule = trigger()
    for told in [*made, *commands]:
        rule.hear(told, offset=0)
    assert len(rule._commands) == MAX_COMMANDS
    assert all(command.passed for command in rule._commands.values())
    assert rule.outlook(NOON + 20_000).undecided == 0


def test_of_a_runs_messages_the_last_is_enough_beside_its_versions() -> None:
    """The log may be compacted, and keeps one message of each run."""
    rule = trigger(failed_cool_down_seconds=500.0)
    wish = under_way(rule)
    rule.training(progress(wish.command_id, "query_encoder", "done", when=50, verdict="fail"))
    rule.version(trained("adapter-1", wish.command_id, when=30, verdict="fail"))
    assert "cooling down for another 450 s after 1 failed command" in refused(rule, 100)


def test_a_command_that_is_given_up_after_a_rung_has_a_cool_down_too() -> None:
    rule = trigger(failed_cool_down_seconds=500.0)
    wish = under_way(rule)
    rule.training(progress(wish.command_id, "query_encoder", "done", when=50, verdict="fail"))
    assert "in flight" in refused(rule, 100)
    assert "cooling down for another 350 s after 1 failed command" in refused(rule, 200)
    assert commanded(rule, 551)


def test_what_moved_between_topics_before_a_command_is_answered_by_it() -> None:
    rule = trigger()
    tell(rule, 1, 50, when=20.0, drift=["topic_shares"])
    assert rule._watched.most_moved == 1.0
    rule.retrain(given("c", when=50, start=900))
    assert rule._watched.most_moved == 0.0


def test_a_version_costs_the_day_on_which_the_broker_heard_of_it() -> None:
    rule = trigger(daily_budget_seconds=400.0, cool_down_seconds=0.0)
    rule.hear(trained("v1", "c1", seconds=350.0, when=-90_000), offset=0, appended=NOON + 1)
    tell(rule, 0, 100)
    assert "50 of 400 s are left" in refused(rule, 10)
