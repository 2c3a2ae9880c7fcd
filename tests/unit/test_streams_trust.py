"""How far clicks are believed, and what they weigh."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from clickloop.codec import short_key
from clickloop.events import ExampleFormed
from streams.dead_letters import DeadLetterLimit
from streams.examples import Feedback, NoPositionBias, PositionBias
from streams.trust import MAX_KEYS, PAST_HOURS, Limits, Trust
from tests.unit.streams_facts import NOON, click, partition, preference, query, rating


def trust() -> Trust:
    """Speed and rate alone: the shares have tests of their own."""
    return Trust(Limits(clicks_per_minute=10, clicks_per_document=0, max_key_share=0.0, max_document_share=0.0))


def weigh(rules: Trust, key: str, *, at: float, served_at: float, doc: str = "d", text: str = "t") -> float:
    return rules.click(key, doc, text, at=at, served_at=served_at).weight


def weigh_rating(rules: Trust, key: str, *, at: float) -> float:
    return rules.opinion(key, "d", "t", at=at, served_at=at - 5.0).weight


def test_a_person_who_clicks_now_and_then_is_believed() -> None:
    rules = trust()
    assert [weigh(rules, "ann", at=t, served_at=t - 2) for t in range(0, 600, 10)] == [1.0] * 60


def test_clicks_faster_than_a_person_lose_weight_and_repeated_they_lose_it_all() -> None:
    rules = trust()
    assert [weigh(rules, "bot", at=t + 0.05, served_at=t) for t in range(4)] == [0.5, 0.5, 0.0, 0.0]
    assert rules.counts["too_fast"] == 4
    assert weigh(rules, "bot", at=100.0, served_at=90.0) == 1.0, "a minute later it may be a person again"


def test_a_clock_that_is_minutes_behind_is_no_machine() -> None:
    assert weigh(trust(), "ann", at=0.0, served_at=180.0) == 1.0


def test_a_key_over_its_rate_counts_no_more_within_the_minute() -> None:
    rules = trust()
    weights = [weigh(rules, "flood", at=t, served_at=t - 5) for t in range(20)]
    assert weights == [1.0] * 10 + [0.0] * 10
    assert weigh(rules, "other", at=20, served_at=15) == 1.0
    assert weigh(rules, "flood", at=200, served_at=190) == 1.0
    assert weigh_rating(rules, "flood", at=201) == 1.0


def test_a_flood_of_ratings_counts_against_the_rate_too() -> None:
    rules = trust()
    assert [weigh_rating(rules, "flood", at=t) for t in range(12)] == [1.0] * 10 + [0.0] * 2


def test_history_takes_no_room_from_today_nor_today_from_history() -> None:
    day, rules = 86_400.0, Trust(Limits(clicks_per_document=0))
    today = 400 * day + 1800.0

    def believed(key: str, whens: list[float]) -> float:
        each = ((at, f"d{n}", f"text {n}") for n, at in enumerate(whens))
        return sum(weigh(rules, key, at=at, served_at=at - 5.0, doc=doc, text=text) for at, doc, text in each)

    assert believed("ann", [today + n for n in range(5)]) == 5.0
    assert believed("bob", [today - 60 * day + n * day / 2 for n in range(100)]) == 100.0
    assert believed("eve", [today - 9 * day + n * 30.0 for n in range(40)]) == 20.0, "of one hour, a share"
    assert believed("ann", [today + 60.0 + n for n in range(20)]) == 15.0


def test_no_one_gets_room_by_dating_clicks_back() -> None:
    rules = Trust(Limits())
    now = 400 * 86_400.0
    believed = 0.0
    for n in range(1000):
        dated = now - 7200.0 * (1 + n % 2) - 61.0 * n
        believed += weigh(rules, "eve", at=dated, served_at=now + n, doc="d", text=f"text {n}")
    assert believed <= Limits().clicks_per_document


def test_no_one_gets_room_in_history_by_dating_clicks_otherwise() -> None:
    rules = Trust(Limits())
    day = 86_400.0
    weigh(rules, "ann", at=10 * day, served_at=10 * day - 5.0)
    whens = [day + 5.0 + 7200.0 * n for n in range(20)]
    believed = [weigh(rules, "eve", at=at, served_at=day, doc="d", text=f"text {at}") for at in whens]
    assert sum(believed) == Limits().clicks_per_document


def test_dating_a_click_back_hides_nothing_of_what_other_partitions_have_counted() -> None:
    rules = trust()
    now = 10 * 86_400.0
    assert weigh(rules, "flood", at=now, served_at=now - 5.0) == 1.0
    rates = rules.tallies[0]
    rates.told(rates.window, {"flood": 11.0})
    assert weigh(rules, "flood", at=now - 7300.0, served_at=now - 3.0) == 0.0


def test_history_that_is_told_backwards_takes_no_room_from_today() -> None:
    rules, today = Trust(Limits(clicks_per_document=0)), 400 * 86_400.0
    whens = [today - 3000.0 * n for n in range(40)]
    believed = [weigh(rules, "bob", at=at, served_at=at - 5.0, doc=f"d{at}", text=f"text {at}") for at in whens]
    assert believed == [1.0] * 40


@pytest.mark.parametrize("apart", [7200.0, 86_400.0], ids=["hours", "days"])
def test_histories_that_come_mixed_have_their_shares_each(apart: float) -> None:
    rules = Trust(Limits())
    weigh(rules, "ann", at=20 * 86_400.0, served_at=20 * 86_400.0 - 5.0)
    whens = [apart * (1 + n % PAST_HOURS) + 1800.0 + n for n in range(200)]
    believed = [weigh(rules, "eve", at=at, served_at=at - 5.0, doc="d", text=f"text {at}") for at in whens]
    assert sum(believed) == PAST_HOURS * Limits().clicks_per_document


def test_of_past_hours_the_one_that_was_left_alone_the_longest_is_forgotten() -> None:
    rules = Trust(Limits())
    weigh(rules, "ann", at=20 * 86_400.0, served_at=20 * 86_400.0 - 5.0)
    believed = 0.0
    for hour in range(1, 40):
        believed += weigh(rules, "eve", at=10.0 + hour, served_at=5.0, doc="d", text=f"text {hour}")
        weigh(rules, "bob", at=3600.0 * hour, served_at=3600.0 * hour, doc=f"d{hour}", text="t")
    assert believed == Limits().clicks_per_document
    assert len(rules._past) == PAST_HOURS


def test_a_clock_in_the_future_takes_nothing_from_those_after_it() -> None:
    state, weights = partition(position_bias="off"), []
    far = 365 * 86_400.0
    for number, (key, at) in enumerate([("far", far), *(("ann", 7200.0 * n) for n in range(1, 30))]):
        appended = NOON + (0.0 if key == "far" else at)
        asked = query(f"q{number}", served=at, key=key, text=f"text {number}", docs=(f"a{number}", f"b{number}"))
        state.query(asked, offset=number, log_time=appended, now=appended)
        clicked = click(f"b{number}", f"q{number}", when=at + 5.0)
        effects = state.feedback(clicked, offset=number, log_time=appended + 5.0, now=appended + 5.0)
        weights += [example.weight for example in effects.examples]
    assert weights == [1.0] * 30


def test_the_memory_of_keys_is_bounded() -> None:
    rules = trust()
    for n in range(MAX_KEYS + 100):
        weigh(rules, f"key-{n}", at=float(n), served_at=n - 5.0)
    assert len(rules._habits) == MAX_KEYS


def test_who_is_forgotten_has_no_habits_any_more() -> None:
    state = partition()
    state.query(query("q1", key="ann"), offset=0, log_time=NOON, now=NOON)
    state.feedback(click("a"), offset=0, log_time=NOON + 2, now=NOON + 2)
    assert list(state.trust._habits) == ["ann"]
    state.forget("ann")
    assert not state.trust._habits
    assert not state.join.open_impressions


def test_a_split_key_takes_little_room_however_long_it_is_and_can_be_forgotten() -> None:
    """Where an app passes a cookie on, anyone chooses it."""
    forgotten: set[str] = set()
    state, long = partition(forgotten=forgotten), "x" * 500_000
    state.query(query("q1", key=long), offset=0, log_time=NOON, now=NOON)
    said = replace(click("a"), split_key=long)
    [formed] = state.feedback(said, offset=0, log_time=NOON + 2, now=NOON + 2).examples
    assert formed.split_key == short_key(long)
    assert list(state.trust._habits) == [short_key(long)]
    assert len(short_key(long)) == 32
    state.query(query("q0", key=""), offset=9, log_time=NOON, now=NOON)
    state.feedback(replace(click("a", "q0"), split_key=long), offset=9, log_time=NOON + 2, now=NOON + 2)
    assert list(state.trust._habits) == [short_key(long)], "nor by a click on what no one is known to have asked"
    forgotten.add(short_key(long))
    state.query(query("q2", key=long), offset=1, log_time=NOON, now=NOON)
    assert state.join.open_impressions == 2


def farm(rules: Trust, doc: str, *, clicks: int, keys: int, texts: int = 1000) -> float:
    """What a farm's clicks on one document weigh together, a second apart."""
    return sum(
        weigh(rules, f"farm-{n % keys}", at=float(n), served_at=n - 3.0, doc=doc, text=f"farm {n % texts}")
        for n in range(clicks)
    )


