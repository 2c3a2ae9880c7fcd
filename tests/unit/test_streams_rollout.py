"""From a version that is ready to a version that is live, and back."""

from __future__ import annotations

import time
from typing import Any

import pytest
from msgspec.structs import replace

from clickloop.commands import Promote, Rollback
from clickloop.events import ArmCounts, SplitChanged
from streams.rollout import Refused, Rollout
from tests.unit.streams_facts import NOON, arm, arms, at, node, report, version


def rollout(**changes: Any) -> Rollout:
    options: dict[str, Any] = {"steps": [10.0, 50.0, 100.0], "min_queries": 20, "max_wait": 30.0}
    return Rollout("default", **(options | changes))


def step(rule: Rollout, now: float) -> SplitChanged:
    """Decide, and let the split come back from the log."""
    split = rule.decide(NOON + now)
    assert split is not None
    rule.split(split)
    return split


def served(rule: Rollout, name: str, queries: int, *, number: int, when: float) -> None:
    rule.answers(report(number, when=when, arms=[ArmCounts(arm="candidate", version=name, queries=queries)]))


def with_live_base() -> Rollout:
    rule = rollout()
    rule.version(version("base-1", verdict=None))
    rule.node(node("n1", "base-1"), at=NOON)
    rule.node(node("n2", "base-1"), at=NOON)
    step(rule, 1)
    return rule


def promote(name: str) -> Promote:
    return Promote(command_id="c", index="default", issued_at=at(50), version=name, reason="looks good")


def rollback(name: str = "") -> Rollback:
    return Rollback(command_id="c", index="default", issued_at=at(50), version=name, reason="looks bad")


def test_the_first_base_version_gets_all_traffic_once() -> None:
    rule = rollout()
    assert rule.decide(NOON) is None
    rule.version(version("base-1", verdict=None))
    split = step(rule, 1)
    assert arms(split) == [("live", "base-1", 10_000)]
    assert split.sequence == 1
    rule.version(version("base-1", verdict=None, when=5))
    assert rule.decide(NOON + 10) is None


def test_a_version_waits_until_every_node_that_was_seen_lately_has_it() -> None:
    rule = with_live_base()
    rule.version(version("adapter-2", parent="base-1", when=2))
    rule.node(node("n1", "base-1", "adapter-2"), at=NOON + 3)
    assert rule.decide(NOON + 4) is None, "n2 does not have it"
    assert rule.decide(NOON + 32) is not None, "n2 has been silent for 30 s"
    rule.node(node("n2", "base-1", "adapter-2"), at=NOON + 5)
    split = step(rule, 6)
    assert arms(split) == [("live", "base-1", 9_000), ("candidate", "adapter-2", 1_000)]
    assert split.sequence == 2


def test_without_any_node_nothing_is_rolled_out() -> None:
    rule = rollout()
    rule.version(version("base-1", verdict=None))
    step(rule, 1)
    rule.version(version("adapter-2", when=2))
    assert rule.decide(NOON + 3) is None


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_a_version_whose_gate_did_not_pass_gets_no_traffic_by_itself(verdict: str) -> None:
    rule = with_live_base()
    rule.version(version("adapter-2", verdict=verdict, when=2))
    rule.node(node("n1", "base-1", "adapter-2"), at=NOON + 3)
    rule.node(node("n2", "base-1", "adapter-2"), at=NOON + 3)
    assert rule.decide(NOON + 4) is None
    assert rule.on_its_way(NOON + 4) == ""
    # Whether it could not be told or was worse: an operator may know more than a gate that saw too little.
    wished = rule.promote(promote("adapter-2"), now=NOON + 5)
    assert isinstance(wished, Refused) == (verdict == "fail")
    if isinstance(wished, SplitChanged):
        rule.split(wished)
        back = rule.rollback(rollback(), now=NOON + 6, heard=NOON + 60)
        assert isinstance(back, SplitChanged)
        assert arms(back) == [("live", "base-1", 10_000)]


