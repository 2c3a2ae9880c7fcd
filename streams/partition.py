"""All rules of one partition in the order in which they act: join, trust, examples, counts, drift.

A partition's state is built from the log alone. After a restart it is built again from the oldest open impression
on; records whose effects are in the log already (their offset lies below ``handled``) change the state
silently, and have no further effect.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from clickloop import topics
from clickloop.codec import short_key
from clickloop.events import (
    Difficulty,
    DriftMeasured,
    ExampleFormed,
    Measurement,
    OffsetRange,
    QueryServed,
    ResultClicked,
    ResultPreferred,
    ResultRated,
)
from streams.balance import bounded, parsed
from streams.buffer import Counts, merge_ranges
from streams.detectors import Detector
from streams.drift import DriftWatch
from streams.examples import Feedback, Forming, NoPositionBias, PositionBias, changed_examples
from streams.join import Arrival, Impression, Join, Joined
from streams.quality import Quality
from streams.settings import StreamsSettings
from streams.trust import CLOCK_SKEW, OF_POPULARITY, Judgement, Limits, Trust
from streams.windows import MIN_QUERIES, Sample, Settling

QUERIES = topics.QUERIES.suffix
INPUTS = (QUERIES, topics.CLICKS.suffix, topics.RATINGS.suffix)


GRACE_SECONDS = 5.0
"""A fetch may be that late: a topic counts as read up to so long ago where nothing is left to read in it."""
BLOCK_SECONDS = 1.0
MEASURE_SECONDS = 10.0
"""However many queries come, a partition's drift is measured no more often: a measurement takes some 50 ms, in
which nothing else is done, and no training would begin sooner for it."""


class _Input:
    """How far one input has been read, and which offsets came when, to a second or a batch."""

    def __init__(self) -> None:
        self.next_offset: int | None = None
        self.log_time = 0.0
        self._blocks: deque[tuple[int, float, float]] = deque()
        """First offset, first and last append time."""

    def applied(self, first_offset: int, next_offset: int, log_time: float) -> None:
        self.next_offset = next_offset
        self.log_time = max(self.log_time, log_time)
        if self._blocks and self.log_time - self._blocks[-1][1] < BLOCK_SECONDS:
            offset, since, _ = self._blocks.pop()
            self._blocks.append((offset, since, self.log_time))
        else:
            self._blocks.append((first_offset, self.log_time, self.log_time))

    def first_offset_since(self, log_time: float) -> int:
        """An offset at or below the first one that was appended at ``log_time`` or later."""
        while self._blocks and self._blocks[0][2] < log_time:
            self._blocks.popleft()
        return self._blocks[0][0] if self._blocks else self.next_offset or 0


@dataclass(slots=True)
class Effects:
    """What one record brings about."""

    examples: list[ExampleFormed] = field(default_factory=list)
    impossible: list[tuple[Any, str]] = field(default_factory=list)
    """The sources of feedback that can't have happened, each with the reason."""


NOTHING = Effects()
"""Of most queries, and of feedback that waits for its query. Never added to."""


@dataclass(frozen=True)
class Report:
    """A drift report, and how far the inputs' effects are in the log once it is."""

    event: DriftMeasured
    handled: dict[str, int]