def crowd(rules: Trust, *, clicks: int) -> float:
    """What people's clicks weigh together: many people, many documents, many queries."""
    return sum(
        weigh(rules, f"user-{n % 500}", at=n * 0.5, served_at=n * 0.5 - 3.0, doc=f"d{n % 300}", text=f"text {n}")
        for n in range(clicks)
    )


def test_people_lose_nothing_to_the_shares() -> None:
    assert crowd(Trust(Limits()), clicks=2000) == 2000


def test_one_key_counts_a_few_times_for_one_document_and_has_a_share_of_all() -> None:
    rules = Trust(Limits(clicks_per_minute=0))
    assert farm(rules, "pushed", clicks=100, keys=1) == 3
    rules = Trust(Limits(clicks_per_minute=0))
    crowd(rules, clicks=1000)
    many = [weigh(rules, "busy", at=500.0 + n, served_at=490.0 + n, doc=f"d{n}", text=f"t{n}") for n in range(100)]
    assert sum(many) == 20, "1 % of some 1,100 clicks is less than the 20 that are free"


def test_one_document_has_a_share_of_all_however_many_keys_push_it() -> None:
    rules = Trust(Limits())
    crowd(rules, clicks=2000)
    pushed = farm(rules, "pushed", clicks=1000, keys=1000)
    assert 40 <= pushed <= 0.02 * 3000
    assert rules.counts["document_share"] == 1000 - pushed


