"""Commands for operators that need the base install only: topics, dead letters, and wishes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from clickloop import cli, codec, topics
from clickloop.commands import (
    Cancel,
    Command,
    ForgetUser,
    Pause,
    Promote,
    Reason,
    Retrain,
    Rollback,
    Strategy,
)
from clickloop.errors import ClickloopError, MessageError, SettingsError
from clickloop.events import Message, MessageQuarantined, ModelVersionPublished, OffsetRange, VersionKind
from clickloop.kafka import Follower, Producer, create_topics, end_offsets, list_topics
from clickloop.settings import Settings

M = TypeVar("M", bound=Message)

WITHOUT_EXAMPLES: tuple[Strategy, ...] = ("domain_adaptation", "fine_tune")
"""What can be learnt before the first click; clicks then only judge it."""

topics_app = typer.Typer(help="Create and list the topics of the contract.", no_args_is_help=True)
letters_app = typer.Typer(help="List, show and replay messages that could not be used.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="One JSON document a line instead of a table.")]


def add_to(app: typer.Typer) -> None:
    app.add_typer(topics_app, name="topics")
    app.add_typer(letters_app, name="dead-letters")
    app.command("retrain")(retrain)
    app.command("rollback")(rollback)
    app.command("promote")(promote)
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("forget-user")(forget_user)


def load_settings(**flags: Any) -> Settings:
    return cli.checked(lambda: Settings.load(**flags))


def show_table(title: str, columns: list[str], rows: Iterable[list[str]]) -> None:
    """A table on a terminal; tab-separated lines, which other programs can cut, elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(map(cli.printable, row)))
        return
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(cli.printable, row))
    cli.console().print(table)


async def read_topic(settings: Settings, topic: topics.Topic, kind: type[M]) -> list[tuple[int, M]]:
    """Every readable message of a topic with its offset. What can't be read is named on standard error."""
    found: list[tuple[int, M]] = []
    async with Follower(settings.bootstrap_servers, [topic], prefix=settings.topic_prefix) as follower:
        async for _, record in follower.held():
            if record.value is None:
                continue
            try:
                found.append((record.offset, codec.decode(record.value, kind)))
            except MessageError as error:
                typer.echo(f"{record.topic} offset {record.offset}: {error}", err=True)
    return found


@topics_app.command("create")
def topics_create(
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    partitions: Annotated[
        int | None, typer.Option(help="Partitions of queries, clicks, ratings, examples.")
    ] = None,
    replication_factor: Annotated[int | None, typer.Option(help="Replicas of each topic.")] = None,
) -> None:
    """Create the topics that don't exist yet."""
    settings = load_settings(
        bootstrap_servers=bootstrap_servers,
        topic_prefix=topic_prefix,
        partitions=partitions,
        replication_factor=replication_factor,
    )
    created = cli.finish(
        create_topics(
            settings.bootstrap_servers,
            prefix=settings.topic_prefix,
            partitions=settings.partitions,
            replication_factor=settings.replication_factor,
        )
    )
    for name in created:
        typer.echo(f"created {name}")
    if not created:
        typer.echo("all topics exist")


@topics_app.command("list")
def topics_list(bootstrap_servers: cli.BootstrapServers = None, topic_prefix: cli.TopicPrefix = None) -> None:
    """Show each topic of the contract, its key, its cleanup, and whether the cluster has it."""
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    known = set(cli.finish(list_topics(settings.bootstrap_servers)))
    names = [(t, t.name(settings.topic_prefix)) for t in topics.TOPICS]
    rows = [[n, t.key_name, t.cleanup, "yes" if n in known else "missing"] for t, n in names]
    show_table("Topics", ["topic", "key", "cleanup", "exists"], rows)


@letters_app.command("list")
def letters_list(
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    as_json: Json = False,
) -> None:
    """Show what could not be used, by whom and why."""
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    found = cli.finish(read_topic(settings, topics.DEAD_LETTERS, MessageQuarantined))
    if as_json:
        for _, event in found:
            typer.echo(codec.encode(event))
        return
    rows = ([str(o), f"{e.topic}/{e.partition}/{e.offset}", e.service, e.error, e.reason] for o, e in found)
    show_table("Dead letters", ["letter", "original", "service", "error", "reason"], rows)


