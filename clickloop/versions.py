"""``clickloop versions``: what the model store holds, where it comes from, and what may go.

Everything here works from the store alone. Which traffic a version got is on the topic ``traffic-splits``; where
no broker answers, that is said instead.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from clickloop import accounts, cli, codec, topics
from clickloop.admin import Json, read_topic, show_table
from clickloop.base_model import base_model_folder
from clickloop.errors import ArtifactError, BrokerError, ClickloopError, SettingsError
from clickloop.events import ModelVersionPublished, SplitChanged
from clickloop.manifest import MANIFEST, SIGNATURE, VERSION_NAME, Manifest, sign
from clickloop.model_store import ModelStore, Published
from clickloop.retention import Traffic, followed, newest_splits, plan, traffic_of
from clickloop.settings import ArtifactSettings

versions_app = typer.Typer(help="List, compare, verify and prune model versions.", no_args_is_help=True)

Version = Annotated[str, typer.Argument(help="Name from 'versions list'.")]


def add_to(app: typer.Typer) -> None:
    app.add_typer(versions_app, name="versions")


def open_store(settings: ArtifactSettings, *, cache: Path | None = None) -> ModelStore:
    return ModelStore(settings.store_url, cache=cache, public_key=settings.public_key)


def _open(store_url: str | None, **flags: Any) -> tuple[ModelStore, ArtifactSettings]:
    settings = cli.checked(lambda: ArtifactSettings.load(store_url=store_url, **flags))
    return cli.checked(lambda: open_store(settings)), settings


def known(store: ModelStore, version: str) -> Manifest:
    """The version's manifest. Raises SettingsError for a name that the store doesn't have."""
    if not VERSION_NAME.fullmatch(version) or not store.has(version):
        raise SettingsError(f"{store.url} has no version {version!r}; 'clickloop versions list' shows what it has")
    return store.manifest(version)


def _held(store: ModelStore, unreadable: Callable[[ArtifactError], None]) -> dict[str, tuple[Manifest, datetime]]:
    """Every version, and when it was complete, oldest first. ``unreadable`` is told of what can't be read."""
    found: dict[str, tuple[Manifest, datetime]] = {}
    for name in store.versions():
        try:
            found[name] = (store.manifest(name), store.created(name))
        except ArtifactError as error:
            unreadable(error)
    return {name: found[name] for name in sorted(found, key=lambda n: (found[n][1], n))}


@versions_app.command("list")
def versions_list(store_url: cli.StoreUrl = None, as_json: Json = False) -> None:
    """Show the versions that the store holds, oldest first."""
    store, _ = _open(store_url)
    found = cli.checked(lambda: _held(store, lambda error: typer.echo(str(error), err=True)))
    if not found:
        typer.echo(f"{store.url} holds no version", err=True)
    if as_json:
        for manifest, created in found.values():
            typer.echo(_json(manifest, created=created, stored_bytes=manifest.stored_bytes))
        return
    columns = ["version", "kind", "parent", "space", "verdict", "MRR@10", "size", "created"]
    show_table("Versions", columns, (_row(manifest, created) for manifest, created in found.values()))


def _row(manifest: Manifest, created: datetime) -> list[str]:
    return [
        manifest.version,
        manifest.kind,
        manifest.parent or "-",
        manifest.space,
        manifest.gate.verdict if manifest.gate else "-",
        accounts.mrr_of(manifest.gate),
        accounts.size(manifest.stored_bytes),
        accounts.when(created),
    ]


def _json(manifest: Manifest, **more: Any) -> str:
    """The manifest as one line, with ``more`` beside its own fields."""
    return msgspec.json.encode(msgspec.to_builtins(manifest) | more).decode()


@versions_app.command("show")
def versions_show(version: Version, store_url: cli.StoreUrl = None, as_json: Json = False) -> None:
    """Show what a version is made of, where it comes from, and what the gate measured, before and after."""
    store, _ = _open(store_url)
    manifest = cli.checked(lambda: known(store, version))
    if as_json:
        typer.echo(codec.pretty(manifest))
        return
    created = cli.checked(lambda: store.created(version))
    typer.echo(f"{version} ({manifest.kind})")
    _say([("space", manifest.space), ("encoder", manifest.encoder), *accounts.origin_lines(manifest)])
    files = ", ".join(f"{name} {accounts.size(entry.bytes)}" for name, entry in manifest.files.items())
    _say([("stored", f"{accounts.size(manifest.stored_bytes)}: {files}")])
    _say([("created", accounts.when(created))])
    if manifest.gate is not None and manifest.gate.metrics:
        show_table("Gate", accounts.GATE_COLUMNS, accounts.gate_rows(manifest.gate))


