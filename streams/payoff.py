"""What a training is expected to bring and to cost, learnt from the runs before it.

The curve is logarithmic: a rung that brought ``g`` with its first examples brings less with as many more. With
``n`` new examples on top of ``N`` that the parent has learnt from,

    gain = factor * prior * ln(1 + n / (100 + N))

where ``prior`` is what a rung brought on a corpus of 4,495 documents with 5,742 clicks, and ``factor`` is fitted
to the gate's figures of this index's own runs: least squares, drawn towards 1 as if by one run (ridge). On such
curves see Viering and Loog, "The Shape of Learning Curves: a Review", TPAMI 2023.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from clickloop.events import ModelVersionPublished, VersionKind

LADDER: tuple[VersionKind, ...] = get_args(VersionKind)
PRIOR_GAIN: dict[VersionKind, float] = {"adapter": 0.015, "query_encoder": 0.02, "full": 0.068}
"""Relative gain of MRR@10 per unit of the curve, over a parent that has learnt nothing from these examples."""
PRIOR_SECONDS: dict[VersionKind, float] = {"adapter": 2.0, "query_encoder": 120.0, "full": 950.0}
FIRST = 100.0
"""Examples that count as known at the start: the curve is not endlessly steep."""
RECENT_RUNS = 5
MAX_VERSIONS = 2000


@dataclass(frozen=True)
class Expectation:
    """``gain`` is the relative change of MRR@10 (0.06 is +6 %); ``runs`` are those that it was learnt from."""

    gain: float
    seconds: float
    runs: int


@dataclass(slots=True)
class _Fit:
    """Least squares of y = factor * x, with one run's worth of factor 1."""

    runs: int = 0
    xy: float = 0.0
    xx: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.runs += 1
        self.xy += x * y
        self.xx += x * x

    def factor(self, prior: float) -> float:
        ridge = prior * prior
        return max(0.0, (self.xy + ridge) / (self.xx + ridge))


class History:
    """What the published versions of one index brought and cost. A version that is told again counts once."""

    def __init__(self) -> None:
        self._learnt: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """By version: its command, and the examples that it and those before it have learnt from."""
        self._fits: dict[VersionKind, _Fit] = defaultdict(_Fit)
        self._seconds: dict[VersionKind, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT_RUNS))
        self._beneath: dict[str, VersionKind] = {}
        self.newest = ""
        """The version that passed its gate last: what the next training starts from."""

    def version(self, event: ModelVersionPublished) -> None:
        lineage = event.lineage
        if event.version in self._learnt or not lineage.command_id:
            return
        parent_command, known = self._learnt.get(event.parent or "", ("", 0.0))
        same_run = parent_command == lineage.command_id
        beneath = self._beneath.get(event.parent or "") if same_run else None
        before = known - lineage.examples if same_run else known
        self._learnt[event.version] = (lineage.command_id, before + lineage.examples)
        self._beneath[event.version] = event.kind
        while len(self._learnt) > MAX_VERSIONS:
            oldest, _ = self._learnt.popitem(last=False)
            self._beneath.pop(oldest, None)
        self._seconds[event.kind].append(lineage.train_seconds)
        if event.gate is None:
            return
        if event.gate.verdict == "pass":
            self.newest = event.version
        change = event.gate.metrics.get("mrr_at_10")
        if change is not None:
            unit = _prior(event.kind, beneath) * _curve(lineage.examples, before)
            self._fits[event.kind].add(unit, change.change)

    def expect(self, kinds: Sequence[VersionKind], *, examples: int, moved: float = 0.0) -> Expectation:
        """What these rungs would bring, one on top of the other, and cost.

        ``moved`` is the share of traffic, 0 to 1, that is about something else than what was learnt: that
        share of the known examples is worth nothing any more.
        """
        _, known = self._learnt.get(self.newest, ("", 0.0))
        curve = _curve(examples, known * (1.0 - moved))
        gain, seconds, beneath = 0.0, 0.0, None
        for kind in kinds:
            prior = _prior(kind, beneath)
            gain += self._fits[kind].factor(prior) * prior * curve
            seconds += self.seconds(kind)
            beneath = kind
        return Expectation(gain, seconds, sum(self._fits[kind].runs for kind in kinds))

    def seconds(self, kind: VersionKind) -> float:
        """The mean of the latest runs of this rung."""
        known = self._seconds[kind]
        return sum(known) / len(known) if known else PRIOR_SECONDS[kind]

    def choose(self, *, examples: int, moved: float, gain_per_hour: float) -> list[VersionKind]:
        """The rungs that pay: each brings ``gain_per_hour`` for its time, over those below it. May be none."""
        chosen: list[VersionKind] = []
        for kind in LADDER:
            without = self.expect(chosen, examples=examples, moved=moved)
            with_it = self.expect([*chosen, kind], examples=examples, moved=moved)
            hours = (with_it.seconds - without.seconds) / 3600.0
            if with_it.gain - without.gain >= gain_per_hour * hours > 0.0:
                chosen.append(kind)
        return chosen


def _prior(kind: VersionKind, beneath: VersionKind | None) -> float:
    """What a rung brings over its parent: less, where the parent is a rung of the same run."""
    return max(0.001, PRIOR_GAIN[kind] - (PRIOR_GAIN[beneath] if beneath else 0.0))


def _curve(new: float, known: float) -> float:
    return math.log1p(new / (FIRST + max(0.0, known)))
