"""Tallies that hold across partitions and workers, through Redis: one round trip a batch.

Each partition writes its own sums, never a difference, and reads the sums of all. So what is told twice, after a
crash or by two owners for a moment, counts once. Without Redis, or while it is away, each partition bounds its own
part: rules grow milder by at most the number of partitions, and nothing waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from clickloop.errors import SettingsError
from clickloop.logs import logger
from streams import metrics
from streams.tally import Tally

ANSWER_SECONDS = 0.25
"""Redis answers within a millisecond; a batch never waits longer than this for it."""
PAUSE_SECONDS = 2.0
"""After a failure it is left alone for so long."""
MOST_TOLD = 2000
"""Names of a tally in one round trip: it takes Redis some 10 ms, in which it answers no one else. The others go
with the next batches."""
_TELL = """
-- KEYS: one for each name. ARGV: this partition, seconds to live, then this partition's sum of each name.
local totals = {}
for i, key in ipairs(KEYS) do
  local known = tonumber(redis.call('HGET', key, ARGV[1]) or 0)
  if tonumber(ARGV[i + 2]) > known then
    redis.call('HSET', key, ARGV[1], ARGV[i + 2])
  end
  redis.call('EXPIRE', key, ARGV[2])
  local total = 0
  for _, sum in ipairs(redis.call('HVALS', key)) do
    total = total + tonumber(sum)
  end
  totals[i] = tostring(total)
end
return totals
"""


class Caps:
    """Shares the tallies of this worker's partitions. ``prefix`` and ``index`` keep them apart from others'."""

    def __init__(self, redis_url: str, *, prefix: str, index: str) -> None:
        """Raises SettingsError for an address that is none. Connects at the first use."""
        self._name = f"{prefix}:tally:{{{index}}}"
        self._paused_until = 0.0
        self._is_away = False
        self._client: Any = None
        if redis_url:
            import redis.asyncio as redis

            try:
                self._client = redis.Redis.from_url(
                    redis_url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS
                )
            except ValueError as error:
                raise SettingsError(f"redis_url: {error}") from None

    async def exchange(self, partition: int, tallies: Sequence[Tally]) -> None:
        """Tell what changed, and hear what all partitions have. Never raises, whatever Redis does."""
        if self._client is None:
            return
        if time.monotonic() < self._paused_until:
            metrics.CAPS.labels("local").inc()
            return
        from redis.exceptions import RedisError

        changed = [(tally, tally.window, sums) for tally in tallies if (sums := tally.untold(MOST_TOLD))]
        if not changed:
            return
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                async with self._client.pipeline(transaction=False) as pipeline:
                    for tally, window, sums in changed:
                        keys = [f"{self._name}:{tally.name}:{window}:{name}" for name in sums]
                        ends = int(2 * tally.seconds)
                        pipeline.eval(_TELL, len(keys), *keys, partition, ends, *sums.values())
                    answers = await pipeline.execute()
        except (RedisError, TimeoutError, OSError) as error:
            self._pause(changed, error)
            return
        for (tally, window, sums), totals in zip(changed, answers, strict=True):
            tally.told(window, dict(zip(sums, map(float, totals), strict=True)))
        metrics.CAPS.labels("shared").inc()
        if self._is_away:
            self._is_away = False
            logger().info("redis is back: trust counts hold across partitions again")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _pause(self, changed: Sequence[tuple[Tally, int, dict[str, float]]], error: BaseException) -> None:
        for tally, window, sums in changed:
            tally.tell_again(window, sums)
        self._paused_until = time.monotonic() + PAUSE_SECONDS
        metrics.CAPS.labels("local").inc()
        if not self._is_away:
            self._is_away = True
            logger().warning("redis is away: trust counts hold for each partition alone", reason=repr(error))
