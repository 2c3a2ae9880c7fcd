"""Training data out of the log: last revisions only, with texts, in the shapes that other trainers read."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from clickloop import codec, topics
from clickloop.errors import BrokerError, SettingsError
from clickloop.events import DocumentChanged, ExampleFormed, Message
from clickloop.exporting import COLUMNS, Collected, Filter, Shape, collected, read_topics
from clickloop.files import FORMATS, Format, writer
from clickloop.files import rows as file_rows
from clickloop.kafka import Record
from clickloop.sources import Sources
from tests.unit.busy_topic import Silent, busy

AT = datetime(2026, 3, 2, tzinfo=UTC)
SHAPES: list[Shape] = ["pairs", "triplets", "preferences"]


def example(query_id: str, doc_id: str, **more: Any) -> ExampleFormed:
    values: dict[str, Any] = {
        "event_id": f"{query_id}/{doc_id}",
        "index": "default",
        "example_id": f"{query_id}/{doc_id}",
        "revision": 1,
        "query_id": query_id,
        "query": f"query {query_id}",
        "doc_id": doc_id,
        "label": "positive",
        "weight": 0.5,
        "served_at": AT,
        "formed_at": AT,
    }
    return ExampleFormed(**{**values, **more})


def document(doc_id: str, **more: Any) -> DocumentChanged:
    values = {"event_id": doc_id, "index": "default", "doc_id": doc_id, "changed_at": AT, "text": f"text {doc_id}"}
    return DocumentChanged(**{**values, **more})


@pytest.fixture
def found() -> Iterator[Collected]:
    with collected("default", Sources("default")) as collection:
        yield collection


def fill(found: Collected, *messages: Message) -> Collected:
    for number, message in enumerate(messages):
        topic = topics.DOCUMENTS if isinstance(message, DocumentChanged) else topics.TRAINING_EXAMPLES
        found.add(topic, Record(topic.suffix, 0, number, topic.key(message).encode(), codec.encode(message)))
    return found


def rows(found: Collected, shape: Shape, wanted: Filter | None = None) -> list[dict[str, Any]]:
    return list(found.rows(shape, wanted or Filter()))


def compared(found: Collected) -> list[tuple[str, str, str]]:
    return [(r["prompt"], r["chosen"], r["rejected"]) for r in rows(found, "preferences")]


def test_the_last_revision_counts_wherever_it_lies_and_what_weighs_nothing_is_left_out(found: Collected) -> None:
    second = example("q", "a", revision=2, weight=0.25)
    fill(found, document("a"), document("b"), second, example("q", "a"), second, example("q", "b", weight=0.0))
    assert rows(found, "pairs") == [
        {
            "query": "query q",
            "document": "text a",
            "label": 1,
            "weight": 0.25,
            "query_id": "q",
            "doc_id": "a",
            "origin": "clicks",
        }
    ]


def test_documents_are_as_they_are_now(found: Collected) -> None:
    fill(found, document("a"), document("a", text="new", title="Shoe"), document("b"), document("b", deleted=True))
    fill(found, example("q", "a"), example("q", "b"), example("q", "c"))
    found.add(topics.DOCUMENTS, Record("documents", 0, 9, b"a", None))
    assert rows(found, "pairs") == []
    fill(found, document("a", text="again", title="Shoe"))
    assert [row["document"] for row in rows(found, "pairs")] == ["Shoe\nagain"]
    assert found.counts(Filter()) == (3, 2)


def test_a_positive_was_preferred_to_what_was_passed_over_and_to_what_was_rated_low(found: Collected) -> None:
    fill(found, *(document(d) for d in "abcd"))
    fill(
        found,
        example("q", "a", negatives=["b", "c"]),
        example("q", "c", negatives=["b"]),
        example("q", "d", label="negative", rating=1.0),
        example("other", "b", label="negative", rating=1.0),
    )
    assert compared(found) == [
        ("query q", "text a", "text b"),
        ("query q", "text a", "text d"),
        ("query q", "text c", "text b"),
        ("query q", "text c", "text d"),
    ]
    assert [label for row in rows(found, "pairs") if (label := row["label"]) == 0] == [0, 0]
    assert len(rows(found, "triplets")) == 4


def test_what_was_named_as_worse_is_rejected_whatever_else_was_clicked_and_weighs_its_own(
    found: Collected,
) -> None:
    fill(found, *(document(d) for d in "abcde"))
    worse = {"b": 0.7, "c": 0.3, "d": 0.0, "e": 0.9}
    fill(
        found,
        example("q", "a", weight=0.1, negatives=["b", "c", "d", "e"], worse=worse),
        example("q", "b", negatives=["d"]),
        example("q", "e", label="negative", rating=1.0),
    )

    def told(wanted: Filter) -> list[tuple[str, str, float]]:
        found_rows = rows(found, "preferences", wanted)
        return [(row["chosen_id"], row["rejected_id"], row["weight"]) for row in found_rows]

    named = [("a", "b", 0.7), ("a", "c", 0.3), ("a", "e", 0.9)]
    assert told(Filter()) == [*named, ("b", "d", 0.5), ("b", "e", 0.5)]
    assert told(Filter(min_weight=0.5)) == [named[0], named[2], ("b", "d", 0.5), ("b", "e", 0.5)]


def test_examples_are_chosen_by_time_and_weight(found: Collected) -> None:
    fill(found, *(document(d) for d in "abc"))
    day = timedelta(days=1)
    for number, doc_id in enumerate("abc"):
        fill(found, example("q", doc_id, served_at=AT + number * day, weight=(number + 1) / 10))

    def ids(wanted: Filter) -> str:
        return "".join(row["doc_id"] for row in rows(found, "pairs", wanted))

    assert ids(Filter()) == "abc"
    assert ids(Filter(since=AT + day)) == "bc"
    assert ids(Filter(since=AT, until=AT + 2 * day)) == "ab"
    assert ids(Filter(min_weight=0.2)) == "bc"


def test_other_indexes_and_unreadable_records_stay_out_and_are_told(found: Collected) -> None:
    fill(found, document("a"), document("b", index="other"), example("q", "b"), example("q", "a", index="other"))
    found.add(topics.TRAINING_EXAMPLES, Record("training-examples", 2, 7, None, b"\xff"))
    assert rows(found, "pairs") == []
    assert found.unreadable[0].startswith("training-examples/2 offset 7: no readable JSON")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_every_shape_is_the_same_in_every_kind_of_file(
    found: Collected, tmp_path: Path, shape: Shape, form: Format
) -> None:
    fill(found, document("a", text='Größe, "5"\n🥾'), document("b"), example("q", "a", negatives=["b"]))
    path = tmp_path / f"out.{form}"
    expected = rows(found, shape)
    with writer(path, form, COLUMNS[shape]) as write:
        for row in expected:
            write(row)
    if form == "parquet":
        read = pq.read_table(path).to_pylist()
    elif form == "jsonl":
        read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    else:
        with path.open(encoding="utf-8", newline="") as stream:
            read = list(csv.DictReader(stream))
        expected = [{name: str(value) for name, value in row.items()} for row in expected]
    assert read == expected
    assert [list(row) for row in read] == [[name for name, _ in COLUMNS[shape]]]


@pytest.mark.parametrize("text", ["one\rtwo", "one\r\ntwo", "\r", 'say "\r", please'])
def test_a_carriage_return_in_a_text_begins_no_new_row_of_csv(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.csv"
    expected: list[dict[str, Any]] = [{"query": text, "label": 1}, {"query": "plain", "label": 0}]
    with writer(path, "csv", [("query", str), ("label", int)]) as write:
        for row in expected:
            write(row)
    with path.open(encoding="utf-8", newline="") as stream:
        assert list(csv.DictReader(stream)) == [{**row, "label": str(row["label"])} for row in expected]
    lines = pa_csv.ParseOptions(newlines_in_values=True)
    assert pa_csv.read_csv(path, parse_options=lines).to_pylist() == expected
    assert [json.loads(row.value or b"")["query"] for row in file_rows(path)] == [text, "plain"]
    assert path.read_bytes().endswith(b"\nplain,0\n")


def test_preferences_begin_with_the_columns_that_trl_reads() -> None:
    assert [name for name, _ in COLUMNS["preferences"]][:4] == ["prompt", "chosen", "rejected", "weight"]


def test_a_file_that_is_not_complete_is_not_there(tmp_path: Path) -> None:
    def fails() -> None:
        with writer(tmp_path / "out.csv", "csv", COLUMNS["pairs"]):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMATS)
def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path, form: Format) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link", tmp_path / "there" / f"rows.{form}"
    link.symlink_to(target)
    with writer(link, form, [("query", str)]) as write:
        write({"query": "one"})
    assert link.is_symlink()
    assert [json.loads(row.value or b"") for row in file_rows(target)] == [{"query": "one"}]
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("form", FORMATS)
def test_a_pipe_gets_the_rows_and_stays_a_pipe(tmp_path: Path, form: Format) -> None:
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    with writer(pipe, form, [("query", str)]) as write:
        write({"query": "one"})
    reader.join(20.0)
    assert pipe.is_fifo()
    (tmp_path / f"copy.{form}").write_bytes(read[0])
    assert [json.loads(row.value or b"") for row in file_rows(tmp_path / f"copy.{form}")] == [{"query": "one"}]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_device_that_is_full_is_a_users_mistake_and_stays() -> None:
    def fills() -> None:
        with writer(Path("/dev/full"), "jsonl", [("query", str)]) as write:
            write({"query": "one"})

    with pytest.raises(SettingsError, match="/dev/full can't be written: No space left"):
        fills()
    assert Path("/dev/full").is_char_device()


def test_links_in_a_circle_are_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(SettingsError, match="can't be written"), writer(tmp_path / "a", "jsonl", [("query", str)]):
        pass


def test_a_device_named_by_a_link_of_the_system_is_written() -> None:
    program = """
