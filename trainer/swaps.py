"""What randomised traffic says: of two neighbours, does a version put first the one that people click?

Search nodes swap a random pair of neighbours in a small share of their answers, and log with what chance. An
example is a click, with what was passed over above it; answers without a click, and what was shown below one, are
not in it. So the click-through of a whole ranking can't be estimated from it, but this can: how often a click that
passed over the document right above it speaks for a version's own order of the two. Each such click counts one
over the chance that the two were shown in that order, as if a coin had ordered them each time (self-normalised:
Swaminathan and Joachims 2015). Both then lie equally often at the lower place, where the click was, and the
difference of their clicks has the sign of that of their relevance (FairPairs, Radlinski and Joachims 2006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clickloop.evaluation import Floats, compare
from clickloop.events import ExampleFormed, SwapResult

Indexes = NDArray[np.int64]
FEWEST_EXPECTED = 50.0
"""Clicks on swapped pairs, as many as there would be if the order made no difference. The other clicks are many
and weigh little; with but a few on the other side of the scales, the order that was shown would seem wrong. How
many there are can't decide, for that is what is measured: to wait for many of them would favour that order."""


class Vote(NamedTuple):
    """A click that passed over the document right above it. The documents are named or numbered."""

    clicked: int
    other: int
    weight: float
    """One over the chance that the two were shown in this order."""
    expected: float
    """How many clicks on the swapped pair go with this one on the pair as ranked, if the order is all the same."""


def vote_of(example: ExampleFormed, position: Mapping[str, int]) -> Vote | None:
    """None where the example doesn't tell: nothing was randomised, it is an opinion and no click, or the document
    right above was clicked, too. ``position`` numbers the documents; one that it doesn't know has no vote.

    Documents that were passed over are in the order in which they were shown, so where they are as many as there
    are places above, the last is the neighbour. What was named as worse stands behind them, wherever it was shown.
    """
    place, neighbour = example.position or 0, (example.position or 0) - 1
    is_click = example.label == "positive" and example.clicks > 0 and example.rating is None
    if not is_click or example.origin != "clicks" or not 0.0 < example.propensity < 1.0:
        return None
    if place < 2 or len(example.negatives) != place - 1 or example.worse:
        return None
    clicked, other = (position.get(doc_id) for doc_id in (example.doc_id, example.negatives[-1]))
    if clicked is None or other is None:
        return None
    if example.swapped == neighbour:
        return Vote(clicked, other, 1.0 / example.propensity, expected=0.0)
    if example.swapped is not None and abs(example.swapped - neighbour) <= 1:
        return None  # one of the two was brought there by another swap
    # The propensity leaves out two swaps, those with either neighbour. A third one would have moved the other
    # document, but for the one on top. The last place has one less, which no example tells; it is next to nothing.
    of_one_swap = (1.0 - example.propensity) / 2
    chance = 1.0 - (2 if place == 2 else 3) * of_one_swap
    return Vote(clicked, other, 1.0 / chance, expected=of_one_swap / chance)


class Vectors(Protocol):
    """One version's, of queries and documents; ``trainer.gate.Side`` is one."""

    @property
    def queries(self) -> NDArray[np.float32]: ...

    @property
    def documents(self) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Agreement:
    """How much weight of each query's clicks speaks for the two sides' own order."""

    clicks: int
    expected: float
    """Of these, on swapped pairs, if the order made no difference."""
    weight: Floats
    """(queries,)"""
    before: Floats
    """(queries,) share of it that agrees with the parent"""
    after: Floats

    @staticmethod
    def measured(votes: Mapping[int, Sequence[Vote]], parent: Vectors, candidate: Vectors) -> Agreement:
        """``votes`` by query."""
        weight, before, after = (np.zeros(len(votes)) for _ in range(3))
        for row, (query, of_it) in enumerate(sorted(votes.items())):
            clicked, other = (np.asarray([vote[n] for vote in of_it], dtype=np.int64) for n in (0, 1))
            each = np.asarray([vote.weight for vote in of_it])
            weight[row] = each.sum()
            before[row], after[row] = (
                each @ _prefers(side, query, clicked, other) / weight[row] for side in (parent, candidate)
            )
        every = [vote for of_it in votes.values() for vote in of_it]
        return Agreement(len(every), sum(vote.expected for vote in every), weight, before, after)


def _prefers(side: Vectors, query: int, clicked: Indexes, other: Indexes) -> Floats:
    """(votes,) 1 where the clicked document scores higher than the other one."""
    scores = (side.documents[clicked] - side.documents[other]) @ side.queries[query]
    return np.asarray(scores > 0.0, dtype=np.float64)


def swap_result(found: Sequence[Agreement], *, seed: int) -> SwapResult | None:
    """Over all moments together; None where there are too few of them. The bootstrap draws whole queries."""
    expected = sum(one.expected for one in found)
    if expected < FEWEST_EXPECTED:
        return None
    weight = np.concatenate([one.weight for one in found])
    before, after = (np.concatenate([getattr(one, side) for one in found]) for side in ("before", "after"))
    agreement = compare(before, after, weights=weight, seed=seed)
    return SwapResult(clicks=sum(one.clicks for one in found), expected=expected, agreement=agreement)
