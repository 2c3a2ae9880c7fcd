"""``clickloop replay``: what Clickloop would have gained on recorded traffic, by the same rules, without a broker.

The two services that know how have their parts in the entry-point group ``clickloop.replay``; this module reads
the files, hands events to the one and examples to the other, and says what came out.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from clickloop import cli
from clickloop.accounts import METRIC_NAMES, changed, interval
from clickloop.errors import SettingsError
from clickloop.events import Estimate, VersionKind
from clickloop.importing import check_apart
from clickloop.manifest import sha256_file
from clickloop.recorded import Climbed, Recording, RungResult, Say
from clickloop.service import missing


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
    max_queries: int | None = None


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
            "dropped_examples": climbed.dropped,
            "unreadable": self.unreadable,
            "quarantined": self.fates["not_shown"] + climbed.quarantined,
            "feedback": dict(sorted(self.fates.items())),
            "judged_queries": self.judged,
            "seconds": round(self.seconds, 2),
        }


def replay_files(options: Options, parts: Parts, *, say: Say) -> Outcome:
    """Everything, from files to figures. Raises SettingsError, ArtifactError."""
    started = time.monotonic()
    recording = Recording(options.work, say=say)
    documents = recording.documents(options.documents, index=options.index)
    judged = recording.judged(options.evaluate, documents) if options.evaluate is not None else []
    examples = recording.examples(options.events, index=options.index, form=parts.form_examples)
    climbed = parts.climb(
        documents.values(),
        examples,
        judged,
        index=recording.index,
        kinds=options.kinds,
        work=options.work,
        budget_seconds=options.budget_seconds,
        base_model=options.base_model,
        source=source_of(options.documents, options.events),
        say=say,
        max_queries=options.max_queries,
    )
    return Outcome(
        climbed,
        recording.index,
        len(documents),
        climbed.judged,
        recording.read,
        recording.unreadable,
        recording.fates,
        time.monotonic() - started,
    )


def source_of(documents: Path, events: Path) -> dict[str, str]:
    """For the lineage of what is trained: the files that it comes from."""
    named = {"documents_file": documents.name, "events_file": events.name}
    files = {"documents_sha256": documents, "events_sha256": events}
    # A pipe can be read only once, and was.
    return named | {name: sha256_file(path) for name, path in files.items() if path.is_file()}


# What is said of it


def figures(estimate: Estimate) -> dict[str, float]:
    return {name: round(getattr(estimate, name), 5) for name in ("before", "after", "change", "low", "high")}


def _all(metrics: dict[str, Estimate]) -> dict[str, Any]:
    return {name: figures(estimate) for name, estimate in metrics.items()}


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
        (METRIC_NAMES.get(name, name), f"{e.before:.3f}", f"{e.after:.3f}", changed(e), interval(e))
        for name, e in shown_metrics(rung).items()
    ]


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

DocumentsFile = Annotated[Path, typer.Option(help="JSON Lines, CSV or Parquet with doc_id, title and text.")]
EventsFile = Annotated[Path, typer.Option(help="Queries, clicks and ratings of all kinds that topics take.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")]
BaseModel = Annotated[str | None, typer.Option(help="Model to start from.", show_default="all-MiniLM-L6-v2")]
OneIndex = Annotated[str, typer.Option(help="Index of the events, where they name several.")]


def add_to(app: typer.Typer) -> None:
    app.command("replay")(replay)


def replay(
    documents: DocumentsFile,
    events: EventsFile,
    work: Annotated[Path, typer.Option(help="Folder for versions and vectors; a later run goes on from it.")],
    evaluate: Annotated[
        Path | None, typer.Option(help="Queries with their relevant documents: the truth to measure by.")
    ] = None,
    rungs: Annotated[str, typer.Option(help="Rungs of the ladder, comma-separated, in this order.")] = (
        "adapter,query_encoder"
    ),
    budget: Annotated[
        float,
        typer.Option(min=1.0, callback=cli.finite, help="Longest encoding and training in seconds, of all rungs."),
    ] = 3600.0,
    json_file: JsonFile = None,
    base_model: BaseModel = None,
    index: OneIndex = "",
    max_queries: Annotated[
        int | None, typer.Option(min=1, help="Most held-out and judged queries to measure.", show_default="all")
    ] = None,
) -> None:
    """Train and judge on recorded traffic: what would Clickloop have gained? Needs no broker."""

    def work_through() -> Outcome:
        kinds = kinds_of(rungs)
        writable(json_file, [documents, events, evaluate])
        parts = Parts(load_part("streams", extra="streams"), load_part("trainer", extra="trainer"))
        options = Options(documents, events, work, kinds, evaluate, index, base_model, budget, max_queries)
        return replay_files(options, parts, say=lambda line: typer.echo(line, err=True))

    outcome = cli.checked(work_through)
    print_outcome(outcome, cli.console())
    if json_file is not None:
        cli.checked(lambda: write_json(outcome.to_json(), json_file))


def writable(json_file: Path | None, read: Iterable[Path | None]) -> None:
    """Raises SettingsError where no file of this name can be written, or it is to be ``read``; before the work
    begins."""
    if json_file is None:
        return
    check_apart("--json", json_file, filter(None, read))
    there = json_file if json_file.exists() else json_file.absolute().parent
    if json_file.is_dir() or not os.access(there, os.W_OK):
        raise SettingsError(f"--json {json_file}: no file can be written there")


def write_json(found: dict[str, Any], path: Path) -> None:
    """Raises SettingsError."""
    raw = msgspec.json.format(msgspec.json.encode(found), indent=2)
    try:
        path.write_bytes(raw + b"\n")
    except OSError as error:
        raise SettingsError(f"--json {path} can't be written: {error.strerror or error}") from None


def kinds_of(rungs: str, *, option: str = "--rungs") -> list[VersionKind]:
    """The rungs by name. Raises SettingsError."""
    known: dict[str, VersionKind] = {kind: kind for kind in get_args(VersionKind)}
    named = [name.strip() for name in rungs.split(",") if name.strip()]
    for name in named:
        if name not in known:
            raise SettingsError(f"{option} {rungs}: {name!r} is none of {', '.join(known)}")
    if not named or len(set(named)) != len(named):
        raise SettingsError(f"{option} {rungs!r}: name each rung once, such as adapter,query_encoder")
    return [known[name] for name in named]


def load_part(name: str, *, extra: str, of: Mapping[str, str] = MappingProxyType({})) -> Any:
    """What a service brings by this name, and which extra has it. ``of`` names those of some libraries' own.

    Raises SettingsError where it is not installed.
    """
    points = {point.name: point for point in entry_points(group="clickloop.replay")}
    if name not in points:
        raise SettingsError(f"the part {name} is not installed; pip install 'clickloop[streams,trainer]'")
    try:
        return points[name].load()
    except ModuleNotFoundError as error:
        own = of.get((error.name or "").split(".")[0], extra)
        raise SettingsError(missing(error, extra=own)) from None
