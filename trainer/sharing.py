"""Evidence shared between queries that say the same in other words: a rare query learns from its likes.

Most query texts are asked once or twice, and one click may be a mistake. Queries whose vectors all but coincide
want the same (smoothing over neighbours in query space; cf. Craswell and Szummer, "Random Walks on the Click
Graph", SIGIR 2007, where it is one step to like queries). What a query borrows is capped, so that its own clicks
keep the last word where there are any to speak of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from trainer.dataset import NEAR_DUPLICATE, Clicks, Indexes

ENOUGH = 3.0
"""Evidence from which a query needs none of others."""
MOST_QUERIES = 20_000
"""Distinct queries that are compared with one another: the newest."""
MOST_LIKES = 20
"""Near-duplicates that one query borrows from: the nearest. Someone may ask the same in thousands of ways."""
_BLOCK = 512


def shared(clicks: Clicks, *, cap: float) -> Clicks:
    """The clicks, and what queries with little evidence borrow from near-duplicates of theirs.

    A query borrows at most ``cap`` (in trusted clicks) over all documents; 0 changes nothing. ``clicks.vectors``
    must be known.
    """
    if cap <= 0.0 or not len(clicks) or not len(clicks.vectors):
        return clicks
    borrowed = _borrowed(clicks, cap)
    if not borrowed:
        return clicks
    keys = list(zip(clicks.query.tolist(), clicks.document.tolist(), strict=True))
    evidence = dict(zip(keys, clicks.evidence.tolist(), strict=True))
    weight = dict(zip(keys, clicks.weight.tolist(), strict=True))
    for row, (more, heavier) in borrowed.items():
        evidence[row] = evidence.get(row, 0.0) + more
        weight[row] = weight.get(row, 0.0) + heavier
    rows = sorted(evidence)
    pairs = np.asarray(rows, dtype=np.int64)
    unwanted = {
        query: kept
        for query, documents in clicks.unwanted.items()
        if (kept := _beyond(documents, query, borrowed))
    }
    return replace(
        clicks,
        query=pairs[:, 0],
        document=pairs[:, 1],
        evidence=np.asarray([evidence[row] for row in rows], dtype=np.float32),
        weight=np.asarray([weight[row] for row in rows], dtype=np.float32),
        unwanted=unwanted,
        looks=clicks.looks[:0],
    )


def _beyond(
    documents: Mapping[int, float], query: int, borrowed: Mapping[tuple[int, int], tuple[float, float]]
) -> dict[int, float]:
    """What still speaks against a query's documents beyond what it has borrowed for them."""
    less = {
        document: much - borrowed.get((query, document), (0.0, 0.0))[0] for document, much in documents.items()
    }
    return {document: much for document, much in less.items() if much > 0.0}


def _borrowed(clicks: Clicks, cap: float) -> dict[tuple[int, int], tuple[float, float]]:
    """(query, document) → evidence and weight from near-duplicates of the query."""
    own = np.bincount(clicks.query, clicks.evidence, minlength=len(clicks.queries))
    first = np.searchsorted(clicks.query, np.arange(len(clicks.queries) + 1))
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for query, likes in _likes(clicks, own):
        sums: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for like in likes:
            for row in range(first[like], first[like + 1]):
                of_document = sums[int(clicks.document[row])]
                of_document[0] += float(clicks.evidence[row])
                of_document[1] += float(clicks.weight[row])
        total = sum(evidence for evidence, _ in sums.values())
        share = min(1.0, cap / total) if total > 0.0 else 0.0
        for document, (evidence, weight) in sums.items():
            if evidence * share > 0.0:
                found[query, document] = (evidence * share, weight * share)
    return found


def _likes(clicks: Clicks, own: np.ndarray) -> Iterator[tuple[int, Indexes]]:
    """Each query with little evidence, and the near-duplicates of it that have some, at most MOST_LIKES."""
    newest = np.arange(max(0, len(clicks.queries) - MOST_QUERIES), len(clicks.queries))
    givers = newest[own[newest] > 0.0]
    poor = newest[(own[newest] > 0.0) & (own[newest] < ENOUGH)]
    for start in range(0, len(poor), _BLOCK):
        block = poor[start : start + _BLOCK]
        for query, cosine in zip(block, clicks.vectors[block] @ clicks.vectors[givers].T, strict=True):
            near = np.flatnonzero((cosine >= NEAR_DUPLICATE) & (givers != query))
            if len(near) > MOST_LIKES:
                near = np.sort(near[np.argpartition(-cosine[near], MOST_LIKES)[:MOST_LIKES]])
            if len(near):
                yield int(query), givers[near]
