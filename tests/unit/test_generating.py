"""Queries made from documents: what a person might type, each of one document, and the same every time."""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from clickloop import codec
from clickloop.events import DocumentChanged, ExampleFormed
from clickloop.generating import LONGEST, MOST_TEXT, Pair, example, generate, words
from tests.unit.test_importing import clickloop, jsonl

AT = datetime(2026, 3, 2, 9, 15, tzinfo=UTC)
SHOE = """# Grip on wet rock

The sole holds on wet rock and in deep mud. It was tested in the rain.

## Care and cleaning

Brush the gel insole with lukewarm water. The gel insole dries overnight.
"""
CODE = '''def run_forever(self):
    """Run the event loop until it is stopped.

    Any callback may stop it.
    """
    self._check_closed(); self._ready = deque()
'''


def document(doc_id: str, text: str, title: str = "") -> DocumentChanged:
    return DocumentChanged(event_id=doc_id, index="i", doc_id=doc_id, changed_at=AT, title=title, text=text)


def made(*documents: DocumentChanged, per_document: int = 10, seed: int = 0) -> dict[str, set[str]]:
    """Kind → queries."""
    found: dict[str, set[str]] = {}
    for pair in generate(documents, per_document=per_document, seed=seed):
        found.setdefault(pair.kind, set()).add(pair.query)
    return found


def test_a_document_asks_for_itself_by_title_heading_sentence_and_phrase() -> None:
    found = made(document("d", SHOE, title="Light trail shoe"))
    assert found["title"] == {"Light trail shoe"}
    assert found["heading"] == {"Grip on wet rock", "Care and cleaning"}
    assert found["sentence"] == {"The sole holds on wet rock and in deep mud"}
    assert "gel insole" in " ".join(found["phrase"])


def test_of_code_the_docstring_is_asked_for_and_not_the_code() -> None:
    found = made(document("d", CODE, title="BaseEventLoop.run_forever"))
    assert found["title"] == {"base event loop run forever"}
    assert found["sentence"] == {"Run the event loop until it is stopped"}


THAI = "\u0e27\u0e34\u0e18\u0e35\u0e04\u0e37\u0e19 \u0e2a\u0e34\u0e19\u0e04\u0e49\u0e32"
HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u093f\u0924\u093e\u092c"
ARABIC = "\u0643\u0650\u062a\u064e\u0627\u0628\u064c \u062c\u064e\u062f\u0650\u064a\u062f"
PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u0628\u0631\u0648\u0645"


@pytest.mark.parametrize("text", [THAI, HINDI, ARABIC, PERSIAN], ids=["Thai", "Hindi", "Arabic", "Persian"])
def test_words_of_every_script_stay_whole(text: str) -> None:
    assert words(text) == text.split()
    assert made(document("d", "", title=text)) == {"title": {text}}
    found = made(document("d", f"A {text} is here now. The {text}, of {text}."))
    assert found["sentence"] == {f"A {text} is here now"}
    assert text in found["phrase"]


def test_a_mark_without_a_letter_is_no_word() -> None:
    assert words("\u2764\ufe0f red \u0301 caf\u0065\u0301_bar") == ["red", "cafe\u0301", "bar"]


def test_what_is_nearly_the_title_is_not_asked_for_again() -> None:
    found = made(
        document("d", "# Light trail shoes\n\nThe light trail shoe.\n\nMore text.", title="The light trail shoe")
    )
    assert "sentence" not in found
    assert found["title"] == {"The light trail shoe"}


def test_a_text_that_fits_several_documents_is_no_query_for_any() -> None:
    found = made(
        document("a", "", title="Trail shoe"),
        document("b", "", title="trail SHOE"),
        document("c", "", title="Red hat"),
    )
    assert found == {"title": {"Red hat"}}


def test_words_of_most_documents_make_no_key_phrase() -> None:
    names = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "islet", "jetty"]
    documents = [
        document(
            f"d{n}",
            f"Our standard warranty applies to the {names[n % 10]} {names[n // 10]}wood lantern number {n}.",
        )
        for n in range(60)
    ]
    phrases = made(*documents)["phrase"]
    assert phrases
    assert not any({"standard", "warranty", "lantern"} & set(words(phrase)) for phrase in phrases)


def test_a_few_for_each_document_and_the_same_for_the_same_seed() -> None:
    documents = [document(f"d{n}", SHOE.replace("gel", f"gel{n}"), title=f"Trail shoe {n}") for n in range(30)]
    first = generate(documents, per_document=2, seed=1)
    assert first == generate(documents, per_document=2, seed=1)
    assert first != generate(documents, per_document=2, seed=2)
    assert max(Counter(pair.doc_id for pair in first).values()) <= 2


