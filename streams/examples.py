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
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from clickloop.events import ExampleFormed, ResultPreferred, ResultRated
from streams.difficulty import difficulty
from streams.quality import Quality

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
    rating: float | None = None
    rated: tuple[float, str] = (0.0, "")
    """When, and by which event: the latest rating counts, and ties are broken alike everywhere."""
    ratings: int = 0
    rating_trust: float = 0.0
    click_reason: str = ""
    """The trust rule that took weight from its most trusted click, and so for the others."""
    rating_reason: str = ""
    accuracy: float | None = None
    relevance: float | None = None
    preferred_over: dict[str, tuple[float, str]] = {}
    """Alternative → strength times trust, and the rule that took trust away."""
    preferences: int = 0
    sent_revision: int = 0
    counted_as_new: bool | None = None
    """None: not counted yet. False: counted before a restart."""

    @property
    def believed(self) -> bool:
        """Something of it is."""
        strengths = (strength for strength, _ in self.preferred_over.values())
        return self.click_trust > 0.0 or self.rating_trust > 0.0 or any(strengths)

    @property
    def distinct_clicks(self) -> int:
        """Clicks at least ``REPEAT_SECONDS`` apart."""
        if len(self.clicks) == 1:
            return 1
        count, last = 0, float("-inf")
        for at in sorted(self.clicks):
            if at - last >= REPEAT_SECONDS:
                count, last = count + 1, at
        return count

    @property
    def said(self) -> int:
        """Each click, rating and preference. One that says the same again may still be believed more."""
        return len(self.clicks) + self.ratings + self.preferences

    @property
    def said_to_others(self) -> int:
        """What the examples below may change by: whether it was passed over, and whether it was rated low."""
        return 1 + self.ratings


class Feedback(msgspec.Struct, array_like=True, eq=False):
    """The accepted feedback on one impression."""

    results: dict[str, ResultFeedback] = {}
    event_ids: set[str] = set()
    """Of what was accepted; the join keeps them, to know duplicates."""
    live: bool = False
    """Some of it has not had its effects yet."""
    best_position: int | None = None
    """Topmost trusted click."""
    seen_position: int | None = None
    """Topmost click of a person, be it one that says too much of a popular document or query to be learnt from."""

    def click(
        self, doc_id: str, *, at: float, dwell: float | None, trust: float, reason: str = ""
    ) -> ResultFeedback:
        result = self.results.setdefault(doc_id, ResultFeedback())
        # Of two clicks that are believed alike, the reason is the same whichever came first.
        if (trust, reason) > (result.click_trust, result.click_reason) or not result.clicks:
            result.click_trust, result.click_reason = trust, reason
        result.clicks.append(at)
        if dwell is not None:
            result.dwell = max(result.dwell or 0.0, dwell)
        return result

    def rate(self, event: ResultRated, *, at: float, trust: float, reason: str = "") -> ResultFeedback:
        result = self.results.setdefault(event.doc_id, ResultFeedback())
        result.ratings += 1
        if (at, event.event_id) >= result.rated:
            result.rated, result.rating = (at, event.event_id), event.rating
            result.accuracy, result.relevance = event.accuracy, event.relevance
            result.rating_trust, result.rating_reason = trust, reason
        return result

    def prefer(self, event: ResultPreferred, *, trust: float, reason: str = "") -> ResultFeedback:
        """Of several for one alternative the strongest that is believed counts."""
        result = self.results.setdefault(event.preferred, ResultFeedback())
        known = result.preferred_over.get(event.alternative, (0.0, ""))
        result.preferred_over[event.alternative] = max(known, (event.strength * trust, reason))
        result.preferences += 1
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


@dataclass(frozen=True)
class Forming:
    """What holds for every example of an index."""

    index: str
    bias: PositionBias | NoPositionBias
    quality: Quality
    trust_floor: float
    """Quarantine: an example that is believed less is sent, weighs nothing, and says which rule it was."""


