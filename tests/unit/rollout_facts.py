"""A rollout with a live base and two nodes, and short ways to tell it things and to ask it."""

from __future__ import annotations

from typing import Any

from clickloop.commands import Promote, Rollback
from clickloop.events import ArmCounts, SplitChanged
from streams.rollout import Refused, Rollout
from tests.unit.streams_facts import NOON, at, node, report, version


def rollout(**changes: Any) -> Rollout:
    options: dict[str, Any] = {"steps": [10.0, 50.0, 100.0], "min_queries": 20, "max_wait": 30.0}
    return Rollout("default", **(options | changes))


def alive(rule: Rollout, now: float) -> None:
    """The nodes report what they have reported before."""
    for known in rule._nodes.values():
        known.seen = NOON + now


def step(rule: Rollout, now: float) -> SplitChanged:
    """Decide while the nodes are alive, and let the split come back from the log."""
    alive(rule, now)
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


def rolling() -> Rollout:
    rule = with_live_base()
    rule.version(version("adapter-2", parent="base-1", when=2))
    for name in ("n1", "n2"):
        rule.node(node(name, "base-1", "adapter-2"), at=NOON + 3)
    step(rule, 4)
    return rule


def loaded(rule: Rollout, *versions: str, when: float) -> None:
    for name in ("n1", "n2"):
        rule.node(node(name, "base-1", *versions), at=NOON + when)


def followed(rule: Rollout, wished: SplitChanged | Refused) -> SplitChanged:
    """The split that a wish brought about, once it has come back from the log."""
    assert isinstance(wished, SplitChanged)
    rule.split(wished)
    return wished
