"""Rows of JSON Lines, CSV and Parquet files, in and out, one at a time: a file may be larger than memory.

What comes in is one JSON object a row, as bytes, whatever the file is: a CSV column ``search.id`` becomes ``id``
within ``search``, an empty cell is left out, and a cell that begins like a JSON list or object is read as one.
"""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import msgspec

from clickloop.codec import MAX_MESSAGE_BYTES
from clickloop.errors import SettingsError
from clickloop.service import missing

Format = Literal["jsonl", "csv", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
BATCH = 1000
BYTES = "sketch"
"""The one field of our messages that is bytes, which JSON has as base64; all others are text."""
_SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Row:
    """One row. ``value`` is None where it can't be read at all, and ``reason`` says why."""

    place: str
    """File and line (of Parquet: row), counted from 1."""
    original: bytes
    """As it lies in the file; of Parquet as JSON."""
    value: bytes | None
    reason: str = ""


def rows(path: Path) -> Iterator[Row]:
    """The file's rows in order. Raises SettingsError where the file as a whole can't be read."""
    form = _SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise SettingsError(f"{path}: the name must end in one of {', '.join(_SUFFIXES)}")
    readers: dict[Format, Callable[[Path], Iterator[Row]]] = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}
    try:
        yield from readers[form](path)
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror or error}") from None


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_MESSAGE_BYTES + 2):
            number += 1
            place, text = f"{path}:{number}", line.rstrip(b"\r\n")
            if text == line and len(line) > MAX_MESSAGE_BYTES:
                while (rest := stream.readline(MAX_MESSAGE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield Row(place, text[:1000], None, f"a line of more than {MAX_MESSAGE_BYTES} bytes (cut here)")
                continue
            if number == 1:
                text = text.removeprefix(codecs.BOM_UTF8)
            if text.strip():
                yield Row(place, text, text)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_MESSAGE_BYTES)
    taken: list[str] = []

    def lines(stream: IO[str]) -> Iterator[str]:
        for line in stream:
            taken.append(line)
            yield line

    # Bytes that are no UTF-8 stay in the text as lone surrogates, so that the row can be given back as it was.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(lines(stream), strict=True)
        header: list[str] | None = None
        while True:
            taken.clear()
            line, cells, reason = reader.line_num + 1, list[str](), ""
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = f"no readable CSV: {error}"
                if reader.line_num > line:
                    reason += f"; lines {line} to {reader.line_num} are one row: is a quote not closed?"
            original = "".join(taken).encode("utf-8", "surrogateescape").rstrip(b"\r\n")
            place = f"{path}:{line}"
            if header is None:
                if reason:
                    raise SettingsError(f"{place}: {reason}")
                header = _header(cells, place) or None
            elif not reason and any(cells[len(header) :]):
                yield Row(place, original, None, f"{len(cells)} cells, but the header names {len(header)} columns")
            elif reason or cells:
                yield _encoded(place, dict(zip(header, map(_cell, cells), strict=False)), original, reason)


def _header(cells: Sequence[str], place: str) -> list[str]:
    """The columns' names, without the empty ones that spreadsheets put behind the last. Raises SettingsError."""
    names = [name.strip() for name in cells]
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names, start=1):
        if not name:
            raise SettingsError(f"{place}: column {number} has no name in the header")
        if name in names[: number - 1]:
            raise SettingsError(f"{place}: the column {name!r} occurs twice in the header")
    return names


def _cell(text: str) -> Any:
    if not text.startswith(("[", "{")):
        return text or None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise SettingsError(missing(error, extra="files")) from None
    try:
        number = 0
        with pq.ParquetFile(path) as file:
            if len(set(file.schema_arrow.names)) != len(file.schema_arrow.names):
                raise SettingsError(f"{path}: two columns have one name")
            for batch in file.iter_batches(batch_size=BATCH):
                table = pa.Table.from_batches([batch])
                for place, field in enumerate(table.schema):
                    if pa.types.is_timestamp(field.type):
                        # Python's times have microseconds, and nanoseconds would be an error.
                        kind = pa.timestamp("us", tz=field.type.tz)
                        table = table.set_column(place, field.name, table.column(place).cast(kind, safe=False))
                for record, reason in _records(table):
                    number += 1
                    original = repr(record).encode("utf-8", "replace") if reason else b""
                    yield _encoded(f"{path}:{number}", record, original, reason)
    except pa.ArrowException as error:
        raise SettingsError(f"{path} is no readable Parquet file: {error!s:.200}") from None
    except LookupError as error:
        raise SettingsError(f"{path}: a column's time zone is not known: {error!s:.200}") from None


