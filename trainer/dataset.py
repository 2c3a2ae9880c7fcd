"""From examples to arrays: what a method learns from, and the time-ordered hold-out that it never sees."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clickloop.events import ExampleFormed
from clickloop.propensity import Correction, Examination
from clickloop.text import normal_text
from trainer.examples import Document
from trainer.influence import proportionate
from trainer.model import Vectors
from trainer.slices import Clicked, Slices, slices_of
from trainer.swaps import Vote, vote_of

Indexes = NDArray[np.int64]
Floats = NDArray[np.float32]

GOOD_RATING = 4.0
RATED = 3.0
"""How many clicks a good rating is worth: hardly any is given by mistake, where one click in four or five is."""
PASSED_OVER = 0.1
"""What being passed over above a click says against a document, beside what a click says for one: often it was not
seen, and the click already puts all others below its own."""
SHOWN = 10
"""Results that an answer is taken to have."""
BELIEVED = 0.5
"""Clicks that are trusted less don't tell where people look."""
_BLOCK = 512
NEAR_DUPLICATE = 0.97
"""Queries whose vectors have at least this cosine are one query in other words, e.g. a plural or a typo."""


@dataclass(frozen=True)
class Corpus:
    """The documents of the index, and their vectors in the parent's space."""

    documents: list[Document]
    vectors: Vectors
    """(documents, dim) float32, normalised"""

    def __len__(self) -> int:
        return len(self.documents)


@dataclass(frozen=True)
class Clicks:
    """Positive evidence: one row for each pair of query text and document, whatever the number of clicks.

    Rows are ordered by the query text's first impression, oldest first; what is synthetic stands before them all.
    """

    queries: list[str]
    """Distinct query texts, oldest first impression first."""
    query: Indexes
    """(rows,) index into ``queries``"""
    document: Indexes
    """(rows,) index into the corpus' documents"""
    weight: Floats
    """(rows,) evidence times the clipped inverse of the chance to be examined: what undoes position bias"""
    evidence: Floats
    """(rows,) how often it was clicked by someone who is trusted; a good rating counts RATED times"""
    examples: Indexes = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(queries,) how many positive examples each query's rows were made from; empty where none were counted"""
    unwanted: dict[int, dict[int, float]] = field(default_factory=dict)
    """Query index → documents that were rated low, called the worse one of two, or passed over above a click → how
    much speaks against them, beyond what speaks for them, in trusted clicks"""
    slices: Slices = field(default_factory=Slices)
    """By the clicks' domains and difficulties."""
    votes: dict[int, list[Vote]] = field(default_factory=dict)
    """Query index → its clicks on randomised traffic; see trainer/swaps.py"""
    debiased: bool = False
    """Methods learn from ``weight``, not from ``evidence``."""
    synthetic: int = 0
    """So many of the first queries no one has asked: they were made up from documents."""
    vectors: Vectors = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    """(queries, dim) float32: the parent's encoder's, normalised, without the adapter; empty until known"""
    looks: Floats = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """(rows,) the share of an answer's looks that the document's place gets, as a mean over its clicks; empty
    where no places are known"""

    def __len__(self) -> int:
        return len(self.query)

    @property
    def taught(self) -> Floats:
        """(rows,) how much methods make of each row; in the mean as much as ``evidence``."""
        if not self.debiased or not len(self):
            return self.evidence
        share = self.weight / max(float(self.weight.mean()), 1e-12)
        return np.asarray(share * self.evidence.mean(), dtype=np.float32)

    def counted(self) -> Indexes:
        """(queries,) the examples of each, 0 where they were not counted."""
        return self.examples if len(self.examples) else np.zeros(len(self.queries), dtype=np.int64)

    def facts(self) -> tuple[bytes, ...]:
        """All that training may depend on but the vectors, for telling one set of clicks from another."""
        texts, against = (
            "\0".join(self.queries).encode(),
            repr((self.debiased, self.synthetic, self.unwanted)).encode(),
        )
        return (
            texts,
            against,
            *(part.tobytes() for part in (self.query, self.document, self.weight, self.evidence)),
        )

    def of_queries(self, wanted: Sequence[int] | Indexes) -> Clicks:
        """Only these queries' rows, with the queries numbered anew."""
        kept = np.asarray(sorted(int(w) for w in wanted), dtype=np.int64)
        number = np.full(len(self.queries), -1, dtype=np.int64)
        number[kept] = np.arange(len(kept))
        rows = number[self.query] >= 0 if len(self.query) else np.zeros(0, dtype=bool)
        return Clicks(
            queries=[self.queries[i] for i in kept],
            query=number[self.query[rows]],
            document=self.document[rows],
            weight=self.weight[rows],
            evidence=self.evidence[rows],
            examples=self.examples[kept] if len(self.examples) else self.examples,
            unwanted={int(number[q]): d for q, d in self.unwanted.items() if number[q] >= 0},
            slices=self.slices.renumbered(number),
            votes={int(number[q]): of_it for q, of_it in self.votes.items() if number[q] >= 0},
            debiased=self.debiased,
            synthetic=int((kept < self.synthetic).sum()),
            vectors=self.vectors[kept] if len(self.vectors) else self.vectors,
            looks=self.looks[rows] if len(self.looks) else self.looks,
        )

    def of_rows(self, kept: NDArray[np.bool_]) -> Clicks:
        """Only these rows, ``kept`` (rows,), and the queries that still have one. A row counts as one example."""
        part = replace(
            self,
            query=self.query[kept],
            document=self.document[kept],
            weight=self.weight[kept],
            evidence=self.evidence[kept],
            looks=self.looks[kept] if len(self.looks) else self.looks,
            examples=np.bincount(self.query[kept], minlength=len(self.queries)),
        )
        return part.of_queries(np.unique(part.query))


