"""A query's clicks are waited for before they are counted: then busy hours look like quiet ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from clickloop.events import Measurement
from streams.detectors import TopicClicks
from streams.partition import INPUTS, Partition
from streams.settings import StreamsSettings
from streams.windows import CLICK_SECONDS, DELIVERY_SECONDS, MAX_SETTLING, MAX_WINDOW, Asked, Sample, Settling
from tests.unit.drift_facts import mean_of
from tests.unit.streams_facts import NOON, click, partition, query

OVER = CLICK_SECONDS + DELIVERY_SECONDS
ASKED = Asked("v1", b"\x01", ())


def ranks(settling: Settling, watermark: float) -> list[float]:
    return [query.reciprocal_rank for query in settling.over(watermark)]


def test_a_query_is_settled_once_its_clicks_have_had_time_to_come() -> None:
    settling = Settling()
    settling.query("q1", ASKED, log_time=NOON)
    settling.query("q2", ASKED, log_time=NOON + 1)
    settling.click("q1", 4, seconds=3.0)
    assert ranks(settling, NOON + OVER - 0.1) == []
    settling.click("q1", 2, seconds=50.0)
    settling.click("q1", 3, seconds=55.0)
    assert ranks(settling, NOON + OVER) == [0.5], "the topmost one"
    settling.click("q1", 1, seconds=58.0)
    assert ranks(settling, NOON + OVER + 1) == [0.0], "no one clicked q2"
    assert ranks(settling, NOON + 9999) == []


def test_a_click_long_after_its_answer_counts_no_more_when_all_comes_at_once_than_when_it_is_waited_for() -> None:
    """An import brings it in the same second as its query."""
    settling = Settling()
    settling.query("q1", ASKED, log_time=NOON)
    settling.click("q1", 1, seconds=CLICK_SECONDS + 1)
    assert ranks(settling, NOON + OVER) == [0.0]


def test_a_partition_tells_how_long_after_its_answer_a_click_was_made() -> None:
    state = partition()
    for name, after in (("q1", 50.0), ("q2", 100.0)):
        state.query(query(name), offset=0, log_time=NOON, now=NOON)
        state.feedback(click("a", name, when=after), offset=0, log_time=NOON + 1, now=NOON + 1)
    state.close(set(INPUTS), NOON + 200)
    assert [one.reciprocal_rank for one in state._sample.settled] == [1.0, 0.0]


def test_where_an_input_is_behind_no_more_queries_wait_than_have_room() -> None:
    settling = Settling()
    for number in range(MAX_SETTLING + 10):
        settling.query(f"q{number}", ASKED, log_time=NOON)
    assert len(ranks(settling, NOON + OVER)) == MAX_SETTLING
    settling.query("later", ASKED, log_time=NOON)
    assert len(ranks(settling, NOON + OVER)) == 1


def test_of_a_window_as_many_queries_settle_as_are_sampled() -> None:
    sample = Sample()
    assert sum(sample.query("words", b"", "v1") is not None for _ in range(MAX_WINDOW + 100)) == MAX_WINDOW
    assert sample.answered["v1"].count == sample.queries == MAX_WINDOW + 100


def traffic(*phases: tuple[float, float, float]) -> Iterator[tuple[float, list[Measurement]]]:
    """What the detectors of clicks say, and when, of each window. The worker's clock moves on by two seconds.

    A phase has queries per second, seconds, and the share of queries of which the first result is clicked, some
    seconds later.
    """
    rng = np.random.default_rng(5)
    rule = Partition(
        0,
        StreamsSettings.load(drift_window_queries=100),
        handled={},
        forgotten=set(),
        now=NOON,
        detectors=(mean_of("click_mrr"), TopicClicks(topics=2), mean_of("abandonment")),
    )
    records: list[tuple[float, str, bool]] = []
    began = 0.0
    for rate, seconds, clicked in phases:
        for number in range(int(rate * seconds)):
            asked, name = began + number / rate, f"{began}-{number}"
            records.append((asked, name, False))
            if rng.random() < clicked:
                records.append((asked + 8.0 * float(np.exp(rng.normal())), name, True))
        began += seconds
    records.sort()
    now = 0.0
    for offset, (second, name, is_click) in enumerate(records):
        while second > now + 2.0:
            now += 2.0
            for suffix in INPUTS:
                rule.applied(suffix, offset, offset, log_time=NOON + now)
            rule.close(set(INPUTS), NOON + now)
            report = rule.report(NOON + now)
            if report is not None and report.event.measurements:
                yield now, report.event.measurements
        if is_click:
            happened = click(f"{name}-a", name, when=second)
            rule.feedback(happened, offset=offset, log_time=NOON + second, now=NOON + now)
        else:
            docs = [f"{name}-{letter}" for letter in "abc"]
            served = query(name, docs, served=second, key=f"u{name}", sketch=rng.bytes(8))
            rule.query(served, offset=offset, log_time=NOON + second, now=NOON + now)


def different(found: list[Measurement]) -> set[str]:
    return {m.detector for m in found if m.exceeded}


def test_clicks_do_not_fall_where_traffic_grows_many_times_over_or_falls() -> None:
    windows = [found for _, found in traffic((0.5, 1800.0, 0.6), (12.0, 150.0, 0.6), (0.5, 900.0, 0.6))]
    assert len(windows) > 15
    assert [different(found) for found in windows] == [set()] * len(windows)
    for part in windows[:5], windows[-3:]:
        assert all({"click_mrr", "topic_clicks"} <= {m.detector for m in found} for found in part)


@pytest.mark.parametrize(("rate", "until"), [(0.5, 1200.0), (8.0, 300.0)])
def test_clicks_that_do_fall_are_seen_in_quiet_hours_and_in_busy_ones(rate: float, until: float) -> None:
    windows = list(traffic((rate, until, 0.6), (rate, until, 0.3)))
    before = [different(found) for now, found in windows if now < until]
    assert before == [set()] * len(before)
    assert {"click_mrr", "topic_clicks"} <= set.union(*(different(found) for now, found in windows if now > until))
