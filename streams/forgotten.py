"""Split keys whose users asked to be forgotten: every worker must know all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from clickloop import codec, topics
from clickloop.commands import ForgetUser
from clickloop.errors import MessageError
from clickloop.kafka import Follower


class Forgotten:
    """Follows the commands, all of them from the first. ``keys`` is the live set of split keys."""

    def __init__(self, bootstrap_servers: str, *, prefix: str, index: str) -> None:
        self.keys: set[str] = set()
        self._index = index
        self._follower = Follower(bootstrap_servers, [topics.COMMANDS], prefix=prefix)

    async def __aenter__(self) -> Forgotten:
        await self._follower.__aenter__()
        while not await self._follower.caught_up():
            await self._read(lambda _: None)
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._follower.__aexit__(*details)

    async def follow(self, on_key: Callable[[str], None]) -> None:
        """Until it is cancelled; ``on_key`` is told of each further one."""
        while True:
            await self._read(on_key)

    async def _read(self, on_key: Callable[[str], None]) -> None:
        for _, record in await self._follower.batch(timeout_seconds=1.0):
            with contextlib.suppress(MessageError):  # the control agent quarantines it
                command = codec.decode(record.value, *topics.COMMANDS.types)
                if isinstance(command, ForgetUser) and command.index == self._index:
                    self.keys.add(command.split_key)
                    on_key(command.split_key)
