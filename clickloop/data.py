"""Commands that move data between files and topics."""

from __future__ import annotations

import sys
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from clickloop import cli, codec, topics
from clickloop.documents import document_text
from clickloop.errors import ClickloopError, SettingsError
from clickloop.events import DocumentChanged
from clickloop.exporting import COLUMNS, Filter, Shape, collected, read_topics
from clickloop.files import FORMATS, writer
from clickloop.generating import example, generate
from clickloop.importing import AT_ONCE, Rejects, Report, check_apart, read_files, send
from clickloop.kafka import Producer
from clickloop.model_export import MODEL_FORMS, write_model
from clickloop.model_store import ModelStore
from clickloop.recorded import of_one_index, read_documents
from clickloop.service import missing
from clickloop.settings import ArtifactSettings, GenerateSettings, Settings, load_mappings
from clickloop.sources import Mapping, Sources
from clickloop.versions import known

IMPORTED = (topics.QUERIES, topics.CLICKS, topics.RATINGS, topics.DOCUMENTS)
PROGRESS_SECONDS = 5.0

Choice = TypeVar("Choice", bound=str)


def add_to(app: typer.Typer) -> None:
    app.command("import")(import_files)
    app.command("export")(export)
    app.command("generate")(generate_pairs)


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
        if rejected:
            check_apart("--rejected", rejected, files)
        with Rejects(rejected, _say) as reject:
            if dry_run:
                return await send(found, None, reject=reject, progress=_Progress())
            async with Producer(settings.bootstrap_servers, prefix=settings.topic_prefix, source="import") as out:
                return await send(found, out, reject=reject, progress=_Progress())

    report = cli.finish(work())
    typer.echo(report.line(dry_run=dry_run))
    if report.rejected:
        raise typer.Exit(1)


