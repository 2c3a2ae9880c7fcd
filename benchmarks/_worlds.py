"""The traffic that ``benchmarks.drift`` measures: worlds of queries, how people click in them, and how they shift.

A query knows its sketch (made as the search node makes it), the document that is wanted, and the rank at which
that document is shown. People look at rank r with probability 1/r and click there with 0.8; one in ten also rates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clickloop.base_model import base_model_folder
from search.sketch import sketch
from streams.windows import Sample, Settled

Floats = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]
Shift = Literal["none", "unseen_topics", "worse_answers", "worse_topic"]

DEPTH = 10
DIMENSIONS = 384
WORDS_IN_TOPIC, COMMON_WORDS, DOCUMENTS_IN_TOPIC = 60, 150, 40


@dataclass(frozen=True)
class Query:
    text: str
    sketch: bytes
    topic: int
    document: str
    rank: int
    """Where the wanted document is shown, from 1; 0 where it is not."""


@dataclass(frozen=True)
class World:
    """Known traffic, with the probability of each query, and queries of topics that it has never seen."""

    known: Sequence[Query]
    chances: NDArray[np.float64]
    unseen: Sequence[Query]

    def draw(self, rng: np.random.Generator, count: int, shift: Shift, share: float) -> list[Query]:
        """One window's queries, drawn independently; with a shift, ``share`` of the traffic has moved."""
        chosen = [self.known[i] for i in rng.choice(len(self.known), size=count, p=self.chances)]
        match shift:
            case "unseen_topics":
                for place in np.flatnonzero(rng.random(count) < share):
                    chosen[place] = self.unseen[int(rng.integers(len(self.unseen)))]
            case "worse_answers":
                chosen = [replace(q, rank=q.rank * 2 if q.rank * 2 <= DEPTH else 0) for q in chosen]
            case "worse_topic":
                worst = np.bincount([q.topic for q in self.known], weights=self.chances).argmax()
                chosen = [replace(q, rank=0) if q.topic == worst else q for q in chosen]
        return chosen


@dataclass(frozen=True)
class Outcome:
    """What came of a query: the version that answered it, and the rank of the click on it, if any."""

    version: str
    sketch: bytes
    best: int | None


def fill(
    window: Sample,
    queries: Sequence[Query],
    before: Sequence[Outcome],
    rng: np.random.Generator,
    versions: Sequence[str] = ("v1",),
) -> list[Outcome]:
    """Let people ask, click and rate; what was asked in the window ``before`` settles and closes.

    Each query is answered by one of ``versions``, by chance. Returns what came of them.
    """
    for outcome in before:
        rank = 1.0 / outcome.best if outcome.best else 0.0
        window.settle(Settled(outcome.version, outcome.sketch, rank))
        window.close(outcome.version, outcome.best)
    outcomes: list[Outcome] = []
    examined, liked, rates = rng.random(len(queries)), rng.random(len(queries)), rng.random(len(queries))
    for number, query in enumerate(queries):
        version = versions[int(rng.integers(len(versions)))] if len(versions) > 1 else versions[0]
        window.query(query.text, query.sketch, version)
        seen = query.rank > 0 and examined[number] < 1.0 / query.rank
        clicked = seen and liked[number] < 0.8
        outcomes.append(Outcome(version, query.sketch, query.rank if clicked else None))
        if clicked:
            window.click(query.document, version)
        if rates[number] < 0.1:
            mood = 4.2 if query.rank in (1, 2, 3) else 2.8
            window.ratings.of(version).add(float(np.clip(np.rint(rng.normal(mood, 0.9)), 1, 5)))
    return outcomes


def simulated(seed: int) -> World:
    """Twenty topics of very different size, four of which nobody has asked about yet.

    Queries lie around their topic's direction as sentence vectors do (cosine about 0.45 within a topic and 0.1
    between); words and documents follow Zipf's law, some words shared by all topics.
    """
    rng = np.random.default_rng(seed)
    known_topics, unseen_topics, size = 16, 4, 150
    common = rng.normal(size=DIMENSIONS) * 0.35
    known: list[Query] = []
    unseen: list[Query] = []
    for topic in range(known_topics + unseen_topics):
        centre = common + rng.normal(size=DIMENSIONS) * 0.65
        vectors = centre + rng.normal(size=(size, DIMENSIONS))
        queries = [
            Query(
                text=" ".join(_words(rng, topic)),
                sketch=sketch((vector / np.linalg.norm(vector)).astype(np.float32)),
                topic=topic,
                document=f"d{topic}-{_zipf(rng, DOCUMENTS_IN_TOPIC)}",
                rank=_rank(rng, 0.45 if topic < known_topics else 0.2),
            )
            for vector in vectors
        ]
        (known if topic < known_topics else unseen).extend(queries)
    shares = 1.0 / np.arange(1, known_topics + 1) ** 0.8
    chances = np.repeat(shares / shares.sum() / size, size)
    return World(known, chances, unseen)


