"""What the worker's own consumer adds to Faust's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from faust.types import TP

from streams.batches import BatchConsumer, Handled


@pytest.mark.parametrize("subscribed", [True, False])
async def test_the_end_of_a_partition_that_was_taken_away_is_not_known(subscribed: bool) -> None:
    consumer = AIOKafkaConsumer(*(["queries"] if subscribed else []))
    ours: Any = object.__new__(BatchConsumer)
    ours._thread = SimpleNamespace(highwater=consumer.highwater)
    assert ours.highwater(TP("queries", 0)) is None


async def test_what_is_committed_together_is_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last owner's commit comes while the next one reads: with one half of it, examples count twice."""
    queries, clicks = TP("queries", 0), TP("clicks", 0)
    committed = {clicks: 0, queries: 0}
    asked: list[TP] = []

    async def answer(partition: Any) -> int:
        asked.append(TP(*partition))
        found = committed[asked[-1]]
        if len(asked) == 1:
            committed.update({clicks: 70, queries: 40})
        return found

    handled = Handled("nowhere:9092", group="handled")
    monkeypatch.setattr(handled, "_with", lambda _: SimpleNamespace(committed=answer))
    assert await handled.read([clicks, queries]) == {clicks: 70, queries: 40}
