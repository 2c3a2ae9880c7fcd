"""Commands that move data between files and topics."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from clickloop import cli, codec, topics
from clickloop.errors import SettingsError
from clickloop.importing import Rejects, Report, read_files, send
from clickloop.kafka import Producer
from clickloop.settings import Settings, load_mappings
from clickloop.sources import Mapping, Sources

IMPORTED = (topics.QUERIES, topics.CLICKS, topics.RATINGS, topics.DOCUMENTS)
PROGRESS_SECONDS = 5.0


def add_to(app: typer.Typer) -> None:
    app.command("import")(import_files)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _topic(suffix: str) -> topics.Topic | None:
    if not suffix:
        return None
    for topic in IMPORTED:
        if topic.suffix == suffix:
            return topic
    raise SettingsError(f"--topic {suffix}: choose one of {', '.join(topic.suffix for topic in IMPORTED)}")


def _chosen(names: list[str]) -> dict[str, Mapping]:
    """The named mappings of the settings file. Raises SettingsError."""
    known = load_mappings()
    for name in names:
        if name not in known:
            have = f"it has {', '.join(known)}" if known else "it has none"
            raise SettingsError(f"--mapping {name}: the settings file has no [sources.{name}]; {have}")
    return {name: known[name] for name in names}


def import_files(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines, CSV or Parquet; several are merged by time.")],
    topic: Annotated[str, typer.Option(help="What all rows are: queries, clicks, ratings, documents.")] = "",
    mapping: Annotated[
        list[str] | None, typer.Option(help="Mapping [sources.NAME] of the settings file. Repeatable.")
    ] = None,
    rejected: Annotated[Path | None, typer.Option(help="File for the rows that can't be used.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check, send nothing.")] = False,
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    index: cli.Index = None,
) -> None:
    """Send history: queries, clicks, ratings and documents, in any form that topics take. Safe to repeat."""

    async def work() -> Report:
        settings = Settings.load(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, index=index)
        sources = Sources(settings.index, _chosen(mapping or []))
        found = read_files(files, sources, _topic(topic), now=codec.now())
        with Rejects(rejected, _say) as reject:
            if dry_run:
                return await send(found, None, reject=reject, progress=_Progress())
            async with Producer(settings.bootstrap_servers, prefix=settings.topic_prefix, source="import") as out:
                return await send(found, out, reject=reject, progress=_Progress())

    report = cli.finish(work())
    typer.echo(report.line(dry_run=dry_run))
    if report.rejected:
        raise typer.Exit(1)


class _Progress:
    """A line on standard error every few seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, report: Any) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            print(f"{report.rows:,} rows read ...", file=sys.stderr, flush=True)
