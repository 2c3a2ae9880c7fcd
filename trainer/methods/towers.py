"""Parts that training an encoder needs: encoding with gradients, batches, the learning rate's course."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from trainer.model import autocast

Indexes = NDArray[np.int64]


def embed(encoder: SentenceTransformer, texts: Sequence[str]) -> torch.Tensor:
    """(n, dim) float32, normalised, with gradients."""
    features = {
        name: value.to(encoder.device) if isinstance(value, torch.Tensor) else value
        for name, value in encoder.preprocess(list(texts)).items()
    }
    with autocast(encoder.device):
        vectors = encoder(features)["sentence_embedding"]
    return F.normalize(vectors.float(), dim=1)


def batches(texts: Sequence[str], size: int, rng: np.random.Generator) -> Iterator[Indexes]:
    """Every text once, in shuffled batches of texts of about one length, so that little of them is padding."""
    lengths = np.asarray([len(text) for text in texts]) * rng.uniform(0.8, 1.25, len(texts))
    order = np.argsort(lengths)
    starts = np.arange(0, len(texts), size)
    rng.shuffle(starts)
    for start in starts:
        yield order[start : start + size]


@dataclass
class Course:
    """The learning rate over a run: up in a straight line, then down along a cosine.

    A run that would outlast its deadline gets there sooner: the course then follows the time used instead of
    the steps done, so that it always comes down to rest.
    """

    steps: int
    seconds_left: Callable[[], float]
    warm_up: float = 0.1

    def __post_init__(self) -> None:
        self._budget = max(self.seconds_left(), 1e-9)

    def done(self, step: int) -> float:
        """Share of the run that is over after ``step`` steps, in [0, 1]."""
        by_steps = step / max(self.steps, 1)
        if math.isinf(self._budget):
            return min(by_steps, 1.0)
        used = self._budget - self.seconds_left()
        late = used * self.steps > self._budget * max(step, 1)
        return min(max(by_steps, used / self._budget) if late else by_steps, 1.0)

    def factor(self, step: int) -> float:
        """What the learning rate's peak is multiplied by at ``step``."""
        done = self.done(step)
        if done < self.warm_up:
            return max(done / self.warm_up, 0.02)
        return 0.5 * (1.0 + math.cos(math.pi * (done - self.warm_up) / (1.0 - self.warm_up)))

    def over(self, step: int) -> bool:
        return step >= self.steps or self.done(step) >= 1.0


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def draw_back(encoder: SentenceTransformer, parent: SentenceTransformer, share: float) -> None:
    """Set ``encoder`` to the point a ``share`` of the way from ``parent`` to itself (Wortsman et al. 2022)."""
    with torch.no_grad():
        for new, old in zip(encoder.parameters(), parent.parameters(), strict=True):
            if not torch.equal(new, old):
                new.copy_(old + share * (new - old))