def _records(table: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Each row, and why it can't be used: Arrow holds what Python can't, as the year 10,000."""
    try:
        records = table.to_pylist()
    except (ValueError, OverflowError):
        yield from (_record(table.slice(place, 1)) for place in range(table.num_rows))
    else:
        yield from ((record, "") for record in records)


def _record(row: Any) -> tuple[dict[str, Any], str]:
    record, reason = dict[str, Any](), ""
    for name, column in zip(row.column_names, row.columns, strict=True):
        try:
            record[name] = column[0].as_py()
        except (ValueError, OverflowError) as error:
            record[name] = " ".join(column.combine_chunks().to_string().split())
            reason = f"{name} can't be read, {record[name]:.100}: {error}"
    return record, reason


def _encoded(place: str, record: dict[str, Any], original: bytes = b"", reason: str = "") -> Row:
    if reason:
        return Row(place, original, None, reason)
    try:
        value = msgspec.json.encode(_nested(record))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return Row(
            place, original or repr(record).encode("utf-8", "replace"), None, f"no JSON can hold it: {error}"
        )
    return Row(place, original or value, value)


def _nested(record: dict[str, Any]) -> dict[str, Any]:
    """Columns ``a.b`` as ``b`` within ``a``; values that are missing left out."""
    out: dict[str, Any] = {}
    for name, value in record.items():
        if value is None:
            continue
        if name != BYTES:
            value = _decoded(value, name)
        *parents, last = name.split(".")
        inside = out
        for parent in parents:
            inside = inside.setdefault(parent, {})
            if not isinstance(inside, dict):
                raise ValueError(f"the columns {parent!r} and {name!r} contradict each other")
        inside[last] = value
    return out


def _decoded(value: Any, name: str) -> Any:
    """Binary columns of Parquet as the text that they hold. Raises ValueError for what is none."""
    match value:
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise ValueError(f"{name} is binary, and no UTF-8 text") from None
        case list() | tuple():
            return [_decoded(inner, name) for inner in value]
        case dict():
            return {key: _decoded(inner, name) for key, inner in value.items()}
        case _:
            return value


Write = Callable[[dict[str, Any]], None]


@contextmanager
def writer(path: Path | None, form: Format, columns: Sequence[tuple[str, type]]) -> Iterator[Write]:
    """Yields a function that writes one row with just these columns. Without ``path``: to standard output.

    A file appears under its name once it is complete; a link stays, and what it points to is written. A pipe or a
    device gets the rows as they come. Text is UTF-8, whatever the locale. Raises SettingsError where it can't be
    written.
    """
    if path is None:
        if form == "parquet":
            raise SettingsError("Parquet needs a file: --output FILE")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        with _text(sys.stdout, form, columns) as write:
            yield write
        return
    try:
        if path.is_dir():
            raise SettingsError(f"{path} can't be written: it is a folder")
        as_it_comes = path.exists() and not path.is_file()
        target = path.resolve() if path.is_symlink() and not as_it_comes else path
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise SettingsError(f"{path} can't be written: {_reason(error)}") from None
    part = target if as_it_comes else target.with_name(f".{target.name}.part")
    try:
        with _opened(part, form, columns) as write:
            yield write
        if not as_it_comes:
            part.replace(target)
    except OSError as error:
        raise SettingsError(f"{path} can't be written: {_reason(error)}") from None
    finally:
        if not as_it_comes:
            with suppress(OSError):  # where it could not be written
                part.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


@contextmanager
def _opened(path: Path, form: Format, columns: Sequence[tuple[str, type]]) -> Iterator[Write]:
    if form == "parquet":
        with path.open("wb") as file, _parquet_writer(file, columns) as write:
            yield write
    else:
        with path.open("w", encoding="utf-8", newline="") as stream, _text(stream, form, columns) as write:
            yield write


@contextmanager
def _text(stream: IO[str], form: Format, columns: Sequence[tuple[str, type]]) -> Iterator[Write]:
    names = [name for name, _ in columns]
    if form == "csv":
        table = csv.DictWriter(stream, names, lineterminator="\n")
        # The csv module quotes its own line's end alone, and every reader takes "\r" for one too.
        quoted = csv.DictWriter(stream, names, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        table.writeheader()
        yield lambda row: (quoted if any("\r" in str(row[n]) for n in names) else table).writerow(row)
    else:
        yield lambda row: print(msgspec.json.encode({n: row[n] for n in names}).decode(), file=stream)


@contextmanager
def _parquet_writer(stream: IO[bytes], columns: Sequence[tuple[str, type]]) -> Iterator[Write]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise SettingsError(missing(error, extra="files")) from None
    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns])
    waiting: list[dict[str, Any]] = []
    with pq.ParquetWriter(stream, schema, compression="zstd") as file:

        def write(row: dict[str, Any]) -> None:
            waiting.append(row)
            if len(waiting) >= BATCH:
                file.write_table(pa.Table.from_pylist(waiting, schema=schema))
                waiting.clear()

        yield write
        if waiting:
            file.write_table(pa.Table.from_pylist(waiting, schema=schema))
