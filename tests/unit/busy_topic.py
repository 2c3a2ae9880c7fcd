"""A topic to which more is written without a pause, and one whose broker has died."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from clickloop import codec, topics
from clickloop.events import Message
from clickloop.kafka import Follower, Record


def busy(topic: topics.Topic, message: Callable[[int], Message], *, held: int) -> type[Follower]:
    """A stand-in for Follower: the topic held so many messages at the start, and each read finds one more."""

    class Busy(Follower):
        def __init__(self, *_: object, **__: object) -> None:
            self.given = 0

        async def __aenter__(self) -> Busy:
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def batch(self, **_: object) -> list[tuple[topics.Topic, Record]]:
            await asyncio.sleep(0)
            self.given += 1
            return [(topic, Record(topic.name(), 0, self.given, b"", codec.encode(message(self.given))))]

        async def caught_up(self) -> bool:
            return self.given >= held

    return Busy


class Silent(Follower):
    """A stand-in for Follower: the topic held messages at the start, and none of them comes."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def batch(self, **_: object) -> list[tuple[topics.Topic, Record]]:
        await asyncio.sleep(0.01)
        return []

    async def caught_up(self) -> bool:
        return False
