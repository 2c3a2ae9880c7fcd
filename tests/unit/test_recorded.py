"""Recorded traffic: any order of lines gives the same events, and what can't be used is told and passed over."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clickloop.errors import SettingsError
from clickloop.events import ExampleFormed
from clickloop.recorded import UNNAMED, Events, Recording, counts, read_documents, read_events, read_judged
from clickloop.sources import Sources, mappings_of
from streams.recorded import form_examples

START = datetime(2026, 1, 5, tzinfo=UTC)


def query(number: int, *, index: str = "products", at: float = 0.0) -> dict[str, Any]:
    return {
        "type": "QueryServed",
        "event_id": f"e{number}",
        "index": index,
        "query_id": f"q{number}",
        "query": f"text {number}",
        "served_at": (START + timedelta(seconds=10 * number + at)).isoformat(),
        "results": [{"doc_id": f"d{place}", "position": place} for place in (1, 2, 3)],
    }


def click(number: int, doc_id: str = "d2", *, after: float = 3.0, index: str = "products") -> dict[str, Any]:
    return {
        "type": "ResultClicked",
        "event_id": f"c{number}-{doc_id}-{after}",
        "index": index,
        "query_id": f"q{number}",
        "doc_id": doc_id,
        "clicked_at": (START + timedelta(seconds=10 * number + after)).isoformat(),
    }


def written(path: Path, records: list[Any]) -> Path:
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read(
    path: Path, *, at_once: int = 100_000, mappings: dict[str, Any] | None = None
) -> tuple[Events, list[str]]:
    told: list[str] = []
    events = read_events(
        path,
        Sources(UNNAMED, mappings_of(mappings or {})),
        path.parent,
        now=START,
        unusable=lambda place, reason: told.append(f"{Path(place).name}: {reason}"),
        at_once=at_once,
    )
    return events, told


def formed(events: Events, index: str = "products") -> tuple[list[ExampleFormed], Counter[str]]:
    fates = Counter[str]()
    return list(form_examples(events.ordered(index), index=index, counts=fates)), fates


@pytest.mark.parametrize("at_once", [100_000, 7])
def test_the_lines_of_a_log_may_be_in_any_order(tmp_path: Path, at_once: int) -> None:
    records = [query(n) for n in range(40)] + [click(n, doc) for n in range(40) for doc in ("d2", "d3")]
    in_order, _ = formed(read(written(tmp_path / "a.jsonl", records))[0])
    random.Random(1).shuffle(records)
    shuffled, fates = formed(read(written(tmp_path / "b.jsonl", records), at_once=at_once)[0])
    assert shuffled == in_order
    assert len({example.example_id for example in shuffled}) == 80
    assert fates["joined"] == 80


def test_events_are_joined_by_their_own_times_however_long_ago(tmp_path: Path) -> None:
    records = [query(1), click(1), click(1, "d3", after=601.0), click(1, "d9"), click(7), query(400)]
    examples, fates = formed(read(written(tmp_path / "a.jsonl", records))[0])
    assert [(e.doc_id, e.position) for e in examples] == [("d2", 2)]
    assert examples[0].formed_at == START + timedelta(seconds=13)
    assert (fates["late"], fates["not_shown"], fates["unmatched"]) == (1, 1, 1)


def test_a_click_far_after_everything_else_is_late_and_not_waited_for(tmp_path: Path) -> None:
    records = [query(1), query(500), click(1, after=4000.0)]
    examples, fates = formed(read(written(tmp_path / "a.jsonl", records))[0])
    assert examples == []
    assert fates["late"] == 1


def test_our_own_messages_ubi_and_mapped_records_share_a_file(tmp_path: Path) -> None:
    ubi = {"query_id": "u", "user_query": "shoes", "query_response_hit_ids": ["d1", "d2"],
           "timestamp": START.isoformat()}  # fmt: skip
    mapped = {"kind": "tap", "search": "u", "sku": "d2", "ts": (START.timestamp() + 4) * 1000}
    mapping = {"taps": {"topic": "clicks", "when": {"kind": "tap"}, "time_format": "epoch_ms",
                        "fields": {"query_id": "search", "doc_id": "sku", "time": "ts"}}}  # fmt: skip
    path = written(tmp_path / "a.jsonl", [mapped, query(1), ubi, click(1)])
    events, told = read(path, mappings=mapping)
    topics = Counter[str]()
    examples = list(form_examples(counts(events.ordered("products"), topics), index="products", counts=Counter()))
    assert told == []
    assert topics == {"queries": 2, "clicks": 2}
    assert sorted(e.query for e in examples) == ["shoes", "text 1"]


def test_what_cannot_be_read_is_told_and_stops_nothing(tmp_path: Path) -> None:
    document = {
        "type": "DocumentChanged",
        "event_id": "x",
        "index": "products",
        "doc_id": "d",
        "changed_at": "2026-01-01T00:00:00Z",
    }
    records = [query(1), b"\xff\xfe", b'{"half', b"[1]", document, {"type": "QueryServed"}, click(1)]
    events, told = read(written(tmp_path / "a.jsonl", records))
    assert [line.split(":")[1] for line in told] == ["2", "3", "4", "5", "6"]
    assert "DocumentChanged, which is no query, click or rating" in told[3]
    assert len(formed(events)[0]) == 1


def test_actions_without_feedback_are_no_unusable_lines(tmp_path: Path) -> None:
    seen = {"action_name": "impression", "query_id": "q1", "timestamp": START.isoformat()}
    events, told = read(
        written(
            tmp_path / "a.jsonl",
            [query(1), seen, click(1), {**seen, "action_name": ""}, {**seen, "timestamp": "soon"}],
        )
    )
    assert [line.split(":")[1] for line in told] == ["4"]
    assert events.ignored == 2
    assert len(formed(events)[0]) == 1


def test_a_recording_says_how_many_actions_carried_no_feedback(tmp_path: Path) -> None:
    seen = {"action_name": "impression", "query_id": "q1", "timestamp": START.isoformat()}
    path = written(tmp_path / "a.jsonl", [query(1), seen, click(1)])
    recording = Recording(tmp_path / "work", say=lambda _: None)
    assert len(list(recording.examples(path, index="products", form=form_examples))) == 1
    assert recording.unreadable == 0
    assert (recording.fates["ignored"], recording.fates["joined"]) == (1, 1)


def test_events_of_several_indexes_need_a_choice(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [query(1), click(1), query(2, index="news"), click(2, index="news")])
    events, _ = read(path)
    with pytest.raises(SettingsError, match="news, products: choose one by --index"):
        events.the_index()
    assert [e.query for e in formed(events, "news")[0]] == ["text 2"]


def test_the_last_of_several_documents_with_one_id_counts_and_deleted_ones_go(tmp_path: Path) -> None:
    rows = [
        {"doc_id": "a", "text": "old", "brand": 7},
        {"doc_id": "b", "text": "gone"},
        {"text": "no id"},
        {"doc_id": "a", "title": "A", "text": "new"},
        {"doc_id": "b", "deleted": True},
    ]
    told: list[str] = []
    path = written(tmp_path / "d.jsonl", rows)
    found = read_documents(path, Sources(UNNAMED), now=START, unusable=lambda place, _: told.append(place))
    assert {name: (d.title, d.text) for name, d in found[UNNAMED].items()} == {"a": ("A", "new")}
    assert told == [f"{path}:3"]


TWO = [
    {"index": "shop", "doc_id": "a", "text": "boots"},
    {"index": "blog", "doc_id": "a", "text": "a post about boots"},
    {"index": "blog", "doc_id": "b", "text": "a post"},
    {"doc_id": "c", "text": "of no index"},
    {"index": "blog", "doc_id": "c", "deleted": True},
]


@pytest.mark.parametrize(
    ("index", "wanted", "others"),
    [
        ("shop", {"a": "boots", "c": "of no index"}, 2),
        ("blog", {"a": "a post about boots", "b": "a post", "c": "of no index"}, 1),
    ],
)
def test_documents_of_other_indexes_are_left_out(
    index: str, wanted: dict[str, str], others: int, tmp_path: Path
) -> None:
    path, told = written(tmp_path / "d.jsonl", TWO), list[str]()
    found = Recording(tmp_path / "work", say=told.append).documents(path, index=index)
    assert {name: document.text for name, document in found.items()} == wanted
    assert told == [f"{path}: {others} documents of other indexes left out"]


def test_documents_of_several_indexes_need_a_choice_and_must_be_of_the_events(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "work", say=lambda _: None)
    path, shop = written(tmp_path / "d.jsonl", TWO), written(tmp_path / "shop.jsonl", TWO[:1])
    with pytest.raises(SettingsError, match="of the indexes blog, shop: choose one by --index"):
        recording.documents(path, index="")
    with pytest.raises(SettingsError, match="the documents are of shop, and none of news"):
        recording.documents(shop, index="news")
    events = written(tmp_path / "a.jsonl", [query(1), click(1)])
    assert list(recording.documents(shop, index="")) == ["a"]
    with pytest.raises(SettingsError, match="the events are of products, and the documents of shop"):
        recording.examples(events, index="", form=form_examples)


def test_judged_queries_keep_the_relevant_documents_that_are_there(tmp_path: Path) -> None:
    rows = [
        {"query": "one", "relevant": {"a": 2, "b": 0, "gone": 1}, "slice": "hard"},
        {"query": "two", "relevant": {"gone": 1}},
        {"query": " ", "relevant": {"a": 1}},
        {"query": "three"},
        {"query": "four", "relevant": {"a": 1e308, "b": 1e308}},
    ]
    told: list[str] = []
    path = written(tmp_path / "q.jsonl", rows)
    found = read_judged(path, ["a", "b"], unusable=lambda place, _: told.append(place))
    assert [(j.query, j.relevant, j.slice) for j in found] == [("one", {"a": 2.0}, "hard")]
    assert told == [f"{path}:{line}" for line in (2, 3, 4, 5)]


WANTED = [("trail shoes", {"sku-1": 2.0}, None), ("rain jacket", {"sku-2": 1.0, "7": 3.0}, "wet")]


def structures(path: Path) -> None:
    rows = [{"query": query, "relevant": relevant, "slice": slice_} for query, relevant, slice_ in WANTED]
    pq.write_table(pa.Table.from_pylist(rows), path)


def maps(path: Path) -> None:
    queries, relevant, slices = zip(*WANTED, strict=True)
    grades = pa.array([list(one.items()) for one in relevant], pa.map_(pa.string(), pa.float64()))
    pq.write_table(pa.table({"query": queries, "relevant": grades, "slice": slices}), path)


def texts(path: Path) -> None:
    queries, relevant, slices = zip(*WANTED, strict=True)
    pq.write_table(pa.table({"query": queries, "relevant": [*map(json.dumps, relevant)], "slice": slices}), path)


def columns(path: Path) -> None:
    path.write_text(
        "query,relevant.sku-1,relevant.sku-2,relevant.7,slice\ntrail shoes,2,,,\nrain jacket,,1,3.0,wet\n"
    )


def cells(path: Path) -> None:
    path.write_text(
        'query,relevant,slice\ntrail shoes,"{""sku-1"": 2}",\nrain jacket,"[[""sku-2"", ""1""], [7, 3]]",wet\n'
    )


@pytest.mark.parametrize(
    ("name", "write"),
    [("q.parquet", structures), ("q.parquet", maps), ("q.parquet", texts), ("q.csv", columns), ("q.csv", cells)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_judged_queries_are_the_same_from_every_kind_of_file(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    told: list[str] = []
    ids = ["sku-1", "sku-2", "7"]
    found = read_judged(tmp_path / name, ids, unusable=lambda place, reason: told.append(f"{place}: {reason}"))
    assert told == []
    assert [(one.query, one.relevant, one.slice) for one in found] == WANTED


@pytest.mark.parametrize(
    ("relevant", "reason"),
    [
        (["ab", "c1"], "Expected `object`, got `array`"),
        ([["a", 1, 2]], "Expected `object`, got `array`"),
        ([[1.5, 1]], "a relevant document is 1.5"),
        ([["a", "x"]], "Expected `float`"),
        ("a", "not a judged query: JSON is malformed"),
        ('"{}"', "got `str`"),
        (None, "got `null`"),
        ({"a": "inf"}, "with grade inf; a grade is above 0"),
    ],
)
def test_what_names_no_grades_is_no_judged_query(tmp_path: Path, relevant: Any, reason: str) -> None:
    told: list[str] = []
    path = written(tmp_path / "q.jsonl", [{"query": "one", "relevant": relevant}])
    assert read_judged(path, ["a", "b", "c"], unusable=lambda _, why: told.append(why)) == []
    assert len(told) == 1
    assert reason in told[0]