def test_what_is_made_of_an_undecided_version_has_its_turn_once_that_is_live() -> None:
    rule = with_live_base()
    rule.version(version("adapter-2", verdict="inconclusive", parent="base-1", when=2))
    rule.version(version("adapter-3", parent="adapter-2", when=3))
    loaded(rule, "adapter-2", "adapter-3", when=4)
    assert rule.decide(NOON + 5) is None, "it was compared with what no user has"
    wished = rule.promote(promote("adapter-2"), now=NOON + 6, heard=NOON + 2.5)
    assert isinstance(wished, SplitChanged)
    rule.split(wished)
    assert arms(step(rule, 7))[1] == ("candidate", "adapter-3", 1_000)


def rolling() -> Rollout:
    rule = with_live_base()
    rule.version(version("adapter-2", parent="base-1", when=2))
    for name in ("n1", "n2"):
        rule.node(node(name, "base-1", "adapter-2"), at=NOON + 3)
    step(rule, 4)
    return rule


def test_shares_grow_with_the_candidates_queries_and_end_with_one_live_arm() -> None:
    rule = rolling()
    assert rule.decide(NOON + 5) is None
    served(rule, "adapter-2", 19, number=1, when=5)
    served(rule, "adapter-2", 19, number=1, when=5)
    assert rule.decide(NOON + 6) is None, "a report told twice counts once"
    served(rule, "adapter-2", 1, number=2, when=6)
    half = step(rule, 7)
    assert arms(half) == [("live", "base-1", 5_000), ("candidate", "adapter-2", 5_000)]
    served(rule, "adapter-2", 19, number=3, when=8)
    assert rule.decide(NOON + 8) is None, "each step counts from zero"
    served(rule, "adapter-2", 19, number=4, when=9)
    whole = step(rule, 10)
    assert arms(whole) == [("live", "adapter-2", 10_000)]
    assert rule.live == "adapter-2"
    assert rule.decide(NOON + 100) is None
    assert [half.sequence, whole.sequence] == [3, 4]


def test_a_step_ends_after_the_longest_wait_even_without_queries() -> None:
    rule = rolling()
    assert rule.decide(NOON + 33) is None
    assert arms(step(rule, 35))[1][2] == 5_000


def test_the_salt_stays_within_a_rollout_and_is_new_for_the_next() -> None:
    rule = rolling()
    first = rule._salt()
    second = step(rule, 40)
    assert second.salt == first
    step(rule, 80)
    rule.version(version("adapter-3", parent="adapter-2", when=81))
    for name in ("n1", "n2"):
        rule.node(node(name, "adapter-2", "adapter-3"), at=NOON + 82)
    assert step(rule, 83).salt != first


def test_a_newer_version_takes_over_the_share_of_the_one_that_rolls() -> None:
    rule = rolling()
    step(rule, 40)
    rule.version(version("query_encoder-3", parent="adapter-2", when=41))
    assert rule.decide(NOON + 41.5) is None, "it is not loaded yet"
    for name in ("n1", "n2"):
        rule.node(node(name, "base-1", "adapter-2", "query_encoder-3"), at=NOON + 42)
    split = step(rule, 43)
    assert arms(split) == [("live", "base-1", 5_000), ("candidate", "query_encoder-3", 5_000)]
    assert "supersedes" in split.reason
    assert arms(step(rule, 80)) == [("live", "query_encoder-3", 10_000)]
    assert rule.decide(NOON + 81) is None, "its ancestor is not new"


def test_a_version_that_a_node_rejects_loses_its_share() -> None:
    rule = rolling()
    rule.node(node("n1", "base-1", state="rejected", about="adapter-2"), at=NOON + 6)
    split = step(rule, 7)
    assert arms(split) == [("live", "base-1", 10_000)]
    assert rule.decide(NOON + 8) is None


def test_an_operator_rolls_back_to_the_parent_and_it_stays_so() -> None:
    rule = rolling()
    step(rule, 40)
    step(rule, 80)
    assert rule.live == "adapter-2"
    split = rule.rollback(rollback(), now=NOON + 85, heard=NOON + 85)
    assert isinstance(split, SplitChanged)
    rule.split(split)
    assert arms(split) == [("live", "base-1", 10_000)]
    for name in ("n1", "n2"):
        rule.node(node(name, "base-1", "adapter-2"), at=NOON + 86)
    assert rule.decide(NOON + 87) is None


