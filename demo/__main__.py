"""``clickloop demo``: the whole loop on one machine, in a few minutes."""

from __future__ import annotations

import asyncio
import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clickloop.cli import run
from clickloop.errors import ClickloopError, SettingsError

if TYPE_CHECKING:
    from demo.stage import Options

MINIMUM_EXAMPLES = 100
EXAMPLES = 8_000
EXAMPLES_FOR_FULL = 20_000
"""Two towers have more to learn than a map on the query has."""


def command(
    documents: Annotated[
        Path | None, typer.Option(help='Your documents, JSON Lines: {"doc_id", "text", "title"?, "topic"?}.')
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help='Your queries, JSON Lines: {"query", "relevant": {doc_id: grade}}.')
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Train both towers too (a new space; minutes more).")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    examples: Annotated[
        int | None,
        typer.Option(
            help="New examples that make the trigger fire.",
            show_default=f"{EXAMPLES}; with --full {EXAMPLES_FOR_FULL}",
        ),
    ] = None,
    bootstrap_servers: Annotated[str, typer.Option(help="Your Kafka, instead of the embedded broker.")] = "",
    redis_url: Annotated[str, typer.Option(help="Your Redis, instead of the embedded server.")] = "",
    qdrant_url: Annotated[str, typer.Option(help="Your Qdrant, instead of the engine inside each node.")] = "",
    work_dir: Annotated[Path, typer.Option(help="Where data and logs go.")] = Path(".clickloop/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the corpus's split and of the simulated users.")] = 1,
) -> None:
    """Run the whole loop: users click, the model learns, the search gets better, nothing goes down.

    Exits with 0 if the loop closed, a version passed, none failed and each that passed is better; 1 if not, 2 on
    bad arguments.
    """
    try:
        options = _options(
            documents,
            queries,
            full,
            json,
            examples if examples is not None else EXAMPLES_FOR_FULL if full else EXAMPLES,
            bootstrap_servers,
            redis_url,
            qdrant_url,
            work_dir,
            seed,
        )
        with _only_one(options.work):
            from demo.show import show

            report = asyncio.run(show(options, keep=keep, json=json))
    except SettingsError as error:
        typer.echo(f"clickloop demo: {error}", err=True)
        raise typer.Exit(2) from None
    except ClickloopError as error:
        typer.echo(f"clickloop demo: {error}", err=True)
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo("clickloop demo: stopped; every process it started has ended", err=True)
        raise typer.Exit(130) from None
    raise typer.Exit(1 if report.problems else 0)


def _options(
    documents: Path | None,
    queries: Path | None,
    full: bool,
    json: Path | None,
    examples: int,
    bootstrap_servers: str,
    redis_url: str,
    qdrant_url: str,
    work: Path,
    seed: int,
) -> Options:
    """Raises SettingsError for what can't be used, before anything is started."""
    from demo.corpus import read_corpus, stdlib_corpus
    from demo.stage import Options

    for path in (documents, queries):
        if path is not None and not path.is_file():
            raise SettingsError(f"{path} is no file")
    if (documents is None) != (queries is None):
        raise SettingsError("--documents and --queries go together")
    if examples < MINIMUM_EXAMPLES:
        raise SettingsError(f"--examples {examples}: at least {MINIMUM_EXAMPLES} are needed to learn and to judge")
    if json is not None and not json.absolute().parent.is_dir():
        raise SettingsError(f"--json {json}: the folder does not exist")
    if documents is not None and queries is not None:
        corpus = read_corpus(documents, queries, seed=seed)
    else:
        corpus = stdlib_corpus(seed=seed)
    return Options(
        corpus=corpus,
        work=work,
        examples=examples,
        kinds=["adapter", "query_encoder", "full"] if full else ["adapter", "query_encoder"],
        seed=seed,
        bootstrap_servers=bootstrap_servers,
        redis_url=redis_url,
        qdrant_url=qdrant_url,
    )


@contextmanager
def _only_one(work: Path) -> Iterator[None]:
    """Hold the work folder. Raises SettingsError where another demo has it, or it can't be made."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise SettingsError(f"--work-dir {work}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"another demo is running in {work}; give this one its own --work-dir") from None
        yield


if __name__ == "__main__":
    program = typer.Typer(pretty_exceptions_enable=False)
    program.command()(command)
    sys.exit(run(program))
