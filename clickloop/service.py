"""How every service runs: one coroutine, stopped by SIGTERM or SIGINT, with one line for a user's mistake."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

from clickloop.errors import ClickloopError, SettingsError
from clickloop.logs import configure_logs, logger
from clickloop.settings import Settings

USAGE = 2
FAILED = 1


def missing(error: ModuleNotFoundError, *, extra: str) -> str:
    """One line for a library that only an extra installs."""
    return f"the module {error.name!r} is not installed; pip install 'clickloop[{extra}]'"


def run_service(name: str, settings: Settings, main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run ``main(stop)`` until it returns; ``stop`` is set by SIGTERM and SIGINT. Returns the exit code.

    A second signal ends the process at once, without cleaning up.
    """
    configure_logs(name, level=settings.log_level, fmt=settings.log_format)

    async def supervise() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        told = False

        def on_signal() -> None:
            # Not whether it stops: something else than a signal may have asked it to.
            nonlocal told
            if told:
                os._exit(128 + signal.SIGTERM)
            told = True
            logger().info("stopping")
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await main(stop)

    try:
        asyncio.run(supervise())
    except SettingsError as error:
        print(f"clickloop {name}: {error}", file=sys.stderr)
        return USAGE
    except ModuleNotFoundError as error:
        print(f"clickloop {name}: {missing(error, extra=name)}", file=sys.stderr)
        return USAGE
    except ClickloopError as error:
        print(f"clickloop {name}: {error}", file=sys.stderr)
        return FAILED
    return 0