def test_a_rollback_during_a_rollout_takes_the_candidate_away() -> None:
    rule = rolling()
    split = rule.rollback(rollback(), now=NOON + 5)
    assert isinstance(split, SplitChanged)
    assert arms(split) == [("live", "base-1", 10_000)]


def test_an_operator_promotes_at_once() -> None:
    rule = rolling()
    split = rule.promote(promote("adapter-2"), now=NOON + 5)
    assert isinstance(split, SplitChanged)
    assert arms(split) == [("live", "adapter-2", 10_000)]


def test_commands_that_make_no_sense_are_refused_with_a_reason() -> None:
    rule = with_live_base()
    for refusal in (
        rule.promote(promote("nothing"), now=NOON),
        rule.promote(promote("base-1"), now=NOON),
        rule.rollback(rollback("nothing"), now=NOON),
        rule.rollback(rollback(), now=NOON),
        rollout().rollback(rollback(), now=NOON),
    ):
        assert isinstance(refusal, Refused)
        assert refusal.reason


def test_a_paused_rollout_stays_where_it_is() -> None:
    rule = rolling()
    rule.paused = True
    assert rule.decide(NOON + 500) is None
    rule.paused = False
    assert rule.decide(NOON + 500) is not None


def test_a_restart_goes_on_from_the_last_split_and_the_sequence_never_falls() -> None:
    again = rollout()
    for name, verdict in (("base-1", None), ("adapter-2", "pass")):
        again.version(version(name, verdict=verdict, parent="base-1" if verdict else None, when=2))
    assert again.sequence == 0
    old = SplitChanged(
        event_id="e", index="default", split_id="s", salt="salt", changed_at=at(10), sequence=7,
        arms=[arm("live", "base-1", 5_000), arm("candidate", "adapter-2", 5_000)],
    )  # fmt: skip
    again.split(old)
    again.split(SplitChanged(
        event_id="e0", index="default", split_id="s0", salt="x", changed_at=at(1), sequence=6,
        arms=[arm("live", "base-1", 10_000)],
    ))  # fmt: skip
    assert (again.live, again.candidate, again.sequence) == ("base-1", "adapter-2", 7)
    split = step(again, 50)
    assert (split.sequence, split.salt, arms(split)) == (8, "salt", [("live", "adapter-2", 10_000)])


def loaded(rule: Rollout, *versions: str, when: float) -> None:
    for name in ("n1", "n2"):
        rule.node(node(name, "base-1", *versions), at=NOON + when)


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
    split = rule.promote(promote("adapter-2"), now=NOON + 5)
    assert isinstance(split, SplitChanged)
    assert arms(split) == [("live", "adapter-2", 10_000)]


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
    split = rule.promote(promote("anew-2"), now=NOON + 8, heard=NOON + 60)
    assert isinstance(split, SplitChanged)
    rule.split(split)
    back = rule.rollback(rollback(), now=NOON + 70, heard=NOON + 120)
    assert isinstance(back, SplitChanged)
    assert arms(back) == [("live", "base-1", 10_000)]


def test_what_beat_the_candidate_takes_over_from_it() -> None:
    rule = rolling()
    rule.version(version("anew-3", parent="base-1", beside="adapter-2", when=5))
    loaded(rule, "adapter-2", "anew-3", when=6)
    assert arms(step(rule, 7))[1] == ("candidate", "anew-3", 1_000)


def test_what_is_made_of_a_version_that_an_operator_passed_over_has_no_turn() -> None:
    """It was being trained when that one was taken away."""
    rule = rolling()
    split = rule.rollback(rollback(), now=NOON + 6, heard=NOON + 6)
    assert isinstance(split, SplitChanged)
    rule.split(split)
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


