"""Trigger and rollout together: what one has on its way, the other waits for."""

from __future__ import annotations

from msgspec.structs import replace

from clickloop.commands import Retrain
from streams.control import Control
from streams.settings import StreamsSettings
from streams.trigger import NotNow
from tests.unit.streams_facts import NOON, at, node, progress, range_, report, version


def decided(control: Control, now: float) -> Retrain | NotNow:
    split = control.rollout.decide(NOON + now)
    if split is not None:
        control.hear(split, offset=0, appended=NOON + now, live=True)
    return control.decide(NOON + now)


def test_no_training_begins_while_a_version_that_passed_is_on_its_way() -> None:
    """It would start from the version before, and what comes of it would be compared with that."""
    control = Control(StreamsSettings(cool_down_seconds=0.0, rollout_max_wait_seconds=30.0), handled={})

    def hear(*messages: object, when: float) -> None:
        for message in messages:
            control.hear(message, offset=0, appended=NOON + when, live=True)  # type: ignore[arg-type]

    def clicks(number: int) -> object:
        start = number * 100
        return report(number, examples=100, ranges=[range_(0, start, start + 100)])

    hear(version("base-1", verdict=None), node("n1", "base-1"), clicks(0), when=0)
    first = decided(control, 1)
    assert isinstance(first, Retrain)
    hear(first, clicks(1), version("adapter-2", parent="base-1", when=9), when=9)
    for kind in first.kinds:
        hear(progress(first.command_id, kind, "done", when=10, verdict="pass"), when=10)
    wait = decided(control, 11)
    assert isinstance(wait, NotNow)
    assert wait.reason == "adapter-2 passed its gate and is on its way to all traffic"
    hear(node("n1", "base-1", "adapter-2"), when=12)
    for now in (13, 30, 44, 60):
        assert isinstance(decided(control, now), NotNow), "it has a share"
        hear(node("n1", "base-1", "adapter-2"), when=now)
    hear(node("n1", "base-1", "adapter-2"), when=80)
    second = decided(control, 80)
    assert control.rollout.live == "adapter-2"
    assert isinstance(second, Retrain)
    assert second.ranges == [range_(0, 100, 200)]


def test_a_version_that_no_node_takes_keeps_no_one_from_training() -> None:
    control = Control(StreamsSettings(), handled={})
    control.hear(version("base-1", verdict=None), offset=0, appended=NOON, live=True)
    decided(control, 1)
    control.hear(version("adapter-2", parent="base-1", when=2), offset=1, appended=NOON, live=True)
    told = report(0, examples=100, ranges=[range_(0, 0, 100)])
    control.hear(told, offset=0, appended=NOON, live=True)
    assert isinstance(control.decide(NOON + 3), Retrain)


def test_a_node_that_was_killed_is_not_counted_for_ever_whatever_its_clock_said() -> None:
    control = Control(StreamsSettings(), handled={})

    def hear(name: str, documents: int, *, when: float, clock: float = 0.0) -> None:
        told = replace(node(name, documents=documents), reported_at=at(when + clock))
        control.hear(told, offset=0, appended=NOON + when, live=True)

    hear("killed", 5000, when=0, clock=86_400)
    hear("n1", 3000, when=100)
    assert control.trigger.documents == 5000
    hear("n1", 3000, when=301)
    assert control.trigger.documents == 3000
