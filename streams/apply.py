"""A batch of feedback through the rules of its partition: tens of thousands of records a second come by here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from clickloop import topics
from clickloop.errors import ImpossibleFeedbackError, MessageError
from clickloop.events import ExampleFormed, QueryServed
from clickloop.sources import Sources
from streams.partition import Partition


@dataclass(slots=True)
class Applied:
    """What a batch brings about."""

    examples: list[ExampleFormed] = field(default_factory=list)
    unusable: list[tuple[Any, MessageError, bool]] = field(default_factory=list)
    """Letters, each with the reason, and whether to send it: what is read again was sent in an earlier life."""
    log_time: float = 0.0
    """When the broker appended the last record, seconds since the epoch."""


def apply(
    records: Iterable[Any],
    partition: Partition,
    topic: topics.Topic,
    *,
    sources: Sources,
    letter: Callable[[Any], Any],
    index: str,
    now: float,
) -> Applied:
    """Put each of ``topic``'s records that is of ``index`` to the partition's rules.

    Records are as ``clickloop.records`` reads them. ``letter`` makes of one that can't be used what goes to
    ``dead-letters``.
    """
    applied = Applied()
    examples, unusable, log_time = applied.examples, applied.unusable, 0.0
    read = sources.reader(topic)
    for record in records:
        log_time = min(now, record.timestamp / 1000.0)
        try:
            event = read(record, log_time)
        except MessageError as error:
            unusable.append((letter(record), error, partition.is_live(topic.suffix, record.offset)))
            continue
        if event is None:
            partition.join.counts["ignored"] += 1
            continue
        if event.index != index:
            continue
        if isinstance(event, QueryServed):
            effects = partition.query(event, offset=record.offset, log_time=log_time, now=now)
        else:
            effects = partition.feedback(
                event,
                offset=record.offset,
                log_time=log_time,
                now=now,
                source=(letter, record),
                suffix=topic.suffix,
            )
        if effects.examples:
            examples += effects.examples
        if effects.impossible:
            # What came early may be of another batch: each brings the way to its letter.
            for (letter_of, source), reason in effects.impossible:
                unusable.append((letter_of(source), ImpossibleFeedbackError(reason), True))
    applied.log_time = log_time
    return applied
