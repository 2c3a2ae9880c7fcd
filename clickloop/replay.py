"""``clickloop replay``: what Clickloop would have gained on recorded traffic, by the same rules, without a broker.

The two services that know how have their parts in the entry-point group ``clickloop.replay``; this module reads
the files, hands events to the one and examples to the other, and says what came out.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from clickloop import cli, codec
from clickloop.accounts import METRIC_NAMES
from clickloop.errors import SettingsError
from clickloop.events import Estimate, VersionKind
from clickloop.recorded import (
    UNNAMED,
    Climbed,
    Events,
    Judged,
    RungResult,
    counts,
    read_documents,
    read_events,
    read_judged,
)
from clickloop.service import missing
from clickloop.settings import Settings, load_mappings
from clickloop.sources import Sources

SHOWN_ROWS = 10
"""Rows that can't be used are told one by one up to here, and counted beyond."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Parts:
    """What the services bring: ``streams.recorded.form_examples`` and ``trainer.recorded.climb``."""

    form_examples: Callable[..., Any]
    climb: Callable[..., Climbed]


@dataclass(frozen=True)
class Options:
    documents: Path
    events: Path
    work: Path
    kinds: list[VersionKind]
    evaluate: Path | None = None
    index: str = ""
    base_model: str | None = None
    budget_seconds: float = 3600.0


@dataclass
class Outcome:
    """What was read, and what came of it."""

    climbed: Climbed
    index: str
    documents: int
    judged: int
    read: Counter[str]
    """Events by topic."""
    unreadable: int
    fates: Counter[str]
    """What became of the feedback, by the join's and the trust rules' words."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        climbed = self.climbed
        return {
            "rungs": {rung.kind: _rung(rung) for rung in climbed.rungs},
            "start": climbed.start,
            "live": climbed.live,
            "index": self.index,
            "documents": self.documents,
            "queries": self.read["queries"],
            "clicks": self.read["clicks"],
            "ratings": self.read["ratings"],
            "examples": climbed.examples,
            "unreadable": self.unreadable,
            "quarantined": self.fates["not_shown"] + climbed.quarantined,
            "feedback": dict(sorted(self.fates.items())),
            "judged_queries": self.judged,
            "seconds": round(self.seconds, 2),
        }


@dataclass
class _Unusable:
    """Counts rows that can't be used, and tells the first."""

    say: Say
    count: int = field(default=0)

    def __call__(self, place: str, reason: str) -> None:
        self.count += 1
        if self.count <= SHOWN_ROWS:
            self.say(f"{place}: {reason}")


def replay_files(options: Options, parts: Parts, *, say: Say) -> Outcome:
    """Everything, from files to figures. Raises SettingsError, ArtifactError."""
    started, now = time.monotonic(), codec.now()
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=options.work):
            pass
    except OSError as error:
        raise SettingsError(f"--work {options.work} can't be used: {error.strerror or error}") from None
    sources = Sources(UNNAMED, load_mappings())
    unusable = _Unusable(say)
    documents = read_documents(options.documents, sources, now=now, unusable=unusable)
    if not documents:
        raise SettingsError(f"{options.documents}: no document that can be read")
    judged: list[Judged] = []
    if options.evaluate is not None:
        judged = read_judged(options.evaluate, documents, unusable=unusable)
        if not judged:
            raise SettingsError(f"{options.evaluate}: no query with a relevant document among the documents")
    try:
        events = read_events(options.events, sources, options.work, now=now, unusable=unusable)
    except OSError as error:
        raise SettingsError(f"--work {options.work} has no room for sorting: {error.strerror or error}") from None
    if not events.of_index:
        raise SettingsError(f"{options.events}: no query, click or rating that can be read")
    if unusable.count > SHOWN_ROWS:
        say(f"... and {unusable.count - SHOWN_ROWS:,} more rows that can't be used")
    index = _index(options, events)
    read, fates = Counter[str](), Counter[str]()
    examples = parts.form_examples(counts(events.ordered(index), read), index=index, counts=fates)
    climbed = parts.climb(
        documents.values(),
        examples,
        judged,
        index=index,
        kinds=options.kinds,
        work=options.work,
        budget_seconds=options.budget_seconds,
        base_model=options.base_model,
        say=say,
    )
    seconds = time.monotonic() - started
    return Outcome(climbed, index, len(documents), len(judged), read, unusable.count, fates, seconds)


