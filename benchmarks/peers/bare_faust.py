"""A peer for ``benchmarks.join``: the plainest Faust worker. It decodes each message, one by one, and no more.

    python -m benchmarks.peers.bare_faust SERVERS QUERIES_TOPIC CLICKS_TOPIC EVENTS

Prints {"events", "seconds"}; the clock runs from the first event to the last.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
import uuid
from typing import Any

import faust

from clickloop import codec
from clickloop.events import QueryServed, ResultClicked


async def measure(servers: str, names: list[str], events: int) -> float:
    """Seconds from the first to the last of ``events``."""
    folder = tempfile.TemporaryDirectory(prefix="clickloop-bare-")
    app = faust.App(
        f"bare-{uuid.uuid4().hex[:8]}",
        broker=[f"aiokafka://{servers}"],
        store="memory://",
        datadir=folder.name,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=2.0,
    )
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    @app.agent(app.topic(*names, key_serializer="raw", value_serializer="raw"))  # type: ignore[untyped-decorator]
    async def decode(stream: Any) -> None:
        seen, started = 0, 0.0
        async for value in stream:
            codec.decode(value, QueryServed, ResultClicked)
            seen += 1
            if seen == 1:
                started = time.perf_counter()
            elif seen == events:
                done.set_result(time.perf_counter() - started)

    app.finalize()
    await app.start()
    try:
        return await asyncio.wait_for(done, 180)
    finally:
        await asyncio.wait_for(app.stop(), 20)
        folder.cleanup()


if __name__ == "__main__":
    wanted = int(sys.argv[4])
    taken = asyncio.run(measure(sys.argv[1], sys.argv[2:4], wanted))
    print(json.dumps({"events": wanted, "seconds": taken}))
