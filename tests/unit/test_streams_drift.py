"""A moved world is seen within three windows; an unmoving one raises no alarm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from streams.detectors import (
    ClickTrend,
    Detector,
    NewShare,
    QueryDistance,
    TopicClicks,
    TopicShares,
    default_detectors,
    used_terms,
)
from streams.drift import DriftWatch
from streams.windows import MAX_VERSIONS, Reference, Sample, Strata, Sums, terms
from tests.unit.streams_facts import NOON, partition, query

DIMENSIONS = 32


def window(
    rng: np.random.Generator,
    n: int,
    *,
    topic: int = 0,
    clicked: float | Mapping[str, float] = 0.5,
    version: str | Sequence[str] = "v1",
) -> Sample:
    """``n`` queries about one of several topics: sketches around its direction, words of its own (Zipf).

    Of several versions each query is answered by one, by chance; ``clicked`` may be another for each.
    """
    sample = Sample()
    versions = [version] if isinstance(version, str) else version
    vectors = rng.normal(size=(n, DIMENSIONS))
    vectors[:, topic] += 3.0
    vectors *= 127 / np.abs(vectors).max(axis=1, keepdims=True)
    for number, vector in enumerate(vectors.astype(np.int8)):
        words = " ".join(f"w{w}" for w in rng.zipf(1.4, size=6) % 800 + 800 * topic)
        by = versions[int(rng.integers(len(versions)))]
        sample.query(str(number), words, vector.tobytes(), by)
        chance = clicked if isinstance(clicked, float) else clicked[by]
        best = int(rng.integers(1, 6)) if rng.random() < chance else None
        if best is not None:
            sample.click(str(number), f"d{topic}-{rng.zipf(1.4) % 100}", by, best_before=None, best_now=best)
        sample.close(by, best)
    return sample


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
    mixed.clicks.merge(other.clicks)
    assert any(m.exceeded for m in watch.measure(mixed))


def mean_of(name: str) -> Detector:
    return next(d for d in default_detectors() if d.name == name)


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
    reference.asked += window(rng, 400, topic=1, clicked=0.5).asked
    moved.asked += window(rng, 200, topic=1, clicked=0.1).asked
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


def test_each_versions_outcomes_are_counted_apart() -> None:
    sample = Sample()
    sample.close("v1", None)
    sample.close("v2", 2)
    assert sample.abandoned["v1"] == Sums(count=1, total=1.0, squares=1.0)
    assert sample.abandoned["v2"] == Sums(count=1)
    assert sample.outcomes == [("v1", 0.0), ("v2", 0.5)]


def alarms(watch: DriftWatch, *windows: Sample) -> list[set[str]]:
    """Detectors that exceeded, of each window; "unmeasured" where it was compared with nothing."""
    found = [watch.measure(w) for w in windows]
    return [{m.detector for m in ms if m.exceeded} if ms else {"unmeasured"} for ms in found]


EVEN = ("v1", "v2")


def test_two_versions_that_share_the_traffic_evenly_are_measured_in_every_window() -> None:
    rng = np.random.default_rng(30)
    watch = DriftWatch()
    first, *others = alarms(watch, *[window(rng, 100, version=EVEN) for _ in range(12)])
    assert first == {"unmeasured"}
    assert others == [set()] * 11
    for moved in alarms(watch, *[window(rng, 100, topic=1, version=EVEN) for _ in range(6)]):
        assert {"query_distance", "new_terms"} <= moved


def test_a_fall_of_clicks_is_seen_at_an_even_split() -> None:
    rng = np.random.default_rng(31)
    watch = DriftWatch()
    clicked = {"v1": 0.7, "v2": 0.5}
    alarms(watch, *[window(rng, 300, version=EVEN, clicked=clicked) for _ in range(4)])
    fallen = {"v1": 0.5, "v2": 0.35}
    for moved in alarms(watch, *[window(rng, 300, version=EVEN, clicked=fallen) for _ in range(3)]):
        assert {"click_mrr", "abandonment"} <= moved


def test_topics_and_documents_are_compared_at_an_even_split() -> None:
    rng = np.random.default_rng(32)
    reference, moved = window(rng, 600, version=EVEN), window(rng, 300, version=EVEN)
    moved.asked += window(rng, 200, topic=1, version=EVEN, clicked=0.1).asked
    reference.asked += window(rng, 400, topic=1, version=EVEN, clicked=0.5).asked
    topics = TopicClicks(topics=2).measure(moved, reference, rng)
    assert topics is not None
    assert topics.exceeded
    moved.clicked += window(rng, 200, topic=1, version=EVEN).clicked
    documents = mean_of("new_documents").measure(moved, reference, rng)
    assert documents is not None
    assert documents.exceeded


@pytest.mark.parametrize(("old", "new"), [(0.7, 0.4), (0.4, 0.7), (0.5, 0.5)])
def test_a_version_that_takes_over_step_by_step_raises_no_alarm_and_hides_none(old: float, new: float) -> None:
    rng = np.random.default_rng(33)
    clicked = {"v1": old, "v2": new}
    shares: list[list[str]] = [["v1"] * (10 - step) + ["v2"] * step for step in (0, 0, 1, 1, 3, 5, 5, 8, 10, 10)]
    watch = DriftWatch()
    _, *found = alarms(watch, *[window(rng, 300, version=share, clicked=clicked) for share in shares])
    assert found == [set()] * 9
    assert "query_distance" in alarms(watch, window(rng, 300, topic=1, version="v2", clicked=clicked))[0]


def test_a_version_that_takes_over_at_once_raises_no_alarm_though_it_shows_other_documents() -> None:
    rng = np.random.default_rng(34)
    watch = DriftWatch()
    alarms(watch, *[window(rng, 200) for _ in range(3)])
    windows = [window(rng, 200, version="v2", clicked=0.4) for _ in range(3)]
    for number, one in enumerate(windows):
        for click in one.clicked:
            click.document += 1
        assert alarms(watch, one) == [set()], f"window {number} of the new version"


def test_a_shift_that_comes_with_a_new_version_is_seen_and_stays_new_until_a_later_one_serves() -> None:
    rng = np.random.default_rng(35)
    watch = DriftWatch()
    alarms(watch, *[window(rng, 200) for _ in range(3)])
    for moved in alarms(watch, *[window(rng, 200, topic=1, version="v2") for _ in range(4)]):
        assert "query_distance" in moved
    learnt = [window(rng, 200, topic=1, version="v3") for _ in range(3)]
    assert alarms(watch, *learnt) == [{"unmeasured"}, set(), set()]


def test_a_version_that_was_there_before_the_shift_has_not_learnt_it() -> None:
    rng = np.random.default_rng(36)
    watch = DriftWatch()
    alarms(watch, *[window(rng, 200, version=["v1"] * 9 + ["v2"]) for _ in range(3)])
    shifted = [window(rng, 200, topic=1, version=share) for share in (["v1"] * 3 + ["v2"], "v2", "v1", "v2")]
    for moved in alarms(watch, *shifted):
        assert "query_distance" in moved


def test_an_alarm_of_long_ago_makes_no_later_version_one_that_has_learnt_a_new_shift() -> None:
    rng = np.random.default_rng(37)
    watch = DriftWatch()
    alarms(watch, *[window(rng, 200) for _ in range(3)])
    assert alarms(watch, window(rng, 200, topic=1))[0] > {"query_distance"}
    alarms(watch, *[window(rng, 200) for _ in range(2)])
    alarms(watch, window(rng, 200, version=["v1"] * 4 + ["v2"]))
    shifted = [window(rng, 200, topic=2, version=share) for share in (["v1"] * 3 + ["v2"], "v2", "v2")]
    for moved in alarms(watch, *shifted):
        assert "query_distance" in moved


def test_a_version_that_is_rolled_back_to_has_not_learnt_a_new_shift() -> None:
    rng = np.random.default_rng(38)
    watch = DriftWatch()
    alarms(watch, *[window(rng, 200) for _ in range(3)], window(rng, 200, topic=1))
    alarms(watch, *[window(rng, 200, topic=1, version="v2") for _ in range(3)])
    shifted = [window(rng, 200, topic=2, version=version) for version in ("v2", "v1", "v1")]
    for moved in alarms(watch, *shifted):
        assert "query_distance" in moved


def test_a_version_that_has_learnt_what_is_new_starts_the_reference_afresh() -> None:
    rng = np.random.default_rng(10)
    watch = DriftWatch()
    alarms(watch, *[window(rng, 100) for _ in range(3)])
    (moved,) = alarms(watch, window(rng, 100, topic=1))
    assert "query_distance" in moved
    learnt = [window(rng, 100, topic=1, version=share) for share in (["v1", "v2", "v2", "v2"], "v2", "v1", "v2")]
    assert alarms(watch, *learnt) == [{"unmeasured"}, set(), set(), set()]


def test_a_version_that_came_after_a_shift_has_learnt_it_only_once_it_answers_most() -> None:
    rng = np.random.default_rng(39)
    watch = DriftWatch()
    alarms(watch, *[window(rng, 200) for _ in range(3)])
    shares = ("v1", ["v1"] * 3 + ["v2"], "v2")
    first, second, third = alarms(watch, *[window(rng, 200, topic=1, version=share) for share in shares])
    assert "query_distance" in first & second
    assert third == {"unmeasured"}


def test_of_very_many_versions_those_that_answered_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.drift.SEEN", 2)
    rng = np.random.default_rng(40)
    watch = DriftWatch()
    alarms(watch, *[window(rng, 200, version=["live"] * 3 + [f"v{number}"]) for number in range(4)])
    shifted = [window(rng, 200, topic=1, version=share) for share in (["live"] * 3 + ["v4"], "live", "v4")]
    for moved in alarms(watch, *shifted):
        assert "query_distance" in moved
    assert list(watch._seen) == ["live", "v4"]


def test_a_version_that_gave_too_few_answers_before_is_compared_with_none() -> None:
    rng = np.random.default_rng(41)
    reference, few = window(rng, 600), window(rng, 40, version="v2", clicked=1.0)
    reference.asked += few.asked
    reference.clicked += few.clicked
    reference.clicks.merge(few.clicks)
    reference.abandoned.merge(few.abandoned)
    new = window(rng, 300, version="v2", clicked=0.2)
    for name in ("new_documents", "topic_clicks", "click_mrr", "abandonment"):
        assert mean_of(name).measure(new, reference, rng) is None, name


def test_versions_that_show_other_documents_and_earn_other_clicks_may_change_their_shares() -> None:
    rng = np.random.default_rng(42)
    clicked = {"v1": 0.9, "v2": 0.3}
    reference, moved = (
        window(rng, 600, version=["v1"] * ones + ["v2"] * (10 - ones), clicked=clicked) for ones in (7, 1)
    )
    for click in [*reference.clicked, *moved.clicked]:
        click.document += click.version == "v2"
    for detector in (mean_of("new_documents"), TopicClicks(topics=2)):
        found = detector.measure(moved, reference, rng)
        assert found is not None
        assert not found.exceeded, detector.name


def test_few_queries_of_each_of_two_versions_are_enough_together() -> None:
    rng = np.random.default_rng(37)
    reference = window(rng, 600, version=EVEN, clicked=0.8)
    few = window(rng, 60, version=EVEN, clicked=0.1)
    assert max(few.clicks[version].count for version in EVEN) < 50
    found = mean_of("click_mrr").measure(few, reference, rng)
    assert found is not None
    assert found.exceeded


def test_of_very_many_versions_the_latest_are_told_apart() -> None:
    sums = Strata()
    for number in range(1000):
        sums.of("live").add(1.0)
        sums.of(f"v{number}").add(0.5)
    assert len(list(sums)) == MAX_VERSIONS
    assert sums["live"].count == 1000
    assert sums["v999"].count == 1
    assert sums["v1"].count == 0


def test_a_new_versions_answers_are_soon_in_a_reference_of_many_windows() -> None:
    rng = np.random.default_rng(38)
    reference = Reference(limit=200)
    for _ in range(100):
        reference.add(window(rng, 100), rng)
    for _ in range(2):
        reference.add(window(rng, 100, version="v2"), rng)
    assert sum(query.version == "v2" for query in reference.sample.asked) >= 50
    assert sum(click.version == "v2" for click in reference.sample.clicked) >= 25


def test_a_version_that_answered_hardly_anything_for_long_is_soon_in_the_reference_too() -> None:
    rng = np.random.default_rng(44)
    reference = Reference(limit=200)
    for _ in range(100):
        reference.add(window(rng, 100), rng)
    for _ in range(15):
        reference.add(window(rng, 100, version=["v1"] * 49 + ["v2"]), rng)
    for _ in range(2):
        reference.add(window(rng, 100, version="v2"), rng)
    assert sum(query.version == "v2" for query in reference.sample.asked) >= 50


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


def test_queries_without_sketches_are_measured_by_their_words() -> None:
    rng = np.random.default_rng(13)
    watch = DriftWatch()
    bare = [window(rng, 100), window(rng, 100), window(rng, 100, topic=1)]
    for sample in bare:
        for asked in sample.asked:
            asked.sketch = b""
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
            sample.query("q", "word", bytes([number + 1]), "v1")
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