def changed_examples(
    impression: Impression, doc_id: str, *, forming: Forming, believed: bool, now: datetime
) -> list[ExampleFormed]:
    """The examples that new feedback on ``doc_id`` changes, each with its next revision.

    That is the example of ``doc_id``, and those of results below it, whose passed-over results it is or was
    among. The revision counts the feedback on the result, and what of that on those above it has a part in its
    example. Once an impression as a whole is not ``believed``, all its examples weigh nothing, in revisions
    beyond any others.
    """
    feedback = impression.feedback
    if feedback is None:
        return []
    examples = []
    above = 0 if believed else DISBELIEVED
    negatives: list[str] = []
    reached = not believed
    places = [(impression.results.index(told), told) for told in feedback.results]
    places.sort()
    seen = 0
    for number, shown in places:
        negatives += impression.results[seen:number]
        seen = number + 1
        result = feedback.results[shown]
        reached = reached or shown == doc_id
        revision = above + result.said
        if reached and revision > result.sent_revision:
            result.sent_revision = revision
            examples.append(
                _example(
                    impression,
                    number,
                    result,
                    negatives,
                    revision=revision,
                    forming=forming,
                    believed=believed,
                    now=now,
                )
            )
        above += result.said_to_others
        if result.rating is not None and result.rating <= BAD_RATING:
            negatives.append(shown)
    return examples


def _example(
    impression: Impression,
    number: int,
    result: ResultFeedback,
    passed_over: list[str],
    *,
    revision: int,
    forming: Forming,
    believed: bool,
    now: datetime,
) -> ExampleFormed:
    doc_id, position = impression.results[number], impression.positions[number]
    identity = example_id(impression.query_id, doc_id)
    judged = _judge(result, forming)
    if not believed:
        judged = Judged(judged.label, 0.0, "everything")
    negatives: list[str] = []
    worse: dict[str, float] = {}
    if judged.label == "positive":
        negatives = passed_over
        if result.preferred_over:
            named = [shown for shown in impression.results if shown in result.preferred_over][-MAX_NEGATIVES:]
            worse = {shown: round(result.preferred_over[shown][0], 6) for shown in named}
            negatives = [shown for shown in passed_over if shown not in result.preferred_over] + named
        negatives = negatives[-MAX_NEGATIVES:]
    weight = judged.trust
    if not judged.is_opinion:
        weight *= forming.bias.weight(position)
    return ExampleFormed(
        event_id=f"{identity}/{revision}",
        index=forming.index,
        example_id=identity,
        revision=revision,
        query_id=impression.query_id,
        query=impression.query,
        doc_id=doc_id,
        label=judged.label,
        weight=round(weight, 6),
        served_at=datetime.fromtimestamp(impression.served_at, UTC),
        formed_at=now,
        negatives=negatives,
        position=position,
        clicks=result.distinct_clicks,
        rating=result.rating,
        dwell_seconds=result.dwell,
        split_key=impression.split_key,
        version=impression.version,
        space=impression.space,
        arm=impression.arm,
        trust=round(judged.trust, 6),
        reason=judged.reason,
        difficulty=difficulty(memoryview(impression.scores).cast("f").tolist(), number),
        domain=impression.domain,
        propensity=_propensity(impression, position),
        swapped=impression.swapped or None,
        worse=worse,
    )


def _propensity(impression: Impression, position: int) -> float:
    """Probability that exploration shows the document where it was shown."""
    chance, count, swapped = impression.swap_chance, len(impression.positions), impression.swapped
    if chance is None or not 1 <= position <= count:
        return 1.0
    if swapped and position in (swapped, swapped + 1):
        return chance
    stays = 1.0 - chance * (1 + (1 < position < count))
    return round(stays, 9) if stays > 0.0 else 1.0


class Judged(NamedTuple):
    """Label, trust in [0, 1], and the rule that took trust away."""

    label: Literal["positive", "negative"]
    trust: float
    reason: str = ""
    is_opinion: bool = False
    """It was said, not clicked: its weight is its trust. Whether it was seen at all hangs on the position all the
    same, which the trainer corrects for."""


def _judge(result: ResultFeedback, forming: Forming) -> Judged:
    """What was said counts before what was clicked. A rating of 3 says nothing by itself."""
    rating = result.rating
    if rating is not None and rating <= BAD_RATING:
        judged = Judged("negative", result.rating_trust, result.rating_reason, is_opinion=True)
    else:
        judged = Judged("positive", result.click_trust, result.click_reason)
        if result.preferred_over:
            strength, reason = max(result.preferred_over.values())
            if strength > judged.trust or not result.clicks:
                judged = Judged("positive", strength, reason, is_opinion=True)
        if rating is not None and rating >= GOOD_RATING and result.rating_trust >= judged.trust:
            judged = Judged("positive", result.rating_trust, result.rating_reason, is_opinion=True)
        if rating is not None:
            objection = forming.quality.objection(
                rating=rating, accuracy=result.accuracy, relevance=result.relevance
            )
            if objection:
                return Judged("positive", 0.0, objection)
    return judged if judged.trust >= forming.trust_floor else Judged(judged.label, 0.0, judged.reason)