def test_an_example_is_marked_and_has_one_id_however_often_it_is_made() -> None:
    pair = Pair("gel insole", "d", "phrase")
    one = example(pair, index="i", weight=0.1, now=AT)
    later = example(pair, index="i", weight=0.1, now=datetime(2026, 4, 1, tzinfo=UTC))
    assert (one.origin, one.label, one.weight, one.position, one.version) == (
        "synthetic",
        "positive",
        0.1,
        None,
        "",
    )
    assert (one.example_id, one.revision, one.event_id) == (later.example_id, later.revision, later.event_id)
    assert codec.decode(codec.encode(one), ExampleFormed) == one


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.tuples(st.text(max_size=60), st.text(max_size=400)), max_size=6))
def test_any_text_gives_short_queries_or_none(texts: list[tuple[str, str]]) -> None:
    documents = [document(f"d{n}", text, title=title) for n, (title, text) in enumerate(texts)]
    for pair in generate(documents, per_document=3, seed=0):
        assert 2 <= len(pair.query.split()) <= LONGEST
        assert words(pair.query)


def test_a_large_hostile_document_takes_no_time() -> None:
    hostile = [
        part * (MOST_TEXT // len(part)) for part in ("<h1>", '"""', "/**", "# ", "a=\n", "=", "a-", "( ", "aA")
    ]
    start = time.thread_time()
    generate([document(f"d{n}", text) for n, text in enumerate(hostile)], per_document=3, seed=0)
    assert time.thread_time() - start < 20


def test_the_command_writes_pairs_and_refuses_too_few(tmp_path: Path) -> None:
    jsonl(
        tmp_path / "d.jsonl",
        *({"doc_id": f"d{n}", "title": f"Trail shoe model {n}", "text": ""} for n in range(120)),
    )
    done = clickloop("generate", "--documents", "d.jsonl", "--output", "p.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "120 pairs made, none sent, from 120 documents: 120 from a title\n"
    assert (tmp_path / "p.jsonl").read_text().splitlines()[7] == (
        '{"query":"Trail shoe model 7","doc_id":"d7","kind":"title"}'
    )
    documents = (tmp_path / "d.jsonl").read_bytes()
    over = clickloop("generate", "--documents", "d.jsonl", "--output", "./d.jsonl", cwd=tmp_path)
    assert (over.returncode, over.stderr) == (
        2,
        "clickloop: --output d.jsonl is a file to read, too: name another one\n",
    )
    assert (tmp_path / "d.jsonl").read_bytes() == documents
    jsonl(tmp_path / "few.jsonl", {"doc_id": "d", "title": "Trail shoe", "text": ""})
    few = clickloop("generate", "--documents", "few.jsonl", cwd=tmp_path)
    assert (few.returncode, few.stdout) == (1, "")
    assert few.stderr == (
        "clickloop: 1 pairs from 1 documents: too few to learn from, 100 are needed (min_examples)\n"
    )
    jsonl(tmp_path / "bad.jsonl", {"title": "no id"})
    bad = clickloop("generate", "--documents", "bad.jsonl", cwd=tmp_path)
    assert bad.returncode == 2
    assert bad.stderr.startswith("clickloop: bad.jsonl:1: not a valid DocumentChanged")


def test_the_command_makes_no_queries_for_what_a_later_row_deletes(tmp_path: Path) -> None:
    rows = [{"doc_id": f"d{n}", "title": f"Trail shoe model {n}"} for n in range(102)]
    jsonl(
        tmp_path / "d.jsonl", *rows, {"doc_id": "d1", "deleted": True}, {"doc_id": "d2", "deleted": True}, rows[2]
    )
    done = clickloop("generate", "--documents", "d.jsonl", cwd=tmp_path)
    assert done.stderr == "101 pairs made, none sent, from 101 documents: 101 from a title\n"
    assert {"d0", "d2"} <= {json.loads(line)["doc_id"] for line in done.stdout.splitlines()}


def test_generate_takes_the_documents_of_its_index_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"index": "shop", "doc_id": "p1", "title": "Waterproof trail boots", "text": "Light boots for mud."}
    theirs = {"index": "blog", "doc_id": "p1", "title": "Kittens sleep", "text": "A post about kittens."}
    (tmp_path / "d.jsonl").write_text(f"{json.dumps(mine)}\n{json.dumps(theirs)}\n")
    monkeypatch.setenv("CLICKLOOP_MIN_EXAMPLES", "1")
    done = clickloop("generate", "--documents", "d.jsonl", "--index", "shop", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 documents of other indexes left out" in done.stderr
    assert "boots" in done.stdout
    assert "ittens" not in done.stdout
    none = clickloop("generate", "--documents", "d.jsonl", "--index", "news", cwd=tmp_path)
    assert none.returncode == 2
    assert "the documents are of blog, shop, and none of news" in none.stderr
