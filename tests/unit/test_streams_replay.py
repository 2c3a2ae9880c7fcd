"""What the trigger would have done, and what it recommends, told from the log alone."""

from __future__ import annotations

from typing import Any

from clickloop.commands import Pause, Reason, Retrain
from clickloop.events import Message, OffsetRange
from streams.advice import Recommendation, recommendations
from streams.replay import Told, replay, time_of
from streams.settings import StreamsSettings
from streams.trigger import Trigger
from tests.unit.streams_facts import NOON, at, progress, range_, report, trained


def told(*messages: Message) -> list[Told]:
    return [Told(time_of(m) or 0.0, offset, m) for offset, m in enumerate(messages)]


def reports(count: int, *, every: float = 10.0, examples: int = 20, **more: Any) -> list[Message]:
    return [
        report(n, examples=examples, when=n * every, ranges=[range_(0, n * examples, (n + 1) * examples)], **more)
        for n in range(count)
    ]


def command(name: str, *ranges: OffsetRange, policy: str, when: float) -> Retrain:
    return Retrain(
        command_id=name,
        index="default",
        issued_at=at(when),
        kinds=["adapter"],
        ranges=list(ranges),
        reason=Reason(policies=[policy], text="test"),  # type: ignore[list-item]
    )


def fired(log: list[Told], *, since: float = 0.0, **changes: Any) -> list[Retrain]:
    options: dict[str, Any] = {"kinds": ["adapter"], "cool_down_seconds": 30.0, **changes}
    return list(replay(StreamsSettings(**options), log, since=NOON + since))


def times(commands: list[Retrain]) -> list[float]:
    return [c.issued_at.timestamp() - NOON for c in commands]


def test_it_fires_whenever_the_settings_say_so_with_cool_down_and_run_between() -> None:
    log = told(*reports(30))
    assert times(fired(log)) == [40.0, 90.0, 140.0, 190.0, 240.0, 290.0]
    assert times(fired(log, threshold=200)) == [90.0, 190.0, 290.0]
    assert times(fired(log, cool_down_seconds=100.0)) == [40.0, 150.0, 260.0]
    assert fired(log, threshold=10_000) == []


def test_each_commands_ranges_begin_where_the_last_ones_end() -> None:
    first, second, *_ = fired(told(*reports(30)))
    assert first.ranges == [range_(0, 0, 100)]
    assert second.ranges == [range_(0, 100, 200)]


def test_a_run_takes_as_long_as_earlier_ones_did() -> None:
    log = told(trained("v0", "k0", seconds=100.0, when=-500.0), *reports(30))
    assert times(fired(log)) == [40.0, 170.0]


def test_what_the_trigger_really_did_is_passed_over_and_what_operators_did_is_heard() -> None:
    real = command("real", range_(0, 0, 60), policy="threshold", when=25)
    manual = command("manual", range_(0, 0, 60), policy="manual", when=25)
    done = progress("manual", "adapter", "done", when=26)
    assert times(fired(told(*reports(10), real))) == times(fired(told(*reports(10))))
    assert times(fired(told(*reports(10), manual, done))) == [70.0]


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
