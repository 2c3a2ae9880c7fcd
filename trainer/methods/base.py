"""What a method is: one rung of the ladder, from a job to a trained model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from clickloop.errors import ClickloopError, TrainingError
from clickloop.events import VersionKind
from trainer.dataset import Clicks, Corpus
from trainer.methods.checkpoint import Checkpoint
from trainer.model import Adapter, LowRank, Vectors
from trainer.ranks import Ranks

Stage = Literal["training", "encoding", "publishing"]
Notes = dict[str, str | int | float | bool]


class StoppedError(ClickloopError):
    """The process is asked to stop; the run ends without a result and is done again at the next start."""


@dataclass(frozen=True)
class Progress:
    """How far a run is. ``step`` counts in units that a method chooses; ``examples`` are those seen so far."""

    stage: Stage
    step: int = 0
    steps: int = 0
    loss: float | None = None
    examples: int = 0
    message: str = ""
    """What has come out just now, if anything; it holds until the next one."""


@dataclass(frozen=True)
class Parent:
    """The version to start from, in memory."""

    version: str
    query_encoder: SentenceTransformer
    adapter: Adapter | None
    document_encoder: SentenceTransformer
    """Encoder of the parent's space: the same object as ``query_encoder`` unless the parent is query-side."""
    low_rank: LowRank | None = None
    """What ``query_encoder`` was put together from, where it was trained so."""

    def searched_with(self, encoded: Vectors) -> Vectors:
        """(n, dim): the encoder's vectors as they are searched with, which is after the adapter."""
        return self.adapter.apply(encoded) if self.adapter else encoded


@dataclass(frozen=True)
class Trained:
    """What came out. A part that is None is the parent's."""

    encoder: SentenceTransformer | None = None
    adapter: Adapter | None = None
    low_rank: LowRank | None = None
    """``encoder`` as it is to be stored; None stores it as it is."""
    new_space: bool = False
    """The encoder is for documents too, and no vector of the parent's space may be compared with its."""
    documents: Vectors | None = None
    """(documents, dim) float32: the corpus in the new space, where the method has encoded it already."""
    steps: int = 0
    carried: object = None
    """Whatever the method wants to find again in ``Job.earlier``."""
    notes: Notes = field(default_factory=dict)
    """What was chosen on the way, for the lineage."""

    @property
    def is_finite(self) -> bool:
        """No weight is NaN or infinite. Such a version would answer anything, and no manifest can tell of it."""
        if self.adapter and not (np.isfinite(self.adapter.weight).all() and np.isfinite(self.adapter.bias).all()):
            return False
        return self.encoder is None or all(bool(torch.isfinite(p).all()) for p in self.encoder.parameters())


@dataclass(frozen=True)
class Job:
    """All that a method may look at. It never sees the hold-out."""

    parent: Parent
    clicks: Clicks
    corpus: Corpus
    domain: Clicks
    """What the documents teach without any click; see trainer/domain.py"""
    seed: int
    report: Callable[[Progress], None]
    """Called often, from the training thread. Raises StoppedError where the process is to stop."""
    earlier: Trained = field(default_factory=Trained)
    """What this run's training at an earlier moment gave, or nothing; a method may go on from there."""
    seconds_left: Callable[[], float] = field(default=lambda: float("inf"))
    """Seconds until the result must be there; a method returns the best that it has by then."""
    seconds_to_encode: Callable[[Sequence[str]], float] = field(default=lambda _: 0.0)
    """About how long it takes to encode these texts, for a method that must do so before its result is there."""
    checkpoint: Checkpoint | None = None
    """Where a method that takes long leaves what it needs to go on after the process has died."""
    ranks: Ranks | None = None
    """The other processes that a method may give gradient steps to."""
    replayed: float = 0.0
    """Share of the examples that is a sample of older ones, learnt again."""
    given: bool = False
    """``clicks`` are pairs that a strategy brought along. No one clicked them by mistake, so none is doubted."""

    def preparing(self, done: int, texts: int) -> None:
        """Tell how many texts are ready to be trained on; no step is done yet.

        Raises TrainingError where none will be, for the time is up.
        """
        self.report(Progress("training"))
        if self.seconds_left() <= 0.0:
            raise TrainingError(
                f"the budget of time was spent with {done:,} of {texts:,} texts ready to be trained on"
            )


class Method(Protocol):
    """One rung."""

    @property
    def kind(self) -> VersionKind: ...

    @property
    def moments(self) -> int:
        """At how many moments of the past it is cheap enough to be tried. More give the gate more clicks."""
        ...

    def train(self, job: Job) -> Trained:
        """Runs in a worker thread. Deterministic given the job on one machine."""
        ...


def deadline(seconds: float) -> Callable[[], float]:
    """A function that says how many of ``seconds`` from now are left."""
    end = time.monotonic() + seconds
    return lambda: end - time.monotonic()
