"""How far feedback is believed.

A click on what was not shown can't have happened: it goes to ``dead-letters``. All else stays, with a weight in
[0, 1] and the rule that took weight away, so that the log still shows what was believed how far. Times are
seconds, and event time.

Two kinds of rule. A key's own habits (speed, rate) tell a machine from a person. Shares bound what anyone can
reach who looks like a person: of all that is believed within an hour, one split key, one document and one query
text can each have a part only, and one key counts a few times for one document.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from clickloop.text import normal_text
from streams.examples import Feedback
from streams.tally import MAX_NAMES, Claim, Tally

MINUTE = 60.0
HOUR = 3600.0
CLOCK_SKEW = 60.0
"""What happened later than that after the broker took it was told by a wrong clock."""
PAST_HOURS = 4
"""Hours of the past that are counted at a time; the one that was left alone the longest goes first."""
MAX_KEYS = 50_000
"""Split keys whose rates are remembered; the one that was silent the longest goes first."""
FAST_WEIGHT = 0.5
"""One click faster than a person may be a skewed clock."""
FAST_REPEATS = 3
"""So many of one key within a minute are a machine."""
EVERYTHING_CLICKS = 5
EVERYTHING_SHARE = 0.6
EVERYTHING_SECONDS = 2.0
FREE = 20.0
"""Clicks an hour that a share never takes: of a few clicks, anyone has a large part."""
ALL = "*"


class Judgement(NamedTuple):
    """Weight in [0, 1], and the rule that lowered it ("" where none did)."""

    weight: float
    reason: str = ""


@dataclass(frozen=True)
class Limits:
    """What is allowed. 0 switches a rule off."""

    min_click_seconds: float = 0.2
    clicks_per_minute: int = 60
    clicks_per_document: int = 3
    """Of one key, an hour."""
    max_key_share: float = 0.01
    max_document_share: float = 0.02
    """Of one document, and of one query text."""


@dataclass(slots=True)
class _Habits:
    clicks: list[float]
    """Times of the last minute."""
    fast: list[float]


OF_POPULARITY = frozenset({"document_share", "query_share"})
"""Rules that take weight from what many people do alike: such a click may well be meant."""


class Trust:
    """The weight of each click, rating and preference of one partition.

    ``counts`` tells how often each rule took weight away: ``too_fast``, ``rate``, ``everything``, ``repeat``,
    ``key_share``, ``document_share``, ``query_share``. ``tallies`` are what other partitions' counts are added
    to (``streams/caps.py``); without that, each partition bounds its own part alone. Feedback on what was served
    over an hour before the latest, as imported history is, has tallies of its own hour: among those of now, months
    of it would be one hour's. When it was served decides, for who clicks has no say in that.
    """

    def __init__(self, limits: Limits, *, part: float = 1.0) -> None:
        """``part``: this partition's share of the memory that a worker may use."""
        self._limits = limits
        self._max_keys = max(1, round(part * MAX_KEYS))
        self._habits: OrderedDict[str, _Habits] = OrderedDict()
        self._most = round(part * MAX_NAMES)
        self.tallies = _tallies(self._most)
        self._past: OrderedDict[int, tuple[Tally, Tally]] = OrderedDict()
        """By hour."""
        self._latest = 0.0
        self.counts: Counter[str] = Counter()

    def click(
        self, split_key: str, doc_id: str, query: str, *, at: float, served_at: float, again: bool = False
    ) -> Judgement:
        """Weigh one click. Without a key, only its own speed and the shares of document and query are judged.

        ``again``: the same impression holds something about the document that is believed, so that this takes up
        no more of anyone's share.
        """
        # Far before its answer it is a clock that is wrong, not a hand that is quick.
        least = self._limits.min_click_seconds
        fast = least > 0.0 and -1.0 <= at - served_at < least
        weight = 1.0
        if split_key:
            habits = self._habits_of(split_key)
            if self._is_over_rate(split_key, habits, at, served_at):
                return self._lowered("rate", 0.0)
            if fast:
                _add(habits.fast, at, limit=FAST_REPEATS)
            if habits.fast:
                _prune(habits.fast, at)
            if len(habits.fast) >= FAST_REPEATS:
                return self._lowered("too_fast", 0.0)
        if fast:
            weight = self._lowered("too_fast", FAST_WEIGHT).weight
        judged = Judgement(weight, "too_fast" if fast else "")
        return judged if again else self._within_shares(split_key, doc_id, query, judged, at, served_at)

    def opinion(
        self,
        split_key: str,
        doc_id: str,
        query: str,
        *,
        at: float,
        served_at: float,
        against: str = "",
        again: bool = False,
    ) -> Judgement:
        """Weigh a rating or a preference, which counts against the rate and the shares as a click does.

        ``against`` is the document that another one is preferred to: as much can be said against a document as for
        one.
        """
        if split_key and self._is_over_rate(split_key, self._habits_of(split_key), at, served_at):
            return self._lowered("rate", 0.0)
        judged = Judgement(1.0)
        if again:
            return judged
        return self._within_shares(split_key, doc_id, query, judged, at, served_at, against=against)

    def forget(self, split_key: str) -> None:
        """What is known of this key's habits. Its part of the shares goes with the hour."""
        self._habits.pop(split_key, None)

    def believed(self, feedback: Feedback, shown: int) -> bool:
        """False for an impression nearly all of whose results were clicked within two seconds.

        More feedback never makes it believed again.
        """
        if len(feedback.results) < EVERYTHING_CLICKS:
            return True
        enough = max(EVERYTHING_CLICKS, round(EVERYTHING_SHARE * shown))
        clicks = sorted((at, doc) for doc, result in feedback.results.items() for at in result.clicks)
        recent: deque[tuple[float, str]] = deque()
        for at, doc in clicks:
            recent.append((at, doc))
            while recent[0][0] < at - EVERYTHING_SECONDS:
                recent.popleft()
            if len({doc for _, doc in recent}) >= enough:
                self.counts["everything"] += 1
                return False
        return True

    def _is_over_rate(self, split_key: str, habits: _Habits, at: float, served_at: float) -> bool:
        limit = self._limits.clicks_per_minute
        if not limit:
            return False
        _add(habits.clicks, at, limit=limit + 1)
        rates, _ = self._tallies_at(at, served_at)
        rates.add(split_key, 1.0)
        return len(habits.clicks) + rates.others(split_key) > limit

    def _tallies_at(self, at: float, served_at: float) -> tuple[Tally, Tally]:
        """The rates and the influence to which feedback counts; what is late counts in the latest window."""
        if served_at >= self._latest - HOUR:
            self._latest = max(self._latest, at)
            of_hour = self.tallies
        else:
            hour = int(served_at // HOUR)
            of_hour = self._past.setdefault(hour, _tallies(self._most // PAST_HOURS))
            self._past.move_to_end(hour)
            if len(self._past) > PAST_HOURS:
                self._past.popitem(last=False)
            at = served_at
        for tally in of_hour:
            tally.turn(at)
        return of_hour

    def _within_shares(
        self,
        split_key: str,
        doc_id: str,
        query: str,
        judged: Judgement,
        at: float,
        served_at: float,
        *,
        against: str = "",
    ) -> Judgement:
        """``judged`` where there is room for it, else 0. What is given is counted for those who claim it.

        A share is one of all that was tried, less what was refused to the same name: so no one makes his own share
        larger by trying more, and a small index, of which many documents are popular, still learns.
        """
        limits, weight = self._limits, judged.weight
        _, tally = self._tallies_at(at, served_at)
        total = tally.add(ALL, weight)
        claims: list[Claim] = []
        if share := limits.max_document_share:
            most = max(FREE, share * total)
            claims += [("document_share", f"d:{doc_id}", most, share), ("query_share", _named(query), most, share)]
            if against:
                claims.append(("document_share", f"d:{against}", most, share))
        if split_key and limits.clicks_per_document:
            claims.append(("repeat", f"p:{split_key} {doc_id}", limits.clicks_per_document, 0.0))
            if against:
                claims.append(("repeat", f"p:{split_key} {against}", limits.clicks_per_document, 0.0))
        if split_key and (share := limits.max_key_share):
            claims.append(("key_share", f"k:{split_key}", max(FREE, share * total), share))
        refused = tally.claim(claims, weight, free=FREE)
        return self._lowered(refused, 0.0) if refused else judged

    def _habits_of(self, split_key: str) -> _Habits:
        habits = self._habits.get(split_key)
        if habits is None:
            habits = self._habits[split_key] = _Habits([], [])
            if len(self._habits) > self._max_keys:
                self._habits.popitem(last=False)
        else:
            self._habits.move_to_end(split_key)
        return habits

    def _lowered(self, rule: str, weight: float) -> Judgement:
        self.counts[rule] += 1
        return Judgement(weight, rule)


def _tallies(most: int) -> tuple[Tally, Tally]:
    return Tally("rate", seconds=MINUTE, most=most), Tally("influence", seconds=HOUR, most=most)


@lru_cache(maxsize=50_000)
def _named(query: str) -> str:
    """Short for a query text in whatever spelling."""
    return f"q:{hashlib.blake2b(normal_text(query).encode(), digest_size=8).hexdigest()}"


def _add(times: list[float], at: float, *, limit: int) -> None:
    """Add a time to those of the last minute; of the oldest beyond ``limit`` nothing more can be learnt."""
    times.append(at)
    if len(times) > limit:
        del times[0]
    _prune(times, at)


def _prune(times: list[float], now: float) -> None:
    while times and times[0] < now - MINUTE:
        del times[0]
