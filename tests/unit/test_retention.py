"""What is pruned is needed by no one: not for answers, not for the way back, not as a part of something else."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from clickloop.commands import Rollback
from clickloop.events import LiveResult, SplitChanged
from clickloop.manifest import Manifest
from clickloop.retention import Traffic, followed, live_of, plan, traffic_of
from streams.rollout import Rollout
from tests.unit.version_facts import START, manifest, published, split

BASE = manifest("base-1", "full", None)
Kinds = st.sampled_from(["adapter", "query_encoder", "full"])


def history(*steps: tuple[str, str, str, str]) -> dict[str, Manifest]:
    """(version, kind, parent, verdict) in the order in which they were published, after the base."""
    made = {"base-1": BASE}
    for version, kind, parent, verdict in steps:
        made[version] = manifest(version, kind, made[parent], verdict=verdict)  # type: ignore[arg-type]
    return made


def fates(made: dict[str, Manifest], *, keep: int, traffic: Traffic) -> tuple[dict[str, str], list[str]]:
    created = {name: START + timedelta(hours=n) for n, name in enumerate(made)}
    found = plan(made, created, keep=keep, traffic=traffic)
    return found.keep, found.remove


def test_the_oldest_go_and_the_newest_stay() -> None:
    made = history(*[(f"adapter-{n}", "adapter", "base-1", "fail") for n in range(6)])
    kept, gone = fates(made, keep=2, traffic=Traffic(frozenset({"base-1"})))
    assert gone == ["adapter-0", "adapter-1", "adapter-2", "adapter-3"]
    assert kept["adapter-5"] == "one of the 2 newest"
    assert kept["base-1"] == "gets traffic"


def test_what_gets_traffic_its_parent_and_what_was_live_before_stay() -> None:
    made = history(
        ("a", "adapter", "base-1", "pass"),
        ("b", "adapter", "a", "pass"),
        ("c", "adapter", "b", "pass"),
        ("d", "adapter", "base-1", "pass"),
        ("e", "adapter", "d", "fail"),
        ("f", "adapter", "d", "fail"),
    )
    # d was promoted over c by hand, so the way back is c, which is no parent of it.
    traffic = traffic_of([split(1, "c"), split(2, "c", "d"), split(3, "d")])
    assert traffic == Traffic(frozenset({"d"}), frozenset({"c"}))
    kept, gone = fates(made, keep=1, traffic=traffic)
    assert gone == ["a", "e"]
    assert kept == {
        "base-1": "parent of d",
        "b": "parent of c",
        "c": "was live before",
        "d": "gets traffic",
        "f": "one of the 1 newest",
    }


def test_what_waits_on_one_index_stays_though_another_has_moved_on() -> None:
    made = history(
        ("b-live", "adapter", "base-1", "pass"),
        ("b-next", "adapter", "b-live", "pass"),
        ("a-live", "adapter", "base-1", "pass"),
        ("last", "adapter", "base-1", "fail"),
    )
    kept, _ = fates(made, keep=1, traffic=Traffic(frozenset({"a-live", "b-live"})))
    assert kept["b-next"] == "passed its gate, and may get traffic next"


def test_a_version_is_kept_with_the_encoder_and_the_space_that_it_is_made_of() -> None:
    made = history(
        ("full-1", "full", "base-1", "pass"),
        ("query-1", "query_encoder", "full-1", "pass"),
        ("adapter-1", "adapter", "query-1", "pass"),
        ("adapter-2", "adapter", "adapter-1", "pass"),
        ("adapter-3", "adapter", "adapter-2", "pass"),
        ("last", "adapter", "base-1", "fail"),
    )
    kept, gone = fates(made, keep=1, traffic=Traffic(frozenset({"adapter-3"})))
    assert gone == ["adapter-1"], "the parent's parent is neither a part nor the way back"
    assert kept["query-1"] == "adapter-3 is made of it" or kept["query-1"] == "adapter-2 is made of it"
    assert kept["full-1"].endswith("is made of it")


def test_a_version_is_kept_with_what_it_was_compared_with() -> None:
    """That is where a rollback goes."""
    made = history(
        ("before", "adapter", "base-1", "pass"),
        ("anew", "adapter", "base-1", "pass"),
        ("last", "adapter", "base-1", "fail"),
    )
    gate = made["anew"].gate
    assert gate is not None
    made["anew"] = replace(made["anew"], gate=replace(gate, live=LiveResult(version="before")))
    kept, gone = fates(made, keep=1, traffic=Traffic(frozenset({"anew"})))
    assert kept["before"] == "anew was compared with it"
    assert gone == []


def test_what_passed_after_the_live_one_may_be_next_and_stays() -> None:
    made = history(
        ("live", "adapter", "base-1", "pass"),
        ("waiting", "adapter", "live", "pass"),
        ("failed", "query_encoder", "live", "fail"),
        ("newest", "adapter", "live", "inconclusive"),
    )
    kept, gone = fates(made, keep=1, traffic=Traffic(frozenset({"live"})))
    assert gone == ["failed"]
    assert kept["waiting"] == "passed its gate, and may get traffic next"


def test_every_index_of_a_store_keeps_what_it_serves() -> None:
    made = history(
        ("shoes", "adapter", "base-1", "pass"),
        ("books", "adapter", "base-1", "pass"),
        *[(f"late-{n}", "adapter", "base-1", "fail") for n in range(3)],
    )
    traffic = traffic_of([split(7, "shoes", index="shoes"), split(2, "books", index="books")])
    kept, _ = fates(made, keep=1, traffic=traffic)
    assert kept["shoes"] == kept["books"] == "gets traffic"


def test_an_index_without_splits_keeps_what_passed_last_and_what_that_is_made_of() -> None:
    made = history(
        ("shoes-full", "full", "base-1", "pass"),
        ("shoes-1", "query_encoder", "shoes-full", "pass"),
        ("shoes-2", "adapter", "shoes-1", "pass"),
        ("shoes-3", "adapter", "shoes-2", "fail"),
        ("live", "adapter", "base-1", "pass"),
        ("last", "adapter", "base-1", "fail"),
    )
    announced = [published(one, index="shoes", hours=n) for n, one in enumerate(made.values())][:5]
    found = followed(reversed(announced), split={"default"}, held=made)
    assert found == {"shoes-2"}
    kept, gone = fates(made, keep=1, traffic=Traffic(frozenset({"live"}), followed=found))
    assert kept["shoes-2"] == "passed last in an index without splits"
    assert kept["shoes-1"] == "parent of shoes-2"
    assert kept["shoes-full"] == "shoes-1 is made of it" or kept["shoes-full"] == "shoes-2 is made of it"
    assert gone == ["shoes-3"]


def test_an_index_without_splits_follows_the_base_until_something_passes_and_only_what_the_store_has() -> None:
    made = history(("a", "adapter", "base-1", "inconclusive"), ("b", "adapter", "base-1", "pass"))
    announced = [published(one, index="shoes", hours=9 - n) for n, one in enumerate(made.values())]
    assert followed(announced[:2], split=set(), held=made) == {"base-1"}
    assert followed(announced, split=set(), held=made) == {"b"}, "the base is announced again by all that start"
    assert followed(announced, split=set(), held={"base-1", "a"}) == {"base-1"}
    assert followed(announced, split={"shoes"}, held=made) == frozenset()


@pytest.mark.parametrize("against", ["what was live", "its parent"])
def test_where_a_rollback_goes_stays_though_the_log_holds_the_newest_split_alone(against: str) -> None:
    made = history(
        ("before", "adapter", "base-1", "pass"),
        ("next", "adapter", "before", "pass"),
        ("last", "adapter", "base-1", "fail"),
    )
    if against == "what was live":
        gate = made["next"].gate
        assert gate is not None
        gate = replace(gate, live=LiveResult(version="before"))
        made["next"] = replace(made["next"], parent="base-1", gate=gate)
    rollout = Rollout("default", steps=[100], min_queries=1, max_wait=1)
    for hours, one in enumerate(made.values()):
        rollout.version(published(one, hours=hours))
    compacted = [split(9, "next")]
    rollout.split(compacted[0])
    wish = Rollback(command_id="c", index="default", issued_at=START + timedelta(hours=99), reason="")
    back = rollout.rollback(wish, now=START.timestamp() + 99 * 3600)
    assert isinstance(back, SplitChanged)
    assert live_of(back) == "before"
    kept, _ = fates(made, keep=1, traffic=traffic_of(compacted))
    assert live_of(back) in kept


def test_an_older_split_that_comes_late_does_not_count() -> None:
    assert traffic_of([split(5, "b"), split(4, "a")]) == Traffic(frozenset({"b"}), frozenset({"a"}))


@given(
    steps=st.lists(st.tuples(Kinds, st.integers(0, 30), st.sampled_from(["pass", "fail"])), max_size=14),
    keep=st.integers(1, 5),
    serving=st.integers(0, 30),
)
def test_nothing_that_stays_ever_needs_what_goes(
    steps: list[tuple[str, int, str]], keep: int, serving: int
) -> None:
    made = {"base-1": BASE}
    for number, (kind, parent, verdict) in enumerate(steps):
        version = f"v{number:02}"
        made[version] = manifest(version, kind, list(made.values())[parent % len(made)], verdict=verdict)  # type: ignore[arg-type]
    live = list(made)[serving % len(made)]
    kept, gone = fates(made, keep=keep, traffic=Traffic(frozenset({live})))
    assert sorted([*kept, *gone]) == sorted(made)
    assert live in kept
    assert made[live].parent is None or made[live].parent in kept
    for name in kept:
        assert not made[name].needs & set(gone)
