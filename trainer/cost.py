"""What a version costs those who serve it: time for a query, and bytes to load; next to its parent's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from clickloop.evaluation import Floats
from clickloop.events import CostResult, Estimate
from trainer.methods.base import Parent, Trained
from trainer.model import Adapter, Vectors, encode

PAIRS = 60
"""Timings of each side: enough for an interval well below the slowdown that matters, in about a second."""
FEWEST_PAIRS = 20
LONGEST = 10.0
"""Seconds after which the fewest must do: for a slow encoder, or a machine that is busy elsewhere."""
WARM_UP = 3
RESAMPLES = 1000


@dataclass(frozen=True)
class Served:
    """What a node loads to serve a version."""

    queries: SentenceTransformer
    documents: SentenceTransformer
    """The same object as that of the queries, unless they are encoded by another one."""
    adapter: Adapter | None

    @classmethod
    def of(cls, parent: Parent, trained: Trained | None = None) -> Served:
        """The parent, or what was trained from it."""
        if trained is None:
            return cls(parent.query_encoder, parent.document_encoder, parent.adapter)
        encoder = trained.encoder or parent.query_encoder
        if trained.new_space:
            return cls(encoder, encoder, trained.adapter)
        return cls(encoder, parent.document_encoder, trained.adapter or parent.adapter)

    @property
    def bytes(self) -> int:
        return loaded_bytes([self.queries, self.documents], self.adapter)


def cost_of(one: Served, other: Served, queries: Sequence[str], *, seed: int) -> CostResult:
    """What the other costs next to the one, on ``queries``, of which there must be one at least."""
    if other.queries is one.queries:
        before, after = timed(
            _mapping(one.adapter),
            _mapping(other.adapter),
            queries,
            both=lambda text: encode(one.queries, [text]),
        )
    else:
        before, after = timed(
            lambda text: _mapping(one.adapter)(encode(one.queries, [text])),
            lambda text: _mapping(other.adapter)(encode(other.queries, [text])),
            queries,
        )
    return CostResult(
        encode_seconds=slowdown(before, after, seed=seed), bytes_before=one.bytes, bytes_after=other.bytes
    )


def timed(
    one: Callable[[Any], object],
    other: Callable[[Any], object],
    queries: Sequence[str],
    *,
    both: Callable[[str], Any] = lambda query: query,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Floats, Floats]:
    """Seconds (up to PAIRS,) that each takes for the same queries, one query at a time.

    They take turns, and turns at being first, so that whatever else the machine does hits both alike. What
    ``both`` do alike before is done and timed once, counts for each, and gives them what they go on with.
    """
    for query in islice(cycle(queries), WARM_UP):
        given = both(query)
        one(given)
        other(given)
    taken, begun = np.empty((2, PAIRS)), clock()
    for number, query in enumerate(islice(cycle(queries), PAIRS)):
        start = clock()
        given = both(query)
        common = clock() - start
        order = ((0, one), (1, other)) if number % 2 else ((1, other), (0, one))
        for side, ask in order:
            start = clock()
            ask(given)
            taken[side, number] = max(common + clock() - start, 1e-9)
        if number + 1 >= FEWEST_PAIRS and clock() - begun > LONGEST:
            return taken[0, : number + 1], taken[1, : number + 1]
    return taken[0], taken[1]


def slowdown(before: Floats, after: Floats, *, seed: int) -> Estimate:
    """Both medians, and the median of the change from each timing to the one beside it, with the bootstrap's 95 %
    interval."""
    ratio = after / before
    drawn = np.random.default_rng(seed).integers(0, len(ratio), (RESAMPLES, len(ratio)))
    low, high = np.percentile(np.median(ratio[drawn], axis=1), [2.5, 97.5])
    return Estimate(
        before=float(np.median(before)),
        after=float(np.median(after)),
        change=float(np.median(ratio)) - 1.0,
        low=float(low) - 1.0,
        high=float(high) - 1.0,
    )


def loaded_bytes(encoders: Sequence[SentenceTransformer], adapter: Adapter | None) -> int:
    """Of weights in memory; an encoder that is there twice is loaded once."""
    distinct = {id(encoder): encoder for encoder in encoders}.values()
    weights = sum(int(tensor.nbytes) for encoder in distinct for tensor in encoder.state_dict().values())
    return weights + (adapter.weight.nbytes + adapter.bias.nbytes if adapter else 0)


def _mapping(adapter: Adapter | None) -> Callable[[Vectors], Vectors]:
    return adapter.apply if adapter else lambda vectors: vectors
