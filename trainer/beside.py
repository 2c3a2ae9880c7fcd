"""A candidate beside the version that users have, where it was not made of that.

Its gate has compared it with its parent: a ``full_retrain`` with the base model, with which no one may have
searched for long. Fair to both are queries that neither has learnt from, and clicks on what users were shown: of
those that were held out, the ones that the live version was the first to answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from clickloop.errors import ArtifactError
from clickloop.events import GateResult
from clickloop.golden import GoldenSet
from clickloop.model_store import ModelStore
from trainer.dataset import Clicks, Corpus, First, Prepared, new_among
from trainer.gate import GoldenTrial, Side, Thresholds, beside_live, judge, measure
from trainer.loading import Loader, OnText
from trainer.model import Model, Vectors, encode
from trainer.truth import Truth


@dataclass(frozen=True)
class HeldOut:
    """What the candidate has not learnt from, as it sees it."""

    clicks: Clicks
    candidate: Side
    golden: GoldenSet
    golden_trial: GoldenTrial | None


class Beside:
    """Looks at candidates beside the ``live`` version. Nothing is loaded before one has passed."""

    def __init__(self, live: str, store: ModelStore, loader: Loader) -> None:
        self.live = live
        self._store = store
        self._loader = loader

    def __call__(
        self,
        gate: GateResult,
        held: HeldOut | None,
        corpus: Corpus,
        prepared: Prepared,
        *,
        thresholds: Thresholds,
        seed: int,
        on_text: OnText,
    ) -> GateResult:
        """The gate of a candidate that passed, with the verdict beside the live version.

        It can't be told where nothing was ``held`` out, or the live version is gone or harmed.
        """
        if held is None:
            return self._untold(gate, "no clicks were held out")
        try:
            newest = self._store.manifest(self.live).lineage.newest_example_at
            model, vectors = self._loader.searched(self.live, corpus.documents, on_text=on_text)
        except ArtifactError as error:
            return self._untold(gate, str(error))
        new = first_answered(self.live, held.clicks, prepared.first, newest=newest)
        before = Side(searched_with(model, new.queries), vectors)
        trial = measure(new, before, of_queries(held.candidate, held.clicks, new)) if len(new) else None
        found = judge(
            [trial] if trial else [],
            thresholds=thresholds,
            seed=seed,
            golden=_golden(held, model, vectors, corpus),
            other="it",
            nothing="of the queries that were held out, it was the first to answer none",
        )
        return beside_live(gate, self.live, found)

    def _untold(self, gate: GateResult, reason: str) -> GateResult:
        return beside_live(gate, self.live, GateResult(verdict="inconclusive", queries=0, reasons=[reason]))


def first_answered(version: str, later: Clicks, first: Mapping[str, First], *, newest: datetime | None) -> Clicks:
    """The ``later`` queries that the version was the first to answer, and like none that it may have learnt from.

    Where an app does not tell what answered, those count that came after its ``newest`` example.
    """
    known, answered = list[int](), list[int]()
    for number, text in enumerate(later.queries):
        asked = first[text]
        if newest is not None and asked.at <= newest:
            known.append(number)
        elif asked.version in ("", version):
            answered.append(number)
    return new_among(later, known, answered)


def of_queries(side: Side, clicks: Clicks, some: Clicks) -> Side:
    """A side of ``clicks`` with ``some`` of their queries."""
    number = {text: number for number, text in enumerate(clicks.queries)}
    return Side(side.queries[[number[text] for text in some.queries]], side.documents)


def searched_with(model: Model, texts: list[str]) -> Vectors:
    """(texts, dim) as the version searches with them."""
    vectors = encode(model.encoder, texts)
    return model.adapter.apply(vectors) if model.adapter else vectors


def _golden(held: HeldOut, model: Model, vectors: Vectors, corpus: Corpus) -> GoldenTrial | None:
    if held.golden_trial is None:
        return None
    judged = held.golden.within({document.doc_id for document in corpus.documents})
    return replace(held.golden_trial, before=Truth(judged, corpus.documents).measure(model, vectors))
