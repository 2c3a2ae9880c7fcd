"""What becomes of clicks and ratings on their way to examples."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clickloop.events import ExampleFormed, QueryServed, ResultClicked, ResultPreferred, ResultRated
from streams.examples import Feedback, example_id
from streams.partition import Partition
from tests.unit.streams_facts import NOON, click, partition, preference, query, rating


class Log:
    """Three topics of one partition, with offsets and append times, and a partition that reads them."""

    def __init__(self, part: Partition) -> None:
        self.part = part
        self.offsets = {"queries": 0, "clicks": 0, "ratings": 0}
        self.impossible: list[Any] = []

    def put(
        self, event: QueryServed | ResultClicked | ResultRated | ResultPreferred, *, appended: float = 1.0
    ) -> list[ExampleFormed]:
        suffix = {QueryServed: "queries", ResultClicked: "clicks"}.get(type(event), "ratings")
        offset = self.offsets[suffix]
        self.offsets[suffix] += 1
        when = {"log_time": NOON + appended, "now": NOON + appended, "offset": offset}
        if isinstance(event, QueryServed):
            effects = self.part.query(event, **when)  # type: ignore[arg-type]
        else:
            effects = self.part.feedback(event, source=event, **when)  # type: ignore[arg-type]
        self.part.applied(suffix, offset, offset + 1, log_time=NOON + appended)
        self.impossible.extend(effects.impossible)
        return effects.examples

    def pass_time(self, seconds: float) -> None:
        """Everything is read, and it is ``seconds`` after noon."""
        self.part.close({"queries", "clicks", "ratings"}, NOON + seconds)


def log(**changes: object) -> Log:
    return Log(partition(**changes))


def test_the_first_click_makes_an_example_at_once() -> None:
    feed = log()
    feed.put(query(docs=("a", "b", "c")))
    (example,) = feed.put(click("b"))
    assert example.example_id == example_id("q1", "b")
    assert (example.revision, example.label, example.clicks, example.position) == (1, "positive", 1, 2)
    assert example.negatives == ["a"]
    assert (example.version, example.space, example.arm) == ("base-1", "base-1", "live")


def test_a_click_for_a_query_whose_id_has_the_hash_of_another_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.shelf.KEY_BITS", 0)
    feed = log()
    feed.put(query())
    assert feed.put(click("b", "another")) == []
    assert feed.part.join.waiting == 1


def test_of_what_is_closed_evicted_or_forgotten_nothing_is_kept() -> None:
    feed = log(max_open_impressions=2)
    for number in range(4):
        feed.put(query(f"q{number}", key=f"u{number}"))
        feed.put(click("b", f"q{number}"))
    assert feed.part.join._feedback.keys() == {"q2", "q3"}
    feed.part.join.forget("u2")
    assert feed.part.join._feedback.keys() == {"q3"}
    feed.pass_time(10_000.0)
    assert not feed.part.join._feedback
    assert feed.part.join.open_impressions == 0


def test_a_click_that_comes_before_its_query_waits_for_it() -> None:
    feed = log()
    assert feed.put(click("b")) == []
    assert feed.part.join.waiting == 1
    (example,) = feed.put(query())
    assert example.doc_id == "b"
    assert feed.part.join.waiting == 0


def test_the_same_event_twice_changes_nothing() -> None:
    feed = log()
    feed.put(query())
    assert len(feed.put(click("b"))) == 1
    assert feed.put(click("b")) == []
    assert feed.part.join.counts["duplicate"] == 1


def test_a_second_click_on_a_result_within_a_minute_is_no_second_click() -> None:
    feed = log()
    feed.put(query())
    told = [feed.put(click("b", when=at, event=f"at {at}")) for at in (2, 30, 62)]
    assert [(one.clicks, one.revision) for (one,) in told] == [(1, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("whens", [(0.1, 20.0), (20.0, 0.1)])
def test_a_click_that_is_believed_more_revises_the_example_within_a_minute_as_well(
    whens: tuple[float, float],
) -> None:
    feed = log(position_bias="off")
    feed.put(query())
    for at in whens:
        (example,) = feed.put(click("b", when=at))
    assert (example.revision, example.clicks, example.weight, example.reason) == (2, 1, 1.0, "")


def test_clicks_on_one_result_again_and_again_revise_that_example_alone() -> None:
    feed = log()
    feed.put(query())
    feed.put(click("c"))
    assert [e.doc_id for e in feed.put(click("a", when=3))] == ["a", "c"]
    for at in range(4, 9):
        assert [e.doc_id for e in feed.put(click("a", when=at))] == ["a"]


def test_a_preference_told_again_revises_that_example_alone() -> None:
    feed = log()
    feed.put(query())
    feed.put(click("c"))
    assert [e.doc_id for e in feed.put(preference("a", "d", strength=0.3))] == ["a", "c"]
    assert [e.doc_id for e in feed.put(preference("a", "d", strength=0.6))] == ["a"]


def test_of_two_clicks_that_are_believed_alike_the_reason_is_the_same_whichever_came_first() -> None:
    reasons = []
    for order in (("rate", "repeat"), ("repeat", "rate")):
        feedback = Feedback()
        for number, reason in enumerate(order):
            result = feedback.click("a", at=NOON + number, dwell=None, trust=0.0, reason=reason)
        reasons.append(result.click_reason)
    assert reasons[0] == reasons[1]


def test_the_same_query_twice_opens_one_impression() -> None:
    feed = log()
    feed.put(query())
    feed.put(click("b"))
    feed.put(query())
    assert feed.part.join.counts["duplicate_query"] == 1
    assert feed.put(click("b")) == []


def test_a_query_that_comes_again_after_its_window_opens_nothing() -> None:
    feed = log(window_seconds=60)
    feed.put(query())
    feed.put(click("b"))
    feed.pass_time(1000.0)
    assert feed.part.report(NOON + 1000.0) is not None
    feed.put(query(), appended=2000.0)
    assert feed.put(click("b"), appended=2001.0) == []
    counts = feed.part.join.counts
    assert (counts["duplicate_query"], counts["late"], feed.part.join.open_impressions) == (1, 1, 0)
    assert feed.part.report(NOON + 2001.0) is None


def test_of_what_is_closed_the_latest_is_known_and_no_more_than_may_be_open() -> None:
    feed = log(max_open_impressions=8)
    for number in range(100):
        feed.put(query(f"q{number}"))
        for closed in range(max(0, number - 11), number - 7):
            assert feed.part.query(query(f"q{closed}"), offset=999, log_time=NOON, now=NOON).examples == []
    counts = feed.part.join.counts
    assert (counts["evicted"], counts["duplicate_query"]) == (92, 1 + 2 + 3 + 4 * 89)
    for number in range(84):
        feed.put(click("b", f"q{number}"))
    assert (counts["waiting"], counts["late"]) == (84, 0), "those are long gone"


def test_what_was_the_oldest_before_it_was_forgotten_is_not_closed_again() -> None:
    feed = log(window_seconds=60)
    feed.put(query("q0", key="u0"))
    feed.put(query("q1", key="u1"))
    assert feed.part.join.oldest_open_offset == 0
    feed.part.join.forget("u0")
    assert feed.part.join.oldest_open_offset == 1
    feed.pass_time(100.0)
    assert feed.part.join.open_impressions == 0


def test_a_longer_dwell_revises_the_example() -> None:
    feed = log()
    feed.put(query())
    feed.put(click("b"))
    (example,) = feed.put(click("b", when=40, dwell=38.0))
    assert (example.revision, example.dwell_seconds) == (2, 38.0)


def test_a_click_above_takes_its_document_from_the_negatives_below() -> None:
    feed = log()
    feed.put(query(docs=("a", "b", "c")))
    (first,) = feed.put(click("c"))
    assert first.negatives == ["a", "b"]
    above, below = feed.put(click("a"))
    assert (above.doc_id, above.negatives) == ("a", [])
    assert (below.doc_id, below.revision, below.negatives) == ("c", 2, ["b"])


def test_a_low_rating_turns_a_click_into_a_negative_and_a_high_one_makes_a_positive() -> None:
    feed = log()
    feed.put(query())
    feed.put(click("b"))
    (withdrawn,) = feed.put(rating("b", 1))
    assert (withdrawn.label, withdrawn.revision, withdrawn.weight, withdrawn.negatives) == ("negative", 2, 1.0, [])
    (liked,) = feed.put(rating("c", 5))
    assert (liked.label, liked.weight) == ("positive", 1.0)
    assert liked.negatives == ["a", "b"], "what was rated low is a negative for what is below it"
    feed.put(rating("b", 2, when=4.0))
    (lower,) = feed.put(click("d"))
    assert lower.negatives == ["a", "b"]


def test_a_positive_whose_own_ratings_are_low_weighs_nothing_and_says_which() -> None:
    feed = log()
    feed.put(query())
    (example,) = feed.put(rating("a", 5, accuracy=3))
    assert (example.label, example.weight, example.reason) == ("positive", 0.0, "accuracy")
    (example,) = feed.put(rating("b", 5, accuracy=4, relevance=2))
    assert (example.weight, example.reason) == (0.0, "relevance")
    feed.put(click("c"))
    (example,) = feed.put(rating("c", 3))
    assert (example.weight, example.reason) == (0.0, "rating")
    off = log(min_rating=0, min_accuracy=0)
    off.put(query())
    off.put(click("c"))
    (example,) = off.put(rating("c", 3, accuracy=1))
    assert (example.weight, example.reason) == (0.3, "")


def test_impressions_of_a_skipped_domain_form_no_examples_and_are_counted_all_the_same() -> None:
    feed = log(skip_domains="toys, games")
    feed.put(query("q1", domain="toys"))
    feed.put(query("q2", domain="shoes"))
    assert feed.put(click("a", "q1")) == []
    (example,) = feed.put(click("a", "q2"))
    assert example.domain == "shoes"
    done = feed.part.report(NOON + 1)
    assert done is not None
    assert (done.event.queries, done.event.clicks, done.event.examples) == (2, 2, 1)


def test_an_example_is_as_hard_as_its_model_was_behind() -> None:
    feed = log()
    feed.put(query(docs=("a", "b", "c", "d"), scores=(0.9, 0.7, 0.65, 0.2)))
    made = [feed.put(click(doc, when=2.0 + n))[0] for n, doc in enumerate("dcba")]
    assert [e.difficulty for e in made] == ["hard", "medium", "medium", "easy"]
    feed.put(query("q2"))
    assert feed.put(click("a", "q2"))[0].difficulty is None, "the scores are not known"


def test_a_click_after_the_window_is_counted_as_late_and_makes_nothing() -> None:
    feed = log(window_seconds=60)
    feed.put(query())
    assert feed.put(click("b", when=61)) == []
    assert feed.part.join.counts["late"] == 1


def test_a_click_that_is_dated_before_the_window_is_counted_as_late_and_makes_nothing() -> None:
    feed = log(window_seconds=60)
    feed.put(query())
    assert feed.put(click("b", when=-61)) == []
    assert len(feed.put(click("b", when=-59))) == 1
    assert feed.part.join.counts["late"] == 1


def test_a_click_on_a_closed_impression_is_counted_as_late() -> None:
    feed = log(window_seconds=60)
    feed.put(query())
    feed.pass_time(100)
    assert feed.part.join.open_impressions == 0
    assert feed.put(click("b", when=10), appended=100) == []
    assert feed.part.join.counts["late"] == 1


def test_feedback_whose_query_never_comes_is_dropped_and_counted() -> None:
    feed = log(window_seconds=60)
    feed.put(click("b"))
    feed.pass_time(100)
    assert feed.part.join.waiting == 0
    assert feed.part.join.counts["unmatched"] == 1


def test_an_unread_topic_keeps_windows_open_however_late_it_is() -> None:
    feed = log(window_seconds=60)
    feed.put(query())
    feed.part.close({"queries"}, NOON + 10_000)
    assert feed.part.join.open_impressions == 1
    assert len(feed.put(click("b"))) == 1


def test_at_the_bound_the_oldest_impressions_go_and_are_counted() -> None:
    feed = log(max_open_impressions=10)
    for n in range(15):
        feed.put(query(f"q{n}"))
    assert feed.part.join.open_impressions == 10
    assert feed.part.join.counts["evicted"] == 5
    assert feed.put(click("b", "q3")) == []
    assert len(feed.put(click("b", "q12"))) == 1


def test_waiting_feedback_is_bounded() -> None:
    feed = log(max_open_impressions=100)
    for n in range(60):
        feed.put(click("b", f"q{n}"))
    assert feed.part.join.waiting == 25
    assert feed.part.join.counts["unmatched"] == 35


def test_a_click_on_what_was_not_shown_is_impossible() -> None:
    feed = log()
    feed.put(query(docs=("a", "b")))
    event = click("z")
    assert feed.put(event) == []
    ((source, reason),) = feed.impossible
    assert source is event
    assert "'z'" in reason


def test_a_forgotten_user_forms_no_examples() -> None:
    forgotten = {"user"}
    feed = log(forgotten=forgotten)
    feed.put(query(key="user"))
    feed.put(query("q2", key="other"))
    assert feed.put(click("b")) == []
    assert len(feed.put(click("b", "q2"))) == 1
    feed.part.join.forget("other")
    assert feed.put(click("a", "q2")) == []


def test_what_is_still_needed_is_never_committed() -> None:
    feed = log(window_seconds=60)
    for n in range(5):
        feed.put(query(f"q{n}"), appended=n * 20)
        feed.put(click("b", f"q{n}", when=n * 20 + 1), appended=n * 20 + 1)
    assert feed.part.low_water() == {"queries": 0, "clicks": 0}, "nothing is in a report yet"
    feed.pass_time(109)
    assert feed.part.report(NOON + 109) is not None
    marks = feed.part.low_water()
    assert marks["queries"] == 3, "0, 1 and 2 are closed: 109 - 5 - 60 >= 40"
    assert marks["clicks"] <= 3


def last_revisions(examples: list[ExampleFormed]) -> dict[str, tuple[Any, ...]]:
    last: dict[str, ExampleFormed] = {}
    for e in examples:
        if e.example_id not in last or e.revision > last[e.example_id].revision:
            last[e.example_id] = e
    return {
        i: (e.revision, e.label, e.clicks, e.rating, e.dwell_seconds, tuple(e.negatives), e.weight, e.worse)
        for i, e in last.items()
    }


EVENTS = st.lists(
    st.one_of(
        st.builds(click, st.sampled_from("abcd"), when=st.sampled_from([2.0, 30.0, 70.0, 200.0])),
        st.builds(click, st.sampled_from("ab"), when=st.just(0.1)),
        st.builds(
            click,
            st.sampled_from("abcd"),
            when=st.sampled_from([5.0, 90.0]),
            dwell=st.sampled_from([1.0, 50.0]),
        ),
        st.builds(
            rating, st.sampled_from("abcd"), st.sampled_from([1.0, 3.0, 5.0]), when=st.sampled_from([3.0, 9.0])
        ),
        st.builds(
            preference,
            st.sampled_from("ab"),
            st.sampled_from("cd"),
            strength=st.sampled_from([0.3, 1.0]),
            when=st.sampled_from([4.0, 8.0]),
        ),
    ),
    min_size=1,
    max_size=9,
    unique_by=lambda e: e.event_id,
)


@settings(max_examples=150, deadline=None)
@given(events=EVENTS, seed=st.integers(0, 1000), repeat=st.integers(0, 3))
def test_the_last_revisions_do_not_depend_on_the_order_nor_on_duplicates(
    events: list[Any], seed: int, repeat: int
) -> None:
    straight, shuffled = log(), log()
    first = [e for event in [query(), *events] for e in straight.put(event)]
    other = [query(), *events, *events[:repeat]]
    random.Random(seed).shuffle(other)
    second = [e for event in other for e in shuffled.put(event)]
    assert last_revisions(first) == last_revisions(second)


def test_a_restart_at_any_point_ends_at_the_same_examples_and_counts_each_once() -> None:
    events: list[Any] = []
    for n in range(6):
        q = f"q{n}"
        events += [
            query(q, served=n, key=f"user-{n}"),
            click("b", q, when=n + 2),
            rating("b", 5, q, when=n + 3),
            click("a", q, when=n + 4),
        ]
    whole = log()
    told = [e for event in events for e in whole.put(event)]
    counted = whole.part.report(NOON + 1)
    assert counted is not None
    topics = (QueryServed, ResultClicked, ResultRated)
    points = itertools.combinations(range(0, len(events), 3), 2)
    for (reported, crash), first_read in itertools.product(points, itertools.permutations(topics)):
        before = log()
        sent = [e for event in events[:reported] for e in before.put(event)]
        first = before.part.report(NOON + 1)
        handled = first.handled if first else {}
        sent += [e for event in events[reported:crash] for e in before.put(event)]
        after = log(handled=handled)
        again = [event for topic in first_read for event in events if isinstance(event, topic)]
        for event in again:
            sent += after.put(event)
            if handled:
                assert after.part.report(NOON + 2) is None, "held back until all is read again"
        after.pass_time(1.0)
        second = after.part.report(NOON + 2)
        assert last_revisions(sent) == last_revisions(told)
        reports = [r.event for r in (first, second) if r]
        assert sum(r.examples for r in reports) == counted.event.examples == 12
        assert sum(r.queries for r in reports) == 6
        assert abs(sum(r.reciprocal_rank_sum for r in reports) - 6.0) < 1e-9


def test_a_window_told_again_after_a_crash_has_the_id_that_it_had() -> None:
    one, again = log(), log()
    for feed, events in ((one, [query(), click("b")]), (again, [query()])):
        for event in events:
            feed.put(event)
    first, second = one.part.report(NOON + 1), again.part.report(NOON + 9)
    assert first is not None
    assert second is not None
    assert first.event.event_id == second.event.event_id


def test_a_partition_where_nothing_happened_reports_nothing() -> None:
    feed = log()
    assert feed.part.report(NOON) is None
    feed.put(query())
    assert feed.part.report(NOON) is not None
    assert feed.part.report(NOON) is None


def test_a_report_tells_queries_and_clicks_by_arm_and_version() -> None:
    feed = log()
    feed.put(query("q1"))
    feed.put(query("q2", version="adapter-2"))
    feed.put(click("b", "q1"))
    feed.put(click("a", "q1"))
    done = feed.part.report(NOON + 2)
    assert done is not None
    counts = {(a.version): (a.queries, a.clicked_queries, a.reciprocal_rank_sum) for a in done.event.arms}
    assert counts == {"base-1": (1, 1, 1.0), "adapter-2": (1, 0, 0.0)}
