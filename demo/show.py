"""The demo as a person sees it: live progress, the table at the end, and what is left running with ``--keep``."""

from __future__ import annotations

import asyncio
import contextlib
import json as json_module
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from clickloop.errors import ClickloopError
from clickloop.events import Message
from demo.display import Display, Row, make_display
from demo.report import Report, print_table
from demo.run import run
from demo.services import INDEX
from demo.stage import Options, Stage, set_up
from demo.story import Story, rows

TICK_SECONDS = 0.5
PLAIN_WIDTH = 120


async def show(options: Options, *, keep: bool, json: Path | None) -> Report:
    """Run the demo and show it. Raises ClickloopError where it can't go on; nothing is left running then."""
    story = Story()
    stages: list[Stage] = []

    def counters() -> list[Row]:
        if not stages:
            return []
        loop, traffic = stages[0].watcher.loop, stages[0].traffic
        return rows(loop, traffic, documents=len(options.corpus.documents), examples=options.examples)

    display = make_display(sys.stdout, counters)

    def tell(message: Message) -> None:
        line = story.line(message)
        if line is not None:
            display.say(*line)

    with _terminated_like_interrupted(), _unwrapped():
        async with contextlib.AsyncExitStack() as parts:
            with display:
                ticking = asyncio.create_task(_tick(display))
                try:
                    stages.append(await parts.enter_async_context(set_up(options, say=display.say, tell=tell)))
                    report = await run(stages[0], options, say=display.say)
                finally:
                    ticking.cancel()
            width = None if sys.stdout.isatty() else PLAIN_WIDTH
            console = Console(file=sys.stdout, width=width, markup=False, emoji=False)
            print_table(report, console)
            if json is not None:
                report.write(json)
            if keep:
                await _keep(stages[0], options, console)
    return report


async def _tick(display: Display) -> None:
    while True:
        display.tick()
        await asyncio.sleep(TICK_SECONDS)


async def _keep(stage: Stage, options: Options, console: Console) -> None:
    """Print where everything is, and hold it until Ctrl-C or a part's end."""
    query = options.corpus.held_out[0].text
    body = json_module.dumps({"query": query, "k": 3})
    quoted = body.replace("'", "'\\''")
    place = stage.place
    console.print("\nEverything goes on running; Ctrl-C ends it.", style="bold")
    console.print(f"  Kafka         {place.bootstrap_servers}  (topics {place.topic_prefix}.*)")
    console.print(
        f"  index         {INDEX}  (--index {INDEX} for clickloop retrain, trigger, buffer)", markup=False
    )
    console.print(f"  Redis         {place.redis_url}")
    for address in stage.addresses:
        console.print(f"  search node   {address}/docs")
    console.print(f"  model store   {place.store_url}")
    console.print(f"  logs          {place.logs}\n")
    console.print(
        f"curl -s {stage.addresses[0]}/search -H 'content-type: application/json' -d '{quoted}'",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    while True:
        stage.check()
        await asyncio.sleep(1)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP cancel the run, so that it cleans up as it does after Ctrl-C."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    numbers = (signal.SIGTERM, signal.SIGHUP)
    if task is not None:
        for number in numbers:
            loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextmanager
def _unwrapped() -> Iterator[None]:
    """A failure among concurrent users comes as a group; raise the one error of ours that is in it."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = _first(group)
        if error is None:
            raise
        raise error from None


def _first(group: BaseExceptionGroup[BaseException]) -> ClickloopError | None:
    for error in group.exceptions:
        found = _first(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, ClickloopError):
            return found
    return None