def export(
    version: Annotated[str, typer.Argument(help="Version to export; without it, the examples.")] = "",
    shape: Annotated[Shape | None, typer.Option("--format", help="What a row of the examples is.")] = None,
    form: Annotated[
        str | None,
        typer.Option("--as", help=f"{', '.join(FORMATS)}; of a version {', '.join(MODEL_FORMS)}."),
    ] = None,
    since: Annotated[str, typer.Option(help="Only what was served at this time or later (RFC 3339).")] = "",
    until: Annotated[str, typer.Option(help="Only what was served before this time.")] = "",
    min_weight: Annotated[float, typer.Option(min=0.0, max=1.0, help="Least weight of an example.")] = 0.0,
    quantize: Annotated[bool, typer.Option("--quantize", help="A version's weights in 8 bits.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="File; without it standard output. Of a version a new folder, VERSION-FORMAT."),
    ] = None,
    store_url: cli.StoreUrl = None,
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    index: cli.Index = None,
) -> None:
    """Write training data for other trainers: each example's last revision, with its documents' texts.

    With VERSION, write that model for other programs: loaded again and compared before it is there.
    """
    if version:
        of_examples: dict[str, object] = {
            "--format": shape,
            "--since": since,
            "--until": until,
            "--min-weight": min_weight,
        }
        cli.checked(lambda: _refuse(of_examples, "is about examples, and a version is named"))
        _say(cli.checked(lambda: _export_model(version, _one_of(form, MODEL_FORMS), output, quantize, store_url)))
        return
    of_versions: dict[str, object] = {"--quantize": quantize, "--store-url": store_url}
    cli.checked(lambda: _refuse(of_versions, "is about a version, and none is named"))
    kind = cli.checked(lambda: _one_of(form or "jsonl", FORMATS))
    rows = cli.checked(lambda: _shape(shape))

    async def work() -> str:
        settings = Settings.load(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, index=index)
        wanted = Filter(_time("--since", since), _time("--until", until), min_weight)
        with collected(settings.index, Sources(settings.index, load_mappings())) as found:
            with writer(output, kind, COLUMNS[rows]) as write:
                await read_topics(settings.bootstrap_servers, prefix=settings.topic_prefix, into=found)
                count = 0
                for row in found.rows(rows, wanted):
                    write(row)
                    count += 1
            for line in found.unreadable[: Rejects.SHOWN]:
                _say(line)
            examples, gone = found.counts(wanted)
        return f"{count:,} {rows} from {examples:,} examples; {gone:,} of them of documents that are not there"

    _say(cli.finish(work()))


def _export_model(version: str, form: str, output: Path | None, quantize: bool, store_url: str | None) -> str:
    settings = ArtifactSettings.load(store_url=store_url)
    store = ModelStore(settings.store_url, public_key=settings.public_key)
    known(store, version)
    return write_model(store, version, form, output or Path(f"{version}-{form}"), quantize=quantize)


def _refuse(options: dict[str, object], reason: str) -> None:
    for option, value in options.items():
        if value:
            raise SettingsError(f"{option} {reason}")


def _one_of(form: str | None, known_ones: tuple[Choice, ...]) -> Choice:
    for one in known_ones:
        if form == one:
            return one
    hint = ""
    if form in MODEL_FORMS:
        hint = "; name the version to write a model"
    elif form in FORMATS:
        hint = "; leave the version out for examples"
    raise SettingsError(f"--as {form or '(nothing)'}: choose one of {', '.join(known_ones)}{hint}")


def _shape(shape: Shape | None) -> Shape:
    if shape is None:
        raise SettingsError(f"--format is needed, one of {', '.join(COLUMNS)}; a model needs its VERSION")
    return shape


def _time(option: str, text: str) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{option} {text}: no time such as 2026-03-02 or 2026-03-02T09:15:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def generate_pairs(
    documents: Annotated[Path, typer.Option(help="JSON Lines, CSV or Parquet with doc_id, title and text.")],
    output: Annotated[Path | None, typer.Option(help="File for the pairs, JSON Lines.")] = None,
    send_them: Annotated[bool, typer.Option("--send", help="Send them as synthetic examples.")] = False,
    mapping: Annotated[str, typer.Option(help="Mapping [sources.NAME] of the settings file.")] = "",
    model: Annotated[str, typer.Option(help="Query generator: a sequence-to-sequence model or its folder.")] = "",
    bootstrap_servers: cli.BootstrapServers = None,
    topic_prefix: cli.TopicPrefix = None,
    index: cli.Index = None,
) -> None:
    """Make queries from the documents themselves, so that a first model can train before the first click."""

    async def work() -> str:
        settings = GenerateSettings.load(
            bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, index=index
        )
        sources = Sources(settings.index, _chosen([mapping] if mapping else []))
        if output:
            check_apart("--output", output, [documents])
        found = _documents(documents, sources, settings.index)
        most, seed = settings.queries_per_document, settings.seed
        asked = _asked(model, found, most, seed) if model else None
        pairs = generate(found, per_document=most, seed=seed, asked=asked)
        if len(pairs) < settings.min_examples:
            raise ClickloopError(
                f"{len(pairs)} pairs from {len(found)} documents: too few to learn from, "
                f"{settings.min_examples} are needed (min_examples)"
            )
        if output or not send_them:
            with writer(output, "jsonl", [("query", str), ("doc_id", str), ("kind", str)]) as write:
                for pair in pairs:
                    write({"query": pair.query, "doc_id": pair.doc_id, "kind": pair.kind})
        if send_them:
            now, weight = codec.now(), settings.synthetic_weight
            async with Producer(
                settings.bootstrap_servers, prefix=settings.topic_prefix, source="generate"
            ) as producer:
                for first in range(0, len(pairs), AT_ONCE):
                    made = [
                        example(p, index=settings.index, weight=weight, now=now) for p in pairs[first:][:AT_ONCE]
                    ]
                    await producer.send_all((topics.TRAINING_EXAMPLES, one) for one in made)
        kinds = Counter(pair.kind for pair in pairs)
        counts = ", ".join(f"{count:,} from a {kind}" for kind, count in sorted(kinds.items()))
        done = "sent as synthetic examples" if send_them else "made, none sent"
        return f"{len(pairs):,} pairs {done}, from {len(found):,} documents: {counts}"

    _say(cli.finish(work()))


def _asked(model: str, documents: list[DocumentChanged], most: int, seed: int) -> dict[str, list[str]]:
    """What a model asks of each document. Raises SettingsError where no installed service can run one."""
    for point in entry_points(group="clickloop.query_generators"):
        try:
            texts = [document_text(document.title, document.text) for document in documents]
            queries = point.load()(model, texts, per_document=most, seed=seed)
        except ModuleNotFoundError as error:
            raise SettingsError(f"--model {model}: {missing(error, extra='trainer')}") from None
        return {document.doc_id: of_it for document, of_it in zip(documents, queries, strict=True)}
    raise SettingsError(f"--model {model}: no query generator is installed; pip install 'clickloop[trainer]'")


def _documents(path: Path, sources: Sources, index: str) -> list[DocumentChanged]:
    """The index' documents that the last row of each id leaves. Raises SettingsError for a row that is none."""

    def refuse(place: str, reason: str) -> None:
        raise SettingsError(f"{place}: {reason}")

    found = read_documents(path, sources, now=codec.now(), unusable=refuse)
    documents = of_one_index(path, found, index)
    if others := sum(map(len, found.values())) - len(documents):
        print(f"{path}: {others:,} documents of other indexes left out", file=sys.stderr)
    return list(documents.values())


class _Progress:
    """A line on standard error every few seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, report: Any) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            print(f"{report.rows:,} rows read ...", file=sys.stderr, flush=True)
