"""Which versions may go. Pure: it takes manifests, times and what gets traffic, and says what stays, and why.

What stays whatever its age: what gets traffic, what it can be rolled back to, what may get traffic next, and every
version whose files one of these is made of. So a prune can't take away an answer, nor the way back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from clickloop.events import ModelVersionPublished, SplitChanged
from clickloop.manifest import Manifest

LIVE, CANDIDATE = "live", "candidate"


@dataclass(frozen=True)
class Traffic:
    """What the splits of a store's indexes say, or an operator in their place."""

    serving: frozenset[str]
    """Versions that an index's newest split names."""
    earlier: frozenset[str] = frozenset()
    """What was live before: the last other version of each index that had its traffic, as far as the log tells."""
    followed: frozenset[str] = frozenset()
    """What an app of one's own took, in an index that has no split: the version that passed last."""


@dataclass(frozen=True)
class Plan:
    keep: dict[str, str]
    """Version → why it stays."""
    remove: list[str]
    """Oldest first."""


def newest_splits(splits: Sequence[SplitChanged]) -> dict[str, SplitChanged]:
    """Index → its newest split."""
    return {split.index: split for split in sorted(splits, key=lambda s: s.sequence)}


def traffic_of(splits: Sequence[SplitChanged]) -> Traffic:
    serving, earlier = set(), set()
    for newest in newest_splits(splits).values():
        serving |= {arm.version for arm in newest.arms}
        history = sorted((s for s in splits if s.index == newest.index), key=lambda s: s.sequence)
        before = [live for s in history if (live := live_of(s)) and live != live_of(newest)]
        earlier |= set(before[-1:])
    return Traffic(frozenset(serving), frozenset(earlier))


def followed(
    published: Iterable[ModelVersionPublished], *, split: Collection[str], held: Collection[str]
) -> frozenset[str]:
    """What passed last in each index that is not one of the ``split`` ones, of what the store has (``held``).

    Where nothing has passed, that is what needed no gate: the base.
    """
    newest: dict[str, ModelVersionPublished] = {}
    for event in published:
        if event.index in split or event.version not in held or not _may_serve(event):
            continue
        if event.index not in newest or _turn(event) > _turn(newest[event.index]):
            newest[event.index] = event
    return frozenset(event.version for event in newest.values())


def _may_serve(event: ModelVersionPublished) -> bool:
    return event.gate is None or event.gate.verdict == "pass"


def _turn(event: ModelVersionPublished) -> tuple[bool, datetime]:
    return event.gate is not None, event.published_at


def live_of(split: SplitChanged) -> str:
    return next((arm.version for arm in split.arms if arm.name == LIVE), "")


def candidate_of(split: SplitChanged) -> str:
    return next((arm.version for arm in split.arms if arm.name == CANDIDATE), "")


def plan(
    manifests: Mapping[str, Manifest], created: Mapping[str, datetime], *, keep: int, traffic: Traffic
) -> Plan:
    """``keep`` is how many of the newest versions stay even if nothing needs them."""
    by_age = sorted(manifests, key=lambda name: (created[name], name))
    why: dict[str, str] = {}

    def stays(names: set[str], reason: str) -> None:
        for name in sorted(names & manifests.keys()):
            why.setdefault(name, reason)

    stays(set(traffic.serving), "gets traffic")
    stays(set(traffic.followed), "passed last in an index without splits")
    stays(set(traffic.earlier), "was live before")
    stays(set(by_age[-keep:]) if keep else set(), f"one of the {keep} newest")
    # Of several indexes, one may wait for what passed long before another's live version was made.
    since = min((created[name] for name in traffic.serving | traffic.followed if name in created), default=None)
    for name in by_age:
        gate = manifests[name].gate
        if gate is not None and gate.verdict == "pass" and (since is None or created[name] >= since):
            stays({name}, "passed its gate, and may get traffic next")
    for name in list(why):
        stays({manifests[name].parent or ""}, f"parent of {name}")
        gate = manifests[name].gate
        if gate is not None and gate.live is not None:
            stays({gate.live.version}, f"{name} was compared with it")
    todo = list(why)
    while todo:
        name = todo.pop()
        needed = manifests[name].needs & manifests.keys() - why.keys()
        stays(needed, f"{name} is made of it")
        todo += needed
    return Plan(
        keep={name: why[name] for name in by_age if name in why},
        remove=[name for name in by_age if name not in why],
    )