def _words(rng: np.random.Generator, topic: int) -> Iterator[str]:
    for _ in range(int(rng.integers(2, 5))):
        yield f"t{topic}w{_zipf(rng, WORDS_IN_TOPIC)}"
    for _ in range(int(rng.integers(2, 6))):
        yield f"c{_zipf(rng, COMMON_WORDS)}"


def _zipf(rng: np.random.Generator, count: int) -> int:
    return int(rng.zipf(1.3)) % count


def _rank(rng: np.random.Generator, chance: float) -> int:
    rank = int(rng.geometric(chance))
    return rank if rank <= DEPTH else 0


# Real queries


def encoder() -> Encode:
    """The base model's encoder, each text encoded once. Raises SettingsError without the model."""
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(
        str(base_model_folder("all-MiniLM-L6-v2")), device="cpu", local_files_only=True
    )
    known: dict[str, Floats] = {}

    def encode(texts: Sequence[str]) -> Floats:
        new = sorted({text for text in texts if text not in known})
        vectors = model.encode(new, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        known.update(zip(new, vectors, strict=True))
        return np.stack([known[text] for text in texts])

    return encode


def data_folder() -> Path | None:
    """Where the real data sets lie; None where ``CLICKLOOP_DATA`` doesn't say."""
    named = os.environ.get("CLICKLOOP_DATA", "")
    return Path(named) if named and Path(named).is_dir() else None


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def clinc150(folder: Path, encode: Encode, split: str, *, per_domain: int) -> dict[str, World]:
    """Requests of ten domains: shifts to each of two domains held out, and to requests out of scope.

    The wanted document is the request's intent, shown at the rank that the base model gives it.
    """
    documents = _rows(folder / "clinc150" / "docs.jsonl")
    intents = [row["id"] for row in documents]
    corpus = encode([row["title"] for row in documents])
    by_domain: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(folder / "clinc150" / "queries.jsonl"):
        if row["split"] in (split, f"oos_{split}"):
            by_domain.setdefault(row["domain"] or "out_of_scope", []).append(row)
    rng = np.random.default_rng(0)
    domains: dict[str, list[Query]] = {}
    for topic, (domain, rows) in enumerate(sorted(by_domain.items())):
        some = [rows[i] for i in sorted(rng.permutation(len(rows))[:per_domain])]
        vectors = encode([row["text"] for row in some])
        scores = vectors @ corpus.T
        domains[domain] = [
            Query(row["text"], sketch(vector), topic, row["intent"], _rank_of(score, intents, row["intent"]))
            for row, vector, score in zip(some, vectors, scores, strict=True)
        ]
    outside = domains.pop("out_of_scope")
    held_out = {"banking": domains["banking"], "travel": domains["travel"], "out of scope": outside}
    worlds = {}
    for name, unseen in held_out.items():
        known = [query for domain, queries in domains.items() if domain != name for query in queries]
        worlds[f"clinc150, {name}"] = World(known, _even(known), unseen)
    return worlds


def _rank_of(scores: Floats, ids: Sequence[str], wanted: str) -> int:
    if wanted not in ids:
        return 0
    rank = 1 + int((scores > scores[ids.index(wanted)]).sum())
    return rank if rank <= DEPTH else 0


def scifact(folder: Path, encode: Encode, split: str) -> dict[str, World]:
    """Scientific claims in six topics (clusters of the training claims' vectors), two of them held out in turn.

    The documents are those that judges found; their ranks are drawn, alike for all claims.
    """
    wanted: dict[str, str] = {}
    for row in _rows(folder / "scifact" / "qrels.jsonl"):
        wanted.setdefault(row["query_id"], row["doc_id"])
    rows = _rows(folder / "scifact" / "queries.jsonl")
    train = encode([row["text"] for row in rows if row["split"] == "train"])
    some = [row for row in rows if row["split"] == split]
    vectors = encode([row["text"] for row in some])
    rng = np.random.default_rng(0)
    centres = _centres(train, 6, rng)
    topics = np.argmax(vectors @ centres.T, axis=1)
    claims = [
        Query(row["text"], sketch(vector), int(topic), wanted.get(row["id"], ""), _rank(rng, 0.45))
        for row, vector, topic in zip(some, vectors, topics, strict=True)
    ]
    worlds = {}
    for topic in range(2):
        known = [query for query in claims if query.topic != topic]
        unseen = [query for query in claims if query.topic == topic]
        worlds[f"scifact, topic {topic + 1}"] = World(known, _even(known), unseen)
    return worlds


def _centres(vectors: Floats, count: int, rng: np.random.Generator) -> Floats:
    centres = vectors[rng.permutation(len(vectors))[:count]]
    for _ in range(20):
        nearest = np.argmax(vectors @ centres.T, axis=1)
        centres = np.stack([vectors[nearest == number].mean(axis=0) for number in range(count)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return centres


def _even(queries: Sequence[Query]) -> NDArray[np.float64]:
    return np.full(len(queries), 1.0 / len(queries))
