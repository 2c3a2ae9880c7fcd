"""A trigger with short times, and short ways to tell it things and to ask it."""

from __future__ import annotations

from typing import Any

from clickloop.commands import Reason, Retrain
from streams.settings import StreamsSettings
from streams.trigger import NotNow, Trigger
from tests.unit.streams_facts import NOON, at, range_, report


def trigger(**changes: Any) -> Trigger:
    options: dict[str, Any] = {
        "threshold": 100,
        "drift_min_examples": 40,
        "cool_down_seconds": 30.0,
        "failed_cool_down_seconds": 30.0,
        "budget_seconds": 60.0,
    }
    return Trigger(StreamsSettings(**(options | changes)))


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


def given(command_id: str, *, when: float, start: int = 0) -> Retrain:
    """A command over one example, as it lies in the log."""
    return Retrain(
        command_id=command_id,
        index="default",
        issued_at=at(when),
        ranges=[range_(0, start, start + 1)],
        kinds=["adapter"],
        reason=Reason(policies=["threshold"], text="enough"),
    )


def under_way(rule: Trigger) -> Retrain:
    """A command over a hundred examples, given a second after noon, and as many new ones after it."""
    tell(rule, 0, 100)
    wish = commanded(rule, 1)
    rule.retrain(wish)
    tell(rule, 1, 100)
    return wish
