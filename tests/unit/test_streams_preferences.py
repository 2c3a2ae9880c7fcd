"""What becomes of explicit preferences on their way to examples."""

from __future__ import annotations

from streams.examples import MAX_NEGATIVES
from tests.unit.streams_facts import click, preference, query
from tests.unit.test_streams_join import log


def test_a_preference_makes_an_example_against_the_alternative_that_weighs_its_strength() -> None:
    feed = log()
    feed.put(query())
    (example,) = feed.put(preference("b", "d", strength=0.6))
    assert (example.doc_id, example.label, example.weight, example.trust) == ("b", "positive", 0.6, 0.6)
    assert example.negatives == ["a", "d"], "what was passed over, and what was worse"
    (stronger,) = feed.put(preference("b", "d", strength=0.9, when=5.0))
    assert (stronger.weight, stronger.revision, stronger.negatives) == (0.9, 2, ["a", "d"])
    (clicked,) = feed.put(click("b"))
    assert (clicked.weight, clicked.clicks) == (0.2, 1), "what was clicked is believed whole, and is biased"
    assert [one.worse for one in (example, stronger, clicked)] == [{"d": 0.6}, {"d": 0.9}, {"d": 0.9}]


def test_each_alternative_weighs_its_own_preference_and_what_was_passed_over_none() -> None:
    feed = log()
    feed.put(query())
    feed.put(click("c"))
    feed.put(preference("c", "d", strength=0.2))
    (example,) = feed.put(preference("c", "a", strength=0.7, when=5.0))
    assert (example.trust, example.negatives) == (1.0, ["b", "a", "d"])
    assert example.worse == {"a": 0.7, "d": 0.2}


def test_of_very_many_alternatives_those_that_are_worse_are_still_among_the_negatives() -> None:
    feed = log()
    shown = [f"d{number:02}" for number in range(MAX_NEGATIVES + 10)]
    feed.put(query(docs=shown))
    for number, doc_id in enumerate(shown[1:]):
        *_, example = feed.put(preference("d00", doc_id, when=4.0 + number / 100))
    assert len(example.negatives) == MAX_NEGATIVES
    assert list(example.worse) == example.negatives


def test_a_preference_over_what_was_not_shown_is_impossible() -> None:
    feed = log()
    feed.put(query(docs=("a", "b")))
    assert feed.put(preference("a", "z")) == []
    ((_, reason),) = feed.impossible
    assert "'z'" in reason
