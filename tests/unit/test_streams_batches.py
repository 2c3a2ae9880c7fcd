"""What the worker's own consumer adds to Faust's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from faust.types import TP

from streams.batches import BatchConsumer


@pytest.mark.parametrize("subscribed", [True, False])
async def test_the_end_of_a_partition_that_was_taken_away_is_not_known(subscribed: bool) -> None:
    consumer = AIOKafkaConsumer(*(["queries"] if subscribed else []))
    ours: Any = object.__new__(BatchConsumer)
    ours._thread = SimpleNamespace(highwater=consumer.highwater)
    assert ours.highwater(TP("queries", 0)) is None