def _index(options: Options, events: Events) -> str:
    """The asked one, else the one that the events name, else the settings'. Raises SettingsError."""
    named = options.index or events.the_index()
    index = Settings.load(index=named or None).index
    if not events.of_index[index] and not events.of_index[UNNAMED]:
        raise SettingsError(f"--index {index}: the events are of {', '.join(sorted(events.of_index))}")
    return index


# What is said of it


def _figures(estimate: Estimate) -> dict[str, float]:
    return {name: round(getattr(estimate, name), 5) for name in ("before", "after", "change", "low", "high")}


def _all(metrics: dict[str, Estimate]) -> dict[str, Any]:
    return {name: _figures(estimate) for name, estimate in metrics.items()}


def shown_metrics(rung: RungResult) -> dict[str, Estimate]:
    """The truth where it is known, else what the gate saw."""
    return rung.truth or (rung.gate.metrics if rung.gate else {})


def _rung(rung: RungResult) -> dict[str, Any]:
    unknown: dict[str, Any] = {
        name: {"before": None, "after": None, "change": 0.0, "low": 0.0, "high": 0.0} for name in METRIC_NAMES
    }
    gate: dict[str, Any] | None = None
    if rung.gate is not None:
        gate = {**msgspec.to_builtins(rung.gate), "metrics": _all(rung.gate.metrics)}
    out: dict[str, Any] = {
        **unknown,
        **_all(shown_metrics(rung)),
        "train_seconds": round(rung.train_seconds, 3),
        "verdict": rung.verdict,
        "reasons": rung.reasons,
        "version": rung.version or None,
        "parent": rung.parent,
        "gate": gate,
    }
    if rung.truth:
        slices = {name: {"queries": one.queries, **_all(one.metrics)} for name, one in rung.slices.items()}
        out["truth"] = {**_all(rung.truth), "slices": slices, "over_parent": _all(rung.over_parent)}
    return out


def _title(outcome: Outcome) -> str:
    if outcome.judged:
        return f"on {outcome.judged:,} judged queries, against the base model {outcome.climbed.start}"
    return "on later queries of the recorded users (the gate's figures), each against its parent"


def _cells(rung: RungResult) -> list[tuple[str, ...]]:
    return [
        (METRIC_NAMES.get(name, name), f"{e.before:.3f}", f"{e.after:.3f}", f"{e.change:+.1%}",
         f"{e.low:+.1%} to {e.high:+.1%}")
        for name, e in shown_metrics(rung).items()
    ]  # fmt: skip


def print_outcome(outcome: Outcome, console: Console) -> None:
    """A table for a terminal, plain lines for anything else, and the verdicts."""
    rungs = outcome.climbed.rungs
    if console.is_terminal and any(shown_metrics(rung) for rung in rungs):
        table = Table(title=f"Search quality {_title(outcome)}", title_justify="left", title_style="bold")
        for name in ("rung", "metric"):
            table.add_column(name, no_wrap=True)
        for name in ("before", "after", "change", "95 % interval"):
            table.add_column(name, justify="right", no_wrap=True)
        for rung in rungs:
            for cells in _cells(rung):
                table.add_row(rung.kind, *cells)
            table.add_section()
        console.print(table)
    else:
        console.print(f"search quality {_title(outcome)}", soft_wrap=True)
        for rung in rungs:
            for metric, before, after, change, interval in _cells(rung):
                line = f"{rung.kind:<13}  {metric:<8}  {before} to {after}  {change:>7}  ({interval})"
                console.print(line, soft_wrap=True)
    for rung in rungs:
        trained = f"trained in {rung.train_seconds:.1f} s" if rung.version else "not trained"
        reasons = "; ".join(rung.reasons)
        console.print(f"{rung.kind}: {rung.verdict}, {trained}: {reasons}", soft_wrap=True)
    read = outcome.read
    console.print(
        f"{outcome.documents:,} documents, {read['queries']:,} queries, {read['clicks']:,} clicks, "
        f"{read['ratings']:,} ratings, {outcome.climbed.examples:,} examples; "
        f"{outcome.unreadable:,} rows unreadable; {outcome.seconds:.0f} s",
        soft_wrap=True,
    )
    lost = {name: outcome.fates[name] for name in ("late", "unmatched", "not_shown") if outcome.fates[name]}
    if lost:
        said = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in lost.items())
        console.print(f"feedback that joined no impression: {said}", soft_wrap=True)
    live, start = outcome.climbed.live, outcome.climbed.start
    console.print(f"live would be {live}" + (": the base model stays" if live == start else ""), soft_wrap=True)