async def _letter(settings: Settings, offset: int) -> MessageQuarantined:
    for found, event in await read_topic(settings, topics.DEAD_LETTERS, MessageQuarantined):
        if found == offset:
            return event
    raise ClickloopError(f"there is no dead letter {offset}; 'clickloop dead-letters list' shows them")


@letters_app.command("show")
def letters_show(
    letter: Annotated[int, typer.Argument(help="Number from 'dead-letters list'.")],
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
) -> None:
    """Print the original bytes as they came."""
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    event = cli.finish(_letter(settings, letter))
    if event.cut:
        typer.echo(_not_whole(letter, event), err=True)
    sys.stdout.buffer.write(event.value)


def _not_whole(letter: int, event: MessageQuarantined) -> str:
    where = f"{event.topic} partition {event.partition} offset {event.offset}"
    return (
        f"dead letter {letter} lacks a part that was too long ({', '.join(event.cut)}); whole it lies at {where}"
    )


@letters_app.command("replay")
def letters_replay(
    letter: Annotated[int, typer.Argument(help="Number from 'dead-letters list'.")],
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
) -> None:
    """Send the original bytes to their topic again, under their original key and headers, where all are there."""
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)

    async def work() -> MessageQuarantined:
        event = await _letter(settings, letter)
        if event.cut:
            raise ClickloopError(f"not sent: {_not_whole(letter, event)}")
        async with Producer(settings.bootstrap_servers, prefix=settings.topic_prefix, source="cli") as producer:
            headers = [(header.name, header.value) for header in event.headers]
            await producer.send_raw(event.topic, event.value, key=event.key, headers=headers)
        return event

    event = cli.finish(work())
    typer.echo(f"sent again to {event.topic}")


def _wish(settings: Settings, topic: topics.Topic, command: Command) -> None:
    """Send a command and wait until the broker has it.

    What its readers would refuse ends the process with 2: a command that is sent can't be taken back.
    """

    async def send() -> None:
        async with Producer(settings.bootstrap_servers, prefix=settings.topic_prefix, source="cli") as producer:
            await producer.send_and_wait(topic, command)

    cli.checked(lambda: _check(command))
    cli.finish(send())
    typer.echo(f"{type(command).__name__} {command.command_id} sent")


def _check(command: Command) -> None:
    """Raises SettingsError where a field breaks its rule."""
    try:
        codec.decode(codec.encode(command), type(command))
    except MessageError as error:
        raise SettingsError(f"not sent: {error}") from None


def retrain(
    kind: Annotated[list[str] | None, typer.Option(help="Rung: adapter, query_encoder, full. Repeatable.")] = None,
    parent: Annotated[
        str, typer.Option(help="Version to start from; empty is the strategy's, mostly the live one.")
    ] = "",
    budget_seconds: Annotated[float, typer.Option(help="Longest time to encode and train, in seconds.")] = 3600.0,
    strategy: Annotated[Strategy, typer.Option(help="What to train on, and from which model.")] = "incremental",
    pairs: Annotated[
        str, typer.Option(help="For fine_tune: URL or path, of the trainer's, of query and doc_id.")
    ] = "",
    cancel: Annotated[str, typer.Option(help="Instead: end the run of this command.", metavar="COMMAND_ID")] = "",
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    index: cli.Index = None,
) -> None:
    """Train now, on every example that the log holds; or end a run."""
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, index=index)
    if cancel:
        _wish(settings, topics.COMMANDS, Cancel(**_head(settings), retrain=cancel))
        return
    if (strategy == "fine_tune") != bool(pairs):
        raise typer.BadParameter("--strategy fine_tune and --pairs go together")
    kinds = _kinds(kind or ["adapter", "query_encoder"])

    command = Retrain(
        command_id=codec.new_id(),
        index=settings.index,
        issued_at=codec.now(),
        kinds=kinds,
        ranges=cli.finish(_all_examples(settings, needed=strategy not in WITHOUT_EXAMPLES)),
        parent=parent,
        strategy=strategy,
        pairs_uri=pairs,
        budget_seconds=budget_seconds,
        reason=Reason(policies=["manual"], text="asked for by an operator"),
    )
    _wish(settings, topics.RETRAIN_COMMANDS, command)
    total = sum(r.end - r.start for r in command.ranges)
    typer.echo(f"{', '.join(command.kinds)} on {total} messages")