def test_a_command_that_was_followed_is_not_followed_again() -> None:
    """Where its offset was not committed, or is forgotten by the broker, it is heard again, maybe months later."""
    rule = rolling()
    step(rule, 40)
    step(rule, 80)
    back = rule.rollback(rollback(), now=NOON + 85, heard=NOON + 85)
    assert isinstance(back, SplitChanged)
    rule.split(back)
    assert isinstance(rule.rollback(rollback("base-1"), now=NOON + 86, heard=NOON + 85), Refused)
    rule.version(version("adapter-3", parent="base-1", when=90))
    loaded(rule, "adapter-3", when=91)
    for now in (92, 130, 170):
        loaded(rule, "adapter-3", when=now)
        step(rule, now)
    assert rule.live == "adapter-3"
    assert isinstance(rule.promote(promote("adapter-2"), now=NOON + 180, heard=NOON + 85), Refused)
    assert isinstance(rule.promote(promote("adapter-2"), now=NOON + 180, heard=NOON + 180), SplitChanged)


def test_a_second_rollback_does_not_bring_back_what_the_first_took_away() -> None:
    rule = rolling()
    step(rule, 40)
    step(rule, 80)
    for heard, refused in ((85, False), (86, True)):
        back = rule.rollback(rollback(), now=NOON + heard, heard=NOON + heard)
        assert isinstance(back, Refused) == refused
        if isinstance(back, SplitChanged):
            rule.split(back)
    assert rule.live == "base-1"


def test_what_an_operator_took_away_stays_away_when_the_log_holds_the_last_split_alone() -> None:
    """As it does where it is compacted."""
    rule = rolling()
    back = rule.rollback(rollback(), now=NOON + 6, heard=NOON + 6)
    assert isinstance(back, SplitChanged)
    rule.split(back)
    rule.version(version("adapter-3", parent="base-1", when=10))
    loaded(rule, "adapter-2", "adapter-3", when=11)
    last = step(rule, 12)
    again = rollout()
    for one in ("base-1", "adapter-2", "adapter-3"):
        again.version(version(one, verdict=None if one == "base-1" else "pass", parent="base-1", when=2))
    again.split(last)
    again.node(node("n1", "base-1", "adapter-2", state="rejected", about="adapter-3"), at=NOON + 13)
    assert arms(step(again, 14)) == [("live", "base-1", 10_000)]
    assert again.on_its_way(NOON + 15) == ""


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
    chosen = replace(step_to_all(rule, "adapter-3"), chosen_at=None)
    rule.split(chosen)
    loaded(rule, "adapter-2", "adapter-3", when=5)
    assert rule.on_its_way(NOON + 6) == ""


def step_to_all(rule: Rollout, name: str) -> SplitChanged:
    split = rule.promote(promote(name), now=NOON + 4)
    assert isinstance(split, SplitChanged)
    return split


def test_a_wish_that_is_refused_costs_no_one_its_turn() -> None:
    rule = with_live_base()
    rule.version(version("full-2", parent="base-1", when=2))
    assert isinstance(rule.promote(promote("ful-2"), now=NOON + 5), Refused)
    loaded(rule, "full-2", when=6)
    assert arms(step(rule, 7))[1][1] == "full-2"
    assert isinstance(rollout().promote(promote("full-2"), now=NOON), Refused), "there is no search node"


def test_a_wish_that_was_refused_is_not_followed_when_it_is_heard_again() -> None:
    """A split that the broker took long after it was made by someone who had heard it."""
    rule = rolling()
    split = rule.rollback(rollback("adapter-0"), now=NOON + 6, heard=NOON + 6)
    assert isinstance(split, Refused)
    live = step(rule, 40), step(rule, 80)
    rule.split(live[-1], appended=NOON + 80)
    assert isinstance(rule.rollback(rollback(), now=NOON + 90, heard=NOON + 6), Refused)
    assert isinstance(rule.rollback(rollback(), now=NOON + 90, heard=NOON + 75), SplitChanged), "they crossed"


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
    assert arms(step(rule, 61))[1][1] == "adapter-2"


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