class First(NamedTuple):
    """The first impression of a query that the examples tell of."""

    version: str
    """That answered; empty where it is not told."""
    at: datetime


@dataclass(frozen=True)
class Prepared:
    """Everything that a run knows from the log."""

    clicks: Clicks
    synthetic: Clicks
    """What the documents themselves say, from ``clickloop generate``; never held out."""
    positives: int
    """Examples by label, whatever they weigh, synthetic ones among them."""
    negatives: int
    newest_example_at: datetime | None
    unknown_documents: int
    """Examples whose document is no longer in the index."""
    examination: Examination | None = None
    """Where people look, as the weights have it."""
    first: dict[str, First] = field(default_factory=dict)
    """Of each of the clicks' queries."""


def prepare(
    examples: Sequence[ExampleFormed],
    documents: Sequence[Document],
    *,
    bias: Correction = "estimated",
    clip: float = 10.0,
    max_document_share: float = 0.0,
) -> Prepared:
    """Group the examples (oldest impression first) by normal query text and document.

    ``bias``: see ``examination_of``; ``clip``: see ``inverse_propensities``; ``max_document_share``: see
    ``proportionate``.
    """
    labels = Counter(example.label for example in examples)
    examples = proportionate(examples, max_share=max_document_share)
    position = {document.doc_id: i for i, document in enumerate(documents)}
    examination = examination_of(examples, bias)
    inverse, told = inverse_propensities(examples, examination, clip=clip), told_propensities(examples)
    looks = shares_of_looks(examples, examination)
    queries: list[str] = []
    known: dict[str, int] = {}
    rows: dict[tuple[int, int], list[float]] = {}
    against: defaultdict[tuple[int, int], float] = defaultdict(float)
    first: dict[str, First] = {}
    in_slices: defaultdict[Clicked, float] = defaultdict(float)
    votes: dict[int, list[Vote]] = {}
    made: list[ExampleFormed] = []
    of_query = Counter[int]()
    unknown = 0
    newest: datetime | None = None
    for example in examples:
        newest = max(newest, example.formed_at) if newest else example.formed_at
        document = position.get(example.doc_id)
        if document is None:
            unknown += 1
            continue
        text = normal_text(example.query)
        if not text or example.weight <= 0.0:
            continue
        if example.origin == "synthetic":
            made.append(example)
            continue
        query = known.setdefault(text, len(queries))
        if query == len(queries):
            queries.append(example.query)
            first[example.query] = First(example.version, example.served_at)
        trust = example.trust
        if trust is None:
            trust = min(example.weight / told.get(example.position or 0, example.weight), 1.0)
        for other in example.negatives:
            if other in position:
                against[query, position[other]] += example.worse.get(other, trust * PASSED_OVER)
        if example.label == "negative":
            against[query, document] += trust * RATED
        else:
            correction = inverse.get(example.position or 0, 1.0)
            evidence = trust * (RATED if _rated_good(example) else 1.0)
            row = rows.setdefault((query, document), [0.0, 0.0, 0.0])
            row[0] += evidence * correction
            row[1] += evidence
            row[2] += evidence * looks.get(example.position or 1, 0.0)
            of_query[query] += 1
            for name in slices_of(example):
                in_slices[Clicked(name, query, document)] += evidence * correction
            if trust >= BELIEVED and (vote := vote_of(example, position)):
                votes.setdefault(query, []).append(vote)
    ordered = sorted(rows)
    pairs = np.asarray(ordered, dtype=np.int64).reshape(-1, 2)
    weights = np.asarray([rows[key] for key in ordered], dtype=np.float32).reshape(-1, 3)
    unwanted: dict[int, dict[int, float]] = {}
    for (query, document), objection in sorted(against.items()):
        beyond = objection - rows.get((query, document), (0.0, 0.0, 0.0))[1]
        if beyond > 0.0:
            unwanted.setdefault(query, {})[document] = beyond
    clicks = Clicks(
        queries=queries,
        query=pairs[:, 0],
        document=pairs[:, 1],
        weight=weights[:, 0],
        evidence=weights[:, 1],
        examples=np.asarray([of_query[query] for query in range(len(queries))], dtype=np.int64),
        unwanted=unwanted,
        slices=Slices.made_of(in_slices),
        votes=votes,
        looks=np.asarray(weights[:, 2] / weights[:, 1].clip(min=1e-9) if looks else [], dtype=np.float32),
    )
    synthetic = of_pairs([(example.query, position[example.doc_id], example.weight) for example in made])
    return Prepared(clicks, synthetic, labels["positive"], labels["negative"], newest, unknown, examination, first)


