"""Early stopping (Prechelt 1998, "Early Stopping - But When?"): on what no step has seen, after each epoch.

What is kept apart are the latest queries that training knows, for what comes next is nearer to them than to a
random part. The gate's hold-out plays no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from clickloop.evaluation import middle_ranks
from trainer.dataset import Clicks, Floats, Indexes, unlike
from trainer.methods.base import Notes
from trainer.methods.upper_layers import Layers, vectors_of

APART = 0.1
"""Share of the clicked queries, the latest, that is kept apart."""
CANDIDATES = 1000
"""Documents at most, beside the wanted ones, that those are ranked among: more take time and tell little."""
_STATE = "early_stopping"


@dataclass
class EarlyStopping:
    """After each epoch, whether to go on, and the weights of the best epoch so far."""

    patience: int
    """Epochs without a better one after which training ends."""
    measure: Callable[[], float]
    """Of the parameters as they are; more is better."""
    epochs: int = field(init=False, default=0)
    """Measured so far."""
    step: int = field(init=False, default=0)
    """At which it was measured last."""
    best_epoch: int = field(init=False, default=0)
    best: float = field(init=False, default=float("-inf"))
    _weights: list[torch.Tensor] = field(init=False, default_factory=list)

    @property
    def over(self) -> bool:
        return self.epochs - self.best_epoch >= self.patience

    def look(self, step: int, parameters: Sequence[torch.Tensor]) -> str:
        """Measure after an epoch that ended with ``step``, and say what came out."""
        found = self.measure()
        self.epochs, self.step = self.epochs + 1, step
        if found > self.best:
            self.best_epoch, self.best = self.epochs, found
            self._weights = [p.detach().clone() for p in parameters]
        said = f"epoch {self.epochs}: MRR {found:.4f} on the queries kept apart"
        best = f"the best is epoch {self.best_epoch}'s, {self.best:.4f}"
        return f"{said}; {best}{'; training ends early' if self.over else ''}"

    def go_back(self, parameters: Sequence[torch.Tensor]) -> None:
        """Give the parameters the best epoch's values."""
        if not self._weights:
            return
        with torch.no_grad():
            for parameter, best in zip(parameters, self._weights, strict=True):
                parameter.copy_(best)

    def state(self) -> dict[str, torch.Tensor]:
        """For the checkpoint."""
        facts = torch.tensor([self.epochs, self.step, self.best_epoch, self.best], dtype=torch.float64)
        return {_STATE: facts} | {f"{_STATE}/{number}": weights for number, weights in enumerate(self._weights)}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """What ``state`` gave."""
        epochs, step, best_epoch, self.best = tensors[_STATE].tolist()
        self.epochs, self.step, self.best_epoch = int(epochs), int(step), int(best_epoch)
        count = sum(name.startswith(f"{_STATE}/") for name in tensors)
        self._weights = [tensors[f"{_STATE}/{number}"] for number in range(count)]

    def notes(self) -> Notes:
        """For the lineage."""
        return {"epochs_done": self.epochs, "best_epoch": self.best_epoch, "best_epoch_mrr": round(self.best, 4)}


def set_apart(clicks: Clicks) -> tuple[Clicks, Clicks]:
    """What is trained on, and the latest queries to measure by, without near-duplicates of earlier ones. With a
    handful of clicked queries none are kept apart, and synthetic ones never. ``clicks.vectors`` is needed."""
    asked = np.unique(clicks.query)
    asked = asked[asked >= clicks.synthetic]
    count = round(APART * len(asked))
    if not count:
        return clicks, clicks.of_queries([])
    known = clicks.of_queries(range(int(asked[-count])))
    return known, unlike(known, clicks.of_queries(asked[-count:]))


@dataclass(frozen=True)
class Ranking:
    """Pairs as numbers of the layers' texts, and the documents that the wanted ones are ranked among."""

    asked: Indexes
    """(rows,)"""
    wanted: Indexes
    """(rows,)"""
    weight: Floats
    """(rows,)"""
    among: Indexes
    """(documents,) ascending, each once, those of ``wanted`` among them"""

    @staticmethod
    def of(asked: Indexes, wanted: Indexes, weight: Floats, *, documents: int, seed: int) -> Ranking:
        """Among CANDIDATES at random of the first ``documents`` texts."""
        rng = np.random.default_rng(seed)
        others = rng.choice(documents, size=min(CANDIDATES, documents), replace=False)
        return Ranking(asked, wanted, weight, np.union1d(wanted, others))

    def reciprocal(self, layers: Layers) -> float:
        """The mean reciprocal rank of the wanted documents."""
        texts = np.union1d(self.asked, self.among)
        vectors = vectors_of(layers, texts)
        of_documents = vectors[np.searchsorted(texts, self.among)]
        scores = vectors[np.searchsorted(texts, self.asked)] @ of_documents.T
        own = np.take_along_axis(scores, np.searchsorted(self.among, self.wanted)[:, None], 1)
        return float(np.average(1.0 / middle_ranks(scores, own), weights=self.weight))
