"""From a version that is ready to a version that is live, and back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from clickloop.events import SplitChanged
from streams.rollout import MAX_COUNTED, Refused
from tests.unit.rollout_facts import (
    alive,
    followed,
    loaded,
    promote,
    rollback,
    rolling,
    rollout,
    served,
    step,
    with_live_base,
)
from tests.unit.streams_facts import NOON, arm, arms, at, node, version


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
        followed(rule, wished)
        assert arms(followed(rule, rule.rollback(rollback(), now=NOON + 6, heard=NOON + 60))) == [
            ("live", "base-1", 10_000)
        ]


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


@pytest.mark.parametrize("state", ["none is there", "one is starting"])
def test_a_candidate_that_kills_its_nodes_is_not_walked_on_by_the_clock(state: str) -> None:
    rule = rolling()
    if state == "one is starting":
        alive(rule, 60)
        rule.node(node("n2", state="starting"), at=NOON + 60)
    assert rule.decide(NOON + 61) is None
    loaded(rule, "adapter-2", when=90)
    assert arms(step(rule, 91))[1][2] == 5_000


def test_of_two_splits_with_one_sequence_the_later_holds_as_it_does_for_nodes() -> None:
    """A worker that has lost the index may still send what it had decided."""
    rule = rolling()
    ours = followed(rule, rule.rollback(rollback(), now=NOON + 40, heard=NOON + 40))
    theirs = replace(
        ours, event_id="theirs", arms=[arm("live", "base-1", 5_000), arm("candidate", "adapter-2", 5_000)]
    )
    rule.split(theirs, appended=NOON + 41)
    assert rule.candidate == "adapter-2"
    assert isinstance(rule.rollback(rollback(), now=NOON + 50, heard=NOON + 50), SplitChanged)


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
    split = followed(rule, rule.rollback(rollback(), now=NOON + 85, heard=NOON + 85))
    assert arms(split) == [("live", "base-1", 10_000)]
    for name in ("n1", "n2"):
        rule.node(node(name, "base-1", "adapter-2"), at=NOON + 86)
    assert rule.decide(NOON + 87) is None


def test_a_rollback_during_a_rollout_takes_the_candidate_away() -> None:
    rule = rolling()
    assert arms(followed(rule, rule.rollback(rollback(), now=NOON + 5))) == [("live", "base-1", 10_000)]


def test_an_operator_promotes_at_once() -> None:
    rule = rolling()
    assert arms(followed(rule, rule.promote(promote("adapter-2"), now=NOON + 5))) == [
        ("live", "adapter-2", 10_000)
    ]


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
    alive(rule, 500)
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
    loaded(again, "adapter-2", when=50)
    split = step(again, 50)
    assert (split.sequence, split.salt, arms(split)) == (8, "salt", [("live", "adapter-2", 10_000)])


def test_a_command_that_was_followed_is_not_followed_again() -> None:
    """Where its offset was not committed, or is forgotten by the broker, it is heard again, maybe months later."""
    rule = rolling()
    step(rule, 40)
    step(rule, 80)
    followed(rule, rule.rollback(rollback(), now=NOON + 85, heard=NOON + 85))
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
    followed(rule, rule.rollback(rollback(), now=NOON + 6, heard=NOON + 6))
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


def test_a_rollout_that_is_paused_for_long_remembers_no_report_for_ever() -> None:
    rule = with_live_base()
    rule.version(version("adapter-2", parent="base-1"))
    for name in ("n1", "n2"):
        rule.node(node(name, "base-1", "adapter-2"), at=NOON + 2)
    step(rule, 3)
    for number in range(MAX_COUNTED + 5):
        served(rule, "adapter-2", 1, number=number, when=10)
    assert len(rule._counted) == MAX_COUNTED
