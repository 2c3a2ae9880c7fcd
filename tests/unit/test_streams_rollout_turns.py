"""Whose turn it is: what was compared with the live version, the first first, and no one for ever."""

from __future__ import annotations

import time

import pytest
from msgspec.structs import replace

from clickloop.events import SplitChanged
from tests.unit.rollout_facts import followed, loaded, promote, rollback, rolling, rollout, step, with_live_base
from tests.unit.streams_facts import NOON, arms, node, version


def test_what_is_made_of_an_undecided_version_has_its_turn_once_that_is_live() -> None:
    rule = with_live_base()
    rule.version(version("adapter-2", verdict="inconclusive", parent="base-1", when=2))
    rule.version(version("adapter-3", parent="adapter-2", when=3))
    loaded(rule, "adapter-2", "adapter-3", when=4)
    assert rule.decide(NOON + 5) is None, "it was compared with what no user has"
    followed(rule, rule.promote(promote("adapter-2"), now=NOON + 6, heard=NOON + 2.5))
    assert arms(step(rule, 7))[1] == ("candidate", "adapter-3", 1_000)


def test_what_passed_beside_a_version_has_no_turn_before_it_and_none_after_it() -> None:
    """Both were compared with the base, and neither with the other."""
    rule = with_live_base()
    rule.version(version("full-2", parent="base-1", when=2))
    rule.version(version("adapter-3", parent="base-1", when=3))
    loaded(rule, "adapter-3", when=4)
    assert rule.on_its_way(NOON + 5) == "full-2"
    assert rule.decide(NOON + 5) is None, "full-2 is still being encoded"
    loaded(rule, "adapter-3", "full-2", when=10)
    assert arms(step(rule, 11))[1][1] == "full-2"
    assert arms(step(rule, 50))[1] == ("candidate", "full-2", 5_000)
    assert arms(step(rule, 90)) == [("live", "full-2", 10_000)]
    loaded(rule, "adapter-3", "full-2", when=91)
    assert rule.on_its_way(NOON + 92) == ""
    assert rule.decide(NOON + 92) is None


def test_a_version_made_of_the_one_that_waits_goes_with_it() -> None:
    rule = with_live_base()
    rule.version(version("adapter-2", parent="base-1", when=2))
    rule.version(version("adapter-3", parent="base-1", when=3))
    rule.version(version("query_encoder-2", parent="adapter-2", when=4))
    loaded(rule, "adapter-2", "adapter-3", "query_encoder-2", when=5)
    assert arms(step(rule, 6))[1][1] == "query_encoder-2"
    assert rule.on_its_way(NOON + 6) == "query_encoder-2"


def test_once_the_first_is_rejected_what_passed_beside_it_has_its_turn() -> None:
    rule = with_live_base()
    rule.version(version("adapter-2", parent="base-1", when=2))
    rule.version(version("adapter-3", parent="base-1", when=3))
    rule.node(node("n1", "base-1", "adapter-3", state="rejected", about="adapter-2"), at=NOON + 4)
    rule.node(node("n2", "base-1", "adapter-3"), at=NOON + 4)
    assert arms(step(rule, 6))[1][1] == "adapter-3"


@pytest.mark.parametrize("parent", ["base-0", "adapter-never-served"])
def test_what_was_not_compared_with_the_live_version_is_left_to_an_operator(parent: str) -> None:
    """As what was made of a version that an operator named is, when another one is live."""
    rule = with_live_base()
    rule.version(version("adapter-2", parent=parent, when=2))
    loaded(rule, "adapter-2", when=3)
    assert rule.on_its_way(NOON + 4) == ""
    assert rule.decide(NOON + 4) is None
    assert arms(followed(rule, rule.promote(promote("adapter-2"), now=NOON + 5))) == [
        ("live", "adapter-2", 10_000)
    ]


