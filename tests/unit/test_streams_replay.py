"""What the trigger would have done, and what it recommends, told from the log alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from clickloop.commands import Pause, Reason, Retrain
from clickloop.events import Message, OffsetRange
from streams.advice import Recommendation, recommendations
from streams.replay import Told, replay, time_of
from streams.settings import StreamsSettings
from streams.trigger import Trigger
from tests.unit.streams_facts import NOON, at, node, progress, range_, report, trained


def told(*messages: Message) -> list[Told]:
    return [Told(time_of(m) or 0.0, offset, m) for offset, m in enumerate(messages)]


def reports(count: int, *, every: float = 10.0, examples: int = 20, **more: Any) -> list[Message]:
    return [
        report(n, examples=examples, when=n * every, ranges=[range_(0, n * examples, (n + 1) * examples)], **more)
        for n in range(count)
    ]


def command(
    name: str, *ranges: OffsetRange, policy: str, when: float, kinds: Sequence[str] = ("adapter",)
) -> Retrain:
    return Retrain(
        command_id=name,
        index="default",
        issued_at=at(when),
        kinds=list(kinds),  # type: ignore[arg-type]
        ranges=list(ranges),
        reason=Reason(policies=[policy], text="test"),  # type: ignore[list-item]
    )


def fired(log: list[Told], *, since: float = 0.0, until: float = 600.0, **changes: Any) -> list[Retrain]:
    options: dict[str, Any] = {"kinds": ["adapter"], "cool_down_seconds": 30.0, **changes}
    return list(replay(StreamsSettings(**options), log, since=NOON + since, until=NOON + until))


def times(commands: list[Retrain]) -> list[float]:
    return [c.issued_at.timestamp() - NOON for c in commands]


def test_it_fires_whenever_the_settings_say_so_with_cool_down_and_run_between() -> None:
    log = told(*reports(30))
    assert times(fired(log)) == [40.0, 90.0, 140.0, 190.0, 240.0, 290.0]
    assert times(fired(log, threshold=200)) == [90.0, 190.0, 290.0]
    assert times(fired(log, cool_down_seconds=100.0)) == [40.0, 142.0, 244.0, 346.0], "each run takes 2 s"
    assert fired(log, threshold=10_000) == []


def test_each_commands_ranges_begin_where_the_last_ones_end() -> None:
    first, second, *_ = fired(told(*reports(30)))
    assert first.ranges == [range_(0, 0, 100)]
    assert second.ranges == [range_(0, 100, 200)]


def test_a_run_takes_as_long_as_earlier_ones_did() -> None:
    log = told(trained("v0", "k0", seconds=100.0, when=-500.0), *reports(30))
    assert times(fired(log)) == [40.0, 170.0, 300.0]


def ticked(log: list[Told], *, until: float, step: float, **changes: Any) -> float | None:
    """When the rule fires first if it is asked at every step, as a worker asks it."""
    rule, now, left = Trigger(StreamsSettings(**changes)), 0.0, sorted(log, key=lambda told: told.at)
    while now <= until:
        while left and left[0].at <= NOON + now:
            heard = left.pop(0)
            rule.hear(heard.message, offset=heard.offset)
        if isinstance(rule.decide(NOON + now), Retrain):
            return now
        now += step
    return None


NIGHT: dict[str, Any] = {"policies": ["schedule"], "schedule": "03:00"}
"""NOON is 22:13:20 UTC."""
THREE = 17_200.0
LOST = command(
    "lost", range_(0, 0, 20), policy="manual", when=-50.0, kinds=["adapter", "query_encoder"]
)  # its budget is an hour


@pytest.mark.parametrize(
    ("log", "settings", "expected"),
    [
        (reports(6), NIGHT, THREE),
        ([*reports(6), report(9, examples=5, ranges=[range_(0, 900, 905)], when=37_000.0)], NIGHT, THREE),
        (reports(6), {"policies": ["schedule"], "schedule": "90m"}, 5400.0),
        ([LOST, progress("lost", "adapter", "training", when=-50.0), *reports(10)], {}, 4150.0),
        ([LOST, progress("lost", "adapter", "done", when=-20.0), *reports(10)], {}, 100.0),
        ([LOST, progress("lost", "adapter", "failed", when=0.0), *reports(10)], {}, 900.0),
        (
            [trained("v0", "k0", seconds=700.0, when=-80_000.0), *reports(6)],
            {"daily_budget_seconds": 1000.0},
            6400.0,
        ),
        (reports(2), {}, None),
    ],
    ids=[
        "time of day",
        "time of day before the next report",
        "interval",
        "lost command",
        "silent command",
        "back-off",
        "budget of the day",
        "never",
    ],
)
def test_it_fires_between_messages_when_a_rule_that_is_always_asked_would(
    log: list[Message], settings: dict[str, Any], expected: float | None
) -> None:
    options: dict[str, Any] = {
        "kinds": ["adapter"],
        "cool_down_seconds": 30.0,
        "failed_cool_down_seconds": 900.0,
        **settings,
    }
    found = times(fired(told(*log), until=40_000.0, **options))
    assert found[:1] == ([] if expected is None else [expected])
    assert ticked(told(*log), until=20_000.0, step=50.0, **options) == expected


def test_nothing_is_heard_or_done_after_the_end() -> None:
    log = told(*reports(30))
    assert times(fired(log, until=140.0)) == [40.0, 90.0, 140.0]
    assert times(fired(log, until=139.0)) == [40.0, 90.0]
    assert fired(told(*reports(6)), until=THREE - 1.0, **NIGHT) == []


def test_a_schedule_fires_night_after_night_while_there_is_something_new() -> None:
    day = 86_400.0
    log = told(*[one for n in range(3) for one in reports_of_day(n)])
    assert times(fired(log, until=5 * day, **NIGHT)) == [THREE, THREE + day, THREE + 2 * day]


def reports_of_day(day: int) -> list[Message]:
    start, first = day * 86_400.0, day * 6
    return [
        report(n, examples=20, when=start + n, ranges=[range_(0, n * 20, (n + 1) * 20)])
        for n in range(first, first + 6)
    ]


def test_what_the_trigger_really_did_is_passed_over_and_what_operators_did_is_heard() -> None:
    real = command("real", range_(0, 0, 60), policy="threshold", when=25)
    manual = command("manual", range_(0, 0, 60), policy="manual", when=25)
    done = progress("manual", "adapter", "done", when=26)
    assert times(fired(told(*reports(10), real))) == times(fired(told(*reports(10))))
    assert times(fired(told(*reports(10), manual, done))) == [70.0]


def test_what_the_same_command_came_to_in_truth_is_passed_over_too() -> None:
    log = reports(30)
    first, *others = fired(told(*log))
    name = first.command_id
    real = command(name, *first.ranges, policy="threshold", when=40)
    published = trained("v1", name, seconds=400.0, when=41)
    failed = progress(name, "adapter", "failed", when=41)
    assert times(fired(told(*log, real, published, failed))) == times([first, *others])


def test_each_rung_is_taken_to_cost_what_it_alone_did() -> None:
    log = told(
        trained("v0", "k0", seconds=10.0, when=-500.0),
        trained("v1", "k0", kind="query_encoder", parent="v0", seconds=30.0, when=-500.0),
        *reports(60),
    )
    found = fired(log, kinds=["adapter", "query_encoder"])
    assert len(found) > 3
    assert {c.reason.figures["expected_seconds"] for c in found} == {40.0}


def test_what_would_have_been_trained_knows_the_documents_of_its_time() -> None:
    log = told(
        trained("v0", "k0", documents=100, when=-500.0),
        node("a", documents=900),
        *reports(30),
        replace(node("a", documents=1500), reported_at=at(200)),
    )
    assert times(fired(log, policies=["new_documents"], document_threshold=500)) == [20.0, 200.0]


def test_before_the_start_everything_is_as_it_was() -> None:
    real = command("real", range_(0, 0, 60), policy="threshold", when=25)
    done = progress("real", "adapter", "done", when=26)
    assert times(fired(told(*reports(10), real, done), since=30.0)) == [70.0]


def test_a_days_budget_is_spent_by_what_would_have_run() -> None:
    log = told(trained("v0", "k0", seconds=50.0, when=-90_000.0), *reports(60))
    assert len(fired(log)) > 3
    assert len(fired(log, daily_budget_seconds=100.0)) == 2


def test_more_training_is_expected_to_bring_less() -> None:
    gains = [c.reason.figures["expected_gain"] for c in fired(told(*reports(30)))]
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] < gains[0]


# Recommendations


def advice(*messages: Message, now: float = 1000.0, **changes: Any) -> list[Recommendation]:
    settings = StreamsSettings(**changes)
    rule = Trigger(settings)
    for one in told(*messages):
        rule.hear(one.message, offset=one.offset)
    return recommendations(rule, settings, now=NOON + now)


def test_a_case_that_holds_comes_with_gain_cost_and_why() -> None:
    first, *_ = advice(trained("v0", "k0", seconds=7.0, gain=0.1), *reports(6), kinds=["adapter"])
    assert first.what == "train adapter on 120 new examples"
    assert "120 new examples (threshold 100)" in first.why
    assert (first.when, first.seconds, first.runs) == ("now", 7.0, 1)
    assert first.gain is not None
    assert first.gain > 0.0


def test_what_stands_in_the_way_is_said() -> None:
    pause = Pause(command_id="p", index="default", issued_at=at(0), paused=True)
    first, second, *_ = advice(*reports(6), pause)
    assert first.what == "clickloop resume"
    assert second.when == "paused by an operator"


def test_without_a_case_each_policy_says_what_it_waits_for() -> None:
    found = advice(*reports(2), gain_per_hour=1e6)
    assert [(r.what, r.why) for r in found] == [
        ("wait: threshold", "40 of 100 new examples"),
        ("wait: drift", "no drift"),
        ("wait: performance", "no fall of clicks or ratings"),
    ]


def test_the_last_rung_is_recommended_where_it_should_pay() -> None:
    found = advice(*reports(50), gain_per_hour=0.05)
    [full] = [r for r in found if "--kind full" in r.what]
    assert full.seconds is not None
    assert full.seconds > 900
    assert not any("--kind full" in r.what for r in advice(*reports(50), gain_per_hour=1e6))


def test_gates_that_fail_again_and_again_are_the_first_thing_to_look_at() -> None:
    log: list[Message] = []
    for number in range(3):
        name = f"k{number}"
        log.append(command(name, range_(0, number, number + 1), policy="threshold", when=number))
        log.append(trained(f"v{number}", name, verdict="fail", gain=-0.05))
        log.append(progress(name, "adapter", "done", when=number + 0.5, verdict="fail"))
    first, *_ = advice(*log)
    assert "look at the examples" in first.what
    assert "last 3 commands failed" in first.why
