"""Which batches wait, so that a worker that has fallen behind reads its three topics in step.

Clicks and ratings are small and few: a worker with a backlog would read them far ahead of their queries, keep them
all until those come, and lose what there is no room for. So a batch that is ahead of the queries is put aside, and
its partition is not read on, until the queries have been read up to its time.
"""

from __future__ import annotations

from collections import deque
from typing import Any

AHEAD_SECONDS = 5.0
"""Feedback may be that far ahead of the queries; so much of it has room to wait in the join."""


class Backlog:
    """The batches of each partition that were put aside, in their order."""

    def __init__(self) -> None:
        self._held: dict[int, deque[Any]] = {}

    def holds(self, batch: Any, read_up_to: float) -> bool:
        """Put the batch aside where it is ahead of ``read_up_to``, the append time of the last query read."""
        held = self._held.get(batch.partition)
        if not _is_ahead(batch, read_up_to) and not (held and any(b.topic == batch.topic for b in held)):
            return False
        self._held.setdefault(batch.partition, deque()).append(batch)
        return True

    def released(self, partition: int, read_up_to: float) -> list[Any]:
        """What need not wait any more."""
        held = self._held.get(partition)
        if not held:
            return []
        waiting: dict[str, bool] = {}
        free, still = list[Any](), deque[Any]()
        for batch in held:
            waiting[batch.topic] = waiting.get(batch.topic, False) or _is_ahead(batch, read_up_to)
            (still if waiting[batch.topic] else free).append(batch)
        self._held[partition] = still
        return free

    def is_held(self, topic: str, partition: int) -> bool:
        return any(batch.topic == topic for batch in self._held.get(partition, ()))

    def clear(self) -> None:
        """With a new assignment all of it is read again."""
        self._held.clear()


def _is_ahead(batch: Any, read_up_to: float) -> bool:
    last: float = batch.records[-1].timestamp / 1000.0
    return last > read_up_to + AHEAD_SECONDS
