"""The command line. Services add their commands by the entry-point group ``clickloop.commands``.

So this module knows no service, and ``clickloop --help`` loads neither torch nor faust.
"""

from __future__ import annotations

import asyncio
import math
import re
import sqlite3
from collections.abc import Callable, Coroutine
from importlib.metadata import entry_points
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from typer.exceptions import TyperException

from clickloop import __version__
from clickloop.errors import ClickloopError, SettingsError
from clickloop.logs import configure_logs
from clickloop.service import missing

T = TypeVar("T")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

app = typer.Typer(
    name="clickloop",
    help="Keeps the embedding model behind a semantic search learning from its users.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

BootstrapServers = Annotated[
    str | None, typer.Option(help="Kafka's host:port list.", show_default="localhost:9092")
]
TopicPrefix = Annotated[str | None, typer.Option(help="First part of topic names.", show_default="clickloop")]
Index = Annotated[str | None, typer.Option(help="Name of the index.", show_default="default")]

StoreUrl = Annotated[
    str | None, typer.Option(help="fsspec URL of the model store.", show_default="file://.clickloop/store")
]


def checked(work: Callable[[], T]) -> T:
    """Do ``work``; a user's mistake ends the process with one line and 2, a failure with one line and 1.

    So does what the disk refuses, be it full or another's: where that is told apart, it is not left to this.
    """
    try:
        return work()
    except SettingsError as error:
        typer.echo(f"clickloop: {error}", err=True)
        raise typer.Exit(2) from None
    except ClickloopError as error:
        typer.echo(f"clickloop: {error}", err=True)
        raise typer.Exit(1) from None
    except (OSError, sqlite3.Error) as error:
        typer.echo(f"clickloop: {str(error) or type(error).__name__}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine under ``checked``."""
    return checked(lambda: asyncio.run(work))


def console() -> Console:
    """It prints data as they are: by itself rich reads ``[word]`` and ``:word:``, and fails on ``[/word]``."""
    return Console(highlight=False, markup=False, emoji=False)


def finite(value: float) -> float:
    """What an option's ``min`` and ``max`` let through: nan is below nothing, and inf is no end."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


def printable(text: str) -> str:
    r"""Control characters as escapes: a terminal would obey them, and a tab or a line's end would cut a row.

    >>> print(printable("a\x1b[2Jb\tc"))
    a\x1b[2Jb\tc
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clickloop {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version


def add_commands() -> None:
    from clickloop import admin, data, golden, replay, tuning, versions

    admin.add_to(app)
    versions.add_to(app)
    golden.add_to(app)
    data.add_to(app)
    replay.add_to(app)
    tuning.add_to(app)
    for point in sorted(entry_points(group="clickloop.commands"), key=lambda p: p.name):
        try:
            command = point.load()
        except ModuleNotFoundError as error:
            extra = point.value.split(".")[0]  # a service's package has the name of its extra
            command = _unavailable(point.name, missing(error, extra=extra), extra=extra)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(point.name)(command)


def _unavailable(name: str, reason: str, *, extra: str) -> Any:
    def command() -> None:
        typer.echo(f"clickloop {name}: {reason}", err=True)
        raise typer.Exit(2)

    command.__doc__ = f"(not installed: pip install 'clickloop[{extra}]')"
    return command


def run(program: typer.Typer) -> int:
    """Run a command line and return its exit code; usage errors are one line, without the frame around them."""
    # aiokafka logs on its own what our errors say once.
    configure_logs("cli", level="ERROR", kafka_level="CRITICAL")
    try:
        code = program(standalone_mode=False)
    except TyperException as error:
        message = error.format_message()
        typer.echo(message if "\n" in message else f"clickloop: {message}", err=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        typer.echo(f"clickloop: {missing(error, extra='all')}", err=True)
        return 2
    except typer.Abort:
        return 130
    return code if isinstance(code, int) else 0
