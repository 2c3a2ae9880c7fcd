"""The stream rules on recorded events: what the streams service would have made of them, without a broker.

One partition has all of them, so that shares and rates are bounded as they are with Redis: over the whole index.
The clock is the events' own: an event counts as appended when it happened, and when it happened is now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from clickloop.events import ExampleFormed, QueryServed, ResultClicked, ResultPreferred, ResultRated
from clickloop.sources import time_of
from streams.partition import INPUTS, Partition
from streams.settings import StreamsSettings

CLOSE_SECONDS = 1.0


def form_examples(
    events: Iterable[QueryServed | ResultClicked | ResultRated | ResultPreferred],
    *,
    index: str,
    counts: Counter[str],
) -> Iterator[ExampleFormed]:
    """The examples of ``events``, which come oldest first, each revision of them as it is formed.

    ``counts`` is told what became of the feedback: each fate of the join, and each trust rule that took weight
    away. Raises SettingsError for settings of the stream rules that can't be used.
    """
    settings = StreamsSettings.load(index=index)
    partition: Partition | None = None
    closed = 0.0
    for number, event in enumerate(events):
        now = time_of(event).timestamp()
        if partition is None:
            partition = Partition(0, settings, handled={}, forgotten=frozenset(), now=now)
        if now - closed >= CLOSE_SECONDS:
            # In the order of time, all inputs have been read up to now.
            partition.close(set(INPUTS), now)
            closed = now
        if isinstance(event, QueryServed):
            effects = partition.query(event, offset=number, log_time=now, now=now)
        else:
            effects = partition.feedback(event, offset=number, log_time=now, now=now)
        yield from effects.examples
    if partition is not None:
        counts.update(partition.join.counts + partition.trust.counts)
        counts["unmatched"] += partition.join.waiting
