"""History from files: every row becomes a message or a rejected row with its place and reason."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from clickloop import codec, data, topics
from clickloop.errors import SettingsError
from clickloop.events import DocumentChanged, Message, QueryServed, ResultClicked
from clickloop.files import rows
from clickloop.importing import Read, Rejects, Report, read_files, send
from clickloop.sources import Sources

AT = datetime(2026, 3, 2, 9, 15, tzinfo=UTC)
CLICK = {"query_id": "q", "doc_id": "d", "clicked_at": "2026-03-02T09:15:09Z", "position": 2}
QUERY = {"query_id": "q", "user_query": "shoes", "query_response_hit_ids": ["a", "d"], "timestamp": AT.isoformat()}


def jsonl(path: Path, *records: Any) -> Path:
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read(*paths: Path, topic: topics.Topic | None = None) -> list[Read]:
    return list(read_files(paths, Sources("products"), topic, now=AT))


def messages(*paths: Path, topic: topics.Topic | None = None) -> list[Message]:
    found = read(*paths, topic=topic)
    assert [r.reason for r in found if r.message is None] == []
    return [r.message for r in found if r.message is not None]


def test_a_click_is_the_same_event_from_every_kind_of_file(tmp_path: Path) -> None:
    lines = jsonl(tmp_path / "a.jsonl", CLICK)
    table = tmp_path / "a.csv"
    table.write_text("query_id,doc_id,clicked_at,position\nq,d,2026-03-02T09:15:09Z,2\n")
    parquet = tmp_path / "a.parquet"
    at = datetime(2026, 3, 2, 9, 15, 9, tzinfo=UTC)
    pq.write_table(pa.Table.from_pylist([{**CLICK, "clicked_at": at}]), parquet)
    (one,), (two,), (three,) = messages(lines), messages(table), messages(parquet)
    assert one == two == three
    assert isinstance(one, ResultClicked)


def test_an_id_that_is_a_number_is_the_same_from_every_kind_of_file(tmp_path: Path) -> None:
    numbered = {**CLICK, "query_id": 81, "doc_id": 17}
    lines, table, parquet = tmp_path / "a.jsonl", tmp_path / "a.csv", tmp_path / "a.parquet"
    jsonl(lines, numbered)
    table.write_text("query_id,doc_id,clicked_at,position\n81,17,2026-03-02T09:15:09Z,2\n")
    pq.write_table(pa.Table.from_pylist([numbered]), parquet)
    (one,), (two,), (three,) = messages(lines), messages(table), messages(parquet)
    assert one == two == three


def test_csv_has_nested_columns_lists_and_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "ubi.csv"
    path.write_text(
        "\ufeffaction_name,query_id,timestamp,event_attributes.object.object_id,event_attributes.position.ordinal,"
        "user_query,query_response_hit_ids\n"
        "click,q,2026-03-02T09:15:09Z,d,,,\n"
        ',q,2026-03-02T09:15:00Z,,,"shoes, red","[""a"", ""d""]"\n',
        encoding="utf-8",
    )
    query, click = sorted(messages(path), key=lambda m: type(m).__name__)
    assert isinstance(query, QueryServed)
    assert (query.query, [r.doc_id for r in query.results]) == ("shoes, red", ["a", "d"])
    assert isinstance(click, ResultClicked)
    assert (click.doc_id, click.position) == ("d", None)


def test_parquet_has_lists_structures_and_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    rows_ = [{**QUERY, "timestamp": AT, "event": {"kind": "x"}}, {**QUERY, "query_id": "q2", "timestamp": AT}]
    table = pa.Table.from_pylist(rows_)
    column = table.schema.get_field_index("timestamp")
    nanoseconds = pa.array([1772442900123456789] * 2, pa.timestamp("ns", tz="UTC"))
    pq.write_table(table.set_column(column, "timestamp", nanoseconds), path)
    first, second = messages(path)
    assert isinstance(first, QueryServed)
    assert first.served_at.microsecond == 123456
    assert isinstance(second, QueryServed)
    assert second.query_id == "q2"


def test_a_table_with_empty_columns_behind_the_last_is_read(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text(f"query_id,doc_id,clicked_at,,\nq1,d1,{AT},,\nq2,d2,{AT}\nq3,d3,{AT},,what\n")
    one, two, three = read(path)
    assert [isinstance(found.message, ResultClicked) for found in (one, two, three)] == [True, True, False]
    assert "5 cells, but the header names 3 columns" in three.reason


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("query_id,,doc_id", "column 2 has no name in the header"),
        ("query_id, query_id ,doc_id", "the column 'query_id' occurs twice in the header"),
    ],
)
def test_a_header_that_names_no_columns_is_a_users_mistake(tmp_path: Path, header: str, reason: str) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text(f"{header}\na,b,c\n")
    with pytest.raises(SettingsError, match=reason):
        read(path)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_binary_columns_of_parquet_are_text_or_rejected(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "clicks.parquet"
    columns = {
        "query_id": pa.array([b"q", b"q"], kind),
        "doc_id": pa.array(["d\u00e9".encode(), b"\xff\xfe"], kind),
    }
    pq.write_table(pa.table({**columns, "clicked_at": [AT, AT]}), path)
    good, bad = read(path)
    assert isinstance(good.message, ResultClicked)
    assert (good.message.query_id, good.message.doc_id) == ("q", "d\u00e9")
    assert bad.message is None
    assert bad.row.place == f"{path}:2"
    assert "doc_id is binary, and no UTF-8 text" in bad.reason


def test_binary_within_lists_is_text_and_a_sketch_stays_bytes(tmp_path: Path) -> None:
    path = tmp_path / "queries.parquet"
    results = pa.array(
        [[{"doc_id": b"d", "position": 1}]],
        pa.list_(pa.struct([("doc_id", pa.binary()), ("position", pa.int64())])),
    )
    columns = {"query_id": ["q"], "query": [b"shoes"], "served_at": [AT], "sketch": [b"\xff\x00"]}
    pq.write_table(pa.table({**columns, "results": results}), path)
    (query,) = messages(path)
    assert isinstance(query, QueryServed)
    assert (query.query, query.results[0].doc_id, query.sketch) == ("shoes", "d", b"\xff\x00")


def test_a_value_that_python_cannot_hold_costs_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "clicks.parquet"
    year_10000 = 253_402_300_800_000_000
    at = int(AT.timestamp() * 1e6)
    columns = {name: [value] * 3 for name, value in CLICK.items() if name != "clicked_at"}
    times = pa.array([at, year_10000, at], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({**columns, "clicked_at": times}), path)
    found = read(path)
    assert [r.message is None for r in found] == [False, True, False]
    assert "clicked_at can't be read, [ 10000-01-01 00:00:00" in found[1].reason
    assert b"10000-01-01" in found[1].row.original


@pytest.mark.parametrize("zone", ["Foo/Bar", "+25:99"])
@pytest.mark.parametrize("nested", [False, True], ids=["column", "within a structure"])
def test_a_time_zone_that_is_not_known_is_a_users_mistake(tmp_path: Path, zone: str, nested: bool) -> None:
    path = tmp_path / "clicks.parquet"
    times = pa.array([1772442909000], pa.timestamp("ms", tz=zone))
    column = pa.StructArray.from_arrays([times], ["at"]) if nested else times
    pq.write_table(pa.table({"query_id": ["q"], "doc_id": ["d"], "clicked_at": column}), path)
    with pytest.raises(
        SettingsError, match=rf"clicks\.parquet: a column's time zone is not known: .*{re.escape(zone)}"
    ):
        list(rows(path))


def test_empty_lines_before_the_header_of_a_csv_are_none(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("\n\nquery_id, doc_id ,clicked_at\nq-1,d,2026-03-02T09:15:04Z\n")
    (row,) = read(path)
    assert row.row.place.endswith(":4")
    assert row.message.doc_id == "d"


def test_two_columns_of_one_name_are_a_users_mistake_in_parquet_too(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["doc_id", "doc_id"]), path)
    with pytest.raises(SettingsError, match="two columns have one name"):
        list(rows(path))


def test_files_are_merged_by_time_and_keep_their_own_order(tmp_path: Path) -> None:
    def query(name: str, minute: int) -> dict[str, Any]:
        return {**QUERY, "query_id": name, "timestamp": f"2026-03-02T09:{minute:02}:00Z"}

    queries = jsonl(tmp_path / "q.jsonl", query("q1", 1), query("q2", 3), b"rubbish", query("q3", 5))
    clicks = jsonl(
        tmp_path / "c.jsonl", *({**CLICK, "clicked_at": f"2026-03-02T09:{minute:02}:00Z"} for minute in (2, 4, 6))
    )
    found = [type(r.message).__name__ for r in read(queries, clicks)]
    assert found == [
        "QueryServed",
        "ResultClicked",
        "QueryServed",
        "NoneType",
        "ResultClicked",
        "QueryServed",
        "ResultClicked",
    ]


def test_documents_need_no_time(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"doc_id": "d", "title": "Shoe", "text": "grips"})
    (document,) = messages(path, topic=topics.DOCUMENTS)
    assert isinstance(document, DocumentChanged)
    assert document.changed_at == AT


BAD_CSV = b"""query_id,doc_id,clicked_at
q,d,2026-03-02T09:15:09Z,too many
q,d,2026-03-02
q,\xff,2026-03-02T09:15:09Z
q,a\x00b,2026-03-02T09:15:09Z
q,d,2026-03-02T09:15:09Z
"""


def test_every_bad_row_is_told_with_line_and_reason_and_the_good_ones_go_on(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(BAD_CSV)
    found = read(path)
    assert [r.row.place.rsplit(":", 1)[1] for r in found] == ["2", "3", "4", "5", "6"]
    assert [bool(r.reason) for r in found] == [True, True, True, False, False]
    assert "4 cells, but the header names 3" in found[0].reason
    assert "clicked_at" in found[1].reason
    assert found[2].row.original == b"q,\xff,2026-03-02T09:15:09Z"


OPEN_QUOTE = """query_id,clicked_at,doc_id
q1,2026-03-02T09:15:01Z,d1
q2,2026-03-02T09:15:02Z,"d2
q3,2026-03-02T09:15:03Z,d3
q4,2026-03-02T09:15:04Z,d4
q5,2026-03-02T09:15:05Z,d5
"""


async def test_rows_behind_a_quote_that_is_not_closed_are_rejected_and_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "open.csv"
    path.write_text(OPEN_QUOTE)
    said: list[str] = []
    with Rejects(tmp_path / "rejected.jsonl", said.append) as reject:
        report = await send(read(path), None, reject=reject, progress=lambda _: None)
    assert (report.rejected, report.sent) == (1, {"clicks": 1})
    assert said[0].startswith(f"{path}:3: no readable CSV: ")
    assert said[0].endswith("; lines 3 to 6 are one row: is a quote not closed?")
    (kept,) = (json.loads(line) for line in (tmp_path / "rejected.jsonl").read_bytes().splitlines())
    assert kept["row"].splitlines() == OPEN_QUOTE.splitlines()[2:]


def test_an_open_quote_ends_at_the_next_one_or_at_the_longest_field(tmp_path: Path) -> None:
    path, last = tmp_path / "open.csv", "q9,2026-03-02T09:15:09Z,d9\n"
    path.write_text(OPEN_QUOTE + 'q7,2026-03-02T09:15:07Z,"d7"\n' + last)
    first, rejected, good = read(path)
    assert [r.row.place.rsplit(":", 1)[1] for r in (first, rejected, good)] == ["2", "3", "8"]
    assert "lines 3 to 7" in rejected.reason
    many = codec.MAX_MESSAGE_BYTES // len(last) * 2
    path.write_text(OPEN_QUOTE + last * many)
    first, rejected, *rest = read(path)
    assert "field larger than field limit" in rejected.reason
    assert len(rejected.row.original) > codec.MAX_MESSAGE_BYTES
    assert len(rest) + rejected.row.original.count(b"\n") + 1 == many + 4
    assert {r.reason for r in rest} == {""}


def test_lines_of_any_length_and_content_are_rows(tmp_path: Path) -> None:
    long = b'{"a":"' + b"x" * codec.MAX_MESSAGE_BYTES + b'"}'
    path = jsonl(tmp_path / "x.jsonl", long, b"", b"\xff\xfe", b"[" * 5000, b"[1]", CLICK, long + long)
    found = read(path)
    assert [r.row.place.rsplit(":", 1)[1] for r in found] == ["1", "3", "4", "5", "6", "7"]
    assert [r.message is None for r in found] == [True, True, True, True, False, True]
    assert "more than" in found[0].reason
    assert "an object was expected" in found[3].reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.txt", b"", "must end in"),
        ("x.parquet", b"no parquet", "no readable Parquet"),
        ("x.csv", b"a,a\n1,2\n", "occurs twice"),
        ("x.csv", b"\na, a \n1,2\n", "x.csv:2: .*occurs twice"),
        ("gone.jsonl", None, "can't be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_users_mistake(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=reason):
        list(rows(path))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["unix", "windows"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path, end: bytes) -> None:
    path, line = tmp_path / "x.jsonl", json.dumps(CLICK).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + end + line + end)
    assert [r.reason for r in read(path)] == ["", ""]
    path.write_bytes(b"\xef\xbb\xbf" + end + b"\xef\xbb\xbf" + line + end)
    assert [r.row.place for r in read(path)] == [f"{path}:2"]
    assert "no readable JSON" in read(path)[0].reason
    path.write_bytes(b"\xef\xbb\xbf" + b" " * codec.MAX_MESSAGE_BYTES + line + end + line)
    assert ["more than" in r.reason for r in read(path)] == [True, False]


async def test_rejected_rows_are_kept_as_they_were(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", *[b'{"doc_id": "d"}'] * 30, b"\xff", CLICK)
    said: list[str] = []
    with Rejects(tmp_path / "rejected.jsonl", said.append) as reject:
        report = await send(read(path), None, reject=reject, progress=lambda _: None)
    kept = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_bytes().splitlines()]
    assert (report.rows, report.rejected, report.sent) == (32, 31, {"clicks": 1})
    assert kept[0]["row"] == '{"doc_id": "d"}'
    assert kept[0]["at"] == f"{path}:1"
    assert kept[30]["row_base64"] == "/w=="
    assert len(said) == Rejects.SHOWN + 1
    assert "11 more rejected rows" in said[-1]


async def test_an_earlier_runs_rejected_rows_stay_until_there_are_new_ones(tmp_path: Path) -> None:
    kept = tmp_path / "rejected.jsonl"
    kept.write_text("earlier\n" * 100)
    with Rejects(kept, lambda _: None) as reject:
        await send(read(jsonl(tmp_path / "x.jsonl", CLICK)), None, reject=reject, progress=lambda _: None)
    assert kept.read_text() == "earlier\n" * 100
    with Rejects(kept, lambda _: None) as reject:
        await send(read(jsonl(tmp_path / "x.jsonl", b"{", b"[")), None, reject=reject, progress=lambda _: None)
    assert [json.loads(line)["row"] for line in kept.read_text().splitlines()] == ["{", "["]


@pytest.mark.parametrize("name", ["x.jsonl", "sub/../x.jsonl", "symbolic.jsonl", "hard.jsonl", "gone.jsonl"])
def test_a_file_to_import_is_no_file_for_rejected_rows(tmp_path: Path, name: str) -> None:
    path = jsonl(tmp_path / "x.jsonl", CLICK)
    (tmp_path / "sub").mkdir()
    (tmp_path / "symbolic.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    app = typer.Typer()
    data.add_to(app)
    files = [str(path), str(tmp_path / "gone.jsonl")]
    done = CliRunner().invoke(app, ["import", *files, "--dry-run", "--rejected", str(tmp_path / name)])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "is a file to read, too" in done.stderr
    assert json.loads(path.read_bytes()) == CLICK
    assert not (tmp_path / "gone.jsonl").exists()


async def test_actions_without_feedback_are_ignored_and_not_rejected(tmp_path: Path) -> None:
    seen = {"action_name": "impression", "query_id": "q", "timestamp": AT.isoformat()}
    path = jsonl(tmp_path / "x.jsonl", seen, CLICK, {**seen, "event_attributes": 7}, {**seen, "action_name": 7})
    said: list[str] = []
    with Rejects(None, said.append) as reject:
        report = await send(read(path), None, reject=reject, progress=lambda _: None)
    assert (report.rows, report.ignored, report.rejected, report.sent) == (4, 2, 1, {"clicks": 1})
    assert [line.split(":")[1] for line in said] == ["4"]
    assert report.line() == "4 rows: 1 clicks sent; 2 ignored; 1 rejected"


def test_the_closing_line_counts_what_was_done() -> None:
    report = Report(rejected=1)
    assert report.line(dry_run=True) == "1 rows: nothing would be sent; 1 rejected"


def clickloop(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from clickloop.__main__ import main; main()"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [*program, *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=env
    )


def test_a_dry_run_needs_no_broker_and_its_exit_code_tells_of_rejects(tmp_path: Path) -> None:
    jsonl(tmp_path / "x.jsonl", QUERY, CLICK)
    jsonl(tmp_path / "bad.jsonl", {"q": "q", "d": "d", "n": 3, "at": AT.isoformat()}, b"{")
    (tmp_path / "clickloop.toml").write_text(
        '[sources.stars]\ntopic = "ratings"\nfields = { query_id = "q", doc_id = "d", rating = "n", time = "at" }'
    )
    good = clickloop("import", "x.jsonl", "--dry-run", cwd=tmp_path)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout == "2 rows: 1 queries, 1 clicks would be sent; 0 rejected\n"
    bad = clickloop(
        "import", "bad.jsonl", "--dry-run", "--mapping", "stars", "--rejected", "r.jsonl", cwd=tmp_path
    )
    assert bad.returncode == 1
    assert bad.stdout == "2 rows: 1 ratings would be sent; 1 rejected\n"
    assert bad.stderr.startswith("bad.jsonl:2: no readable JSON")
    assert (tmp_path / "r.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gone.jsonl",), "gone.jsonl can't be read"),
        (("x.jsonl", "--topic", "click"), "choose one of queries, clicks, ratings, documents"),
        (("x.jsonl", "--mapping", "shop"), "no [sources.shop]; it has none"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    jsonl(tmp_path / "x.jsonl", CLICK)
    done = clickloop("import", *arguments, "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert said in done.stderr


def test_without_pyarrow_a_parquet_file_is_one_line_that_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    code = "import sys; sys.modules['pyarrow'] = None\nfrom clickloop.__main__ import main; main()"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, "import", "x.parquet", "--dry-run"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env=env,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "clickloop: the module 'pyarrow' is not installed; pip install 'clickloop[files]'\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
async def test_a_full_disk_for_rejected_rows_is_one_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", b"no JSON", CLICK)
    with (
        pytest.raises(SettingsError, match="/dev/full can't be written: No space left"),
        Rejects(Path("/dev/full"), lambda _: None) as reject,
    ):
        await send(read(path), None, reject=reject, progress=lambda _: None)
