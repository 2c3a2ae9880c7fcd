"""The buffer's statistics merge exactly, however the log is cut and in whatever order its parts are told."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from clickloop.events import ExampleFormed
from streams.buffer import Buffer, Reservoir, SketchSum
from tests.unit.streams_facts import NOON, at, partition, query, range_


def example(number: int, revision: int = 1, *, label: str = "positive", weight: float = 0.5) -> ExampleFormed:
    return ExampleFormed(
        event_id=f"x{number}/{revision}",
        index="default",
        example_id=f"x{number}",
        revision=revision,
        query_id=f"q{number}",
        query="how to sort",
        doc_id="d",
        label=label,  # type: ignore[arg-type]
        weight=weight,
        served_at=at(float(number)),
        formed_at=at(float(number) + 1),
        clicks=revision,
        arm="live",
    )


_examples = st.lists(
    st.builds(
        example,
        st.integers(0, 30),
        st.integers(1, 4),
        label=st.sampled_from(["positive", "negative"]),
        weight=st.floats(0, 1),
    ),
    max_size=60,
)


def facts(buffer: Buffer) -> tuple[object, ...]:
    kept = list(buffer.reservoir.kept.items())
    sketches = (buffer.sketches.count, buffer.sketches.total)
    counts = (buffer.reservoir.distinct, buffer.reservoir.by_slice())
    return buffer.ranges, buffer.messages, buffer.oldest, buffer.newest, kept, sketches, counts


@settings(max_examples=60, deadline=None)
@given(
    examples=_examples,
    sketches=st.lists(st.binary(max_size=3), max_size=20),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_any_cut_and_any_order_merge_to_the_same(
    examples: list[ExampleFormed], sketches: list[bytes], cuts: list[int], order: object
) -> None:
    log = [(one, range_(0, offset, offset + 1)) for offset, one in enumerate(examples)]
    whole = Buffer(reservoir=Reservoir(limit=8))
    for one, place in log:
        whole.add(one, place)
    for sketch in sketches:
        whole.sketches.add(sketch)

    bounds = [0, *sorted(min(cut, len(log)) for cut in cuts), len(log)]
    parts = []
    for number, (first, last) in enumerate(pairwise(bounds)):
        part = Buffer(reservoir=Reservoir(limit=8))
        inside = log[first:last]
        order.shuffle(inside)  # type: ignore[attr-defined]
        for one, place in inside:
            part.add(one, place)
        for sketch in sketches[number :: len(bounds) - 1]:
            part.sketches.add(sketch)
        parts.append(part)
    order.shuffle(parts)  # type: ignore[attr-defined]
    merged = Buffer(reservoir=Reservoir(limit=8))
    for part in parts:
        merged.merge(part)
    assert facts(merged) == facts(whole)


def test_an_example_is_counted_once_in_its_highest_revision() -> None:
    buffer = Buffer()
    for revision, label in ((1, "positive"), (3, "negative"), (2, "positive")):
        buffer.add(example(7, revision, label=label), range_(0, revision, revision + 1))
    assert buffer.messages == 3
    assert buffer.reservoir.distinct == 1
    assert buffer.reservoir.by_slice()["label", "negative"] == 1
    assert ("label", "positive") not in buffer.reservoir.by_slice()


def test_a_full_reservoir_is_bounded_uniform_and_tells_about_how_many_there_are() -> None:
    reservoir = Reservoir(limit=500)
    for number in range(20_000):
        reservoir.add(example(number, label="positive" if number % 4 else "negative"))
        if number % 3 == 0:
            reservoir.add(example(number, 2, label="positive" if number % 4 else "negative"))
    assert len(reservoir.kept) == 500
    assert reservoir.distinct == pytest.approx(20_000, rel=0.15)
    assert reservoir.by_slice()["label", "negative"] == pytest.approx(5_000, rel=0.25)
    assert np.mean([int(name[1:]) for name in reservoir.kept]) == pytest.approx(10_000, rel=0.1)


def test_sketches_of_the_usual_length_are_summed_exactly() -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(-127, 128, size=(3000, 64), dtype=np.int8)
    sums = SketchSum()
    for row in rows:
        sums.add(row.tobytes())
    for other in (b"", b"\x01\x02", bytes(5000)):
        sums.add(other)
    assert sums.count == 3000
    assert sums.total == rows.sum(axis=0, dtype=int).tolist()
    again = SketchSum(sums.count, sums.total)
    again.merge(sums)
    assert (again.count, again.total) == (6000, [2 * value for value in sums.total])


def test_a_report_carries_its_windows_sketch_sum() -> None:
    rule = partition()
    for number, sketch in enumerate([b"\x01\xff", b"\x02\x80", b""]):
        rule.query(query(f"q{number}", sketch=sketch), offset=number, log_time=NOON, now=NOON)
    report = rule.report(NOON + 1)
    assert report is not None
    assert (report.event.queries, report.event.sketches) == (3, 2)
    assert report.event.sketch_sum == [3, -129]
