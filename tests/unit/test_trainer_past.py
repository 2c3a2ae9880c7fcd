"""What of the past a run learns from, and what it is judged by."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clickloop.errors import TooFewError
from clickloop.events import ExampleFormed
from tests.unit.trainer_facts import documents, example, world
from trainer.dataset import Clicks, moments
from trainer.examples import ReadExamples, with_replayed
from trainer.methods.base import Parent
from trainer.model import Adapter
from trainer.past import data_of, past_of, with_parents
from trainer.sampling import at_most, chosen
from trainer.settings import TrainerSettings


def test_a_sample_is_of_all_moments_and_another_one_for_another_seed() -> None:
    clicks, _ = world(queries=300)
    past = [clicks.of_queries(range(100)), clicks.of_queries(range(100, 300))]
    one, same, other = (at_most(past, 60, seed=seed) for seed in (0, 0, 1))
    assert (one.queries, sum(len(part.queries) for part in one.later)) == (60, 60)
    assert one.held_out == len(np.unique(clicks.query))
    assert 5 < len(one.later[0].queries) < 40
    assert [part.queries for part in one.later] == [part.queries for part in same.later]
    assert [part.queries for part in one.later] != [part.queries for part in other.later]
    assert all(set(part.queries) <= set(whole.queries) for part, whole in zip(one.later, past, strict=True))
    assert all(np.isin(np.arange(len(part.queries)), part.query).all() for part in one.later), "all are clicked"
    assert [*map(id, at_most(past, 0, seed=0).later)] == [*map(id, past)], "nothing is left out"
    assert chosen(5, 3, seed=0).tolist() == sorted(chosen(5, 3, seed=0).tolist())
    assert chosen(5, 0, seed=0).tolist() == chosen(5, 9, seed=0).tolist() == [0, 1, 2, 3, 4]


def test_what_was_made_up_is_not_what_clicks_then_judge_by() -> None:
    clicks, corpus = world(queries=300)
    data: Any = SimpleNamespace(given=None, older=frozenset())
    loaded: Any = SimpleNamespace(clicks=clicks, synthetic=clicks, parent=None, corpus=corpus)
    [(known, later)] = past_of(loaded, data, TrainerSettings(), strategy="incremental", count=1)
    assert len(later.queries) > 20
    assert not set(known.queries) & set(later.queries)
    assert len(known.queries) > len(later.queries)


def asked_by(*queries: tuple[int, int]) -> list[ExampleFormed]:
    """Query ``n`` at second ``at``, for each pair of these."""
    return [example(f"Query {n}", f"d{n:04}", number=at, trust=1.0) for n, at in queries]


def past_with(
    new: list[ExampleFormed], old: list[ExampleFormed], *, documents_of: int
) -> list[tuple[Clicks, Clicks]]:
    """The moments of an incremental run over these, no query like another."""
    read = with_replayed(ReadExamples(new), old)
    data = data_of(read.examples, documents(documents_of), TrainerSettings(), replayed=read.replayed)
    clicks = data.prepared.clicks
    vectors = np.eye(len(clicks.queries), documents_of, dtype=np.float32)
    none = replace(data.prepared.synthetic, vectors=vectors[:0])
    loaded: Any = SimpleNamespace(clicks=replace(clicks, vectors=vectors), synthetic=none)
    return past_of(loaded, data, TrainerSettings(), strategy="incremental", count=3)


@pytest.mark.parametrize("fresh", [40, 3, 1])
def test_what_is_learnt_again_never_judges_however_often_the_new_examples_repeat_it(fresh: int) -> None:
    old = asked_by(*((n, n) for n in range(200)))
    again = [(n % 200, 1000 + n) for n in range(200 - fresh)]
    new = asked_by(*again, *((200 + n, 2000 + n) for n in range(fresh)))
    past = past_with(new, old, documents_of=240)
    learnt, judging = {one.query for one in old}, [set(later.queries) for _, later in past]
    assert 1 <= len(past) <= 3
    for (known, _), asked in zip(past, judging, strict=True):
        assert set(known.queries) >= learnt
        assert not asked & learnt
    assert sum(map(len, judging)) == len(set().union(*judging)) <= fresh
    assert f"Query {199 + fresh}" in judging[-1], "the newest one judges"


def test_where_no_query_is_new_the_reason_names_the_queries() -> None:
    old = asked_by(*((n, n) for n in range(20)))
    with pytest.raises(TooFewError, match=r"^none of the 20 clicked queries is new"):
        past_with(asked_by(*((n, 100 + n) for n in range(20))), old, documents_of=20)


def test_one_query_with_many_documents_is_told_as_one_query() -> None:
    new = [example("Query 0", f"d{n:04}", number=n, trust=1.0) for n in range(53)]
    with pytest.raises(TooFewError, match=r"^clicks on 1 distinct query are too few to train on some"):
        past_with(new, [], documents_of=53)


@pytest.fixture(scope="module")
def past() -> list[tuple[Clicks, Clicks]]:
    clicks, _ = world(queries=300)
    return moments(clicks, share=0.25, count=3)


def parent() -> Parent:
    encoder: Any = object()
    return Parent("adapter-1", encoder, Adapter.identity(24), encoder)


def test_a_parent_of_an_earlier_command_is_the_same_at_every_moment(past: list[tuple[Clicks, Clicks]]) -> None:
    before = parent()
    found = with_parents(past, before, None)
    assert [moment.parent for moment in found] == [before] * 3
    assert [(moment.known, moment.later) for moment in found] == past


def test_the_rung_below_is_what_it_was_when_it_had_not_seen_the_later_clicks(
    past: list[tuple[Clicks, Clicks]],
) -> None:
    now, earlier = parent(), Adapter.identity(24)
    found = with_parents(past[1:], now, {0: Adapter.identity(24), 1: earlier, 2: Adapter.identity(24)})
    assert [moment.parent.adapter for moment in found] == [earlier, now.adapter]
    assert found[0].parent == replace(now, adapter=earlier)


def test_where_that_is_not_known_the_last_moment_alone_judges(past: list[tuple[Clicks, Clicks]]) -> None:
    now = parent()
    [only] = with_parents(past, now, {})
    assert (only.known, only.later, only.parent) == (*past[-1], now)
