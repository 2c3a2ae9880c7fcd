"""A candidate beside the version that users have, where it was not made of that.

Its gate has compared it with its parent: a ``full_retrain`` with the base model, with which no one may have
searched for long. Fair to both are queries that neither has learnt from, and clicks on what users were shown: of
those that were held out, the ones that the live version was the first to answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from clickloop.errors import ArtifactError, TrainingError
from clickloop.events import GateResult
from clickloop.golden import GoldenSet
from clickloop.model_store import ModelStore
from trainer.cost import Served, cost_of
from trainer.dataset import Clicks, Corpus, First, Prepared, new_among
from trainer.gate import GoldenTrial, Side, Thresholds, beside_live, judge, measure
from trainer.loading import Loader, OnText, SecondsLeft
from trainer.methods.base import Parent
from trainer.model import Vectors, encode
from trainer.sampling import at_most
from trainer.truth import DEPTH, Truth, top


@dataclass(frozen=True)
class Candidate:
    """What was made, and what its gate tried it on."""

    later: Clicks
    """All that was held out after the last moment."""
    side: Callable[[Clicks], Side]
    """How it sees them."""
    served: Served
    golden: GoldenSet
    golden_trial: GoldenTrial | None


@dataclass(frozen=True)
class Beside:
    """Looks at candidates beside the live version, by the rules of the gate."""

    store: ModelStore
    loader: Loader
    thresholds: Thresholds
    most: int
    """Queries to measure on; 0 takes all."""
    seed: int

    def __call__(
        self,
        gate: GateResult,
        live: str,
        candidate: Candidate,
        corpus: Corpus,
        prepared: Prepared,
        *,
        on_text: OnText,
        seconds_left: SecondsLeft,
    ) -> GateResult:
        """The gate with the verdict beside the ``live`` version; that is named, and no more, where it is no pass.

        It can't be told where the live version is gone or harmed, or was the first to answer too few.
        """
        if gate.verdict != "pass":
            return beside_live(gate, live, None)
        try:
            since = self.store.created(live)
            newest = self.store.manifest(live).lineage.newest_example_at
            theirs, documents = self.loader.searched_by(
                live, corpus.documents, on_text=on_text, seconds_left=seconds_left
            )
        except (ArtifactError, TrainingError) as error:
            if isinstance(error, TrainingError) and seconds_left() > 0.0:
                raise
            unknown = GateResult(verdict="inconclusive", queries=0, reasons=[str(error)])
            return beside_live(gate, live, unknown)
        new = first_answered(live, candidate.later, prepared.first, newest=newest, since=since)
        sample = at_most([new], self.most, seed=self.seed)
        asked = sample.later[0]
        before = Side(theirs.searched_with(encode(theirs.query_encoder, asked.queries)), documents)
        texts = asked.queries or candidate.later.queries
        found = judge(
            [measure(asked, before, candidate.side(asked))] if len(asked) else [],
            thresholds=self.thresholds,
            seed=self.seed,
            golden=_golden(candidate, theirs, documents, corpus),
            cost=cost_of(Served.of(theirs), candidate.served, texts, seed=self.seed) if texts else None,
            apart=True,
            other="it",
            nothing="of the queries that were held out, it was the first to answer none",
        )
        return beside_live(gate, live, sample.told(found))


def first_answered(
    version: str, later: Clicks, first: Mapping[str, First], *, newest: datetime | None, since: datetime
) -> Clicks:
    """The ``later`` queries that the version was the first to answer, and like none that it may have learnt from.

    ``newest`` is its newest example. Where an app does not tell what answered, those count that came ``since`` the
    version was published.
    """
    known, answered = list[int](), list[int]()
    for number, text in enumerate(later.queries):
        asked = first[text]
        if newest is not None and asked.at <= newest:
            known.append(number)
        elif asked.version == version or (not asked.version and asked.at >= since):
            answered.append(number)
    return new_among(later, known, answered)


def _golden(candidate: Candidate, theirs: Parent, documents: Vectors, corpus: Corpus) -> GoldenTrial | None:
    if candidate.golden_trial is None or not candidate.golden_trial.before:
        return None  # there is none, or nothing to try, of which the gate has told
    judged = candidate.golden.within({document.doc_id for document in corpus.documents})
    asked = theirs.searched_with(encode(theirs.query_encoder, [one.query for one in judged]))
    before = Truth(judged, corpus.documents).of_top(top(asked, documents, DEPTH))
    return replace(candidate.golden_trial, before=before, held=1.0)