@pytest.mark.parametrize("keys", [1, 3000])
def test_no_one_makes_his_share_larger_by_trying_more(keys: int) -> None:
    rules = Trust(Limits(clicks_per_minute=0, clicks_per_document=0, max_key_share=0.0))
    crowd(rules, clicks=1000)
    step = 2000.0 / 20_000
    pushed = sum(
        weigh(
            rules, f"farm-{n % keys}", at=500 + n * step, served_at=497 + n * step, doc="pushed", text=f"{n % 997}"
        )
        for n in range(20_000)
    )
    assert pushed == 20, "2 % of what others clicked"


def test_an_index_of_few_documents_all_of_which_are_popular_still_learns() -> None:
    rules = Trust(Limits())
    believed = sum(
        weigh(rules, f"u{n % 900}", at=n * 0.5, served_at=n * 0.5 - 3.0, doc=f"d{n % 10}", text=f"text {n}")
        for n in range(5000)
    )
    assert 0.15 * 5000 < believed < 0.2 * 5000, "2 % each of what the others get and the own believed ones"


def test_one_key_says_as_little_against_a_document_as_for_it() -> None:
    state, believed = partition(), {}
    for number in range(30):
        name, when = f"q{number}", number * 30.0
        served = query(name, ("victim", f"o{number}"), served=when, key="mallory", text=f"t{number}")
        state.query(served, offset=number, log_time=NOON + when, now=NOON + when)
        said = preference(f"o{number}", "victim", name, when=when + 3)
        effects = state.feedback(said, offset=number, log_time=NOON + when + 3, now=NOON + when + 3)
        believed |= {one.example_id: one for one in effects.examples if one.weight > 0.0}
    assert len(believed) == 3
    assert state.trust.counts["repeat"] == 27