def of_pairs(pairs: Sequence[tuple[str, int, float]]) -> Clicks:
    """Query texts, documents and weights as evidence, in parts of a trusted click; one query a normal text."""
    texts: dict[str, str] = {}
    rows: dict[tuple[int, int], float] = {}
    number: dict[str, int] = {}
    of_query = Counter[int]()
    for text, document, weight in pairs:
        normal = normal_text(text) or text
        query = number.setdefault(normal, len(number))
        texts.setdefault(normal, text)
        rows[query, document] = rows.get((query, document), 0.0) + weight
        of_query[query] += 1
    ordered = sorted(rows)
    numbers = np.asarray(ordered, dtype=np.int64).reshape(-1, 2)
    evidence = np.asarray([rows[row] for row in ordered], dtype=np.float32)
    return Clicks(
        queries=list(texts.values()),
        query=numbers[:, 0],
        document=numbers[:, 1],
        weight=evidence,
        evidence=evidence,
        examples=np.asarray([of_query[query] for query in range(len(texts))], dtype=np.int64),
    )


def after_synthetic(synthetic: Clicks, clicks: Clicks) -> Clicks:
    """The clicks, with what was known before any of them in front."""
    if not len(synthetic):
        return clicks
    count = len(synthetic.queries)
    return Clicks(
        queries=[*synthetic.queries, *clicks.queries],
        query=np.concatenate([synthetic.query, clicks.query + count]),
        document=np.concatenate([synthetic.document, clicks.document]),
        weight=np.concatenate([synthetic.weight * _weight_of_evidence(clicks), clicks.weight]),
        evidence=np.concatenate([synthetic.evidence, clicks.evidence]),
        examples=np.concatenate([synthetic.counted(), clicks.counted()]),
        unwanted={query + count: documents for query, documents in clicks.unwanted.items()},
        slices=clicks.slices.behind(count),
        votes={query + count: votes for query, votes in clicks.votes.items()},
        debiased=clicks.debiased,
        synthetic=count,
        vectors=np.concatenate([synthetic.vectors, clicks.vectors]),
    )


def examination_of(examples: Iterable[ExampleFormed], bias: Correction) -> Examination | None:
    """Where people look.

    ``estimated`` is what the swapped pairs among the examples tell, and 1/position where they tell nothing;
    ``inverse_rank`` is 1/position; with ``off`` it is None.
    """
    if bias == "off":
        return None
    swaps = Examination()
    if bias == "estimated":
        for example in examples:
            clicked = example.label == "positive" and example.clicks and (example.trust or 0.0) >= BELIEVED
            if clicked and example.position:
                swaps.click(example.position, propensity=example.propensity, swapped=example.swapped)
    return swaps


def inverse_propensities(
    examples: Iterable[ExampleFormed], examination: Examination | None, *, clip: float
) -> dict[int, float]:
    """Position → the inverse of its chance to be looked at, at most ``clip``, as a share of it; 1 without any."""
    positions = {one.position for one in examples if one.label == "positive" and one.position}
    if not positions or examination is None:
        return dict.fromkeys(positions, 1.0)
    curve = examination.curve(max(positions))
    return {position: min(1.0 / curve[position - 1], clip) / clip for position in positions}


def shares_of_looks(examples: Iterable[ExampleFormed], examination: Examination | None) -> dict[int, float]:
    """Position → the share of an answer's looks that it gets; the first is always there, for what names no place.
    Empty where none does.

    An answer is as long as the deepest click is far down, and at most SHOWN. Where more was shown, the shares are
    too large, and less is sure.
    """
    positions = {one.position for one in examples if one.label == "positive" and one.position}
    if not positions:
        return {}
    deepest = max(positions)
    curve = examination.curve(deepest) if examination is not None else [1.0] * deepest
    whole = sum(curve[:SHOWN])
    return {position: min(curve[position - 1] / whole, 1.0) for position in positions | {1}}


