"""How likely a position is to be looked at, learnt from results that are now and then swapped.

A search node swaps one random pair of neighbours in a small share of its answers. What the same documents earn in
both places tells how much less the lower place is looked at (Joachims, Swaminathan and Schnabel, "Unbiased
Learning-to-Rank with Biased Feedback", WSDM 2017). Only clicks are needed, each divided by the probability that
its document was shown where it was (intervention harvesting; Agarwal et al., "Estimating Position Bias without
Intrusive Interventions", WSDM 2019), so the sums below add up over partitions, windows and logs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from clickloop.events import QueryServed

Correction = Literal["estimated", "inverse_rank", "off"]
"""How clicks are corrected for their position: by what swaps tell (and 1/position until they tell something),
by 1/position, or not at all."""
DEEPEST = 100
"""Clicks further down are too few to tell anything."""
PRIOR_ERROR = 0.25
"""Of the exponent: people look at position k with a chance of k to the minus 1, give or take so much."""
LEAST_BEND = 0.05
"""By how much a single step may differ from the power law's at least, in units of the exponent."""
ROUNDS, SETTLED = 50, 1e-4
"""Most rounds in which exponents are found, and by how little they then still move."""


def swapped_pair(query_id: str, count: int, exploration: float) -> int | None:
    """Upper position of the pair to swap among ``count`` results, or None: the same for a ``query_id`` always.

    >>> swapped_pair("q", 10, 0.0) is None
    True
    >>> sum(swapped_pair(f"q{n}", 10, 0.1) is not None for n in range(1000))
    119
    """
    if count < 2 or exploration <= 0.0:
        return None
    digest = hashlib.blake2b(f"swap:{query_id}".encode(), digest_size=16).digest()
    if int.from_bytes(digest[:8]) >= exploration * 2.0**64:
        return None
    return int.from_bytes(digest[8:]) % (count - 1) + 1


def propensities(count: int, exploration: float, swapped: int | None) -> list[float]:
    """Probability, for each of ``count`` results as shown, that it is shown at its position.

    >>> propensities(3, 0.1, None)
    [0.95, 0.9, 0.95]
    >>> propensities(3, 0.1, 1)
    [0.05, 0.05, 0.95]
    """
    if count < 2 or exploration <= 0.0:
        return [1.0] * count
    chance = exploration / (count - 1)
    stays = [round(1.0 - chance * (1 + (1 < place < count)), 9) for place in range(1, count + 1)]
    if swapped is not None:
        stays[swapped - 1] = stays[swapped] = round(chance, 9)
    return stays


def swap_chance(event: QueryServed) -> float | None:
    """Probability of each single swap behind an answer; None where there was no exploration."""
    if len(event.results) < 2 or event.results[0].position != 1:
        return None
    first = event.results[0].propensity
    chance = first if event.swapped == 1 else round(1.0 - first, 9)
    return chance if chance > 0.0 else None


@dataclass(slots=True)
class _Sum:
    """Of one over the propensities, and of their squares."""

    value: float = 0.0
    squares: float = 0.0

    def add(self, weight: float, times: int) -> None:
        self.value += weight * times
        self.squares += weight * weight * times

    def merge(self, other: _Sum) -> None:
        self.value += other.value
        self.squares += other.squares

    @property
    def clicks(self) -> float:
        """How many they are worth: as many as there are where all have one propensity."""
        return self.value * self.value / self.squares if self.squares else 0.0

    @property
    def propensity(self) -> float:
        """Of the clicks, where there are some."""
        return self.value / self.squares