def test_what_beat_the_live_version_follows_it_whatever_it_was_made_of() -> None:
    """A training anew from the base model. The way back is to what it was compared with."""
    rule = with_live_base()
    rule.version(version("base-0", verdict=None))
    rule.version(version("anew-2", parent="base-0", beside="base-1", when=2))
    rule.version(version("adapter-3", parent="anew-2", when=3))
    rule.version(version("anew-4", parent="base-0", beside="adapter-never-served", when=4))
    loaded(rule, "anew-2", when=5)
    assert rule.on_its_way(NOON + 5) == "adapter-3"
    loaded(rule, "anew-2", "adapter-3", "anew-4", when=6)
    assert arms(step(rule, 7)) == [("live", "base-1", 9_000), ("candidate", "adapter-3", 1_000)]
    followed(rule, rule.promote(promote("anew-2"), now=NOON + 8, heard=NOON + 60))
    assert arms(followed(rule, rule.rollback(rollback(), now=NOON + 70, heard=NOON + 120))) == [
        ("live", "base-1", 10_000)
    ]


def test_what_beat_the_candidate_takes_over_from_it() -> None:
    rule = rolling()
    rule.version(version("anew-3", parent="base-1", beside="adapter-2", when=5))
    loaded(rule, "adapter-2", "anew-3", when=6)
    assert arms(step(rule, 7))[1] == ("candidate", "anew-3", 1_000)


def test_what_is_made_of_a_version_that_an_operator_passed_over_has_no_turn() -> None:
    """It was being trained when that one was taken away."""
    rule = rolling()
    followed(rule, rule.rollback(rollback(), now=NOON + 6, heard=NOON + 6))
    rule.version(version("query_encoder-2", parent="adapter-2", when=7))
    loaded(rule, "adapter-2", "query_encoder-2", when=8)
    assert rule.decide(NOON + 9) is None
    rule.version(version("adapter-3", parent="base-1", when=10))
    loaded(rule, "adapter-3", when=11)
    assert arms(step(rule, 12))[1][1] == "adapter-3"


def test_a_version_of_someone_elses_trainer_need_not_say_of_what_it_was_made() -> None:
    rule = with_live_base()
    rule.version(version("adapter-2", parent=None, when=2))
    loaded(rule, "adapter-2", when=3)
    rule.version(version("adapter-3", parent=None, when=3))
    assert rule.decide(NOON + 4) is None
    loaded(rule, "adapter-2", "adapter-3", when=5)
    assert arms(step(rule, 6))[1] == ("candidate", "adapter-3", 1_000), "the newest"


def test_what_nodes_cannot_get_ready_within_a_day_is_in_no_ones_way_and_may_still_come() -> None:
    day = 86_400.0
    rule = with_live_base()
    rule.version(version("full-2", parent="base-1", when=2))
    rule.version(version("adapter-3", parent="base-1", when=day))
    loaded(rule, "adapter-3", when=day)
    assert rule.decide(NOON + day + 1) is None
    assert rule.on_its_way(NOON + day + 5) == "adapter-3"
    assert arms(step(rule, day + 5))[1][1] == "adapter-3"
    late = with_live_base()
    late.version(version("full-2", parent="base-1", when=2))
    loaded(late, when=3 * day)
    assert late.on_its_way(NOON + 3 * day) == ""
    loaded(late, "full-2", when=3 * day + 1)
    assert arms(step(late, 3 * day + 2))[1][1] == "full-2"


def test_nothing_is_on_its_way_where_no_node_could_serve_it_or_an_operator_paused() -> None:
    rule = with_live_base()
    rule.version(version("adapter-2", parent="base-1", when=2))
    assert rule.on_its_way(NOON + 3) == "adapter-2"
    assert rule.on_its_way(NOON + 300) == "", "no node has been seen lately"
    rule.paused = True
    assert rule.on_its_way(NOON + 3) == ""
    assert rollout().on_its_way(NOON) == ""


