"""A made-up world with known truth: documents, what people want, what they look at, and a farm that pushes one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from clickloop.events import QueryServed, Result, ResultClicked
from clickloop.propensity import propensities, swapped_pair

Vectors = NDArray[np.float32]
Event = QueryServed | ResultClicked

SHOWN = 10
ATTRACTIVE, MISTAKEN = 0.95, 0.055
"""Chance that a result is clicked that was looked at, where it is wanted and where it is not."""
START = 1_700_000_000.0
BETWEEN = 0.6
"""Seconds from one impression to the next."""


@dataclass(frozen=True)
class World:
    """Query text ``t<i>`` wants document ``d<of[i]>``; vectors are of length 1."""

    documents: Vectors
    """(documents, dim)"""
    texts: Vectors
    """(texts, dim), as the base encoder sees them"""
    of: NDArray[np.int64]
    """(texts,) the document that each text wants"""
    held_out: Vectors
    """(queries, dim) that no one has asked yet"""
    held_out_of: NDArray[np.int64]


def unit(vectors: NDArray[np.floating]) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def make_world(*, documents: int = 700, topics: int = 35, dim: int = 48, texts: int = 4, seed: int = 0) -> World:
    """Documents lie around topics. People's words lie where their documents are, but for noise, and for a turn
    and a loudness of some directions that a linear map can undo."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(topics, dim)))
    found = unit(centres[np.arange(documents) % topics] + 0.8 * rng.normal(size=(documents, dim)) / np.sqrt(dim))
    turn = np.eye(dim) + 0.9 * rng.normal(size=(dim, dim)) / np.sqrt(dim)
    loud = np.geomspace(2.0, 0.5, dim)

    def ask(each: int) -> tuple[NDArray[np.int64], Vectors]:
        of = np.repeat(np.arange(documents), each)
        noise = 0.9 * rng.normal(size=(len(of), dim)) / np.sqrt(dim)
        return of, unit((unit(found[of] @ turn.T) + noise) * loud)

    of, asked = ask(texts)
    held_out_of, held_out = ask(1)
    return World(found, asked, of, held_out, held_out_of)


def rank(queries: Vectors, documents: Vectors, wanted: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """(queries,) rank of each query's wanted document in the whole corpus; 1 is the top."""
    scores = queries @ documents.T
    own = scores[np.arange(len(queries)), wanted]
    return np.asarray((scores > own[:, None]).sum(axis=1) + 1)


def power_law(exponent: float) -> NDArray[np.float64]:
    """Chance that positions 1 to SHOWN are looked at."""
    return np.asarray(1.0 / np.arange(1, SHOWN + 1) ** exponent)


@dataclass(frozen=True)
class People:
    """Ask ``impressions`` times, click what they look at and want, and by mistake what they don't."""

    world: World
    impressions: int
    examined: NDArray[np.float64]
    users: int = 1500
    exploration: float = 0.0
    seed: int = 1

    def events(self) -> Iterator[Event]:
        rng = np.random.default_rng(self.seed)
        world = self.world
        ranked = top(world.texts, world.documents)
        for number in range(self.impressions):
            text = int(rng.integers(len(world.texts)))
            at, key, query_id = START + BETWEEN * number, f"user-{rng.integers(self.users)}", f"people-{number}"
            served = impression(query_id, f"t{text}", ranked[text], at=at, key=key, exploration=self.exploration)
            yield served
            for result, look, like in zip(served.results, self.examined, rng.random((SHOWN, 2)), strict=True):
                wanted = result.doc_id == f"d{world.of[text]}"
                if like[0] < look and like[1] < (ATTRACTIVE if wanted else MISTAKEN):
                    yield click(query_id, result.doc_id, at=at + 2.0 + result.position, key=key)


@dataclass(frozen=True)
class Farm:
    """``clicks`` on one document, from ``keys`` keys, where it is shown below the top, in people's words.

    With ``disguised`` each key has clicked the first result of another query before.
    """

    world: World
    target: int
    clicks: int
    keys: int
    duration: float
    disguised: bool = False

    def events(self) -> Iterator[Event]:
        ranked = top(self.world.texts, self.world.documents)
        usable = np.flatnonzero((ranked[:, 1:] == self.target).any(axis=1))
        rng = np.random.default_rng(self.target)
        for number in range(self.clicks):
            text = int(usable[number % len(usable)])
            at, key = START + self.duration * number / self.clicks, f"farm-{number % self.keys}"
            if self.disguised and number < self.keys:
                other = int(rng.integers(len(ranked)))
                yield impression(f"mask-{number}", f"t{other}", ranked[other], at=at, key=key)
                yield click(f"mask-{number}", f"d{ranked[other][0]}", at=at + 2.0, key=key)
            yield impression(f"farm-{number}", f"t{text}", ranked[text], at=at + 5.0, key=key)
            yield click(f"farm-{number}", f"d{self.target}", at=at + 7.0 + number % 3, key=key)


def top(queries: Vectors, documents: Vectors) -> NDArray[np.int64]:
    """(queries, SHOWN) the documents that the base model shows, best first."""
    return np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :SHOWN]


def impression(
    query_id: str, text: str, documents: NDArray[np.int64], *, at: float, key: str, exploration: float = 0.0
) -> QueryServed:
    shown = [f"d{document}" for document in documents]
    pair = swapped_pair(query_id, len(shown), exploration)
    if pair is not None:
        shown[pair - 1], shown[pair] = shown[pair], shown[pair - 1]
    chances = propensities(len(shown), exploration, pair)
    return QueryServed(
        event_id=query_id,
        index="default",
        query_id=query_id,
        query=text,
        served_at=datetime.fromtimestamp(at, UTC),
        results=[
            Result(doc_id=doc, position=place, propensity=chance)
            for place, (doc, chance) in enumerate(zip(shown, chances, strict=True), start=1)
        ],
        split_key=key,
        swapped=pair,
    )


def click(query_id: str, doc_id: str, *, at: float, key: str) -> ResultClicked:
    return ResultClicked(
        event_id=f"{query_id}-{doc_id}",
        index="default",
        query_id=query_id,
        doc_id=doc_id,
        clicked_at=datetime.fromtimestamp(at, UTC),
        split_key=key,
    )