class Examination:
    """Sums over clicks of a randomised log, and the curve that they tell.

    >>> log = Examination()
    >>> [round(p, 3) for p in log.curve(4)]
    [1.0, 0.5, 0.333, 0.25]
    """

    def __init__(self) -> None:
        self._pairs: dict[int, tuple[_Sum, _Sum, _Sum, _Sum]] = {}
        """By upper position: the lower document where it is and above, the upper one where it is and below."""

    def click(self, position: int, *, propensity: float, swapped: int | None, times: int = 1) -> None:
        """Trusted clicks at ``position``; the others as they are in the example, or in the impression.

        A propensity of 1 tells that there was no exploration: such a click says nothing here.
        """
        if not 0.0 < propensity < 1.0 or position > DEEPEST:
            return
        if swapped and position in (swapped, swapped + 1):
            self._pair(swapped)[1 if position == swapped else 3].add(1.0 / propensity, times)
            return
        self._pair(position)[2].add(1.0 / propensity, times)
        if position > 1:
            self._pair(position - 1)[0].add(1.0 / propensity, times)

    def merge(self, other: Examination) -> None:
        for upper, sums in other._pairs.items():
            for mine, more in zip(self._pair(upper), sums, strict=True):
                mine.merge(more)

    @property
    def swapped_clicks(self) -> int:
        """Clicks on swapped results: the evidence there is. Each has a weight above 1, which is divided out."""
        return round(sum(sums[1].clicks + sums[3].clicks for sums in self._pairs.values()))

    def curve(self, positions: int) -> list[float]:
        """Chance that positions 1 to ``positions`` are looked at, relative to the first.

        Each step from k to k+1 is a power law's, with one exponent for all, but for a deviation of its own. The
        exponent is 1 give or take PRIOR_ERROR before there is any evidence, and how much the steps deviate is read
        from how far they scatter beyond their own errors (random effects; DerSimonian and Laird 1986). A step is
        then drawn towards the power law the more, the less is known of it: without a swap the curve is 1/k, and
        with many it is theirs.
        """
        plain = [math.log((upper + 1) / upper) for upper in range(1, positions)]
        exponent, own = 1.0, [1.0] * len(plain)
        for _ in range(ROUNDS):
            steps = [
                _step(self._pairs[upper], upper, at) if upper in self._pairs else None
                for upper, at in enumerate(own, start=1)
            ]
            seen = [step for step in steps if step is not None]
            bend = max(_scatter(seen), LEAST_BEND**2)
            exponent, _ = _combined([(1.0, PRIOR_ERROR**2), *((value, v + bend) for value, v in seen)])
            before, own = (
                own,
                [
                    exponent if step is None else exponent + bend / (bend + step[1]) * (step[0] - exponent)
                    for step in steps
                ],
            )
            if all(abs(a - b) < SETTLED for a, b in zip(own, before, strict=True)):
                break
        levels = accumulate((step * x for step, x in zip(own, plain, strict=True)), initial=0.0)
        return [math.exp(-level) for level in levels]

    def _pair(self, upper: int) -> tuple[_Sum, _Sum, _Sum, _Sum]:
        if upper not in self._pairs:
            self._pairs[upper] = (_Sum(), _Sum(), _Sum(), _Sum())
        return self._pairs[upper]


def _step(sums: Sequence[_Sum], upper: int, at: float) -> tuple[float, float] | None:
    """Exponent of the step from position ``upper`` to the next, and its variance, as seen from an exponent ``at``
    near by.

    Of the clicks on one document some were made where exploration had put it, and how many of them should have
    been follows from the exponent. What was seen less what was expected, over the variance of that, is the way
    from ``at`` (one step of Fisher's scoring; Yusuf, Peto et al. 1985). Ratios of counts would be drawn away from
    the truth by what makes them sure, which is to be large, and would say nothing of a swap without a click.
    """
    x = math.log((upper + 1) / upper)
    # The upper one leaves its place for either neighbour, the first result for the second only.
    chance = (1.0 - sums[2].propensity) / (1 + (upper > 1)) if sums[2].value else 0.0
    score = information = 0.0
    for stayed, swapped, up in ((sums[0], sums[1], 1.0), (sums[2], sums[3], -1.0)):
        rare = swapped.propensity if swapped.value else chance
        if not stayed.value or not rare:
            continue
        odds = rare / stayed.propensity * math.exp(up * at * x)
        share, clicks = odds / (1.0 + odds), stayed.clicks + swapped.clicks
        score += up * x * (swapped.clicks - clicks * share)
        information += x * x * clicks * share * (1.0 - share)
    return (at + score / information, 1.0 / information) if information else None


def _scatter(told: Sequence[tuple[float, float]]) -> float:
    """Variance of the values beyond their own variances, as far as chance alone would hardly make it (3 standard
    errors): taken at its mean, a dozen clicks would already bend the curve after every one of them."""
    if len(told) < 2:
        return 0.0
    weights = [1.0 / variance for _, variance in told]
    total = sum(weights)
    mean, _ = _combined(told)
    free = len(told) - 1
    chance = free + 3.0 * math.sqrt(2.0 * free)
    excess = sum(w * (value - mean) ** 2 for w, (value, _) in zip(weights, told, strict=True)) - chance
    return max(0.0, excess / (total - sum(w * w for w in weights) / total))


def _combined(told: Iterable[tuple[float, float]]) -> tuple[float, float]:
    parts = [(value, 1.0 / variance) for value, variance in told]
    total = sum(weight for _, weight in parts)
    return sum(value * weight for value, weight in parts) / total, 1.0 / total
