"""Drift is told version by version: one that comes, goes or shares the traffic is no shift, and hides none."""

from __future__ import annotations

import numpy as np
import pytest

from streams.detectors import TopicClicks
from streams.drift import UNTOLD_WINDOWS, DriftWatch
from streams.windows import MAX_VERSIONS, Reference, Sample, Strata, Sums
from tests.unit.drift_facts import alarms, mean_of, window


def test_each_versions_outcomes_are_counted_apart() -> None:
    sample = Sample()
    sample.close("v1", None)
    sample.close("v2", 2)
    assert sample.abandoned["v1"] == Sums(count=1, total=1.0, squares=1.0)
    assert sample.abandoned["v2"] == Sums(count=1)
    assert sample.outcomes == [("v1", 0.0), ("v2", 0.5)]


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
    moved.settled += window(rng, 200, topic=1, version=EVEN, clicked=0.1).settled
    reference.settled += window(rng, 400, topic=1, version=EVEN, clicked=0.5).settled
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
    reference.settled += few.settled
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


@pytest.mark.parametrize("hardly_any", [0, 15])
def test_a_new_versions_answers_are_soon_in_a_reference_of_many_windows(hardly_any: int) -> None:
    rng = np.random.default_rng(38)
    reference = Reference(limit=200)
    for share in ["v1"] * 100, [["v1"] * 49 + ["v2"]] * hardly_any, ["v2"] * 2:
        for version in share:
            reference.add(window(rng, 100, version=version), rng)
    assert sum(query.version == "v2" for query in reference.sample.asked) >= 50
    assert sum(query.version == "v2" for query in reference.sample.settled) >= 50
    assert sum(click.version == "v2" for click in reference.sample.clicked) >= 25


def test_where_no_one_tells_which_version_answered_what_is_new_is_known_after_some_windows() -> None:
    rng = np.random.default_rng(40)
    watch = DriftWatch()
    alarms(watch, *[window(rng, 200, version="") for _ in range(3)])
    for moved in alarms(watch, *[window(rng, 200, topic=1, version="") for _ in range(UNTOLD_WINDOWS)]):
        assert "query_distance" in moved
    after = [window(rng, 200, topic=1, version="") for _ in range(3)]
    assert alarms(watch, *after) == [{"unmeasured"}, set(), set()]
