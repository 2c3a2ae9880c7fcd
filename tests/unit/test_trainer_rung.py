"""What a rung is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.trainer_facts import world
from trainer.dataset import Clicks, moments
from trainer.methods.base import Parent
from trainer.model import Adapter
from trainer.rung import with_parents


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
