"""Small facts that the trainer's tests share: examples, documents, and clicks in a made-up vector space."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from clickloop.commands import Reason, Retrain
from clickloop.events import ExampleFormed, VersionKind
from trainer.dataset import Clicks, Corpus
from trainer.examples import Document
from trainer.gate import Side, Trial, measure
from trainer.methods.base import Job, Parent, Progress, deadline
from trainer.model import Adapter, Vectors, normalised
from trainer.slices import Clicked, Slices

START = datetime(2026, 1, 1, tzinfo=UTC)


def retrain(kinds: Sequence[VersionKind] = ("adapter",), *, command_id: str = "c1", **more: Any) -> Retrain:
    """A command by hand; it names no examples."""
    reason = Reason(policies=["manual"], text="test")
    given: dict[str, Any] = {"index": "default", "issued_at": START, "ranges": [], "reason": reason}
    return Retrain(command_id=command_id, kinds=list(kinds), **{**given, **more})


def example(
    query: str,
    doc_id: str,
    *,
    number: int = 0,
    position: int = 1,
    weight: float | None = None,
    label: str = "positive",
    rating: float | None = None,
    revision: int = 1,
    index: str = "default",
    negatives: tuple[str, ...] = (),
    clicks: int = 1,
    origin: Literal["clicks", "synthetic"] = "clicks",
    trust: float | None = None,
    key: str = "",
    propensity: float = 1.0,
    swapped: int | None = None,
) -> ExampleFormed:
    return ExampleFormed(
        event_id=f"{number}/{doc_id}/{revision}",
        index=index,
        example_id=f"{number}/{doc_id}",
        revision=revision,
        query_id=f"q{number}",
        query=query,
        doc_id=doc_id,
        label="negative" if label == "negative" else "positive",
        weight=min(position, 10) / 10 if weight is None else weight,
        served_at=START + timedelta(seconds=number),
        formed_at=START + timedelta(seconds=number + 1),
        position=position,
        rating=rating,
        negatives=list(negatives),
        clicks=clicks,
        origin=origin,
        trust=trust,
        split_key=key,
        propensity=propensity,
        swapped=swapped,
    )


def documents(count: int) -> list[Document]:
    return [Document(f"d{i:04}", f"document {i}", hashlib.sha256(str(i).encode()).digest()) for i in range(count)]


def world(
    *,
    queries: int = 600,
    dimension: int = 24,
    noise: float = 1.3,
    wrong: float = 0.2,
    skew: float = 1.0,
    asked: int = 1,
    seed: int = 0,
) -> tuple[Clicks, Corpus]:
    """Queries that lie where their documents are, but for a turn that a linear map can undo.

    Each query was ``asked`` so many times. A document that is examined and not wanted is clicked with a chance of
    wrong/4. With ``skew`` some directions are much louder in queries than they are in documents.
    """
    rng = np.random.default_rng(seed)
    vectors = normalised(rng.normal(size=(queries, dimension)))
    turn = np.eye(dimension) + 0.35 * rng.normal(size=(dimension, dimension)) / np.sqrt(dimension) * 2.0
    texts = normalised(vectors @ turn.T + noise * rng.normal(size=vectors.shape) / np.sqrt(dimension))
    texts = normalised(texts * np.geomspace(skew, 1.0 / skew, dimension))
    shown = np.argsort(-(texts @ vectors.T), axis=1)[:, :10]
    clicked: Counter[tuple[int, int]] = Counter()
    place_of: dict[tuple[int, int], int] = {}
    for number in np.repeat(np.arange(queries), asked).tolist():
        for place in range(10):
            found = int(shown[number, place])
            if rng.random() < 1.0 / (place + 1) and rng.random() < (0.95 if found == number else wrong / 4):
                clicked[number, found] += 1
                place_of[number, found] = place
    query = [number for number, _ in clicked]
    evidence = np.asarray(list(clicked.values()), dtype=np.float32)
    clicks = Clicks(
        queries=[f"query {i}" for i in range(queries)],
        query=np.asarray(query, dtype=np.int64),
        document=np.asarray([found for _, found in clicked], dtype=np.int64),
        weight=evidence * np.asarray([place_of[row] + 1.0 for row in clicked], dtype=np.float32),
        evidence=evidence,
        examples=np.bincount(query, minlength=queries),
        vectors=texts,
    )
    return clicks, Corpus(documents(queries), vectors)


def in_slices(clicks: Clicks, names: Mapping[int, Iterable[str]]) -> Clicks:
    """The clicks, all of those on a query in the slices of these ``names`` by query."""
    pairs = zip(clicks.query.tolist(), clicks.document.tolist(), clicks.weight.tolist(), strict=True)
    weights = {Clicked(name, q, d): weight for q, d, weight in pairs for name in names.get(q, ())}
    return replace(clicks, slices=Slices.made_of(weights))


def errs_elsewhere(correlation: float, *, noise: float, seed: int) -> tuple[Trial, float]:
    """What a gate sees of a candidate whose errors are so much like its parent's, and the true change of MRR@10.

    The parent's errors have a length of 2. People click what the parent shows and they want, higher up more often.
    """
    rng = np.random.default_rng(seed)
    vectors = normalised(rng.normal(size=(1500, 48)))
    wanted = rng.integers(0, len(vectors), 1000)
    errors, others = (normalised(rng.normal(size=(len(wanted), 48))) for _ in range(2))
    mixed = normalised(correlation * errors + np.sqrt(1.0 - correlation**2) * others)
    sides = [normalised(vectors[wanted] + length * of) for length, of in ((2.0, errors), (noise, mixed))]
    places = [((side @ vectors.T) > (side * vectors[wanted]).sum(1)[:, None]).sum(1) for side in sides]
    clicked = np.flatnonzero((places[0] < 10) & (rng.random(len(wanted)) < 1.0 / (places[0] + 1)))
    weight = (places[0][clicked] + 1.0).astype(np.float32)
    queries = [f"q{number}" for number in clicked]
    clicks = Clicks(queries, np.arange(len(clicked)), wanted[clicked], weight, np.ones_like(weight))
    before, after = (float(np.where(place < 10, 1.0 / (place + 1), 0.0).mean()) for place in places)
    return measure(clicks, *(Side(side[clicked], vectors) for side in sides)), after / before - 1.0


def mean_reciprocal_rank(queries: Vectors, vectors: Vectors) -> float:
    """MRR where query i wants document i."""
    scores = queries @ vectors.T
    ranks = (scores > np.diagonal(scores)[:, None]).sum(axis=1) + 1
    return float((1.0 / ranks).mean())


def job(
    clicks: Clicks,
    corpus: Corpus,
    encoder: SentenceTransformer | None = None,
    *,
    report: Callable[[Progress], None] = lambda _: None,
    seconds: float = float("inf"),
    adapter: Adapter | None = None,
    replayed: float = 0.0,
) -> Job:
    model = encoder if encoder is not None else SentenceTransformer(modules=[torch.nn.Identity()])
    nothing = clicks.of_queries([])
    parent = Parent("base", model, adapter, model)
    return Job(parent, clicks, corpus, nothing, 0, report, seconds_left=deadline(seconds), replayed=replayed)
