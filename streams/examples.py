"""From the feedback on one impression to weighted training examples.

What an example says is a function of the *set* of feedback on its impression, never of the order in which it came:
a worker that reads the log again, with its three topics interleaved in another way, ends at the same revisions.

Positives are results that were clicked, or rated 4 or 5. A result rated 1 or 2 is a negative example, whatever
was clicked. Each positive names the results that were shown above it and passed over, or rated low
(skip-above; Joachims et al., "Accurately Interpreting Clickthrough Data as Implicit Feedback", SIGIR 2005).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from clickloop.events import ExampleFormed

if TYPE_CHECKING:
    from streams.join import Impression

REPEAT_SECONDS = 60.0
"""Clicks of one user on one result within this time are one click."""
GOOD_RATING = 4.0
BAD_RATING = 2.0
MAX_NEGATIVES = 20
DISBELIEVED = 1000
"""Added to revisions of an impression that is not believed; no impression takes so much feedback."""


def example_id(query_id: str, doc_id: str) -> str:
    """hash(query_id, doc_id), 32 hex digits.

    >>> example_id("q1", "d1") == example_id("q1", "d1") != example_id("q1d", "1")
    True
    """
    return hashlib.blake2b(f"{len(query_id)}:{query_id}{doc_id}".encode(), digest_size=16).hexdigest()


class ResultFeedback(msgspec.Struct, array_like=True, eq=False):
    """All that was said about one result of one impression."""

    clicks: list[float] = []
    """Event times, seconds since the epoch."""
    click_trust: float = 0.0
    dwell: float | None = None
    dwell_reports: int = 0
    rating: float | None = None
    rated: tuple[float, str] = (0.0, "")
    """When, and by which event: the latest rating counts, and ties are broken alike everywhere."""
    ratings: int = 0
    rating_trust: float = 0.0
    sent_revision: int = 0
    counted_as_new: bool | None = None
    """None: not counted yet. False: counted before a restart."""

    @property
    def distinct_clicks(self) -> int:
        """Clicks at least ``REPEAT_SECONDS`` apart. It never falls when a click is added."""
        count, last = 0, float("-inf")
        for at in sorted(self.clicks):
            if at - last >= REPEAT_SECONDS:
                count, last = count + 1, at
        return count

    @property
    def weight_of_evidence(self) -> int:
        return self.distinct_clicks + self.dwell_reports + self.ratings


class Feedback(msgspec.Struct, array_like=True, eq=False):
    """The accepted feedback on one impression."""

    results: dict[str, ResultFeedback] = {}
    event_ids: set[str] = set()
    """Of what was accepted; the join keeps them, to know duplicates."""
    live: bool = False
    """Some of it has not had its effects yet."""
    best_position: int | None = None
    """Topmost trusted click."""

    def click(self, doc_id: str, *, at: float, dwell: float | None, trust: float) -> ResultFeedback:
        result = self.results.setdefault(doc_id, ResultFeedback())
        result.clicks.append(at)
        result.click_trust = max(result.click_trust, trust)
        if dwell is not None:
            result.dwell = max(result.dwell or 0.0, dwell)
            result.dwell_reports += 1
        return result

    def rate(self, doc_id: str, event_id: str, *, at: float, rating: float, trust: float) -> ResultFeedback:
        result = self.results.setdefault(doc_id, ResultFeedback())
        result.ratings += 1
        if (at, event_id) >= result.rated:
            result.rated, result.rating, result.rating_trust = (at, event_id), rating, trust
        return result


@dataclass(frozen=True)
class PositionBias:
    """How much a click says, given where it was made.

    A result at position p is examined with probability 1/p; the inverse of that undoes the bias in expectation
    (Joachims, Swaminathan and Schnabel, "Unbiased Learning-to-Rank with Biased Feedback", WSDM 2017), and is
    clipped at ``clip`` to bound its variance. Divided by ``clip`` it lies in (0, 1].

    >>> [PositionBias(clip=10).weight(p) for p in (1, 5, 10, 50)]
    [0.1, 0.5, 1.0, 1.0]
    """

    clip: float = 10.0

    def weight(self, position: int) -> float:
        return min(float(position), self.clip) / self.clip


@dataclass(frozen=True)
class NoPositionBias:
    """Every click says the same."""

    def weight(self, position: int) -> float:  # noqa: ARG002
        return 1.0


def changed_examples(
    impression: Impression,
    doc_id: str,
    *,
    index: str,
    bias: PositionBias | NoPositionBias,
    believed: bool,
    now: datetime,
) -> list[ExampleFormed]:
    """The examples that new feedback on ``doc_id`` changes, each with its next revision.

    That is the example of ``doc_id``, and those of results below it, whose passed-over results it is or was
    among. The revision counts the feedback on the result and on those above it. Once an impression as a whole
    is not ``believed``, all its examples weigh nothing, in revisions beyond any others.
    """
    feedback = impression.feedback
    if feedback is None:
        return []
    examples = []
    evidence = 0 if believed else DISBELIEVED
    negatives: list[str] = []
    reached = not believed
    for shown, position in zip(impression.results, impression.positions, strict=True):
        result = feedback.results.get(shown)
        if result is None:
            negatives.append(shown)
            continue
        reached = reached or shown == doc_id
        evidence += result.weight_of_evidence
        if reached and evidence > result.sent_revision:
            result.sent_revision = evidence
            examples.append(
                _example(
                    impression,
                    shown,
                    position,
                    result,
                    negatives[-MAX_NEGATIVES:],
                    revision=evidence,
                    index=index,
                    bias=bias,
                    believed=believed,
                    now=now,
                )
            )
        if result.rating is not None and result.rating <= BAD_RATING:
            negatives.append(shown)
    return examples


def _example(
    impression: Impression,
    doc_id: str,
    position: int,
    result: ResultFeedback,
    negatives: list[str],
    *,
    revision: int,
    index: str,
    bias: PositionBias | NoPositionBias,
    believed: bool,
    now: datetime,
) -> ExampleFormed:
    identity = example_id(impression.query_id, doc_id)
    label, weight = _judge(result, bias.weight(position))
    return ExampleFormed(
        event_id=f"{identity}/{revision}",
        index=index,
        example_id=identity,
        revision=revision,
        query_id=impression.query_id,
        query=impression.query,
        doc_id=doc_id,
        label=label,
        weight=round(weight, 6) if believed else 0.0,
        served_at=datetime.fromtimestamp(impression.served_at, UTC),
        formed_at=now,
        negatives=list(negatives) if label == "positive" else [],
        position=position,
        clicks=result.distinct_clicks,
        rating=result.rating,
        dwell_seconds=result.dwell,
        split_key=impression.split_key,
        version=impression.version,
        space=impression.space,
        arm=impression.arm,
    )


def _judge(result: ResultFeedback, click_weight: float) -> tuple[Literal["positive", "negative"], float]:
    """Label and weight. A rating is not subject to position bias; a rating of 3 says nothing by itself."""
    weight = result.click_trust * click_weight
    if result.rating is None:
        return "positive", weight
    if result.rating <= BAD_RATING:
        return "negative", result.rating_trust
    if result.rating >= GOOD_RATING:
        return "positive", max(weight, result.rating_trust)
    return "positive", weight
