"""The promise about click farms, from events through the rules to the next model: 30 % of all clicks in vain."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import pytest

from benchmarks._clicking import BETWEEN, Event, Farm, People, World, make_world, power_law
from benchmarks.trust import DOCUMENT_SHARE, FARM_SHARE, RULES_OFF, examples_of, model_of, rise, seconds
from clickloop.events import ResultClicked
from trainer.model import Adapter

IMPRESSIONS = 2000
TARGET = 123


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(documents=300, topics=15)


@pytest.fixture(scope="module")
def people(world: World) -> list[Event]:
    return list(People(world, IMPRESSIONS, power_law(1.0), users=800).events())


@pytest.fixture(scope="module")
def clean(world: World, people: list[Event]) -> Adapter:
    return model_of(world, examples_of(people), max_document_share=DOCUMENT_SHARE)


def clicks_of_a_farm(people: list[Event]) -> int:
    return round(sum(isinstance(e, ResultClicked) for e in people) * FARM_SHARE / (1.0 - FARM_SHARE))


def attacked(world: World, people: list[Event], *, keys: int, disguised: bool = False) -> Iterator[Event]:
    farm = Farm(world, TARGET, clicks_of_a_farm(people), keys, IMPRESSIONS * BETWEEN, disguised)
    return heapq.merge(people, sorted(farm.events(), key=seconds), key=seconds)


@pytest.mark.parametrize(("keys", "disguised"), [(5, False), (5000, False), (400, True)])
def test_a_farm_moves_the_document_that_it_pushes_by_less_than_one_position(
    world: World, people: list[Event], clean: Adapter, keys: int, disguised: bool
) -> None:
    examples = examples_of(attacked(world, people, keys=keys, disguised=disguised))
    model = model_of(world, examples, max_document_share=DOCUMENT_SHARE)
    assert abs(rise(world, TARGET, clean, model)) < 1.0


def test_without_the_rules_the_same_farm_has_its_way(world: World, people: list[Event], clean: Adapter) -> None:
    examples = examples_of(attacked(world, people, keys=5000), **RULES_OFF)
    assert rise(world, TARGET, clean, model_of(world, examples)) > 3.0
