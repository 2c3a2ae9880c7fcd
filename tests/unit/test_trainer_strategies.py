from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clickloop import codec
from clickloop.commands import Strategy
from clickloop.errors import TrainingError
from clickloop.events import OffsetRange
from clickloop.kafka import Record
from tests.unit.trainer_facts import START, documents, example
from trainer.dataset import Corpus, of_pairs, unlike
from trainer.examples import Document, ReadExamples, Reservoir, before, with_replayed
from trainer.methods.full import FullMethod
from trainer.methods.pairs import Pairs
from trainer.model import normalised
from trainer.past import data_of
from trainer.rung_settings import RungSettings
from trainer.settings import TrainerSettings
from trainer.strategies import (
    PRESETS,
    believed_by_parent,
    method_of,
    pairs_of_file,
    pseudo_queries,
    reason,
    without_secrets,
)

TEXTS = ("Open a file\nOpens the named file and returns a stream of its bytes.", "Sort a list\nOrders all items.")


def test_every_strategy_has_its_preset():
    assert set(PRESETS) == set(get_args(Strategy))


def test_only_contrastive_mines_and_only_where_not_all_documents_compete():
    usual = RungSettings.model_construct()
    full = method_of("full", "contrastive", usual)
    assert isinstance(full, FullMethod)
    assert full.hard_negatives > 0
    assert method_of("full", "incremental", usual) == FullMethod()
    assert method_of("adapter", "contrastive", usual) == method_of("adapter", "incremental", usual)


def test_pseudo_queries_are_made_from_documents_and_know_their_own():
    found = pseudo_queries([Document(f"d{n}", text, b"") for n, text in enumerate(TEXTS)], seed=0)
    assert len(found) >= 3
    of_first = [found.queries[q] for q, d in zip(found.query, found.document, strict=True) if d == 0]
    assert "Open a file" in of_first
    assert (
        found.queries == pseudo_queries([Document(f"d{n}", t, b"") for n, t in enumerate(TEXTS)], seed=0).queries
    )


def test_a_pseudo_query_counts_as_far_as_the_parent_finds_its_document():
    vectors = normalised(np.array([[1.0, 0.0], [0.98, 0.2], [0.0, 1.0]]))
    pairs = of_pairs([("on top", 0, 1.0), ("nearly", 0, 1.0), ("about another", 0, 1.0)])
    asked = normalised(np.array([[1.0, 0.0], [1.0, 0.12], [0.0, 1.0]]))
    found = believed_by_parent(pairs, asked, Corpus(documents(3), vectors))
    assert found.queries == ["on top", "nearly"]
    assert found.evidence[0] == pytest.approx(1.0)
    assert 0.5 < found.evidence[1] < 1.0


def test_two_documents_of_one_query_are_no_negatives_for_one_another():
    found = of_pairs([("Red shoes", 1, 1.0), ("tent", 2, 1.0), ("red  SHOES!", 0, 0.5), ("Red shoes", 1, 0.5)])
    assert found.queries == ["Red shoes", "tent"]
    assert list(zip(found.query.tolist(), found.document.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 2)]
    assert found.evidence.tolist() == [0.5, 1.5, 1.0]
    assert found.counted().tolist() == [3, 1]
    rows = np.arange(3)
    same = Pairs(found, rows, found.document, np.zeros((3, 0), dtype=np.int64)).same(rows)
    assert same.tolist() == [[False, True, False], [True, False, False], [False, False, False]]


def test_signs_that_are_no_words_are_queries_of_their_own():
    assert of_pairs([("???", 0, 1.0), ("!!", 1, 1.0)]).queries == ["???", "!!"]


def test_of_a_query_with_two_documents_the_one_that_the_parent_does_not_believe_goes():
    vectors = normalised(np.array([[1.0, 0.0], [0.0, 1.0]]))
    pairs = of_pairs([("shoes", 0, 1.0), ("shoes", 1, 1.0), ("about another", 1, 1.0)])
    pairs = replace(pairs, vectors=normalised(np.array([[1.0, 0.0], [1.0, 0.0]])))
    found = believed_by_parent(pairs, pairs.vectors, Corpus(documents(2), vectors))
    assert (found.queries, found.query.tolist(), found.document.tolist()) == (["shoes"], [0], [0])
    assert (found.counted().tolist(), len(found.vectors)) == ([1], 1)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv"])