from pathlib import Path
from clickloop.files import writer
with writer(Path("/dev/stdout"), "jsonl", [("query", str)]) as write:
    write({"query": "one"})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b'{"query":"one"}\n', b"")


def test_standard_output_is_utf8_whatever_the_locale() -> None:
    program = """
from clickloop.files import writer
with writer(None, "jsonl", [("query", str)]) as write:
    write({"query": "caf\\u00e9 \\u65e5"})
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert done.stderr == b""
    assert done.stdout.decode() == '{"query":"caf\u00e9 \u65e5"}\n'


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ["no/x", "file/x", ".", "..", "/", "folder", "x" * 256])
def test_what_cannot_be_written_is_a_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: Format
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(SettingsError, match="can't be written: "),
        writer(Path(name), form, COLUMNS["pairs"]),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_parquet_is_not_written_to_standard_output() -> None:
    with pytest.raises(SettingsError, match="--output"), writer(None, "parquet", COLUMNS["pairs"]):
        pass


def test_a_number_that_no_table_holds_is_unreadable(found: Collected) -> None:
    fill(found, example("q1", "d1", revision=10**20), example("q2", "d2"))
    assert found.counts(Filter())[0] == 1
    assert len(found.unreadable) == 1


async def test_a_topic_that_is_written_to_all_the_time_is_read_to_where_it_ended(
    found: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = busy(topics.TRAINING_EXAMPLES, lambda number: example(f"q{number}", "d1"), held=3)
    monkeypatch.setattr("clickloop.exporting.Follower", follower)
    async with asyncio.timeout(10):
        await read_topics("nowhere:1", prefix="clickloop", into=found)
    assert found.counts(Filter())[0] == 3


async def test_a_topic_whose_broker_has_died_is_given_up(
    found: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clickloop.exporting.Follower", Silent)
    monkeypatch.setattr("clickloop.kafka.SILENT_SECONDS", 0.05)
    async with asyncio.timeout(2):
        with pytest.raises(BrokerError, match="stopped answering"):
            await read_topics("nowhere:1", prefix="clickloop", into=found)
