"""Queries for a search that no one has used yet, made from the documents themselves.

A query is a piece of its document that a person might type: the title, a heading, the first sentence (of a
docstring, where there is one), or a key phrase. Key phrases are runs of words that are no stop words, weighted by
tf-idf over the corpus and by how early they stand (as in KP-Miner, El-Beltagy and Rafea 2009, and YAKE, Campos et
al. 2020). A text that fits several documents says nothing about any of them and is left out.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from clickloop.events import DocumentChanged, ExampleFormed
from clickloop.text import is_mark, masked

Kind = Literal["title", "heading", "sentence", "phrase", "model"]

MOST_TEXT = 20_000
"""Characters of a document that are looked at."""
SHORTEST, LONGEST = 2, 16
"""Words of a query."""
LONGEST_PHRASE = 4
PHRASES = 2
HEADINGS = 3
NEAR_COPY = 0.7
"""Two texts are one query in other words where they share this much of their words (Jaccard)."""
COMMON = 0.2
"""A word in more than this share of the documents tells none from another."""
FEWEST_FOR_COMMON = 50
PROSE = 0.9
"""Least share of letters, marks, digits and spaces in a query, half of it letters; code and tables have less."""

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# On masked text, where "_" is a mark.
_WORD = re.compile(r"[^\W_]\w*(?:['\u2019\u200c\u200d-]\w+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n|\n(?=\s*[-*#])")
_CLAUSE_END = re.compile(r"[^\w\s'\u2019\u200c\u200d-]+|\n")
_HEADING = re.compile(
    r"^ {0,3}#{1,6}[ \t]+(\S.*)$|^(\S.*)\n[=-]{3,}[ \t]*$|<h[1-6]>([^<]*)</h[1-6]>", re.MULTILINE
)
_DOCSTRING = re.compile(r'"""([^"]+)"""|\'\'\'([^\']+)\'\'\'|/\*\*([^*/][^/]*)\*/')
_STOP = frozenset([
    "a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "been",
    "before", "but", "by", "can", "could", "did", "do", "does", "each", "else", "for", "from", "had",
    "has", "have", "he", "her", "his", "how", "i", "if", "in", "into", "is", "it", "its",
    "just", "may", "more", "most", "must", "no", "not", "of", "on", "one", "only", "or", "other",
    "our", "out", "over", "own", "same", "she", "should", "so", "some", "such", "than", "that", "the",
    "their", "them", "then", "there", "these", "they", "this", "those", "to", "too", "two", "under", "up",
    "use", "used", "using", "very", "was", "we", "were", "what", "when", "where", "which", "while", "who",
    "will", "with", "would", "you", "your",
])  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A query that must find its document."""

    query: str
    doc_id: str
    kind: Kind


def generate(
    documents: Sequence[DocumentChanged],
    *,
    per_document: int,
    seed: int,
    asked: Mapping[str, Sequence[str]] | None = None,
) -> list[Pair]:
    """At most ``per_document`` queries a document, of as many kinds as it has; the same for the same seed.

    ``asked`` are a model's queries by document, of the kind ``model``.
    """
    idf = _inverse_document_frequencies(documents)
    models = asked or {}
    candidates = {d.doc_id: list(_candidates(d, idf, models.get(d.doc_id, ()))) for d in documents}
    owners: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for doc_id, pairs in candidates.items():
        for pair in pairs:
            owners[tuple(words(pair.query))].add(doc_id)
    return [
        pair
        for doc_id, pairs in candidates.items()
        for pair in _chosen(
            [pair for pair in pairs if len(owners[tuple(words(pair.query))]) == 1],
            per_document,
            random.Random(f"{seed}/{doc_id}"),
        )
    ]


def example(pair: Pair, *, index: str, weight: float, now: datetime) -> ExampleFormed:
    """The pair as a positive example, marked synthetic. It has the same id whenever it is made."""
    identity = _digest(index, pair.query, pair.doc_id)
    return ExampleFormed(
        event_id=f"{identity}/1",
        index=index,
        example_id=identity,
        revision=1,
        query_id=f"synthetic-{_digest(index, pair.query)}",
        query=pair.query,
        doc_id=pair.doc_id,
        label="positive",
        weight=weight,
        served_at=now,
        formed_at=now,
        origin="synthetic",
    )


def words(text: str) -> list[str]:
    """Words as people type them: identifiers fall apart, case and punctuation go, combining marks stay.

    >>> words("BaseEventLoop.run_forever")
    ['base', 'event', 'loop', 'run', 'forever']
    """
    apart = _CAMEL.sub(" ", text).replace("_", " ")
    return [apart[found.start() : found.end()].casefold() for found in _WORD.finditer(masked(apart))]


def _candidates(document: DocumentChanged, idf: dict[str, float], asked: Sequence[str]) -> Iterator[Pair]:
    text = document.text[:MOST_TEXT]
    found: list[tuple[Kind, str]] = [("title", document.title)]
    headings = ("".join(match.groups(default="")) for match in _HEADING.finditer(text))
    found += [("heading", heading) for heading, _ in zip(headings, range(HEADINGS), strict=False)]
    found.append(("sentence", _first_sentence(text)))
    found += [("phrase", phrase) for phrase in _key_phrases(text, idf)]
    found += [("model", query) for query in asked]
    for kind, piece in found:
        query = _readable(piece)
        if query:
            yield Pair(query, document.doc_id, kind)


def _readable(text: str) -> str:
    """The text as a query; empty where no one would type it."""
    text = " ".join(text.split()).strip(" #*`=-.:;")
    if " " not in text:
        text = " ".join(words(text))
    count = len(text.split())
    marks = sum(map(is_mark, text))
    letters = marks + sum(c.isalpha() for c in text)
    prose = marks + sum(c.isalnum() or c.isspace() for c in text)
    fits = SHORTEST <= count <= LONGEST and prose >= PROSE * len(text) and 2 * letters >= len(text)
    return text if fits else ""


def _first_sentence(text: str) -> str:
    docstring = _DOCSTRING.search(text)
    if docstring:
        text = "".join(docstring.groups(default=""))
    headless = _HEADING.sub("", text).strip()
    return _SENTENCE_END.split(headless, maxsplit=1)[0]


def _key_phrases(text: str, idf: dict[str, float]) -> list[str]:
    """The best phrases of two words and more, none of which shares a word with another."""
    counts: Counter[tuple[str, ...]] = Counter()
    first: dict[tuple[str, ...], int] = {}
    for place, clause in enumerate(_clauses(text)):
        for run in _runs(words(clause), idf):
            for length in range(2, LONGEST_PHRASE + 1):
                for start in range(len(run) - length + 1):
                    phrase = tuple(run[start : start + length])
                    counts[phrase] += 1
                    first.setdefault(phrase, place)

    def score(phrase: tuple[str, ...]) -> float:
        rare = sum(idf[word] for word in phrase) / len(phrase)
        return (1.0 + math.log(counts[phrase])) * rare * math.log2(1 + len(phrase)) / math.log2(3 + first[phrase])

    best: list[tuple[str, ...]] = []
    for phrase in sorted(counts, key=lambda p: (-score(p), p)):
        if len(set(phrase)) == len(phrase) and not any(set(phrase) & set(other) for other in best):
            best.append(phrase)
        if len(best) == PHRASES:
            break
    return [" ".join(phrase) for phrase in best]


def _clauses(text: str) -> Iterator[str]:
    start = 0
    for end in _CLAUSE_END.finditer(masked(text)):
        yield text[start : end.start()]
        start = end.end()
    yield text[start:]


def _runs(found: Sequence[str], idf: dict[str, float]) -> Iterator[list[str]]:
    """Runs of words between those that say nothing."""
    run: list[str] = []
    for word in found:
        if idf.get(word, 0.0) > 0.0 and len(word) > 1 and not word.isdigit():
            run.append(word)
        else:
            yield run
            run = []
    yield run


def _inverse_document_frequencies(documents: Sequence[DocumentChanged]) -> dict[str, float]:
    """By word; 0 for stop words and for those of too many documents."""
    frequency: Counter[str] = Counter()
    for document in documents:
        frequency.update(set(words(document.text[:MOST_TEXT])))
    total = len(documents)
    most = COMMON * total if total >= FEWEST_FOR_COMMON else total
    return {
        word: 0.0 if word in _STOP or count > most else math.log(1.0 + total / count)
        for word, count in frequency.items()
    }


def _chosen(pairs: list[Pair], most: int, rng: random.Random) -> list[Pair]:
    """Kinds in turn, so that none rules; near-copies of the title, or of one another, only once."""
    by_kind: defaultdict[Kind, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_kind[pair.kind].append(pair)
    kinds = sorted(by_kind)
    rng.shuffle(kinds)
    title = next((pair for pair in pairs if pair.kind == "title"), None)
    chosen: list[Pair] = []
    while kinds and len(chosen) < most:
        for kind in list(kinds):
            pair = by_kind[kind].pop(0)
            others = [*chosen, title] if title and kind != "title" else chosen
            if len(chosen) < most and not any(_near(pair.query, other.query) for other in others):
                chosen.append(pair)
            if not by_kind[kind]:
                kinds.remove(kind)
    return chosen


def _near(one: str, other: str) -> bool:
    a, b = set(words(one)), set(words(other))
    return len(a & b) >= NEAR_COPY * len(a | b)


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(("synthetic", *parts)).encode(), digest_size=16).hexdigest()
