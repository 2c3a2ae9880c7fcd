"""A small run of the drift benchmark keeps what the whole one promises, and its own figures are right."""

from __future__ import annotations

import pytest

from benchmarks._worlds import simulated
from benchmarks.drift import COMBINATION, Group, Stream, clustered_rate


def test_a_fifth_of_the_traffic_on_unseen_topics_is_reported_within_three_windows() -> None:
    group = Group()
    group.run(lambda seed: simulated(100 + seed), "unseen_topics", 5, before=4, after=3)
    found = group.figures(COMBINATION)
    assert found["missed_rate"] == 0.0
    assert found["median_delay_windows"] <= 3


def test_an_unmoving_world_raises_hardly_an_alarm() -> None:
    group = Group()
    group.run(lambda seed: simulated(200 + seed), "none", 6, before=9, after=0)
    found = group.figures(COMBINATION)
    assert found["windows"] == 48
    assert found["false_alarm_rate"] <= 1 / 48


def test_alarms_before_the_shift_are_false_and_the_delay_counts_from_one() -> None:
    quiet, loud = frozenset[str](), frozenset({"click_mrr"})
    stream = Stream([quiet, loud, quiet, quiet, loud], shift_at=3)
    assert stream.false_alarms(COMBINATION) == (1, 2)
    assert stream.false_alarms("new_terms") == (0, 2)
    assert stream.delay("click_mrr") == 2
    assert stream.delay("new_terms") is None


def test_the_interval_is_wilsons_and_wider_where_alarms_come_in_clusters() -> None:
    spread = [(int(number < 20), 20) for number in range(100)]
    clustered = [(20 * (number < 1), 20) for number in range(100)]
    rate, low, high = clustered_rate(spread)
    assert (rate, low, high) == pytest.approx((0.01, 0.0065, 0.0154), abs=0.0005)
    _, low_clustered, high_clustered = clustered_rate(clustered)
    assert high_clustered - low_clustered > 2 * (high - low)
    assert clustered_rate([(0, 300)])[2] == pytest.approx(0.0126, abs=0.0005)