def _say(lines: Iterable[tuple[str, str]]) -> None:
    for label, text in lines:
        typer.echo(f"  {label:<11}{cli.printable(text)}")


@versions_app.command("lineage")
def versions_lineage(
    version: Version,
    store_url: cli.StoreUrl = None,
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    as_json: Json = False,
) -> None:
    """Show where a version comes from, up to the base: command, offsets, counts, gate, and the traffic it got."""
    store, settings = _open(store_url, bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    found = cli.checked(lambda: _ancestry(store, version))
    splits: list[SplitChanged] | None = None
    reason = ""
    try:
        splits = asyncio.run(_splits(settings))
    except ClickloopError as error:
        reason = str(error)
        if bootstrap_servers is not None:
            typer.echo(f"clickloop: {error}", err=True)
            raise typer.Exit(1) from None
    for manifest, removed in found:
        got = None if splits is None else list(accounts.split_lines(manifest.version, splits))
        if as_json:
            typer.echo(_json(manifest, removed=removed, rollout=got))
            continue
        gone = ", removed from the store" if removed else ""
        typer.echo(f"{cli.printable(manifest.version)} ({manifest.kind}){gone}")
        _say(accounts.origin_lines(manifest))
        for text in [f"unknown: {reason}"] if got is None else got or ["no traffic, as far as the log tells"]:
            _say([("rollout", text)])


def _ancestry(store: ModelStore, version: str) -> list[tuple[Manifest, bool]]:
    """The version, its parent, and so on to the base, each with whether it was removed. Raises ArtifactError."""
    found: dict[str, tuple[Manifest, bool]] = {}
    current: str | None = version
    while current is not None:
        if current in found:
            raise ArtifactError(f"{version}: its lineage goes in a circle at {current}")
        removed = not (VERSION_NAME.fullmatch(current) and store.has(current))
        past = store.remembered(current) if removed and VERSION_NAME.fullmatch(current) else None
        manifest = past or known(store, current)
        found[current] = (manifest, removed)
        current = manifest.parent
    return list(found.values())


async def _splits(settings: ArtifactSettings) -> list[SplitChanged]:
    return [split for _, split in await read_topic(settings, topics.TRAFFIC_SPLITS, SplitChanged)]


async def _published(settings: ArtifactSettings) -> list[ModelVersionPublished]:
    return [event for _, event in await read_topic(settings, topics.MODEL_VERSIONS, ModelVersionPublished)]


@versions_app.command("diff")
def versions_diff(
    version: Version,
    other: Annotated[str, typer.Argument(help="The version to compare it with.")],
    store_url: cli.StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Show the settings, the lineage and the gate's figures in which two versions differ."""
    store, _ = _open(store_url)
    one, two = cli.checked(lambda: (known(store, version), known(store, other)))
    rows = list(accounts.differences(one, two))
    if as_json:
        for name, left, right in rows:
            typer.echo(msgspec.json.encode({"field": name, version: left, other: right}))
        return
    show_table("Differences", ["field", version, other], rows)


@versions_app.command("verify")
def versions_verify(version: Version, store_url: cli.StoreUrl = None) -> None:
    """Read a version from the store and check every digest, and the signature where a public key is set."""
    store, settings = _open(store_url)
    cli.checked(lambda: known_name(version))

    def read_through() -> Manifest:
        # A copy of another time would answer in place of the store.
        try:
            with tempfile.TemporaryDirectory(prefix="clickloop-verify-") as cache:
                return open_store(settings, cache=Path(cache)).fetch(version)[1]
        except ArtifactError as error:
            typer.echo(f"refused: {error}", err=True)
            raise typer.Exit(1) from None

    manifest = cli.checked(read_through)
    typer.echo(f"{version}: {len(manifest.fetched)} files match their digests ({store.uri(version)})")


def known_name(version: str) -> None:
    if not VERSION_NAME.fullmatch(version):
        raise SettingsError(f"{version!r} is no version's name")


@versions_app.command("publish-base")
def versions_publish_base(
    base_model: Annotated[str | None, typer.Option(help="sentence-transformers name or folder.")] = None,
    store_url: cli.StoreUrl = None,
    private_key: Annotated[
        str, typer.Option(help="Ed25519 private key, base64, to sign with.", envvar="CLICKLOOP_PRIVATE_KEY")
    ] = "",
) -> None:
    """Publish the base model, before the services start. If a key is given, what is there is signed, too."""
    _, settings = _open(store_url, base_model=base_model)

    def work() -> str:
        folder, name = base_model_folder(settings.base_model), settings.base_model
        store = ModelStore(settings.store_url, private_key=private_key)
        published = store.ensure_base(folder, name=name)
        if private_key and not _is_signed(store, published, private_key):
            with tempfile.TemporaryDirectory(prefix="clickloop-base-") as scratch:
                ours = ModelStore(scratch, private_key=private_key).ensure_base(folder, name=name)
            _sign_as(ours, published, store)
        return published.uri

    typer.echo(cli.checked(work))


def _is_signed(store: ModelStore, published: Published, private_key: str) -> bool:
    raw = store.read(f"versions/{published.manifest.version}/{MANIFEST}") or b""
    return published.signature == sign(raw, private_key)


def _sign_as(ours: Published, published: Published, store: ModelStore) -> None:
    """Give what is in the store the signature of what we have made. Raises ArtifactError where they differ."""
    if published.digest != ours.digest:
        raise ArtifactError(
            f"{published.uri} was there already, and is not what this base model gives here, so it is not signed: "
            "take it away and publish again, or publish into another store"
        )
    store.write(f"versions/{published.manifest.version}/{SIGNATURE}", ours.signature.encode())


@versions_app.command("prune")
def versions_prune(
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions stay in any case.")],
    live: Annotated[
        list[str] | None,
        typer.Option(help="Version that gets traffic, in place of what the splits say. Repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    store_url: cli.StoreUrl = None,
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    index: cli.Index = None,
) -> None:
    """Remove old versions; never one that gets traffic, can be rolled back to, or is part of one that stays."""
    store, settings = _open(store_url, bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, index=index)
    held = cli.checked(lambda: _held(store, _not_pruned))
    manifests = {name: manifest for name, (manifest, _) in held.items()}
    traffic = cli.checked(lambda: _named(live, manifests) if live else _traffic(settings, store, manifests))
    found = plan(manifests, {name: created for name, (_, created) in held.items()}, keep=keep, traffic=traffic)
    rows = [[name, "stays", accounts.size(manifests[name].stored_bytes), why] for name, why in found.keep.items()]
    fate = "would go" if dry_run else "removed"
    for name in found.remove:
        if not dry_run:
            cli.checked(lambda gone=name: store.remove(gone))  # type: ignore[misc]
        rows.append([name, fate, accounts.size(manifests[name].stored_bytes), ""])
    show_table("Versions", ["version", "fate", "size", "why"], rows)
    if not dry_run:
        for name in cli.checked(lambda: store.sweep(now=datetime.now(UTC))):
            typer.echo(f"swept {name}", err=True)
    freed = accounts.size(sum(manifests[name].stored_bytes for name in found.remove))
    typer.echo(f"{len(found.remove)} {fate}, {freed}; {len(found.keep)} stay", err=True)


def _not_pruned(error: ArtifactError) -> None:
    raise ArtifactError(f"{error}; what it is made of can't be told, so nothing is removed")


def _named(live: list[str], manifests: dict[str, Manifest]) -> Traffic:
    """Raises SettingsError for a version that the store doesn't have."""
    for name in live:
        if name not in manifests:
            raise SettingsError(f"--live {name}: the store has no such version")
    return Traffic(frozenset(live))


def _traffic(settings: ArtifactSettings, store: ModelStore, manifests: dict[str, Manifest]) -> Traffic:
    """What the splits say of every index; of one that has none, what passed last.

    Raises SettingsError where that doesn't tell what is live.
    """
    advice = "name what gets traffic by --live VERSION"
    try:
        splits, published = asyncio.run(_splits(settings)), asyncio.run(_published(settings))
    except BrokerError as error:
        raise SettingsError(f"what is live can't be told: {error}; {advice}") from None
    newest = newest_splits(splits)
    if settings.index not in newest:
        raise SettingsError(f"what is live can't be told: index {settings.index!r} has no split; {advice}")
    for index, split in newest.items():
        serving = {arm.version for arm in split.arms}
        gone = serving - manifests.keys()
        if gone and (index == settings.index or gone != serving):
            raise SettingsError(
                f"{store.url} has no {min(gone)}, which gets traffic of index {index!r}: another store? {advice}"
            )
        if gone:
            typer.echo(f"nothing that index {index!r} serves is in {store.url}: another store?", err=True)
    return replace(traffic_of(splits), followed=followed(published, split=newest, held=manifests))