def told_propensities(examples: Iterable[ExampleFormed]) -> dict[int, float]:
    """Position → what a trusted click there weighs in examples that don't say how far they are trusted.

    The stream rules choose that curve and such an example carries only its product with trust: it is the largest
    weight of a mere click at the position.
    """
    curve: dict[int, float] = {}
    for example in examples:
        if example.trust is None and example.label == "positive" and example.position and not _rated_good(example):
            curve[example.position] = max(curve.get(example.position, 0.0), example.weight)
    return {place: weight for place, weight in curve.items() if weight > 0.0}


def _rated_good(example: ExampleFormed) -> bool:
    return example.rating is not None and example.rating >= GOOD_RATING


def joined(clicks: Clicks, others: Clicks) -> Clicks:
    """Both, one after the other; a row of ``others`` is as much evidence as the average row of ``clicks``."""
    evidence = float(clicks.evidence.mean()) if len(clicks) else 1.0
    weight = evidence * _weight_of_evidence(clicks)
    return Clicks(
        queries=[*clicks.queries, *others.queries],
        query=np.concatenate([clicks.query, others.query + len(clicks.queries)]),
        document=np.concatenate([clicks.document, others.document]),
        weight=np.concatenate([clicks.weight, others.weight * weight]),
        evidence=np.concatenate([clicks.evidence, others.evidence * evidence]),
        examples=np.concatenate([clicks.counted(), np.zeros_like(others.counted())]),
        unwanted=clicks.unwanted,
        debiased=clicks.debiased,
        synthetic=clicks.synthetic,
        vectors=np.concatenate([clicks.vectors, others.vectors]),
    )


def _weight_of_evidence(clicks: Clicks) -> float:
    """What the clicks' weights are beside their evidence, on the whole; so are those of pairs no one clicked."""
    evidence = float(clicks.evidence.sum())
    return float(clicks.weight.sum()) / evidence if evidence > 0.0 else 1.0


def moments(
    clicks: Clicks, *, share: float, count: int, older: Set[int] = frozenset()
) -> list[tuple[Clicks, Clicks]]:
    """``count`` moments of the past, oldest first: what was known until then, and the ``share`` of rows after it.

    Time is that of a query's first impression, so what comes after a moment are queries that were new then, and
    no text is on both sides (rolling-origin evaluation, Tashman 2000). A query that has a near-duplicate before
    the moment leaves the later side, for it says nothing about queries never seen. ``clicks.vectors`` is needed.
    Moments with nothing on one of their sides are left out.

    ``older``: the numbers of queries that the parent may have learnt from. They are known at every moment and
    judge at none, and ``share`` is one of the others' rows: with few of those, moments are small, or fewer.
    """
    new = [query for query in range(len(clicks.queries)) if query not in older]
    rows_of_new = clicks.of_queries(new)
    found = []
    for number in range(count, 0, -1):
        first, end = (first_after(rows_of_new, left * share) for left in (number, number - 1))
        last = len(new) if number == 1 else end
        before = sorted([*older, *new[:first]])
        known, later = clicks.of_queries(before), new_among(clicks, before, new[first:last])
        if len(known) and len(later):
            found.append((known, later))
    return found


def too_few(clicks: Clicks, older: Set[int] = frozenset()) -> str:
    """Why ``moments`` finds none."""
    clicked = set(np.unique(clicks.query).tolist())
    if clicked and clicked <= older:
        return f"none of the {len(clicked)} clicked queries is new: older examples, learnt again, have them all"
    named = f"{len(clicked)} distinct {'query' if len(clicked) == 1 else 'queries'}"
    of_them = f", {len(clicked - older)} of them new," if older else ""
    return f"clicks on {named}{of_them} are too few to train on some and hold others out"


def first_after(clicks: Clicks, share: float) -> int:
    """Number of the first query after the moment that leaves the ``share`` of rows behind it."""
    rows = np.bincount(clicks.query, minlength=len(clicks.queries))
    done = np.cumsum(rows) / max(len(clicks), 1)
    return int(np.searchsorted(done, 1.0 - share, side="right"))


def unlike(given: Clicks, clicks: Clicks) -> Clicks:
    """The clicks of queries that are no near-duplicate of a ``given`` one."""
    both, count = after_synthetic(given, clicks), len(given.queries)
    return new_among(both, range(count), range(count, len(both.queries)))


def new_among(clicks: Clicks, known: Sequence[int], later: Sequence[int]) -> Clicks:
    """The ``later`` queries that are no near-duplicate of a ``known`` one; both by number."""
    kept: list[int] = []
    seen = clicks.vectors[np.asarray(known, dtype=np.int64)]
    for start in range(0, len(later), _BLOCK):
        block = np.asarray(later[start : start + _BLOCK])
        nearest = (clicks.vectors[block] @ seen.T).max(axis=1) if len(seen) else np.zeros(len(block))
        kept.extend(block[nearest < NEAR_DUPLICATE].tolist())
    return clicks.of_queries(kept)
