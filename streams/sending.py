"""Sending that waits for a broker that is away: nothing is committed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiokafka.errors import MessageSizeTooLargeError

from clickloop.errors import BrokerError, ClickloopError
from clickloop.logs import logger
from streams.batches import KafkaError

T = TypeVar("T")
AGAIN_SECONDS = 1.0


async def until_sent(what: str, send: Callable[[], Awaitable[T]]) -> T:
    """What ``send`` gives, tried until the broker takes it. Raises ClickloopError where it never will."""
    while True:
        try:
            return await send()
        except (KafkaError, BrokerError) as error:
            if isinstance(error.__cause__ or error, MessageSizeTooLargeError):
                # Nothing after it would come about.
                raise ClickloopError(f"{what}: the broker takes no message that large: {error!r}") from error
            logger().warning("not sent, trying again", what=what, reason=repr(error))
            await asyncio.sleep(AGAIN_SECONDS)
