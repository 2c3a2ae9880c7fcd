"""Parts that training an encoder needs: batches, the learning rate's course, the way back to the parent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

Indexes = NDArray[np.int64]
NOT_REPRODUCIBLE = "not_reproducible"
"""Name of the lineage's note on why the same command would train other weights."""


def batches(texts: Sequence[str], size: int, rng: np.random.Generator) -> Iterator[Indexes]:
    """Every text once, in shuffled batches of texts of about one length, so that little of them is padding."""
    lengths = np.asarray([len(text) for text in texts]) * rng.uniform(0.8, 1.25, len(texts))
    order = np.argsort(lengths)
    starts = np.arange(0, len(texts), size)
    rng.shuffle(starts)
    for start in starts:
        yield order[start : start + size]


PATIENCE = 0.05
"""Share of a budget that is used before its course is told to be too slow: the first steps tell little."""


@dataclass
class Course:
    """The learning rate over a run: up in a straight line, then down along a cosine.

    It follows the steps, so that it is the same whenever it is run. Only a run that would outlast its deadline
    gets there sooner: the course then follows the time used, so that it always comes down to rest, and says so.
    """

    steps: int
    seconds_left: Callable[[], float]
    warm_up: float = 0.1
    first: int = 0
    """Steps that were done before, in another process."""
    cut_short: bool = field(init=False, default=False)
    """Whether the clock had a say."""

    def __post_init__(self) -> None:
        self._budget = max(self.seconds_left(), 1e-9)

    def done(self, step: int) -> float:
        """Share of the run that is over after ``step`` steps, in [0, 1]."""
        by_steps = min(step / max(self.steps, 1), 1.0)
        if math.isinf(self._budget) or by_steps >= 1.0:
            return by_steps
        used = 1.0 - self.seconds_left() / self._budget
        wanted = self.steps - self.first
        late = used > PATIENCE and used * wanted > max(step - self.first, 1)
        if not late and used < 1.0:
            return by_steps
        self.cut_short = True
        begun = self.first / self.steps
        return min(max(by_steps, begun + (1.0 - begun) * used), 1.0)

    def factor(self, step: int) -> float:
        """What the learning rate's peak is multiplied by at ``step``."""
        done = self.done(step)
        if done < self.warm_up:
            return max(done / self.warm_up, 0.02)
        return 0.5 * (1.0 + math.cos(math.pi * (done - self.warm_up) / (1.0 - self.warm_up)))

    def over(self, step: int) -> bool:
        return step >= self.steps or self.done(step) >= 1.0

    def notes(self) -> dict[str, str | int | float | bool]:
        """For the lineage: why the training can't be done again with the same result, where that is so."""
        return {NOT_REPRODUCIBLE: "the budget of seconds cut the training short"} if self.cut_short else {}


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of each group of parameters, times its ``pace`` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("pace", 1.0)


def draw_back(encoder: SentenceTransformer, parent: SentenceTransformer, share: float) -> None:
    """Set ``encoder`` to the point a ``share`` of the way from ``parent`` to itself (Wortsman et al. 2022)."""
    with torch.no_grad():
        for new, old in zip(encoder.parameters(), parent.parameters(), strict=True):
            if not torch.equal(new, old):
                new.copy_(old + share * (new - old))
