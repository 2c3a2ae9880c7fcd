"""The golden set: operators say what must be found, and no version that loses on it passes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from clickloop.errors import ArtifactError
from clickloop.golden import GoldenSet, golden_app, read_golden
from clickloop.model_store import ModelStore
from clickloop.recorded import GRADES, Judged


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLICKLOOP_CONFIG", raising=False)
    return ModelStore(f"file://{tmp_path}/store")


def golden(store: ModelStore, *arguments: str) -> Result:
    return CliRunner().invoke(golden_app, [*arguments, "--store-url", store.url])


def test_queries_are_added_listed_replaced_and_removed(store: ModelStore, tmp_path: Path) -> None:
    assert golden(store, "list").stdout == ""
    assert golden(store, "add", "red shoes", "--document", "d1", "--document", "d2=0.5").exit_code == 0
    golden(store, "add", "blue shoes", "--document", "a=b=3")
    done = golden(store, "add", " Red  SHOES!", "--document", "d9")
    assert done.stdout == "0 added, 1 replaced; the golden set of default has 2 queries\n"
    assert golden(store, "list").stdout == " Red  SHOES!\td9\t-\nblue shoes\ta=b=3\t-\n"
    lines = [json.loads(line) for line in golden(store, "list", "--json").stdout.splitlines()]
    assert lines[1] == {"query": "blue shoes", "relevant": {"a=b": 3.0}, "slice": None}
    assert golden(store, "remove", "blue shoes").exit_code == 0
    assert [one.query for one in read_golden(store, "default").judged] == [" Red  SHOES!"]
    assert [p.name for p in (tmp_path / "store" / "golden").iterdir()] == ["default.jsonl"]


def test_each_index_has_its_own(store: ModelStore) -> None:
    golden(store, "add", "red shoes", "--document", "d1", "--index", "shop")
    assert read_golden(store, "default").judged == []
    assert len(read_golden(store, "shop").judged) == 1


def test_a_file_is_added_whole_or_not_at_all(store: ModelStore, tmp_path: Path) -> None:
    good = '{"query": "red shoes", "relevant": {"d1": 1, "d2": 2}, "slice": "shoes"}\n'
    (tmp_path / "good.jsonl").write_text(good + good.replace("red", "blue"))
    (tmp_path / "bad.jsonl").write_text(good.replace("red", "green") + '{"query": "x", "relevant": {"d": 1e12}}\n')
    assert "2 added" in golden(store, "add", "--file", "good.jsonl").stdout
    done = golden(store, "add", "--file", "bad.jsonl")
    assert done.exit_code == 2
    assert done.stderr == f"clickloop: bad.jsonl:2: 'x': document 'd' with grade 1e+12; {GRADES}\n"
    assert len(read_golden(store, "default").judged) == 2


def test_a_golden_set_may_be_a_table(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "judged.csv").write_text("query,relevant.d1,relevant.d2\nred shoes,2,\nblue shoes,,1\n")
    assert golden(store, "add", "--file", "judged.csv").exit_code == 0
    grades = {one.query: one.relevant for one in read_golden(store, "default").judged}
    assert grades == {"red shoes": {"d1": 2.0}, "blue shoes": {"d2": 1.0}}


def test_a_document_judged_not_relevant_is_none_to_find(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "judged.jsonl").write_text('{"query": "red", "relevant": {"d1": 1, "d2": 0, "d3": -1}}\n')
    assert golden(store, "add", "--file", "judged.jsonl").exit_code == 0
    assert read_golden(store, "default").judged == [Judged("red", {"d1": 1.0})]
    (tmp_path / "none.jsonl").write_text('{"query": "blue", "relevant": {"d2": 0}}\n')
    assert "has no relevant document" in golden(store, "add", "--file", "none.jsonl").stderr
    (tmp_path / "nan.jsonl").write_text('{"query": "blue", "relevant": {"d1": 1, "d2": "nan"}}\n')
    assert "with grade nan" in golden(store, "add", "--file", "nan.jsonl").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["add"],
        ["add", "q"],
        ["add", "?!", "--document", "d"],
        ["add", "x" * 10_001, "--document", "d"],
        ["add", "q", "--document", "d=nan"],
        ["add", "q", "--document", "d=-1"],
        ["add", "q", "--document", "d=1e308"],
        ["add", "q", "--document", "=1"],
        ["add", "q", "--file", "x.jsonl"],
        ["add", "--file", "nowhere.jsonl"],
        ["add", "--file", "x.txt"],
        ["remove", "not there"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_what_makes_no_sense_is_one_line_and_2(arguments: list[str], store: ModelStore) -> None:
    golden(store, "add", "kept", "--document", "d")
    done = golden(store, *arguments)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert [one.query for one in read_golden(store, "default").judged] == ["kept"]


def test_a_set_that_was_harmed_is_told_and_not_taken_for_an_empty_one(store: ModelStore) -> None:
    store.write("golden/default.jsonl", b'{"query": "x"\n')
    with pytest.raises(ArtifactError, match="no golden set"):
        read_golden(store, "default")
    assert golden(store, "list").exit_code == 1


def test_the_digest_names_the_content_and_what_is_not_there_is_left_out() -> None:
    one, other = Judged("a", {"d1": 1.0, "d2": 1.0}), Judged("b", {"d3": 1.0})
    assert GoldenSet([one, other]).digest != GoldenSet([one]).digest
    assert GoldenSet([one, other]).within({"d1"}) == [Judged("a", {"d1": 1.0})]


def test_a_disk_that_is_full_keeps_the_old_set_and_no_half_of_the_new_one(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("golden/default.jsonl", b"old")
    folder = Path(store.url.removeprefix("file://")) / "golden"

    def full(path: Path, raw: bytes) -> int:
        with path.open("wb") as half:
            half.write(raw[: len(raw) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        store.write("golden/default.jsonl", b"new, and longer")
    assert [path.name for path in folder.iterdir()] == ["default.jsonl"]
    assert store.read("golden/default.jsonl") == b"old"


def test_what_is_no_utf8_or_nested_without_end_is_one_line(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "deep.jsonl").write_text(
        '{"query": "q", "relevant": {"d": 1}, "x": ' + "[" * 5000 + "]" * 5000 + "}\n"
    )
    for arguments in (["add", "--file", "deep.jsonl"], ["add", "q\udc80", "--document", "d"]):
        done = golden(store, *arguments)
        assert done.exit_code == 2
        assert done.stderr.startswith("clickloop: ")
        assert done.stderr.count("\n") == 1
    assert read_golden(store, "default").judged == []
