"""``clickloop tune``: a search for better settings of one rung, on recorded traffic, without a broker.

The trainer's part is in the entry-point group ``clickloop.replay``; this module reads the files as replay does,
and says and writes what was found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from clickloop import cli
from clickloop.accounts import changed, interval
from clickloop.errors import SettingsError
from clickloop.events import Estimate, ExampleFormed, Verdict, VersionKind
from clickloop.recorded import Recording, Say
from clickloop.replay import (
    BaseModel,
    DocumentsFile,
    EventsFile,
    JsonFile,
    OneIndex,
    figures,
    kinds_of,
    load_part,
    writable,
    write_json,
)

OF_TUNE = {"optuna": "tune", "sqlalchemy": "tune", "alembic": "tune"}

Value = str | int | float | bool


class TrialResult(msgspec.Struct, frozen=True):
    """One trial on the middle part."""

    number: int
    """From 1, which is today's settings."""
    settings: dict[str, Value]
    mrr_at_10: Estimate
    """Against the parent, as the gate has it."""
    queries: int
    verdict: Verdict
    seconds: float


class LastPart(msgspec.Struct, frozen=True):
    """What the last part says; no trial was chosen by it."""

    queries: int
    today: Estimate
    """Today's settings against the parent."""
    today_verdict: Verdict
    winner: Estimate | None = None
    """The winner against the parent; None where it is today's settings."""
    winner_verdict: Verdict | None = None
    gain: Estimate | None = None
    """The winner against today's settings, on the same queries."""


class Tuned(msgspec.Struct, frozen=True):
    kind: VersionKind
    today: dict[str, Value]
    chosen: dict[str, Value]
    """What to train by: the winner's settings, or today's."""
    better: bool
    """Whether the winner is better than today's settings beyond chance."""
    reason: str
    trials: list[TrialResult] = []
    """Those that are done, in their order."""
    resumed: int = 0
    """So many of them were done in an earlier run."""
    winner: int | None = None
    """Its trial's number."""
    last: LastPart | None = None
    looks: int = 0
    """How many settings other than today's have been tried on the last part by now."""


Tune = Callable[..., Tuned]


@dataclass(frozen=True)
class Options:
    documents: Path
    events: Path
    work: Path
    kind: VersionKind
    trials: int
    index: str = ""
    base_model: str | None = None
    budget_seconds: float = 3600.0


@dataclass
class Outcome:
    tuned: Tuned
    index: str
    settings_file: Path
    documents: int
    queries: int
    clicks: int
    unreadable: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        tuned = self.tuned
        return {
            "rung": tuned.kind,
            "better": tuned.better,
            "reason": tuned.reason,
            "settings": tuned.chosen,
            "settings_file": str(self.settings_file),
            "today": tuned.today,
            "winner": tuned.winner,
            "last": None if tuned.last is None else _last(tuned.last),
            "looks": tuned.looks,
            "resumed": tuned.resumed,
            "trials": [_trial(trial) for trial in tuned.trials],
            "index": self.index,
            "documents": self.documents,
            "queries": self.queries,
            "clicks": self.clicks,
            "unreadable": self.unreadable,
            "seconds": round(self.seconds, 2),
        }


def _trial(trial: TrialResult) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(trial),
        "mrr_at_10": figures(trial.mrr_at_10),
        "seconds": round(trial.seconds, 3),
    }


def _last(last: LastPart) -> dict[str, Any]:
    estimates = {"today": last.today, "winner": last.winner, "gain": last.gain}
    return {**msgspec.to_builtins(last), **{name: e and figures(e) for name, e in estimates.items()}}


def tune_files(
    options: Options, form_examples: Callable[..., Iterable[ExampleFormed]], tune_rung: Tune, *, say: Say
) -> Outcome:
    """Everything, from files to a settings file. Raises SettingsError, ArtifactError."""
    started = time.monotonic()
    recording = Recording(options.work, say=say)
    documents = recording.documents(options.documents, index=options.index)
    examples = recording.examples(options.events, index=options.index, form=form_examples)
    tuned = tune_rung(
        documents.values(),
        examples,
        index=recording.index,
        kind=options.kind,
        trials=options.trials,
        work=options.work,
        budget_seconds=options.budget_seconds,
        base_model=options.base_model,
        say=say,
    )
    path = options.work / f"tuned-{options.kind}.toml"
    write_settings(tuned, path)
    return Outcome(
        tuned,
        recording.index,
        path,
        len(documents),
        recording.read["queries"],
        recording.read["clicks"],
        recording.unreadable,
        time.monotonic() - started,
    )


# What is said of it