def test_pairs_are_read_from_a_file_and_those_of_strange_documents_are_left_out(name: str, tmp_path: Path):
    path = tmp_path / name
    if name.endswith("jsonl"):
        rows = [{"query": "a b", "doc_id": "d0001", "weight": 0.5}, {"query": "c", "doc_id": "strange"}]
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        path.write_text("query,doc_id,weight\na b,d0001,0.5\nc,strange,1.0\n")
    taught = pairs_of_file(f"file://{path}", documents(3))
    found = taught.pairs
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert taught.source == {"pairs_uri": f"file://{path}", "pairs_sha256": digest}
    assert (found.queries, found.document.tolist(), found.evidence.tolist()) == (["a b"], [1], [0.5])


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.parquet"])
def test_a_pair_whose_weight_is_left_empty_counts_whole(name: str, tmp_path: Path):
    path = tmp_path / name
    given = [{"query": "a", "doc_id": "d0001", "weight": None}, {"query": "b", "doc_id": "d0002", "weight": 0.5}]
    if name.endswith("jsonl"):
        path.write_text("\n".join(json.dumps(row) for row in given))
    elif name.endswith("csv"):
        path.write_text("query,doc_id,weight\na,d0001,\nb,d0002,0.5\n")
    else:
        pq.write_table(pa.Table.from_pylist(given), path)
    assert pairs_of_file(str(path), documents(3)).pairs.evidence.tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"query": "a", "doc_id": "strange"}', "names no document"),
        ('{"query": "", "doc_id": "d0001"}', "no pair.*query"),
        ('{"query": "a", "doc_id": "d0001", "weight": 7}', "no pair.*weight"),
        ("no json", "row 1"),
        ("", "names no document"),
    ],
)
def test_a_file_that_is_of_no_use_is_refused_with_the_reason(content: str, said: str, tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(TrainingError, match=said):
        pairs_of_file(str(path), documents(3))


def test_a_file_that_is_not_there_and_none_at_all_are_refused():
    with pytest.raises(TrainingError, match="can't be read"):
        pairs_of_file("/no/such/pairs.jsonl", documents(3))
    with pytest.raises(TrainingError, match="needs a file"):
        pairs_of_file("", documents(3))


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("s3://bucket/pairs.csv", "s3://bucket/pairs.csv"),
        ("https://me:secret@host:81/a/pairs.csv?token=x#y", "https://host:81/a/pairs.csv"),
        ("/data/who?/pairs#1.csv", "/data/who?/pairs#1.csv"),
        ("simplecache::https://me:secret@host/a.csv?x=y", "simplecache::https://host/a.csv"),
        ("zip://pairs.csv::https://me:secret@host/a.zip?x=y", "zip://pairs.csv::https://host/a.zip"),
        ("http://[::1]:81/pairs.csv?x=y", "http://[::1]:81/pairs.csv"),
    ],
)
def test_a_lineage_says_where_pairs_come_from_and_not_how_to_get_in(uri: str, kept: str):
    assert without_secrets(uri) == kept


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """``host:port`` of a server that has three files of pairs, and refuses what is named late."""

    class Files(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def send_head(self) -> Any:
            if "late" not in self.path:
                return super().send_head()
            self.send_error(HTTPStatus.FORBIDDEN)
            return None

    (tmp_path / "pairs.csv").write_text("query,doc_id\nshoes,d0001\n")
    (tmp_path / "useless.csv").write_text("query,doc_id,weight\nshoes,d0001,7\n")
    (tmp_path / "strange.csv").write_text("query,doc_id\nshoes,strange\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


SIGNED = "X-Amz-Credential=wh%2Fo&X-Amz-Signature=deadbeef"


def test_pairs_are_read_from_a_signed_url(served: str):
    taught = pairs_of_file(f"http://{served}/pairs.csv?{SIGNED}", documents(3))
    assert taught.source["pairs_uri"] == f"http://{served}/pairs.csv"
    assert taught.pairs.queries == ["shoes"]


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("missing.csv", "can't be read"),
        ("late.csv", "can't be read.*403"),
        ("useless.csv", "row 2 is no pair"),
        ("strange.csv", "names no document"),
    ],
)
def test_a_refusal_says_where_pairs_should_have_been_and_not_how_to_get_in(served: str, rest: str, said: str):
    with pytest.raises(TrainingError, match=said) as refused:
        pairs_of_file(f"http://me:secret@{served}/{rest}?{SIGNED}", documents(3))
    assert f"http://{served}/{rest}" in str(refused.value)
    assert not [secret for secret in ("secret", "deadbeef", "Amz") if secret in str(refused.value)]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("no https://b.example/pairs.csv?sig=deadbeef", "no https://b.example/pairs.csv"),
        ("403, url='https://other.example/x?token=elsewhere'", "403, url='https://other.example/x'"),
        ("no such path: /pairs.csv?sig=deadbeef", "OSError"),
        ("access denied for me:pass/word", "OSError"),
        ("", "OSError"),
        ("[Errno 2] No such file: '/a'", "[Errno 2] No such file: '/a'"),
    ],
)
def test_what_a_library_says_is_told_without_any_secret(said: str, kept: str):
    assert reason(OSError(said), "https://me:pass%2Fword@b.example/pairs.csv?sig=deadbeef") == kept


