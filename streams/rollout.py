"""From a version that is ready to a version that is live: the sequence of splits.

A pure state machine. What it knows comes from ``model-versions``, ``node-status``, ``traffic-splits``,
``drift-reports`` and ``commands``, so a restart rebuilds it; the split with the highest sequence in the log is the
truth, whoever wrote it. Times are seconds since the epoch.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from clickloop.ancestry import line_of
from clickloop.commands import Promote, Rollback
from clickloop.events import Arm, DriftMeasured, ModelVersionPublished, NodeReported, SplitChanged, Verdict

ALL_BUCKETS = 10_000
LIVE = "live"
CANDIDATE = "candidate"
SEEN_SECONDS = 30.0
"""A node that has been silent for longer takes no part."""
PATIENCE_SECONDS = 86_400.0
"""So long a version that passed is waited for, while nodes encode all documents for it."""


@dataclass(frozen=True)
class Refused:
    """A command that can't be followed, and why."""

    reason: str


class _Version(NamedTuple):
    """What the rollout must know of a version, of which there may be very many."""

    published: float
    verdict: Verdict | None
    """None: it went through no gate, as a base model."""


@dataclass(slots=True)
class _Node:
    seen: float
    versions: frozenset[str]


class Rollout:
    """The rollout of one index.

    ``steps`` are shares of traffic in percent, growing to 100. The next one comes after ``min_queries`` answers by
    the candidate, or after ``max_wait`` seconds.
    """

    def __init__(self, index: str, *, steps: Sequence[float], min_queries: int, max_wait: float) -> None:
        self._index = index
        self._steps = [round(step * ALL_BUCKETS / 100) for step in steps]
        self._min_queries = min_queries
        self._max_wait = max_wait
        self._versions: OrderedDict[str, _Version] = OrderedDict()
        self._parents: dict[str, str] = {}
        self._nodes: dict[str, _Node] = {}
        self._rejected: set[str] = set()
        self._chosen_at = 0.0
        self._was_live: list[str] = []
        self._split: SplitChanged | None = None
        self._counted: set[str] = set()
        self._answered = 0
        self.paused = False

    @property
    def live(self) -> str:
        """The version that serves all traffic but the candidate's; empty before the first split."""
        return _arm(self._split, LIVE)

    @property
    def candidate(self) -> str:
        return _arm(self._split, CANDIDATE)

    @property
    def sequence(self) -> int:
        return self._split.sequence if self._split else 0

    # What it is told.

    def version(self, event: ModelVersionPublished) -> None:
        """A version was published. One whose gate failed is never given traffic.

        One whose gate could not tell is given some only by an operator.
        """
        verdict = event.gate.verdict if event.gate is not None else None
        if verdict != "fail" and event.version not in self._versions:
            self._versions[event.version] = _Version(event.published_at.timestamp(), verdict)
            self._parents[event.version] = event.parent or ""

    def chosen(self, at: float) -> None:
        """An operator promoted or rolled back: only versions published after ``at`` move on by themselves."""
        self._chosen_at = max(self._chosen_at, at)

    def node(self, event: NodeReported, *, at: float) -> None:
        """A node told, at append time ``at``, which versions it has loaded, or that it can't load one."""
        if event.state == "stopping":
            self._nodes.pop(event.node_id, None)
            return
        self._nodes[event.node_id] = _Node(at, frozenset(event.versions))
        if event.state == "rejected" and event.version and event.version != self.live:
            self._rejected.add(event.version)

    def split(self, event: SplitChanged) -> None:
        """A split is in the log: ours, an earlier worker's, or an operator's."""
        if self._split is not None and event.sequence <= self._split.sequence:
            return
        self._split = event
        self._answered = 0
        self._counted.clear()
        if not self._was_live or self._was_live[-1] != self.live:
            self._was_live = [*self._was_live[-99:], self.live]

    def answers(self, event: DriftMeasured) -> None:
        """Count what the candidate has answered since the last step."""
        split = self._split
        if split is None or not self.candidate or event.event_id in self._counted:
            return
        if event.window_end <= split.changed_at:
            return
        self._counted.add(event.event_id)
        self._answered += sum(arm.queries for arm in event.arms if arm.version == self.candidate)

    # What it decides.

    def promote(self, command: Promote, *, now: float) -> SplitChanged | Refused:
        """All traffic to the named version, at once."""
        if command.version not in self._versions:
            return Refused(f"version {command.version} is not published, or failed its gate")
        if command.version == self.live and not self.candidate:
            return Refused(f"version {command.version} has all traffic already")
        return self._all_to(command.version, now=now, reason=f"promoted: {command.reason}")

    def rollback(self, command: Rollback, *, now: float) -> SplitChanged | Refused:
        """All traffic back to the named version; else away from the candidate, or to the live one's parent."""
        if self._split is None:
            return Refused("there is no split yet")
        target = command.version or (self.live if self.candidate else self._parent_of_live())
        if target not in self._versions:
            return Refused(f"there is no version {target!r} to go back to")
        return self._all_to(target, now=now, reason=f"rolled back: {command.reason}")

    def decide(self, now: float) -> SplitChanged | None:
        """The next split, if it is time for one."""
        if self._split is None:
            return self._first(now)
        if self.candidate and self.candidate in self._rejected:
            return self._all_to(self.live, now=now, reason=f"{self.candidate} was rejected by a node")
        if self.paused:
            return None
        following = self._next(now)
        if following and following != self.candidate and self._ready(following, now):
            return self._start(following, now)
        if self.candidate:
            return self._next_step(self._split, now)
        return None

    def _first(self, now: float) -> SplitChanged | None:
        """All traffic to the base: the first version that was published without a gate."""
        base = next((name for name, known in self._versions.items() if known.verdict is None), None)
        if base is None:
            return None
        return self._all_to(base, now=now, reason="first version of the index")

    def on_its_way(self, now: float) -> str:
        """The version that is to be live next: it has a share, or nodes are loading it. Empty for none."""
        if self._split is None or self.paused:
            return ""
        return self.candidate or (self._next(now) if self._present(now) else "")

    def _next(self, now: float) -> str:
        """What is to get traffic next: the candidate, else what passed first, or the newest that was made of it.

        What passed beside it was compared with the same parent, but not with it, and may be worse: that has no
        turn while this one has not been rejected. One that does not say of what it was made takes over. What the
        nodes can't get ready within a day is in no one's way.
        """
        waiting = self._waiting()
        if self.candidate and self.candidate not in waiting:
            return self.candidate
        for head in [self.candidate] if self.candidate else waiting:
            newest = next(n for n in reversed(waiting) if head in self._line(n) or not self._parents[n])
            in_time = now - self._versions[head].published < PATIENCE_SECONDS
            if in_time or self._ready(newest, now):
                return newest
        return ""

    def _waiting(self) -> list[str]:
        """What passed and has not had its turn, as it was published: made of the live version, and not rejected.

        What was made of another one was compared with that, and not with what users have: only an operator gives
        it traffic. One that does not say of what it was made passes for made of the live one. The base is
        announced anew by every node that starts, and so are versions whose training was done again; that makes
        neither them nor the live one's ancestors new.
        """
        names = list(self._versions)
        later = names[names.index(self.live) + 1 :] if self.live in self._versions else names
        old = set(self._line(self.live))
        return [name for name in later if name not in self._rejected and self._follows(name, old)]

    def _follows(self, version: str, old: set[str]) -> bool:
        """It was made of the live version, or of others that were, passed, and were not passed over since."""
        for name in self._line(version):
            if name == self.live:
                return name != version
            known = self._versions.get(name)
            if known is None or known.verdict != "pass" or name in old or known.published <= self._chosen_at:
                return False
        return not self._parents[version]

    def _line(self, version: str) -> list[str]:
        return line_of(version, self._parents)

    def _ready(self, version: str, now: float) -> bool:
        nodes = self._present(now)
        return bool(nodes) and all(version in node.versions for node in nodes)

    def _present(self, now: float) -> list[_Node]:
        return [node for node in self._nodes.values() if now - node.seen <= SEEN_SECONDS]

    def _start(self, version: str, now: float) -> SplitChanged:
        """Give a version its first share, or the share that the one it supersedes has reached."""
        if self.candidate:
            share, salt = self._share(), self._salt()
            reason = f"{version} supersedes {self.candidate} at {_percent(share)}"
        else:
            share, salt = self._steps[0], _digest(self._index, version)
            reason = f"{version} is loaded everywhere: first share, {_percent(share)}"
        return self._to(version, share, salt=salt, now=now, reason=reason)

    def _next_step(self, split: SplitChanged, now: float) -> SplitChanged | None:
        waited = now - split.changed_at.timestamp()
        if self._answered < self._min_queries and waited < self._max_wait:
            return None
        share = next((s for s in self._steps if s > self._share()), ALL_BUCKETS)
        reason = f"{self.candidate} answered {self._answered} queries in {waited:.0f} s: {_percent(share)}"
        return self._to(self.candidate, share, salt=self._salt(), now=now, reason=reason)

    def _to(self, version: str, share: int, *, salt: str, now: float, reason: str) -> SplitChanged:
        if share >= ALL_BUCKETS:
            return self._change([_buckets(LIVE, version, ALL_BUCKETS)], salt=salt, now=now, reason=reason)
        # The candidate is listed last, so that a growing share only ever moves keys from live to candidate.
        arms = [_buckets(LIVE, self.live, ALL_BUCKETS - share), _buckets(CANDIDATE, version, share)]
        return self._change(arms, salt=salt, now=now, reason=reason)

    def _all_to(self, version: str, *, now: float, reason: str) -> SplitChanged:
        salt = self._salt() or _digest(self._index, version)
        return self._change([_buckets(LIVE, version, ALL_BUCKETS)], salt=salt, now=now, reason=reason)

    def _change(self, arms: list[Arm], *, salt: str, now: float, reason: str) -> SplitChanged:
        sequence = self.sequence + 1
        shares = ",".join(f"{arm.name}:{arm.version}:{arm.buckets}" for arm in arms)
        split_id = f"split-{sequence}-{_digest(self._index, shares)[:8]}"
        return SplitChanged(
            event_id=f"{self._index}/{split_id}",
            index=self._index,
            split_id=split_id,
            salt=salt,
            arms=arms,
            changed_at=datetime.fromtimestamp(now, UTC),
            sequence=sequence,
            reason=reason,
        )

    def _parent_of_live(self) -> str:
        parent = self._parents.get(self.live, "")
        if parent in self._versions:
            return parent
        return next((name for name in reversed(self._was_live[:-1]) if name != self.live), "")

    def _share(self) -> int:
        split = self._split
        return next((arm.buckets for arm in split.arms if arm.name == CANDIDATE), 0) if split else 0

    def _salt(self) -> str:
        return self._split.salt if self._split else ""


def _arm(split: SplitChanged | None, name: str) -> str:
    return next((arm.version for arm in split.arms if arm.name == name), "") if split else ""


def _buckets(name: str, version: str, buckets: int) -> Arm:
    return Arm(name=name, version=version, buckets=buckets)


def _percent(buckets: int) -> str:
    return f"{100 * buckets / ALL_BUCKETS:g} %"


def _digest(*parts: str) -> str:
    return hashlib.blake2b("/".join(parts).encode(), digest_size=8).hexdigest()
