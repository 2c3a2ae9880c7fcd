"""An outside app: it waits for models that are ready, with nothing but the base install of Clickloop.

``python -m demo.subscriber HOST:PORT INDEX [TOPIC_PREFIX]``
"""

from __future__ import annotations

import asyncio
import sys

from clickloop import ModelSubscriber


async def main(bootstrap_servers: str, index: str, prefix: str = "clickloop") -> None:
    async with ModelSubscriber(bootstrap_servers, index=index, prefix=prefix) as models:
        async for model in models:
            print(f"model ready: {model.version} ({model.kind}) at {model.artifact_uri}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
