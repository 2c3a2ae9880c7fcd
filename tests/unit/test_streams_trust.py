"""How far clicks are believed, and what they weigh."""

from __future__ import annotations

from clickloop.events import ExampleFormed
from streams.dead_letters import DeadLetterLimit
from streams.examples import Feedback, NoPositionBias, PositionBias
from streams.trust import MAX_KEYS, Trust
from tests.unit.streams_facts import NOON, click, partition, query, rating


def trust() -> Trust:
    return Trust(min_click_seconds=0.2, clicks_per_minute=10)


def test_a_person_who_clicks_now_and_then_is_believed() -> None:
    rules = trust()
    assert [rules.click("ann", at=t, served_at=t - 2) for t in range(0, 600, 10)] == [1.0] * 60


def test_clicks_faster_than_a_person_lose_weight_and_repeated_they_lose_it_all() -> None:
    rules = trust()
    assert [rules.click("bot", at=t + 0.05, served_at=t) for t in range(4)] == [0.5, 0.5, 0.0, 0.0]
    assert rules.counts["too_fast"] == 4
    assert rules.click("bot", at=100.0, served_at=90.0) == 1.0, "a minute later it may be a person again"


def test_a_clock_that_is_minutes_behind_is_no_machine() -> None:
    assert trust().click("ann", at=0.0, served_at=180.0) == 1.0


def test_a_key_over_its_rate_counts_no_more_within_the_minute() -> None:
    rules = trust()
    weights = [rules.click("flood", at=t, served_at=t - 5) for t in range(20)]
    assert weights == [1.0] * 10 + [0.0] * 10
    assert rules.click("other", at=20, served_at=15) == 1.0
    assert rules.click("flood", at=200, served_at=190) == 1.0
    assert rules.rating("flood", at=201) == 1.0


def test_a_flood_of_ratings_counts_against_the_rate_too() -> None:
    rules = trust()
    assert [rules.rating("flood", at=t) for t in range(12)] == [1.0] * 10 + [0.0] * 2


def test_the_memory_of_keys_is_bounded() -> None:
    rules = trust()
    for n in range(MAX_KEYS + 100):
        rules.click(f"key-{n}", at=float(n), served_at=n - 5.0)
    assert len(rules._habits) == MAX_KEYS


def test_an_impression_whose_results_were_all_clicked_at_once_is_not_believed() -> None:
    rules, bot, person = trust(), Feedback(), Feedback()
    for n in range(10):
        bot.click(f"d{n}", at=NOON + n * 0.01, dwell=None, trust=1.0)
        person.click(f"d{n}", at=NOON + n * 5, dwell=None, trust=1.0)
    assert not rules.believed(bot, 10)
    assert rules.believed(person, 10)


def test_what_a_bot_clicks_weighs_nothing_in_the_end_and_is_no_new_example_for_training() -> None:
    part = partition()
    now = {"log_time": NOON, "now": NOON}
    part.query(query(docs="abcdefghij", key="bot"), offset=0, **now)
    last: dict[str, ExampleFormed] = {}
    for offset, doc in enumerate("abcdefghij"):
        effects = part.feedback(click(doc, when=0.01 * offset), offset=offset, **now)
        last |= {e.doc_id: e for e in effects.examples}
    assert sorted(last) == list("abcdefghij")
    assert [e.weight for e in last.values()] == [0.0] * 10, "also those that came before it showed"
    done = part.report(NOON + 1)
    assert done is not None
    assert done.event.examples <= 2
    assert done.event.clicks <= 2


def test_a_click_further_down_weighs_more_up_to_the_clip() -> None:
    bias = PositionBias(clip=4)
    assert [bias.weight(p) for p in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert NoPositionBias().weight(7) == 1.0


def test_the_position_correction_can_be_switched_off() -> None:
    weights = []
    for switch in ("inverse_rank", "off"):
        part = partition(position_bias=switch)
        part.query(query(), offset=0, log_time=NOON, now=NOON)
        effects = part.feedback(click("a"), offset=0, log_time=NOON, now=NOON)
        weights.append(effects.examples[0].weight)
    assert weights == [0.1, 1.0]


def test_a_rating_of_three_says_nothing_by_itself() -> None:
    part = partition()
    part.query(query(), offset=0, log_time=NOON, now=NOON)
    (example,) = part.feedback(rating("a", 3), offset=0, log_time=NOON, now=NOON).examples
    assert example.weight == 0.0


def test_more_dead_letters_a_minute_than_allowed_are_noticed() -> None:
    limit = DeadLetterLimit(100)
    assert not any(limit.exceeded_by_one_more(t / 10) for t in range(100))
    assert limit.exceeded_by_one_more(10.0)
    assert not limit.exceeded_by_one_more(500.0)
