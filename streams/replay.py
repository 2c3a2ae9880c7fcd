"""What the trigger would have done: the log, put through the same rule again under other settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from clickloop.commands import Pause, Promote, Retrain, Rollback
from clickloop.events import (
    DriftMeasured,
    GateResult,
    Lineage,
    Message,
    ModelVersionPublished,
    NodeReported,
    SplitChanged,
    TrainingProgressed,
)
from streams.settings import StreamsSettings
from streams.trigger import Trigger


@dataclass(frozen=True)
class Told:
    """A message of the log, and where it lies. ``at`` is when the broker took it, seconds since the epoch."""

    at: float
    offset: int
    message: Message


def time_of(message: Message) -> float | None:
    """When a message that trigger or rollout follow was told; None for any other."""
    match message:
        case DriftMeasured():
            return message.window_end.timestamp()
        case Retrain() | Pause() | Promote() | Rollback():
            return message.issued_at.timestamp()
        case SplitChanged():
            return message.changed_at.timestamp()
        case TrainingProgressed():
            return message.at.timestamp()
        case ModelVersionPublished():
            return message.published_at.timestamp()
        case NodeReported():
            return message.reported_at.timestamp()
    return None


def replay(settings: StreamsSettings, log: Iterable[Told], *, since: float, until: float) -> Iterator[Retrain]:
    """The commands that the trigger would have given from ``since`` to ``until``, in the order of time.

    Up to then everything is heard as it was. From then on the trigger's own commands and what came of them are
    passed over, and those of operators are heard. Each command that it gives is taken to cost what it was expected
    to, and to pass its gate. It decides at each message, and between them whenever time alone may change the
    answer.
    """
    supposed = _Supposed(Trigger(settings))
    heard: set[str] = set()
    now = since
    for told in sorted(log, key=lambda told: told.at):
        if told.at > until:
            break
        if told.at >= since:
            yield from supposed.decide(now, told.at)
            now = told.at
            if _passed_over(told.message, heard):
                continue
        if isinstance(told.message, Retrain):
            heard.add(told.message.command_id)
        supposed.trigger.hear(told.message, offset=told.offset, appended=told.at)
    yield from supposed.decide(now, math.nextafter(until, math.inf))


class _Supposed:
    """The trigger, and the run that it would have begun."""

    def __init__(self, trigger: Trigger) -> None:
        self.trigger = trigger
        self._flight: tuple[float, Retrain] | None = None

    def decide(self, start: float, end: float) -> Iterator[Retrain]:
        """At ``start``, and then before ``end``, while the log is silent, whenever the answer may be another."""
        now = start
        while now < end:
            self._land(now)
            if self._flight is not None:
                now, _ = self._flight
                continue
            wish = self.trigger.decide(now)
            if isinstance(wish, Retrain):
                yield wish
                self.trigger.retrain(wish)
                self._flight = now + self.trigger.expect(wish.kinds).seconds, wish
            else:
                now = math.inf if wish.until is None else wish.until
        self._land(end)

    def _land(self, now: float) -> None:
        if self._flight is not None and now >= self._flight[0]:
            at, command = self._flight
            self._flight = None
            _finish(self.trigger, command, at)


def _passed_over(message: Message, heard: set[str]) -> bool:
    """A command that the trigger gave, or what came of a command that was passed over."""
    match message:
        case Retrain():
            return "manual" not in message.reason.policies
        case TrainingProgressed():
            return message.command_id not in heard
        case ModelVersionPublished():
            return bool(message.lineage.command_id) and message.lineage.command_id not in heard
    return False


def _finish(trigger: Trigger, command: Retrain, at: float) -> None:
    """Tell the trigger of a run as its trainer would have."""
    end = datetime.fromtimestamp(at, UTC)
    parent = trigger.newest_version
    for kind in command.kinds:
        version = f"replayed-{kind}-{command.command_id}"
        published = ModelVersionPublished(
            event_id=version,
            index=command.index,
            version=version,
            kind=kind,
            space="",
            artifact_uri="",
            digest="",
            published_at=end,
            parent=parent,
            lineage=Lineage(
                command_id=command.command_id,
                examples=int(command.reason.figures["examples"] + command.reason.figures["undecided"]),
                documents=trigger.documents or 0,
                train_seconds=trigger.expect([kind]).seconds,
            ),
            gate=GateResult(verdict="pass", queries=0),
        )
        done = TrainingProgressed(
            event_id=f"{version}/done",
            index=command.index,
            run_id=command.command_id,
            command_id=command.command_id,
            kind=kind,
            stage="done",
            at=end,
            verdict="pass",
        )
        trigger.version(published)
        trigger.training(done)
        parent = version