def test_many_keys_together_say_as_little_against_a_document_as_for_it() -> None:
    rules = Trust(Limits())
    said = [
        rules.opinion(f"u{n}", f"d{n}", f"t{n}", at=float(n), served_at=n - 3.0, against="victim")
        for n in range(100)
    ]
    assert sum(one.weight for one in said) == 20


def test_one_query_text_has_a_share_of_all_in_whatever_spelling() -> None:
    rules = Trust(Limits())
    crowd(rules, clicks=2000)
    spelt = ("Cheap shoes", "cheap  SHOES!", "cheap shoes")
    pushed = sum(
        weigh(rules, f"k{n}", at=float(n), served_at=n - 3.0, doc=f"x{n}", text=spelt[n % 3]) for n in range(500)
    )
    assert pushed <= 0.02 * 2500


def test_shares_start_afresh_every_hour() -> None:
    rules = Trust(Limits(clicks_per_minute=0))
    assert [weigh(rules, "ann", at=float(n), served_at=n - 5.0) for n in range(5)] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert weigh(rules, "ann", at=3601.0, served_at=3599.0) == 1.0


def test_what_other_partitions_have_counted_is_counted() -> None:
    rules = trust()
    assert weigh(rules, "flood", at=30.0, served_at=25.0) == 1.0
    rates = rules.tallies[0]
    rates.told(rates.window, {"flood": 10.0})
    assert weigh(rules, "flood", at=31.0, served_at=26.0) == 0.0
    assert weigh(rules, "flood", at=91.0, served_at=86.0) == 1.0, "they counted it a minute ago"


def test_more_about_a_result_that_is_believed_takes_up_no_more_of_a_share() -> None:
    part = partition(clicks_per_document=1)
    part.query(query(), offset=0, log_time=NOON, now=NOON)
    part.feedback(click("a"), offset=0, log_time=NOON, now=NOON)
    (again,) = part.feedback(click("a", when=90.0), offset=1, log_time=NOON, now=NOON).examples
    assert (again.clicks, again.trust, again.reason) == (2, 1.0, "")


def test_what_is_hardly_believed_is_sent_with_no_weight_and_with_the_reason() -> None:
    part = partition(clicks_per_document=1, trust_floor=0.6)
    now = {"log_time": NOON, "now": NOON}
    for n in range(2):
        part.query(query(f"q{n}"), offset=n, **now)
    first, second = (part.feedback(click("b", f"q{n}"), offset=n, **now).examples[0] for n in range(2))
    assert (first.weight, first.trust, first.reason) == (0.2, 1.0, "")
    assert (second.weight, second.trust, second.reason) == (0.0, 0.0, "repeat")
    part.query(query("q3", key="hasty"), offset=3, **now)
    (hasty,) = part.feedback(click("c", "q3", when=0.1), offset=3, **now).examples
    assert (hasty.weight, hasty.trust, hasty.reason) == (0.0, 0.0, "too_fast"), "half is below the floor"


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


def test_a_rule_that_is_switched_off_sees_no_machine() -> None:
    rules = Trust(Limits(min_click_seconds=0.0, clicks_per_document=0))
    assert [weigh(rules, "ann", at=t - 0.3, served_at=t) for t in range(0, 60, 10)] == [1.0] * 6
