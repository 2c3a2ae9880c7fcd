"""Traffic that grows and falls, put through a partition's own rules, with clicks that take their time to come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np

from benchmarks._worlds import DEPTH, Query, World
from clickloop.events import QueryServed, Result, ResultClicked
from streams.partition import INPUTS, Partition
from streams.settings import StreamsSettings

START = 1_700_000_000.0
REPORT_SECONDS = 2.0
CLICK_MEDIAN_SECONDS = 8.0
"""From answer to click; log-normal with sigma 1."""
USERS = 5000

Phase = tuple[float, float]
"""Queries per second, and for how many seconds."""


def measured(world: World, phases: Sequence[Phase], *, seed: int) -> Iterator[frozenset[str]]:
    """Of each window that a partition measures in an unmoving world, the detectors that exceeded.

    The first window is what the others are compared with, and is not among them.
    """
    rng = np.random.default_rng([seed, 12])
    partition = Partition(0, StreamsSettings.load(), handled={}, forgotten=set(), now=START)
    offsets = dict.fromkeys(INPUTS, 0)
    now = START
    for at, event in _records(world, phases, rng):
        while at > now + REPORT_SECONDS:
            now += REPORT_SECONDS
            for suffix in INPUTS:
                partition.applied(suffix, offsets[suffix], offsets[suffix], log_time=now)
            partition.close(set(INPUTS), now)
            report = partition.report(now)
            if report is not None and report.event.measurements:
                yield frozenset(m.detector for m in report.event.measurements if m.exceeded)
        suffix = INPUTS[isinstance(event, ResultClicked)]
        if isinstance(event, ResultClicked):
            partition.feedback(event, offset=offsets[suffix], log_time=at, now=now)
        else:
            partition.query(event, offset=offsets[suffix], log_time=at, now=now)
        offsets[suffix] += 1


def _records(
    world: World, phases: Sequence[Phase], rng: np.random.Generator
) -> list[tuple[float, QueryServed | ResultClicked]]:
    """In the order in which the broker appends them."""
    records: list[tuple[float, QueryServed | ResultClicked]] = []
    began = START
    for rate, seconds in phases:
        times = began + np.sort(rng.random(rng.poisson(rate * seconds))) * seconds
        queries = world.draw(rng, len(times), "none", 0.0)
        looked, liked = rng.random(len(times)), rng.random(len(times))
        after = CLICK_MEDIAN_SECONDS * np.exp(rng.normal(size=len(times)))
        for place, (query, at) in enumerate(zip(queries, times.tolist(), strict=True)):
            query_id = f"{began:.0f}-{place}"
            user = f"u{int(rng.integers(USERS))}"
            records.append((at, _served(query, query_id, user, at)))
            if query.rank and looked[place] < 1.0 / query.rank and liked[place] < 0.8:
                clicked = at + float(after[place])
                click = ResultClicked(
                    event_id=f"click-{query_id}",
                    index="default",
                    query_id=query_id,
                    doc_id=query.document,
                    clicked_at=datetime.fromtimestamp(clicked, UTC),
                    split_key=user,
                )
                records.append((clicked, click))
        began += seconds
    return sorted(records, key=lambda record: record[0])


def _served(query: Query, query_id: str, user: str, at: float) -> QueryServed:
    shown = [f"{query.document}/{place}" for place in range(1, DEPTH + 1)]
    if query.rank:
        shown[query.rank - 1] = query.document
    return QueryServed(
        event_id=f"served-{query_id}",
        index="default",
        query_id=query_id,
        query=query.text,
        served_at=datetime.fromtimestamp(at, UTC),
        results=[Result(doc_id=doc_id, position=place, score=0.0) for place, doc_id in enumerate(shown, start=1)],
        split_key=user,
        version="v1",
        sketch=query.sketch,
    )