async def _all_examples(settings: Settings, *, needed: bool) -> list[OffsetRange]:
    name = topics.TRAINING_EXAMPLES.name(settings.topic_prefix)
    offsets = await end_offsets(settings.bootstrap_servers, name)
    ranges = [
        OffsetRange(topic=name, partition=partition, start=first, end=end)
        for partition, (first, end) in sorted(offsets.items())
        if end > first
    ]
    if not ranges and needed:
        raise ClickloopError(f"{name} holds no examples yet")
    return ranges


def _kinds(names: list[str]) -> list[VersionKind]:
    known: dict[str, VersionKind] = {"adapter": "adapter", "query_encoder": "query_encoder", "full": "full"}
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is no rung; choose from {', '.join(known)}")
    return [known[name] for name in names]


def rollback(
    reason: Annotated[str, typer.Option(help="Why, for the record.")],
    version: Annotated[str, typer.Option(help="Version to go back to; empty is the one before.")] = "",
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    index: cli.Index = None,
) -> None:
    """Give all traffic back to an earlier version."""
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, index=index)
    _wish(settings, topics.COMMANDS, Rollback(**_head(settings), reason=reason, version=version))


def promote(
    version: str,
    reason: Annotated[str, typer.Option(help="Why, for the record.")],
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    index: cli.Index = None,
) -> None:
    """Give all traffic to a version now, unless it failed its gate."""
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, index=index)
    _wish(settings, topics.COMMANDS, Promote(**_head(settings), version=version, reason=reason))
    told = cli.finish(_announced(settings, version))
    if told is None:
        typer.echo(
            f"no version {version!r} of index {settings.index!r} was announced: it will be refused", err=True
        )
    elif told.gate is not None and told.gate.verdict != "pass":
        refused = ": it will be refused" if told.gate.verdict == "fail" else ""
        reasons = "; ".join(told.gate.reasons)
        typer.echo(f"its gate: {told.gate.verdict}{f' ({reasons})' if reasons else ''}{refused}", err=True)


async def _announced(settings: Settings, version: str) -> ModelVersionPublished | None:
    """What was last said of a version of the index."""
    found: ModelVersionPublished | None = None
    where, prefix = settings.bootstrap_servers, settings.topic_prefix
    async with Follower(where, [topics.MODEL_VERSIONS], prefix=prefix) as follower:
        async for _, record in follower.held():
            with suppress(MessageError):  # those that act on versions quarantine it
                event = codec.decode(record.value, ModelVersionPublished)
                if (event.index, event.version) == (settings.index, version):
                    found = event
    return found


def pause(
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    index: cli.Index = None,
) -> None:
    """Stop automatic retraining and rollout of the index."""
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, index=index)
    _wish(settings, topics.COMMANDS, Pause(**_head(settings), paused=True, reason=reason))


def resume(
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    index: cli.Index = None,
) -> None:
    """Let automatic retraining and rollout go on."""
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, index=index)
    _wish(settings, topics.COMMANDS, Pause(**_head(settings), paused=False, reason=reason))


def forget_user(
    split_key: Annotated[str, typer.Argument(help="The user's or session's split key, as the app sends it.")],
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    index: cli.Index = None,
) -> None:
    """Form no more examples from what this user does, and train on none of them."""
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, index=index)
    _wish(settings, topics.COMMANDS, ForgetUser(**_head(settings), split_key=codec.short_key(split_key)))


def _head(settings: Settings) -> dict[str, Any]:
    """What every command begins with."""
    return {"command_id": codec.new_id(), "index": settings.index, "issued_at": codec.now()}
