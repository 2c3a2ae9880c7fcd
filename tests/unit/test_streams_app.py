"""What ends a worker: what will never be otherwise, and what must not go unheard."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError, TopicAuthorizationFailedError

from clickloop.errors import BrokerError, ClickloopError
from streams.app import StreamsApp
from streams.sending import until_sent
from tests.unit.streams_facts import NOON, partition, query


async def test_a_broker_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    async def at_last() -> str:
        tries.append(len(tries))
        if len(tries) < 3:
            raise KafkaConnectionError
        return "sent"

    async def at_once(_: float) -> None: ...

    monkeypatch.setattr("streams.sending.asyncio.sleep", at_once)
    assert await until_sent("a report", at_last) == "sent"


@pytest.mark.parametrize("wrapped", [True, False])
async def test_what_the_broker_will_never_take_is_not_tried_for_ever(wrapped: bool) -> None:
    async def too_large() -> None:
        if wrapped:
            raise BrokerError("not acknowledged") from MessageSizeTooLargeError()
        raise MessageSizeTooLargeError

    with pytest.raises(ClickloopError, match="drift-reports: the broker takes no message that large"):
        await until_sent("drift-reports", too_large)


async def test_a_worker_that_cannot_hear_who_asks_to_be_forgotten_ends() -> None:
    failures: list[ClickloopError] = []
    worker: Any = SimpleNamespace(_fail=failures.append)

    async def refused() -> None:
        raise TopicAuthorizationFailedError("commands")

    async def for_ever() -> None:
        await asyncio.sleep(3600)

    for following in (refused, for_ever):
        task = asyncio.create_task(following())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        StreamsApp._forgets_no_more(worker, task)
    [failure] = failures
    assert "no one can be forgotten" in str(failure)


def test_every_partition_of_a_worker_forgets() -> None:
    states = [partition(), partition()]
    for number, state in enumerate(states):
        state.query(query(f"q{number}", key="ann"), offset=0, log_time=NOON, now=NOON)
    worker: Any = SimpleNamespace(_partitions=dict(enumerate(states)))
    StreamsApp._forget(worker, "ann")
    assert [state.join.open_impressions for state in states] == [0, 0]