class Partition:
    """The state of partition ``number`` of queries, clicks and ratings.

    ``handled`` maps each input's suffix to the offset below which its records have had their effects.
    ``forgotten`` is the live set of split keys whose users asked to be forgotten. ``now`` is seconds since the
    epoch. ``max_open`` is this partition's share of the open impressions that a worker may keep; without it, all.
    """

    def __init__(
        self,
        number: int,
        settings: StreamsSettings,
        *,
        handled: Mapping[str, int],
        forgotten: Set[str],
        now: float,
        max_open: int | None = None,
        detectors: tuple[Detector, ...] | None = None,
    ) -> None:
        self.number = number
        self._settings = settings
        self._forgotten = forgotten
        most = max_open or settings.max_open_impressions
        self.join = Join(window=settings.window_seconds, max_open=most)
        part = most / settings.max_open_impressions
        self.trust = Trust(
            Limits(
                min_click_seconds=settings.min_click_seconds,
                clicks_per_minute=settings.clicks_per_minute,
                clicks_per_document=settings.clicks_per_document,
                max_key_share=settings.max_key_share,
                max_document_share=settings.max_document_share,
            ),
            part=part,
        )
        self._forming = Forming(
            settings.index,
            NoPositionBias() if settings.position_bias == "off" else PositionBias(settings.propensity_clip),
            Quality(settings.min_rating, settings.min_accuracy, settings.min_relevance),
            settings.trust_floor,
        )
        self._watch = DriftWatch(detectors=detectors, seed=number)
        self._handled = {suffix: handled.get(suffix, 0) for suffix in INPUTS}
        self._inputs = {suffix: _Input() for suffix in INPUTS}
        self._watermark = 0.0
        self._counts = Counts()
        self._slices: Counter[tuple[str, Difficulty | None]] = Counter()
        self._minimums = frozenset(parsed(settings.domain_minimums))
        self._ranges: list[OffsetRange] = []
        self._sample = Sample()
        self._sample_since = now
        self._settling = Settling()
        self._window_start = now
        self._rebuilding = any(self._handled.values())
        self._now = (now, datetime.fromtimestamp(now, UTC))

    def is_live(self, suffix: str, offset: int) -> bool:
        """The record's effects are not in the log yet."""
        return offset >= self._handled[suffix]

    def applied(self, suffix: str, first_offset: int, next_offset: int, *, log_time: float) -> None:
        """Offsets ``[first, next)`` have been put to the rules; the last append time was ``log_time``."""
        self._inputs[suffix].applied(first_offset, next_offset, log_time)

    def next_offset(self, suffix: str) -> int | None:
        """Offset after the last one that was put to the rules; None before the first."""
        return self._inputs[suffix].next_offset

    def read_up_to(self, suffix: str) -> float:
        """Append time of the newest record of this input that was put to the rules."""
        return self._inputs[suffix].log_time

    def low_water(self) -> dict[str, int]:
        """For each input that has been read, the offset from which a restart must read it again."""
        marks = {}
        for suffix, source in self._inputs.items():
            if source.next_offset is None:
                continue
            needed = source.next_offset
            if suffix == topics.QUERIES.suffix:
                oldest = self.join.oldest_open_offset
                needed = needed if oldest is None else oldest
            else:
                needed = source.first_offset_since(self.join.feedback_horizon(self._watermark))
            # What is counted in no report yet must be counted after a restart.
            marks[suffix] = min(needed, self._handled[suffix])
        return marks

    def query(self, event: QueryServed, *, offset: int, log_time: float, now: float) -> Effects:
        """An answer was served. ``log_time`` is when the broker appended the record."""
        if self._forgotten and event.split_key and short_key(event.split_key) in self._forgotten:
            return NOTHING
        live = offset >= self._handled[QUERIES]
        impression = Impression.of(event, offset=offset, log_time=log_time, live=live)
        early = self.join.query(impression)
        if early is None:
            return NOTHING
        asked = self._sample.query(event.query, event.sketch, event.version)
        if asked is not None:
            self._settling.query(event.query_id, asked, log_time=log_time)
        if live:
            self._counts.query(event.arm, event.version, event.sketch)
        if not early:
            return NOTHING
        effects = Effects()
        for joined in early:
            self._settle(joined, effects, now)
        return effects

    def feedback(
        self,
        event: ResultClicked | ResultRated | ResultPreferred,
        *,
        offset: int,
        log_time: float,
        now: float,
        source: Any = None,
        suffix: str = "",
    ) -> Effects:
        """Someone clicked, rated or preferred a result. ``source`` is handed back if that can't have happened.

        ``suffix`` names the input that it came by, where that may be another than its own.
        """
        if self._forgotten and event.split_key and short_key(event.split_key) in self._forgotten:
            return NOTHING
        if not suffix:
            suffix = topics.CLICKS.suffix if isinstance(event, ResultClicked) else topics.RATINGS.suffix
        joined = self.join.feedback(Arrival(event, log_time, self.is_live(suffix, offset), source))
        if joined.fate == "waiting":
            return NOTHING
        effects = Effects()
        self._settle(joined, effects, now)
        return effects

    def close(self, caught_up: Set[str], now: float) -> None:
        """Close what is over. ``caught_up`` names the inputs of which nothing is left to read at ``now``."""
        read_up_to = [
            now - GRACE_SECONDS if suffix in caught_up else source.log_time
            for suffix, source in self._inputs.items()
        ]
        self._watermark = max(self._watermark, min(read_up_to))
        if self._rebuilding:
            self._rebuilding = any(
                (source.next_offset or 0) < self._handled[suffix] and suffix not in caught_up
                for suffix, source in self._inputs.items()
            )
        for query in self._settling.over(self._watermark):
            self._sample.settle(query)
        for impression in self.join.close(self._watermark):
            feedback = impression.feedback
            self._counts.abandoned += feedback is None or feedback.best_position is None
            self._sample.close(impression.version, feedback.seen_position if feedback is not None else None)

    def forget(self, split_key: str) -> None:
        """Form nothing more of this key's impressions, and know nothing of its habits."""
        self.join.forget(split_key)
        self.trust.forget(split_key)

    def sent(self, example: OffsetRange) -> None:
        """An example lies in the log there."""
        self._ranges = merge_ranges([*self._ranges, example])

    def report(self, now: float) -> Report | None:
        """The figures since the last report; None where nothing happened, or the state is still being rebuilt."""
        if self._rebuilding or (self._counts.empty and not self._ranges):
            return None
        counts, settings = self._counts, self._settings
        start = "-".join(str(self._handled[suffix]) for suffix in INPUTS)
        event = DriftMeasured(
            # Told again after a crash, with more or less in it, it has the same id, and replaces what was told.
            event_id=f"{settings.index}/{self.number}/{start}",
            index=settings.index,
            partition=self.number,
            window_start=datetime.fromtimestamp(self._window_start, UTC),
            window_end=datetime.fromtimestamp(now, UTC),
            queries=counts.queries,
            clicks=counts.clicks,
            ratings=counts.ratings,
            rating_sum=counts.rating_sum,
            reciprocal_rank_sum=counts.reciprocal_rank_sum,
            abandoned=counts.abandoned,
            examples=counts.examples,
            ranges=list(self._ranges),
            arms=counts.by_arm(),
            slices=bounded(self._slices, self._minimums),
            sketches=counts.sketches.count,
            sketch_sum=counts.sketches.total,
            measurements=self._measure(now) if self._due(now) else [],
        )
        self._counts = Counts()
        self._slices.clear()
        self._ranges = []
        self._window_start = now
        for suffix, source in self._inputs.items():
            self._handled[suffix] = max(self._handled[suffix], source.next_offset or 0)
        return Report(event, dict(self._handled))

    def _due(self, now: float) -> bool:
        age = now - self._sample_since
        queries = self._sample.queries
        full = queries >= self._settings.drift_window_queries and age >= MEASURE_SECONDS
        # With little traffic a window lasts until it has enough to be measured at all.
        return full or (queries >= MIN_QUERIES and age >= self._settings.drift_window_seconds)

    def _measure(self, now: float) -> list[Measurement]:
        measurements = self._watch.measure(self._sample)
        self._sample, self._sample_since = Sample(), now
        return measurements

    def _settle(self, joined: Joined, effects: Effects, now: float) -> None:
        arrival, impression = joined.arrival, joined.impression
        event = arrival.event
        shown = impression.results if impression is not None else []
        if joined.fate == "not_shown" and arrival.live:
            effects.impossible.append((arrival.source, f"{arrival.unseen(shown)!r} was not shown for this query"))
        feedback = impression.feedback if impression is not None else None
        if joined.fate != "joined" or impression is None or feedback is None:
            return
        feedback.live = feedback.live or arrival.live
        if isinstance(event, ResultClicked):
            self._click(impression, feedback, event, arrival)
        elif isinstance(event, ResultRated):
            self._rate(impression, feedback, event, arrival)
        else:
            self._prefer(impression, feedback, event, arrival)
        if impression.domain in self._settings.skip_domains:
            self.join.keep(impression)
            return
        examples = changed_examples(
            impression,
            event.doc_id,
            forming=self._forming,
            believed=self.trust.believed(feedback, len(impression.results)),
            now=self._moment(now),
        )
        for example in examples:
            self._count(feedback, example, arrival, live=arrival.live or impression.live)
        self.join.keep(impression)
        if feedback.live or impression.live:
            effects.examples.extend(examples)

    def _click(self, impression: Impression, feedback: Feedback, event: ResultClicked, arrival: Arrival) -> None:
        at = arrival.at - _ahead(arrival.at, arrival.log_time)
        served_at = impression.served_at - _ahead(impression.served_at, impression.log_time)
        trust, reason = self.trust.click(
            impression.split_key or short_key(event.split_key),
            event.doc_id,
            impression.query,
            at=at,
            served_at=served_at,
            again=_is_believed(feedback, event.doc_id),
        )
        feedback.click(event.doc_id, at=arrival.at, dwell=event.dwell_seconds, trust=trust, reason=reason)
        if trust == 0.0 and reason not in OF_POPULARITY:
            return
        position = impression.positions[impression.results.index(event.doc_id)]
        # How many clicks on what is popular are believed changes within the hour. People do not change with it.
        feedback.seen_position = _topmost(feedback.seen_position, position)
        self._sample.click(event.doc_id, impression.version)
        self._settling.click(impression.query_id, position, seconds=at - served_at)
        if trust == 0.0:
            return
        before = feedback.best_position
        feedback.best_position = best = _topmost(before, position)
        if arrival.live:
            self._counts.click(impression.arm, impression.version, best_before=before, best_now=best)

    def _rate(self, impression: Impression, feedback: Feedback, event: ResultRated, arrival: Arrival) -> None:
        trust, reason = self._opinion(impression, feedback, event, arrival)
        feedback.rate(event, at=arrival.at, trust=trust, reason=reason)
        if arrival.live and trust > 0.0:
            self._counts.rating(event.rating)
        if trust > 0.0:
            self._sample.ratings.of(impression.version).add(event.rating)

    def _prefer(
        self, impression: Impression, feedback: Feedback, event: ResultPreferred, arrival: Arrival
    ) -> None:
        trust, reason = self._opinion(impression, feedback, event, arrival)
        feedback.prefer(event, trust=trust, reason=reason)

    def _opinion(
        self, impression: Impression, feedback: Feedback, event: ResultRated | ResultPreferred, arrival: Arrival
    ) -> Judgement:
        return self.trust.opinion(
            impression.split_key or short_key(event.split_key),
            event.doc_id,
            impression.query,
            at=arrival.at - _ahead(arrival.at, arrival.log_time),
            served_at=impression.served_at - _ahead(impression.served_at, impression.log_time),
            against=event.alternative if isinstance(event, ResultPreferred) else "",
            again=_is_believed(feedback, event.doc_id),
        )

    def _moment(self, now: float) -> datetime:
        """All records of a batch are put to the rules at one time."""
        if self._now[0] != now:
            self._now = (now, datetime.fromtimestamp(now, UTC))
        return self._now[1]

    def _count(self, feedback: Feedback, example: ExampleFormed, arrival: Arrival, *, live: bool) -> None:
        """Count an example as new once, when it first weighs anything.

        After a restart the topics are read again in another order: what has come now may have been put to the
        rules before what came then. Such an example was counted in its first life, and is taken back here.
        """
        result = feedback.results[example.doc_id]
        if example.weight <= 0.0:
            return
        if result.counted_as_new is None:
            result.counted_as_new = live
            self._counts.examples += live
            self._slices[example.domain, example.difficulty] += live
        elif result.counted_as_new and not live and example.doc_id == arrival.event.doc_id:
            result.counted_as_new = False
            self._counts.examples -= 1
            self._slices[example.domain, example.difficulty] -= 1


def _topmost(before: int | None, position: int) -> int:
    return position if before is None else min(before, position)


def _ahead(at: float, log_time: float) -> float:
    """By how much a clock must be wrong: no trust rule may be taken into the future, and stay there.

    Whose clock it is matters. Who clicks says when that was, and must have no say in when the answer was served.
    """
    return max(0.0, at - (log_time + CLOCK_SKEW))


def _is_believed(feedback: Feedback, doc_id: str) -> bool:
    result = feedback.results.get(doc_id)
    return result is not None and result.believed
