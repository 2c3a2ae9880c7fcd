"""``clickloop trigger`` and ``clickloop buffer``: what an operator asks the log about training."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from clickloop import cli, codec, topics
from clickloop.commands import Retrain
from clickloop.errors import MessageError, SettingsError
from clickloop.events import DriftMeasured, ExampleFormed, OffsetRange
from clickloop.kafka import Follower, Record, offsets_since, read_range
from streams.advice import Recommendation, recommendations
from streams.buffer import Buffer, SketchSum
from streams.control import Control
from streams.replay import Told, replay, time_of
from streams.settings import StreamsSettings
from streams.trigger import NotNow, Trigger

FOLLOWED = (
    topics.RETRAIN_COMMANDS,
    topics.TRAINING_RUNS,
    topics.MODEL_VERSIONS,
    topics.NODE_STATUS,
    topics.TRAFFIC_SPLITS,
    topics.COMMANDS,
)
"""What trigger and rollout hear beside drift reports. These are short or compacted, and are read as a whole."""
SLACK_SECONDS = 60.0
"""A report and a command that cross on their way are no further apart."""

Json = Annotated[bool, typer.Option("--json", help="One JSON document a line.")]
Threshold = Annotated[int | None, typer.Option(help="New examples that are enough.", show_default="100")]
Policies = Annotated[
    str | None, typer.Option(help="Policies, comma-separated.", show_default="threshold,drift,performance")
]
Kinds = Annotated[
    str | None, typer.Option(help="Rungs, comma-separated, or auto.", show_default="adapter,query_encoder")
]


def trigger(
    explain: Annotated[bool, typer.Option("--explain", help="What to do now, and why: the default.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="When it would have fired, had these settings been in force.")
    ] = False,
    since: Annotated[
        str | None, typer.Option(help="With --dry-run: from then on; RFC 3339, or 7d, 12h, 90m ago.")
    ] = None,
    policies: Policies = None,
    threshold: Threshold = None,
    kinds: Kinds = None,
    schedule: Annotated[str | None, typer.Option(help="An interval, or a time of day.", show_default="")] = None,
    as_json: Json = False,
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    index: cli.Index = None,
) -> None:
    """Say what the retrain trigger waits for and recommends, or what it would have done. Sends nothing."""

    def load() -> tuple[StreamsSettings, float | None]:
        if explain and dry_run:
            raise SettingsError("--explain and --dry-run: choose one")
        if dry_run != (since is not None):
            raise SettingsError("--dry-run and --since TIME go together")
        settings = StreamsSettings.load(
            bootstrap_servers=bootstrap_servers,
            topic_prefix=topic_prefix,
            index=index,
            policies=policies,
            threshold=threshold,
            kinds=kinds,
            schedule=schedule,
        )
        return settings, parse_time(since, now=time.time()) if since is not None else None

    settings, start = cli.checked(load)
    if start is None:
        _explain(settings, as_json)
    else:
        _dry_run(settings, start, as_json)


def buffer(
    index: Annotated[str | None, typer.Argument(help="Name of the index.", show_default="default")] = None,
    threshold: Threshold = None,
    policies: Policies = None,
    as_json: Json = False,
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
) -> None:
    """Show the examples that no retrain command covers yet: where they lie, how many of what, and how old.

    Those of earlier commands on which no gate has decided come again with them; of these only the count is shown.
    """
    settings = cli.checked(
        lambda: StreamsSettings.load(
            bootstrap_servers=bootstrap_servers,
            topic_prefix=topic_prefix,
            index=index,
            threshold=threshold,
            policies=policies,
        )
    )
    now = time.time()
    control, found = cli.finish(_read_buffer(settings))
    rule, wish = control.trigger, control.decide(now)
    waits_for = wish.reason if isinstance(wish, NotNow) else "nothing: it asks for training now"
    facts = _buffer_facts(settings, rule, found) | {"undecided": rule.undecided(now).examples}
    if as_json:
        ages = {
            "oldest_seconds": None if found.oldest is None else round(now - found.oldest, 1),
            "newest_seconds": None if found.newest is None else round(now - found.newest, 1),
        }
        sample = {"reservoir": list(found.reservoir.kept), "sketch_sum": found.sketches.total}
        typer.echo(json.dumps(facts | ages | {"trigger_waits_for": waits_for} | sample))
        return
    facts |= {
        "oldest": _since(found.oldest, now),
        "newest": _since(found.newest, now),
        "trigger_waits_for": waits_for,
    }
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' '):<18} {_shown(value)}")


def parse_time(text: str, *, now: float) -> float:
    """Seconds since the epoch, from RFC 3339 or a time ago such as 7d, 12h, 90m. Raises SettingsError.

    >>> parse_time("2h", now=10_000.0)
    2800.0
    """
    ago = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if ago is not None:
        return max(0.0, now - int(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[ago[2]])
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(
            f"{text!r} is no time: give RFC 3339 such as 2026-03-02T09:00:00Z, or 7d, 12h"
        ) from None
    if at.tzinfo is None:
        raise SettingsError(f"{text!r} has no zone: end it with Z for UTC")
    if not codec.FIRST_YEAR <= at.year <= codec.LAST_YEAR:
        raise SettingsError(f"{text!r} is too far away")
    return at.timestamp()


# What now, and why


def _explain(settings: StreamsSettings, as_json: bool) -> None:
    now = time.time()
    control = _heard(settings, cli.finish(_read_log(settings, since=None)))
    wish = control.decide(now)
    found = recommendations(control.trigger, settings, now=now)
    if as_json:
        for number, one in enumerate(found, start=1):
            typer.echo(json.dumps({"priority": number, **asdict(one)}))
        return
    said = f"not now: {wish.reason}" if isinstance(wish, NotNow) else f"fires: {wish.reason.text}"
    typer.echo(f"index {settings.index}, {_written(now)}: {said}")
    for number, one in enumerate(found, start=1):
        typer.echo(f"\n{number}. {one.what}\n   why       {one.why}\n   when      {one.when}")
        if one.gain is not None and one.seconds is not None:
            typer.echo(f"   expected  {_bargain(one)}")


def _bargain(one: Recommendation) -> str:
    learnt = f"from {one.runs} earlier runs" if one.runs else "no earlier runs: as measured on another corpus"
    return f"{one.gain:+.1%} MRR@10 for about {one.seconds:.0f} s of training ({learnt})"


# What would have been


def _dry_run(settings: StreamsSettings, since: float, as_json: bool) -> None:
    log = cli.finish(_read_log(settings, since=since))
    given = [t.message for t in log if isinstance(t.message, Retrain) and t.at >= since]
    by_operators = sum("manual" in command.reason.policies for command in given)
    fired = list(replay(settings, log, since=since, until=time.time()))
    if as_json:
        for command in fired:
            typer.echo(codec.encode(command))
        return
    for command in fired:
        figures = command.reason.figures
        typer.echo(
            f"{_written(command.issued_at.timestamp())}  {', '.join(command.kinds)}: {command.reason.text}; "
            f"expected {figures['expected_gain']:+.1%} MRR@10 for about {figures['expected_seconds']:.0f} s"
        )
    reports = sum(isinstance(told.message, DriftMeasured) and told.at >= since for told in log)
    seconds = sum(command.reason.figures["expected_seconds"] for command in fired)
    typer.echo(
        f"since {_written(since)}, over {reports} drift reports: would have fired {len(fired)} times, for about "
        f"{seconds:.0f} s of training, if each passed its gate; "
        f"the log holds {len(given) - by_operators} commands of the trigger and {by_operators} of operators"
    )


# The buffer


async def _read_buffer(settings: StreamsSettings) -> tuple[Control, Buffer]:
    log = await _read_log(settings, since=None)
    control, found = _heard(settings, log), Buffer()
    rule = control.trigger
    reports = {t.message.event_id: t.message for t in log if isinstance(t.message, DriftMeasured)}
    for report in reports.values():
        if rule.is_new(report):
            found.sketches.merge(SketchSum(report.sketches, report.sketch_sum))

    def keep(record: Record) -> None:
        message = _decoded(record, topics.TRAINING_EXAMPLES)
        if isinstance(message, ExampleFormed) and message.index == settings.index:
            found.add(message, _place(record))

    for wanted in rule.ranges:
        await read_range(settings.bootstrap_servers, wanted, on_record=keep)
    return control, found


def _place(record: Record) -> OffsetRange:
    return OffsetRange(topic=record.topic, partition=record.partition, start=record.offset, end=record.offset + 1)


def _buffer_facts(settings: StreamsSettings, rule: Trigger, found: Buffer) -> dict[str, Any]:
    return {
        "index": settings.index,
        "new_examples": rule.new_examples,
        "ranges": [f"{r.topic}/{r.partition} {r.start}-{r.end}" for r in found.ranges],
        "messages": found.messages,
        "distinct_examples": found.reservoir.distinct,
        "slices": {f"{name} {value}": n for (name, value), n in found.reservoir.by_slice().items()},
        "reservoir_size": len(found.reservoir.kept),
        "query_sketches": found.sketches.count,
    }


# Reading


def _heard(settings: StreamsSettings, log: Sequence[Told]) -> Control:
    """Trigger and rollout as the worker has them that has lived through this log."""
    control = Control(settings, handled={})
    for told in sorted(log, key=lambda told: told.at):
        control.hear(told.message, offset=told.offset, appended=told.at, live=False)
    return control


async def _read_log(settings: StreamsSettings, *, since: float | None) -> list[Told]:
    """All that the trigger hears, as far back as it matters for what was new at ``since``, or is new now."""
    where, prefix = settings.bootstrap_servers, settings.topic_prefix
    log: list[Told] = []

    def keep(record: Record, topic: topics.Topic) -> None:
        if (told := told_by(record, topic, index=settings.index)) is not None:
            log.append(told)

    async with Follower(where, FOLLOWED, prefix=prefix) as follower:
        while not await follower.caught_up():
            for topic, record in await follower.batch():
                keep(record, topic)
    issued = [t.at for t in log if isinstance(t.message, Retrain) and (since is None or t.at < since)]
    name = topics.DRIFT_REPORTS.name(prefix)
    spans = await offsets_since(where, name, max(issued, default=0.0) - SLACK_SECONDS)
    for partition, (start, end) in spans.items():
        if end > start:
            wanted = OffsetRange(topic=name, partition=partition, start=start, end=end)
            await read_range(where, wanted, on_record=lambda record: keep(record, topics.DRIFT_REPORTS))
    return log


def told_by(record: Record, topic: topics.Topic, *, index: str) -> Told | None:
    """What a record tells trigger and rollout of an index, by the broker's clock; None for nothing."""
    message = _decoded(record, topic)
    at = time_of(message) if message is not None else None
    if at is None or message.index != index:
        return None
    return Told(record.appended or at, record.offset, message)


def _decoded(record: Record, topic: topics.Topic) -> Any:
    """The message; None for what is deleted, or can't be read, which is named on standard error."""
    if record.value is None:
        return None
    try:
        return codec.decode(record.value, *topic.types)
    except MessageError as error:
        typer.echo(f"{record.topic} offset {record.offset}: {error}", err=True)
        return None


def _written(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%SZ}"


def _since(at: float | None, now: float) -> str | None:
    return None if at is None else f"{_written(at)}, {time_ago(now - at)}"


def time_ago(seconds: float) -> str:
    """As people say it, in one unit and rounded down.

    >>> [time_ago(s) for s in (-0.5, 59.9, 60.0, 7199.0, 86_400.0, 900_000.0)]
    ['0 s ago', '59 s ago', '1 min ago', '1 h ago', '1 d ago', '10 d ago']
    """
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(0.0, seconds) // 1:.0f} s ago"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return "-" if value is None else str(value)