# The command


def add_to(app: typer.Typer) -> None:
    app.command("replay")(replay)


def replay(
    documents: Annotated[Path, typer.Option(help="JSON Lines, CSV or Parquet with doc_id, title and text.")],
    events: Annotated[Path, typer.Option(help="Queries, clicks and ratings of all kinds that topics take.")],
    work: Annotated[Path, typer.Option(help="Folder for versions and vectors; a later run goes on from it.")],
    evaluate: Annotated[
        Path | None, typer.Option(help="Queries with their relevant documents: the truth to measure by.")
    ] = None,
    rungs: Annotated[str, typer.Option(help="Rungs of the ladder, comma-separated, in this order.")] = (
        "adapter,query_encoder"
    ),
    budget: Annotated[float, typer.Option(min=1.0, help="Longest training in seconds, of all rungs.")] = 3600.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Model to start from.", show_default="all-MiniLM-L6-v2")
    ] = None,
    index: Annotated[str, typer.Option(help="Index of the events, where they name several.")] = "",
) -> None:
    """Train and judge on recorded traffic: what would Clickloop have gained? Needs no broker."""

    def work_through() -> Outcome:
        kinds = kinds_of(rungs)
        if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
            raise SettingsError(f"--json {json_file}: no file can be written there")
        options = Options(documents, events, work, kinds, evaluate, index, base_model, budget)
        return replay_files(options, _load_parts(), say=lambda line: typer.echo(line, err=True))

    outcome = cli.checked(work_through)
    print_outcome(outcome, Console(highlight=False, markup=False))
    if json_file is not None:
        cli.checked(lambda: write_json(outcome, json_file))


def write_json(outcome: Outcome, path: Path) -> None:
    """Raises SettingsError."""
    raw = msgspec.json.format(msgspec.json.encode(outcome.to_json()), indent=2)
    try:
        path.write_bytes(raw + b"\n")
    except OSError as error:
        raise SettingsError(f"--json {path} can't be written: {error.strerror or error}") from None


def kinds_of(rungs: str) -> list[VersionKind]:
    """The rungs by name. Raises SettingsError."""
    known: dict[str, VersionKind] = {kind: kind for kind in get_args(VersionKind)}
    named = [name.strip() for name in rungs.split(",") if name.strip()]
    for name in named:
        if name not in known:
            raise SettingsError(f"--rungs {rungs}: {name!r} is none of {', '.join(known)}")
    if not named or len(set(named)) != len(named):
        raise SettingsError(f"--rungs {rungs!r}: name each rung once, such as adapter,query_encoder")
    return [known[name] for name in named]


def _load_parts() -> Parts:
    """The services' parts. Raises SettingsError where one is not installed."""
    points = {point.name: point for point in entry_points(group="clickloop.replay")}
    loaded: dict[str, Any] = {}
    for name in ("streams", "trainer"):
        if name not in points:
            raise SettingsError(f"replay needs the service {name}; pip install 'clickloop[streams,trainer]'")
        try:
            loaded[name] = points[name].load()
        except ModuleNotFoundError as error:
            raise SettingsError(missing(error, extra=name)) from None
    return Parts(loaded["streams"], loaded["trainer"])
