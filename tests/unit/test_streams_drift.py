"""A moved world is seen within three windows; an unmoving one raises no alarm."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from streams.detectors import ClickTrend, NewShare, QueryDistance, TopicClicks, TopicShares, used_terms
from streams.drift import DriftWatch
from streams.windows import Reference, Sample, terms
from tests.unit.drift_facts import DIMENSIONS, mean_of, window
from tests.unit.streams_facts import NOON, partition, query


@pytest.mark.parametrize("queries", [50, 120])
def test_an_unmoving_world_raises_an_alarm_in_at_most_one_window_of_a_hundred(queries: int) -> None:
    rng = np.random.default_rng(queries)
    alarms, measured = 0, 0
    for seed in range(12):
        watch = DriftWatch(seed=seed)
        for _ in range(11):
            found = watch.measure(window(rng, queries))
            measured += bool(found)
            alarms += any(m.exceeded for m in found)
    assert measured == 120
    assert alarms <= 0.01 * measured


@pytest.mark.parametrize("queries", [50, 150])
def test_a_change_of_topics_is_seen_in_each_of_the_first_three_windows(queries: int) -> None:
    rng = np.random.default_rng(7)
    watch = DriftWatch()
    for _ in range(4):
        watch.measure(window(rng, queries))
    for _ in range(3):
        found = {m.detector: m.exceeded for m in watch.measure(window(rng, queries, topic=1))}
        assert found["query_distance"]
        assert found["new_terms"]


def test_a_change_of_half_the_queries_is_seen_too() -> None:
    rng = np.random.default_rng(8)
    watch = DriftWatch()
    for _ in range(4):
        watch.measure(window(rng, 200))
    mixed = window(rng, 100)
    other = window(rng, 100, topic=1)
    mixed.asked += other.asked
    mixed.answered.merge(other.answered)
    mixed.clicks.merge(other.clicks)
    assert any(m.exceeded for m in watch.measure(mixed))


def test_falling_click_ranks_are_seen_and_rising_ones_are_no_alarm() -> None:
    rng = np.random.default_rng(9)
    reference = window(rng, 600, clicked=0.6)
    worse = mean_of("click_mrr").measure(window(rng, 300, clicked=0.3), reference, rng)
    better = mean_of("click_mrr").measure(window(rng, 300, clicked=0.9), reference, rng)
    assert worse is not None
    assert worse.exceeded
    assert worse.threshold is not None
    assert worse.value < worse.threshold
    assert better is not None
    assert not better.exceeded


def test_more_impressions_without_a_click_are_seen_and_fewer_are_no_alarm() -> None:
    rng = np.random.default_rng(19)
    reference = window(rng, 600, clicked=0.6)
    more = mean_of("abandonment").measure(window(rng, 300, clicked=0.4), reference, rng)
    fewer = mean_of("abandonment").measure(window(rng, 300, clicked=0.8), reference, rng)
    assert more is not None
    assert more.exceeded
    assert more.value == pytest.approx(0.6, abs=0.1)
    assert fewer is not None
    assert not fewer.exceeded


def test_falling_ratings_are_seen_once_there_are_enough() -> None:
    rng = np.random.default_rng(20)
    reference, young, bad = Sample(), Sample(), Sample()
    for sample, count, mean in ((reference, 400, 4.2), (young, 20, 2.0), (bad, 60, 3.2)):
        for rating in np.clip(np.rint(rng.normal(mean, 0.8, size=count)), 1, 5):
            sample.ratings.of("v1").add(float(rating))
    assert mean_of("rating_mean").measure(young, reference, rng) is None
    found = mean_of("rating_mean").measure(bad, reference, rng)
    assert found is not None
    assert found.exceeded


def test_clicks_on_documents_that_the_reference_never_saw_are_seen() -> None:
    rng = np.random.default_rng(21)
    reference = window(rng, 600)
    mixed, other = window(rng, 220), window(rng, 80, topic=1)
    same = mean_of("new_documents").measure(mixed, reference, rng)
    mixed.clicked += other.clicked
    moved = mean_of("new_documents").measure(mixed, reference, rng)
    assert same is not None
    assert not same.exceeded
    assert moved is not None
    assert moved.exceeded
    assert moved.value > same.value


def test_the_share_of_traffic_that_moved_between_topics_is_told() -> None:
    rng = np.random.default_rng(22)
    reference = window(rng, 400)
    reference.asked += window(rng, 400, topic=1).asked
    moved = window(rng, 50)
    moved.asked += window(rng, 250, topic=1).asked
    found = TopicShares(topics=2).measure(moved, reference, rng)
    assert found is not None
    assert found.exceeded
    assert found.value == pytest.approx(1 / 3, abs=0.08)


def test_one_topics_falling_clicks_are_seen_though_the_mean_stays() -> None:
    rng = np.random.default_rng(23)
    reference, moved = window(rng, 400, clicked=0.5), window(rng, 200, clicked=0.9)
    reference.settled += window(rng, 400, topic=1, clicked=0.5).settled
    moved.settled += window(rng, 200, topic=1, clicked=0.1).settled
    found = TopicClicks(topics=2).measure(moved, reference, rng)
    assert found is not None
    assert found.exceeded


def test_a_fall_of_click_ranks_bit_by_bit_is_seen_and_stays_told_for_three_windows() -> None:
    rng = np.random.default_rng(24)
    trend = ClickTrend()
    told = []
    for clicked in [0.7] * 5 + [0.65, 0.6, 0.55, 0.5] + [0.45] * 6:
        found = trend.measure(window(rng, 400, clicked=clicked), Sample(), rng)
        assert found is not None
        told.append(found.exceeded)
    assert not any(told[:5])
    first = told.index(True)
    assert all(told[first : first + 3])


def test_the_fall_of_one_of_two_versions_is_told_and_ends_when_it_answers_no_more() -> None:
    rng = np.random.default_rng(26)
    trend = ClickTrend()
    both = ("v1", "v2")
    before = [trend.measure(window(rng, 400, version=both, clicked=0.7), Sample(), rng) for _ in range(4)]
    for _ in range(3):
        fallen = trend.measure(window(rng, 400, version=both, clicked={"v1": 0.4, "v2": 0.7}), Sample(), rng)
    alone = trend.measure(window(rng, 400, version="v2", clicked=0.7), Sample(), rng)
    assert not any(m.exceeded for m in before if m is not None)
    assert fallen is not None
    assert fallen.threshold is not None
    assert fallen.exceeded
    assert fallen.value < fallen.threshold
    assert alone is not None
    assert not alone.exceeded


def test_a_trend_is_told_of_the_version_that_fell_while_it_answers_or_else_of_the_one_that_answers_most() -> None:
    rng = np.random.default_rng(43)
    trend, shares = ClickTrend(), ["v1", "v2", "v2"]
    assert trend.measure(window(rng, 40), Sample(), rng) is None, "too few"
    for _ in range(3):
        even = trend.measure(window(rng, 600, version=shares, clicked={"v1": 0.9, "v2": 0.5}), Sample(), rng)
    fallen = trend.measure(window(rng, 600, version=shares, clicked={"v1": 0.2, "v2": 0.5}), Sample(), rng)
    alone = trend.measure(window(rng, 200, version="v2", clicked=0.5), Sample(), rng)
    assert even is not None
    assert even.value == pytest.approx(0.5 * 0.457, abs=0.06), "the mean of 1, 1/2 ... 1/5 is 0.457"
    assert fallen is not None
    assert fallen.exceeded
    assert alone is not None
    assert not alone.exceeded


def test_rising_click_ranks_and_a_new_version_are_no_falling_trend() -> None:
    rng = np.random.default_rng(25)
    trend = ClickTrend()
    windows = [window(rng, 400, clicked=c) for c in (0.4, 0.4, 0.8, 0.8)]
    windows += [window(rng, 400, clicked=0.2, version="v2") for _ in range(3)]
    found = [trend.measure(w, Sample(), rng) for w in windows]
    assert not any(m.exceeded for m in found if m is not None)


def test_a_window_that_is_different_does_not_become_the_norm() -> None:
    rng = np.random.default_rng(11)
    watch = DriftWatch()
    for _ in range(3):
        watch.measure(window(rng, 100))
    known = watch.reference.sample.queries
    for _ in range(5):
        assert any(m.exceeded for m in watch.measure(window(rng, 100, topic=1)))
    assert watch.reference.sample.queries == known


def test_too_few_queries_are_not_measured() -> None:
    rng = np.random.default_rng(12)
    watch = DriftWatch()
    watch.measure(window(rng, 200))
    assert watch.measure(window(rng, 49)) == []


def test_a_full_window_is_measured_no_sooner_than_ten_seconds_after_the_last() -> None:
    rule = partition(drift_window_queries=50)
    told = {}
    for second in range(1, 24):
        for number in range(30):
            rule.query(query(f"{second}-{number}"), offset=second * 30 + number, log_time=NOON, now=NOON + second)
        report = rule.report(NOON + second)
        assert report is not None
        told[second] = bool(report.event.measurements)
    assert [second for second, measured in told.items() if measured] == [20], "10 is what it is measured against"


def test_with_little_traffic_a_window_lasts_until_it_can_be_measured() -> None:
    """Cut every five minutes, none would ever have enough."""
    rule = partition(drift_window_seconds=300)
    measured = []
    for window_number in range(1, 9):
        now = NOON + 301.0 * window_number
        for number in range(20):
            name = f"{window_number}-{number}"
            rule.query(query(name), offset=window_number * 20 + number, log_time=NOON, now=now)
        report = rule.report(now)
        assert report is not None
        measured.append(bool(report.event.measurements))
    assert measured == [False] * 5 + [True, False, False], "60 queries are the reference, the next 60 are compared"


def test_queries_without_sketches_are_measured_by_their_words() -> None:
    rng = np.random.default_rng(13)
    watch = DriftWatch()
    bare = [window(rng, 100), window(rng, 100), window(rng, 100, topic=1)]
    for sample in bare:
        for one in [*sample.asked, *sample.settled]:
            one.sketch = b""
    *_, last = [watch.measure(sample) for sample in bare]
    assert {m.detector for m in last} == {"new_terms", "click_mrr", "abandonment", "click_trend"}
    assert next(m for m in last if m.detector == "new_terms").exceeded


def test_sketches_of_another_length_are_left_out() -> None:
    rng = np.random.default_rng(14)
    one, other = window(rng, 120), window(rng, 120)
    one.asked[3].sketch, one.asked[4].sketch = b"\x01" * 7, b"\x00" * DIMENSIONS
    found = QueryDistance().measure(one, other, rng)
    assert found is not None
    assert not found.exceeded


def test_the_reference_is_bounded_and_samples_all_windows_alike() -> None:
    rng = np.random.default_rng(15)
    reference = Reference(limit=100)
    for number in range(20):
        sample = Sample()
        for _ in range(50):
            sample.query("word", bytes([number + 1]), "v1")
        reference.add(sample, rng)
    kept = Counter(query.sketch[0] for query in reference.sample.asked)
    assert sum(kept.values()) == 100
    assert len(kept) >= 15
    assert max(kept.values()) <= 15


def test_the_p_value_of_a_window_like_the_reference_is_spread_over_the_unit_interval() -> None:
    rng = np.random.default_rng(16)
    words = NewShare("new_terms", used_terms, level=0.003)
    values = []
    for _ in range(60):
        found = words.measure(window(rng, 80), window(rng, 160), rng)
        assert found is not None
        assert found.p_value is not None
        values.append(found.p_value)
    assert 0.25 < float(np.mean(values)) < 0.75


def test_words_are_told_apart_without_case_and_signs() -> None:
    assert terms("Sort, sort a LIST!") == terms("list sort")
    assert len(terms("naïve Größe 42")) == 3