def settings_text(tuned: Tuned) -> str:
    """The file's content: a table that the trainer reads."""
    # Strings, numbers and truth values are written the same way in JSON and in TOML.
    rows = [f"{name} = {json.dumps(value)}" for name, value in tuned.chosen.items()]
    return "\n".join([f"# clickloop tune, rung {tuned.kind}: {tuned.reason}", "[trainer]", *rows, ""])


def write_settings(tuned: Tuned, path: Path) -> None:
    """Raises SettingsError."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(settings_text(tuned), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise SettingsError(f"--work: {path} can't be written: {error.strerror or error}") from None


def gain(estimate: Estimate) -> str:
    return f"{changed(estimate)} (95 % interval {interval(estimate)})"


def shown(settings: Mapping[str, Value], kind: VersionKind) -> str:
    """The settings in a line, without the rung's name before each."""
    return ", ".join(f"{name.removeprefix(f'{kind}_')}={value}" for name, value in settings.items())


def lines_of(outcome: Outcome) -> Sequence[str]:
    """What there is to say, for people."""
    tuned, lines = outcome.tuned, list[str]()
    lines.append(
        f"{outcome.documents:,} documents, {outcome.queries:,} queries, {outcome.clicks:,} clicks; "
        f"{outcome.unreadable:,} rows unreadable; {outcome.seconds:.0f} s"
    )
    if tuned.trials:
        earlier = f", {tuned.resumed} of them in earlier runs" if tuned.resumed else ""
        lines.append(f"{tuned.kind}: {len(tuned.trials)} trials on {tuned.trials[0].queries:,} queries{earlier}")
        lines.append(f"today's settings there: MRR@10 {changed(tuned.trials[0].mrr_at_10)}")
    winner = next((trial for trial in tuned.trials if trial.number == tuned.winner), None)
    if winner is not None and tuned.last is not None and tuned.last.winner is not None:
        there = f"MRR@10 {changed(winner.mrr_at_10)}, which overstates it as the best of {len(tuned.trials)}"
        lines.append(f"winner there, trial {winner.number}: {there}: {shown(winner.settings, tuned.kind)}")
        lines.append(f"on the last {tuned.last.queries:,} queries, against the parent:")
        lines.append(f"  today's settings  MRR@10 {gain(tuned.last.today)}")
        lines.append(f"  the winner        MRR@10 {gain(tuned.last.winner)}")
        if tuned.looks > 1:
            lines.append(
                f"{tuned.looks} winners have been tried there by now: the more, the less the figure is worth"
            )
    elif tuned.last is not None:
        said = f"today's settings {gain(tuned.last.today)}"
        lines.append(f"on the last {tuned.last.queries:,} queries, against the parent: MRR@10 of {said}")
    lines.append(tuned.reason)
    lines.append(f"settings: {outcome.settings_file} ({'the winner' if tuned.better else 'as they are today'})")
    if tuned.better:
        lines.append(
            f"CLICKLOOP_CONFIG={outcome.settings_file} has the trainer read it; "
            "or put its lines into [trainer] of your clickloop.toml"
        )
    return lines


# The command


def add_to(app: typer.Typer) -> None:
    app.command("tune")(tune)


def tune(
    documents: DocumentsFile,
    events: EventsFile,
    work: Annotated[Path, typer.Option(help="Folder for trials and vectors; a later run goes on from it.")],
    rung: Annotated[str, typer.Option(help="adapter, query_encoder or full.")] = "adapter",
    trials: Annotated[int, typer.Option(min=1, max=10_000, help="Settings to try, earlier runs' included.")] = 20,
    budget: Annotated[
        float, typer.Option(min=1.0, callback=cli.finite, help="No trial begins after so many seconds.")
    ] = 3600.0,
    json_file: JsonFile = None,
    base_model: BaseModel = None,
    index: OneIndex = "",
) -> None:
    """Search for better settings of a rung on recorded traffic, and say what they are worth. Needs no broker."""

    def work_through() -> Outcome:
        kinds = kinds_of(rung, option="--rung")
        if len(kinds) != 1:
            raise SettingsError(f"--rung {rung}: name one rung")
        writable(json_file, [documents, events])
        form_examples = load_part("streams", extra="streams")
        tune_rung = load_part("tune", extra="trainer", of=OF_TUNE)
        options = Options(documents, events, work, kinds[0], trials, index, base_model, budget)
        return tune_files(options, form_examples, tune_rung, say=lambda line: typer.echo(line, err=True))

    outcome = cli.checked(work_through)
    for line in lines_of(outcome):
        typer.echo(line)
    if json_file is not None:
        cli.checked(lambda: write_json(outcome.to_json(), json_file))