def test_a_rejection_outlives_a_restart_of_the_worker_since_heartbeats_tell_it() -> None:
    rule = with_live_base()
    rule.version(version("adapter-2", parent="base-1", when=2))
    rule.version(version("adapter-3", parent="base-1", when=3))
    beat = replace(node("n1", "base-1", "adapter-3"), rejected=["adapter-2"])
    rule.node(beat, at=NOON + 4)
    rule.node(node("n2", "base-1", "adapter-2", "adapter-3"), at=NOON + 4)
    assert rule.on_its_way(NOON + 5) == "adapter-3"
    rule.node(node("n1", "base-1", "adapter-2", "adapter-3"), at=NOON + 6)
    assert rule.on_its_way(NOON + 7) == "adapter-2", "the node has loaded it after all"
    rule.node(beat, at=NOON + 8)
    rule.node(node("n1", state="starting"), at=NOON + 9)
    assert rule.on_its_way(NOON + 9) == "adapter-2", "it is tried again"


def test_what_waits_is_not_lost_when_the_base_was_announced_anew_and_the_log_compacted() -> None:
    """The base is then the last version of the log, and children may come before their parents."""
    rule = rollout()
    for name, parent, when in (("query_encoder-2", "adapter-2", 3), ("adapter-2", "base-1", 2)):
        rule.version(version(name, parent=parent, when=when))
    rule.version(version("base-1", verdict=None, when=9))
    loaded(rule, "adapter-2", "query_encoder-2", when=10)
    step(rule, 11)
    assert rule.live == "base-1"
    assert rule.on_its_way(NOON + 12) == "query_encoder-2"


def test_without_parents_neither_the_live_version_nor_an_earlier_one_waits() -> None:
    rule = with_live_base()
    for number in (2, 3):
        rule.version(version(f"adapter-{number}", parent=None, when=number))
    wished = rule.promote(promote("adapter-3"), now=NOON + 4)
    assert isinstance(wished, SplitChanged)
    rule.split(replace(wished, chosen_at=None))
    loaded(rule, "adapter-2", "adapter-3", when=5)
    assert rule.on_its_way(NOON + 6) == ""


def test_where_the_newest_of_a_line_can_not_be_had_an_older_one_goes() -> None:
    day = 86_400.0
    rule = with_live_base()
    rule.version(version("adapter-2", parent="base-1", when=2))
    rule.version(version("query_encoder-2", parent="adapter-2", when=3))
    loaded(rule, "adapter-2", when=2 * day)
    assert arms(step(rule, 2 * day + 1))[1][1] == "adapter-2"


def test_a_node_that_is_gone_rejects_nothing_any_more() -> None:
    rule = with_live_base()
    rule.version(version("adapter-2", parent="base-1", when=2))
    rule.node(node("n0", "base-1", state="rejected", about="adapter-2"), at=NOON + 3)
    loaded(rule, "adapter-2", when=4)
    assert rule.decide(NOON + 5) is None
    loaded(rule, "adapter-2", when=60)
    split = rule.decide(NOON + 61)
    assert split is not None
    assert arms(split)[1][1] == "adapter-2"


def test_what_a_decision_costs_grows_no_faster_than_the_versions() -> None:
    assert seconds_to_decide(4000) < 30 * seconds_to_decide(500), "8 times as many; their square would be 64"


def seconds_to_decide(versions: int) -> float:
    """With so many made one of the other after a rollback to the base, and as many that were never served."""
    rule = with_live_base()
    parent = "base-1"
    for number in range(versions):
        rule.version(version(f"v{number}", parent=parent, when=number + 2))
        rule.version(version(f"u{number}", parent=parent, verdict="inconclusive", when=number + 2))
        parent = f"v{number}"
    loaded(rule, when=versions)
    begun = time.process_time()
    for _ in range(10):
        assert rule.decide(NOON + versions) is None
        assert rule.on_its_way(NOON + versions) == parent
    return time.process_time() - begun
