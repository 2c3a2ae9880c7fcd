"""A sample of the queries to measure on, where all of them would take too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from clickloop.events import GateResult
from trainer.dataset import Clicks, Indexes


def chosen(count: int, most: int, *, seed: int) -> Indexes:
    """Numbers of at most ``most`` of ``count`` things, ascending, always the same ones for a seed; 0 takes all."""
    if not most or count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


@dataclass(frozen=True)
class Sample:
    """What the gate measures on."""

    later: list[Clicks]
    """The held-out clicks of each moment."""
    queries: int
    held_out: int
    """Queries that it was drawn from, of all moments."""

    def told(self, gate: GateResult) -> GateResult:
        """The result with a word on the sample, where it is not everything."""
        if self.queries == self.held_out:
            return gate
        said = f"measured on {self.queries} of {self.held_out} held-out queries (gate_max_queries)"
        return msgspec.structs.replace(gate, reasons=[*gate.reasons, said])


def at_most(later: Sequence[Clicks], most: int, *, seed: int) -> Sample:
    """Of the moments' held-out clicks those of ``most`` queries in all; 0 takes all."""
    judging = [
        np.flatnonzero(np.bincount(clicks.query, clicks.weight, len(clicks.queries)) > 0.0) for clicks in later
    ]
    held_out = sum(map(len, judging))
    kept = chosen(held_out, most, seed=seed)
    if len(kept) == held_out:
        return Sample(list(later), held_out, held_out)
    bounds = np.cumsum([0, *map(len, judging)])
    parts = [
        clicks.of_queries(queries[kept[(kept >= first) & (kept < last)] - first])
        for clicks, queries, first, last in zip(later, judging, bounds, bounds[1:], strict=False)
    ]
    return Sample(parts, len(kept), held_out)
