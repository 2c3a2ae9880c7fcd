"""What the demo searches: the functions of Python's own standard library, or the user's own files.

A document is a function's qualified name, its signature and its code without the docstring; the query that
should find it is the docstring's first sentence. Both are on every machine, and neither was made for this.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from clickloop.errors import SettingsError
from clickloop.events import Id, Text

T = TypeVar("T")

DOCUMENT_CHARACTERS = 600
STDLIB_DOCUMENTS = 4500
HELD_OUT_SHARE = 0.2
# Not library code that anyone searches, or not on every machine.
_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__", "ensurepip"}
_FIRST_SENTENCE = re.compile(r"(?<=[.!?])\s|\n\s*\n")


@dataclass(frozen=True)
class Document:
    doc_id: str
    title: str
    text: str
    topic: str


@dataclass(frozen=True)
class Query:
    text: str
    relevant: frozenset[str]
    topic: str


@dataclass(frozen=True)
class Corpus:
    """``held_out`` queries never produce a click; the figures are measured on them alone."""

    documents: list[Document]
    clicking: list[Query]
    held_out: list[Query]


def stdlib_corpus(*, seed: int) -> Corpus:
    """About 4,500 functions; fewer where this Python ships fewer."""
    pairs: list[tuple[Document, Query]] = []
    seen: set[str] = set()
    for document, sentence in _functions(Path(sysconfig.get_paths()["stdlib"])):
        if len(sentence.split()) < 3 or sentence.lower() in seen or document.doc_id in seen:
            continue
        seen |= {sentence.lower(), document.doc_id}
        pairs.append((document, Query(sentence, frozenset([document.doc_id]), document.topic)))
    order = random.Random(seed)
    order.shuffle(pairs)
    pairs = pairs[:STDLIB_DOCUMENTS]
    return _split([document for document, _ in pairs], [query for _, query in pairs])


def _functions(root: Path) -> Iterator[tuple[Document, str]]:
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if _LEFT_OUT & set(inside.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        parts = [part for part in inside.with_suffix("").parts if part != "__init__"]
        yield from _documented(tree, ".".join(parts), topic=parts[0])


def _documented(node: ast.Module | ast.ClassDef, path: str, *, topic: str) -> Iterator[tuple[Document, str]]:
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{path}.{child.name}", topic=topic)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(child)
            if not docstring:
                continue
            name = f"{path}.{child.name}"
            signature = f"def {child.name}({ast.unparse(child.args)})"
            code = "\n".join(ast.unparse(statement) for statement in child.body[1:])
            text = f"{signature}\n{code}"[: DOCUMENT_CHARACTERS - len(name)]
            sentence = " ".join(_FIRST_SENTENCE.split(docstring.strip())[0].split())
            yield Document(name, name, text, topic), sentence[:500]


class _DocumentLine(msgspec.Struct):
    doc_id: Id
    text: str = ""
    title: Text = ""
    topic: str = ""


class _QueryLine(msgspec.Struct):
    query: Text
    relevant: dict[str, float]
    topic: str = ""


def read_corpus(documents: Path, queries: Path, *, seed: int) -> Corpus:
    """The user's own files. Raises SettingsError with the file, the line and what is wrong with it."""
    found = [
        Document(line.doc_id, line.title, line.text, line.topic or "all")
        for line in _lines(documents, _DocumentLine)
    ]
    known = {document.doc_id for document in found}
    if len(known) != len(found):
        raise SettingsError(f"{documents}: a doc_id occurs twice")
    asked = []
    for number, line in enumerate(_lines(queries, _QueryLine), start=1):
        relevant = frozenset(doc_id for doc_id, grade in line.relevant.items() if grade > 0)
        if not relevant <= known:
            raise SettingsError(f"{queries}:{number}: document {min(relevant - known)!r} is not in {documents}")
        if relevant and line.query.strip():
            asked.append(Query(line.query, relevant, line.topic or "all"))
    if len(asked) < 50:
        raise SettingsError(f"{queries}: {len(asked)} queries with a relevant document; at least 50 are needed")
    random.Random(seed).shuffle(asked)
    return _split(found, asked)


def _lines(path: Path, kind: type[T]) -> Iterator[T]:
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                yield decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise SettingsError(f"{path}:{number}: {error}") from None


def _split(documents: list[Document], queries: list[Query]) -> Corpus:
    """``queries`` come shuffled. A text that is asked twice is held out or clicked, never both."""
    wanted = round(len(queries) * HELD_OUT_SHARE)
    held_out = queries[:wanted]
    texts = {query.text.lower() for query in held_out}
    return Corpus(documents, [q for q in queries[wanted:] if q.text.lower() not in texts], held_out)
