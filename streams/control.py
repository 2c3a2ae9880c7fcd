"""What the owner of partition 0 does for the whole index: trigger and rollout, fed from their topics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clickloop import topics
from clickloop.commands import Pause, Promote, Retrain, Rollback
from clickloop.events import (
    DriftMeasured,
    Message,
    ModelVersionPublished,
    NodeReported,
    SplitChanged,
)
from clickloop.logs import logger
from streams.rollout import Refused, Rollout
from streams.settings import StreamsSettings
from streams.trigger import NotNow, Trigger

CONTROL = (
    topics.DRIFT_REPORTS,
    topics.RETRAIN_COMMANDS,
    topics.TRAINING_RUNS,
    topics.MODEL_VERSIONS,
    topics.NODE_STATUS,
    topics.TRAFFIC_SPLITS,
    topics.COMMANDS,
)


class Control:
    """Trigger and rollout of one index.

    ``handled`` maps topics to the offset below which messages have been acted on. Times are seconds since the
    epoch.
    """

    def __init__(self, settings: StreamsSettings, *, handled: Mapping[topics.Topic, int]) -> None:
        self.trigger = Trigger(settings)
        self.rollout = Rollout(
            settings.index,
            steps=settings.rollout_steps,
            min_queries=settings.rollout_min_queries,
            max_wait=settings.rollout_max_wait_seconds,
        )
        self.next_offsets: dict[topics.Topic, int] = {}
        self._handled = dict(handled)
        self._wishes: list[tuple[Promote | Rollback, float]] = []
        self._caught_up = False
        self._said = ""

    def is_live(self, topic: topics.Topic, offset: int) -> bool:
        return offset >= self._handled.get(topic, 0)

    def hear(self, message: Message, *, offset: int, appended: float, live: bool) -> None:
        """Tell the rules. What is not live has been acted on before, and only shapes their state."""
        self.trigger.hear(message, offset=offset, appended=appended)
        match message:
            case DriftMeasured():
                self.rollout.answers(message)
            case ModelVersionPublished():
                self.rollout.version(message)
            case NodeReported():
                self.rollout.node(message, at=appended)
            case SplitChanged():
                self.rollout.split(message, appended=appended)
            case Pause():
                self.rollout.paused = message.paused
            case Promote() | Rollback():
                if live:
                    self._wishes.append((message, appended))

    def decide(self, now: float) -> Retrain | NotNow:
        """A command, or why there is none now."""
        self.trigger.awaited = self.rollout.on_its_way(now)
        return self.trigger.decide(now)

    def follow_wishes(self, now: float) -> list[SplitChanged]:
        """What operators asked for since the last time. A refused command is logged."""
        splits = []
        for wish, appended in self._wishes:
            follow: Any = self.rollout.promote if isinstance(wish, Promote) else self.rollout.rollback
            split = follow(wish, now=now, heard=appended)
            if isinstance(split, Refused):
                logger().warning("command refused", command=wish.command_id, reason=split.reason)
            else:
                splits.append(split)
                self.rollout.split(split)
        self._wishes.clear()
        return splits

    def caught_up(self, starts: Mapping[topics.Topic, int], ends: Mapping[topics.Topic, int]) -> bool:
        """All that lay in the log at the start has been heard: only now may anything be decided."""
        if not self._caught_up:
            self._caught_up = all(self.next_offsets.get(t, starts[t]) >= ends[t] for t in CONTROL)
        return self._caught_up

    def low_water(self) -> dict[topics.Topic, int]:
        """Reports that no command covers are read again after a restart; of node status, nothing. The other
        topics are short or compacted, have no entry, and are always read from their start."""
        marks = {}
        for topic in (topics.DRIFT_REPORTS, topics.NODE_STATUS):
            if topic in self.next_offsets:
                marks[topic] = self.next_offsets[topic]
        oldest = self.trigger.low_water
        if oldest is not None:
            marks[topics.DRIFT_REPORTS] = oldest
        return marks

    def newly_handled(self) -> dict[topics.Topic, int]:
        """Topics whose messages have all been acted on, up to an offset that has not been told yet."""
        new = {t: offset for t, offset in self.next_offsets.items() if offset > self._handled.get(t, 0)}
        self._handled.update(new)
        return new

    def say_once(self, reason: str) -> None:
        kind = reason.split(" ", 1)[-1]
        if kind != self._said:
            self._said = kind
            logger().debug("no retrain now", reason=reason)
