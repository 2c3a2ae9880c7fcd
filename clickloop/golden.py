"""The golden set: queries of the operators' own, with what they must find. No version may lose on it.

It is one JSON Lines object an index in the model store, ``golden/<index>.jsonl``, in the form of judged queries
(``{"query", "relevant": {doc_id: grade}, "slice"?}``). Its digest is in the result of every gate that used it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from clickloop import cli
from clickloop.admin import Json, show_table
from clickloop.errors import ArtifactError, SettingsError
from clickloop.files import rows
from clickloop.model_store import ModelStore
from clickloop.recorded import GRADES, MOST_GRADE, Judged, judged_of
from clickloop.settings import ArtifactSettings
from clickloop.text import normal_text

golden_app = typer.Typer(help="Keep the queries that no version may get worse at.", no_args_is_help=True)


@dataclass(frozen=True)
class GoldenSet:
    judged: list[Judged]
    """In the order in which they were added; one a normal query text."""

    def encoded(self) -> bytes:
        return b"".join(msgspec.json.encode(one) + b"\n" for one in self.judged)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.encoded()).hexdigest()

    def within(self, documents: Collection[str]) -> list[Judged]:
        """The queries with what of their relevant documents is there; those with none are left out."""
        kept = []
        for one in self.judged:
            relevant = {doc_id: grade for doc_id, grade in one.relevant.items() if doc_id in documents}
            if relevant:
                kept.append(msgspec.structs.replace(one, relevant=relevant))
        return kept

    def with_added(self, new: Iterable[Judged]) -> GoldenSet:
        """The same query again takes the place of the earlier one."""
        found = {normal_text(one.query): one for one in self.judged}
        found.update((normal_text(one.query), one) for one in new)
        return GoldenSet(list(found.values()))

    def without(self, queries: Sequence[str]) -> GoldenSet:
        """Raises SettingsError for a query that is not in the set."""
        gone = {normal_text(query): query for query in queries}
        for text in {normal_text(one.query) for one in self.judged} & gone.keys():
            del gone[text]
        if gone:
            raise SettingsError(f"the golden set has no query {next(iter(gone.values()))!r}")
        wanted = {normal_text(query) for query in queries}
        return GoldenSet([one for one in self.judged if normal_text(one.query) not in wanted])


def read_golden(store: ModelStore, index: str) -> GoldenSet:
    """The index's golden set, empty where it has none. Raises ArtifactError."""
    name = _name(index)
    raw = store.read(name) or b""
    try:
        return GoldenSet([_checked(msgspec.json.decode(line, type=Judged)) for line in raw.splitlines()])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, SettingsError) as error:
        raise ArtifactError(f"{store.url}/{name} is no golden set: {error}") from None


def write_golden(store: ModelStore, index: str, golden: GoldenSet) -> None:
    """Raises ArtifactError. Of two at once the last one stays."""
    store.write(_name(index), golden.encoded())


def _name(index: str) -> str:
    return f"golden/{index}.jsonl"


def _checked(one: Judged) -> Judged:
    """Raises SettingsError for a query that can't be measured."""
    if not normal_text(one.query):
        raise SettingsError(f"{one.query!r} is no query")
    try:
        written = msgspec.json.encode(one)
    except UnicodeEncodeError:
        raise SettingsError(f"{one.query!r}: the query or a document's id is no UTF-8") from None
    if not one.relevant:
        raise SettingsError(f"{one.query!r} has no relevant document")
    for doc_id, grade in one.relevant.items():
        if not doc_id or not 0.0 < grade <= MOST_GRADE:
            raise SettingsError(f"{one.query!r}: document {doc_id!r} with grade {grade:g}; {GRADES}")
    try:
        return msgspec.json.decode(written, type=Judged)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{one.query[:40]!r} could not be read again: {error}") from None


def add_to(app: typer.Typer) -> None:
    app.add_typer(golden_app, name="golden")


def _opened(store_url: str | None, index: str | None) -> tuple[ModelStore, str]:
    settings = ArtifactSettings.load(store_url=store_url, index=index)
    return ModelStore(settings.store_url), settings.index


@golden_app.command("add")
def golden_add(
    query: Annotated[str, typer.Argument(help="Text of the query.")] = "",
    document: Annotated[
        list[str] | None, typer.Option(help="Relevant document, ID or ID=GRADE. Repeatable.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Judged queries: JSON Lines, CSV or Parquet.")] = None,
    store_url: cli.StoreUrl = None,
    index: cli.Index = None,
) -> None:
    """Add a query with its relevant documents, or a file of them. The same query again replaces it."""

    def work() -> str:
        if bool(query) == bool(file) or (file and document):
            raise SettingsError("name either a QUERY with --document, or a --file")
        new = _judged(file) if file else [_checked(Judged(query, dict(_graded(d) for d in document or [])))]
        store, name = _opened(store_url, index)
        before = read_golden(store, name)
        after = before.with_added(new)
        write_golden(store, name, after)
        added = len(after.judged) - len(before.judged)
        return (
            f"{added} added, {len(new) - added} replaced; the golden set of {name} has {len(after.judged)} queries"
        )

    typer.echo(cli.checked(work))


def _graded(text: str) -> tuple[str, float]:
    doc_id, equals, grade = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return doc_id, float(grade)
    except ValueError:
        return text, 1.0  # an id with an equals sign in it


def _judged(path: Path) -> list[Judged]:
    """All of the file's, or none. Raises SettingsError."""
    found = []
    for row in rows(path):
        if row.value is None:
            raise SettingsError(f"{row.place}: {row.reason}")
        try:
            found.append(_checked(judged_of(row.value)))
        except SettingsError as error:
            raise SettingsError(f"{row.place}: {error}") from None
    if not found:
        raise SettingsError(f"{path} holds no query")
    return found


@golden_app.command("list")
def golden_list(store_url: cli.StoreUrl = None, index: cli.Index = None, as_json: Json = False) -> None:
    """Show the queries and what they must find."""
    golden = cli.checked(lambda: read_golden(*_opened(store_url, index)))
    if as_json:
        typer.echo(golden.encoded(), nl=False)
        return
    columns = ["query", "relevant documents", "slice"]
    show_table("Golden set", columns, ([one.query, _documents(one), one.slice or "-"] for one in golden.judged))


def _documents(one: Judged) -> str:
    return ", ".join(doc_id if grade == 1.0 else f"{doc_id}={grade:g}" for doc_id, grade in one.relevant.items())


@golden_app.command("remove")
def golden_remove(
    queries: Annotated[list[str], typer.Argument(help="Texts of queries.")],
    store_url: cli.StoreUrl = None,
    index: cli.Index = None,
) -> None:
    """Take queries out of the set."""

    def work() -> str:
        store, name = _opened(store_url, index)
        after = read_golden(store, name).without(queries)
        write_golden(store, name, after)
        return f"the golden set of {name} has {len(after.judged)} queries"

    typer.echo(cli.checked(work))