def records(count: int, *, revision: int = 1) -> list[Record]:
    found = [example(f"query {n}", "d1", number=n, revision=revision) for n in range(count)]
    return [Record("t", 0, n, None, codec.encode(one)) for n, one in enumerate(found)]


def sample(given: list[Record], most: int) -> list[str]:
    reservoir = Reservoir(index="default", most=most)
    for record in given:
        reservoir.add(record)
    return [e.example_id for e in reservoir.result()]


def test_the_sample_of_old_examples_is_bounded_and_the_same_in_any_order():
    given = records(500)
    found = sample(given, 40)
    assert len(found) == 40
    assert sample(given[::-1], 40) == found
    assert set(sample(given, 20)) < set(found)
    assert set(sample(records(1000), 40)) & set(found), "old ones stay while others come"


def test_the_sample_holds_last_revisions_and_nothing_unreadable():
    reservoir = Reservoir(index="default", most=5)
    for record in [*records(3), *records(2, revision=4), Record("t", 0, 9, None, b"no json")]:
        reservoir.add(record)
    assert [e.revision for e in reservoir.result()] == [4, 4, 1]


def test_replayed_examples_come_in_their_time_and_never_in_place_of_a_newer_revision():
    new = [example("a", "d1", number=5, revision=3)]
    old = [example("b", "d1", number=2), example("a", "d1", number=5, revision=1)]
    both = with_replayed(ReadExamples(new), old)
    assert [(e.query, e.revision) for e in both.examples] == [("b", 1), ("a", 3)]
    assert both.examples[0].served_at == START + timedelta(seconds=2)
    assert both.replayed == {old[0].example_id}


def test_history_that_was_imported_twice_is_not_told_as_replayed():
    new = [example(f"query {n}", f"d{n:04}", number=n, revision=2) for n in range(200)]
    old = [example(f"query {n}", f"d{n:04}", number=n) for n in range(200)]
    more = example("older", "d0001", number=-1)
    for lay_before, share in ((old, 0.0), ([more, *old], 1 / 201)):
        read = with_replayed(ReadExamples(new), lay_before)
        data = data_of(read.examples, documents(200), TrainerSettings(), replayed=read.replayed)
        assert (data.replayed, data.replayed_share) == (len(lay_before) - 200, pytest.approx(share))


def test_what_lies_before_the_ranges_is_what_their_partitions_hold_before_the_first():
    def part(partition: int, start: int, end: int) -> OffsetRange:
        return OffsetRange(topic="t", partition=partition, start=start, end=end)

    held = {0: (10, 90), 1: (0, 50), 2: (0, 5)}
    assert before([part(0, 60, 70), part(0, 40, 50), part(1, 0, 9)], held) == [part(0, 10, 40)]


def test_clicks_that_judge_given_pairs_are_none_of_their_near_duplicates():
    given, clicks = of_pairs([("one", 0, 1.0)]), of_pairs([("ones", 0, 1.0), ("two", 1, 1.0)])
    given = replace(given, vectors=normalised(np.array([[1.0, 0.0]])))
    clicks = replace(clicks, vectors=normalised(np.array([[1.0, 0.01], [0.0, 1.0]])))
    assert unlike(given, clicks).queries == ["two"]
