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

from clickloop.ancestry import Known, follows, waiting
from clickloop.commands import Promote, Rollback
from clickloop.events import Arm, DriftMeasured, ModelVersionPublished, NodeReported, SplitChanged
from clickloop.retention import CANDIDATE, LIVE, candidate_of, live_of

ALL_BUCKETS = 10_000
SEEN_SECONDS = 30.0
"""A node that has been silent for longer takes no part."""
MAX_COUNTED = 10_000
"""Reports of one step whose ids are remembered, to count each once. One that is sent again is sent again soon."""
CROSSING_SECONDS = 60.0
"""A wish and a split that cross on their way are no further apart."""
PATIENCE_SECONDS = 86_400.0
"""So long a version that passed is waited for, while nodes encode all documents for it."""


@dataclass(frozen=True)
class Refused:
    """A command that can't be followed, and why."""

    reason: str


@dataclass(slots=True)
class _Node:
    seen: float
    versions: frozenset[str]
    rejected: frozenset[str]


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
        self._versions: OrderedDict[str, Known] = OrderedDict()
        self._base = ""
        self._nodes: dict[str, _Node] = {}
        self._was_live: list[str] = []
        self._split: SplitChanged | None = None
        self._appended = 0.0
        """When the broker took the split; 0 until that is known."""
        self._counted: OrderedDict[str, None] = OrderedDict()
        self._answered = 0
        self.paused = False

    @property
    def live(self) -> str:
        """The version that serves all traffic but the candidate's; empty before the first split."""
        return live_of(self._split) if self._split is not None else ""

    @property
    def candidate(self) -> str:
        return candidate_of(self._split) if self._split is not None else ""

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
            self._versions[event.version] = Known.of(event, passed=verdict == "pass")
            self._base = self._base or (event.version if verdict is None else "")

    def node(self, event: NodeReported, *, at: float) -> None:
        """A node told, at append time ``at``, which versions it has loaded, or that it can't load one."""
        if event.state == "stopping":
            self._nodes.pop(event.node_id, None)
            return
        known = self._nodes.get(event.node_id)
        rejected = set(event.rejected) | (known.rejected if known and event.state != "starting" else set())
        if event.state == "rejected":
            rejected.add(event.version)
        # What it has loaded after all is rejected no more.
        loaded = frozenset(event.versions)
        self._nodes[event.node_id] = _Node(at, loaded, frozenset(rejected - loaded))

    def split(self, event: SplitChanged, *, appended: float = 0.0) -> None:
        """A split is in the log: ours, an earlier worker's, or an operator's. ``appended``: since when."""
        if self._split is not None:
            if event.event_id == self._split.event_id:
                self._appended = appended
                return
            # Of two with one sequence, by a worker that no longer owns the index, the later holds for nodes, too.
            if event.sequence < self._split.sequence:
                return
        self._appended = appended
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
        self._counted[event.event_id] = None
        if len(self._counted) > MAX_COUNTED:
            self._counted.popitem(last=False)
        self._answered += sum(arm.queries for arm in event.arms if arm.version == self.candidate)

    # What it decides.

    def promote(self, command: Promote, *, now: float, heard: float | None = None) -> SplitChanged | Refused:
        """All traffic to the named version, at once. ``heard``: when the broker appended the command."""
        at = command.issued_at.timestamp() if heard is None else heard
        if objection := self._objection(at):
            return Refused(objection)
        if command.version not in self._versions:
            return Refused(f"version {command.version} is not published, or failed its gate")
        if command.version == self.live and not self.candidate:
            return Refused(f"version {command.version} has all traffic already")
        return self._all_to(command.version, now=now, reason=f"promoted: {command.reason}", chosen_at=at)

    def rollback(self, command: Rollback, *, now: float, heard: float | None = None) -> SplitChanged | Refused:
        """All traffic back to the named version; else away from the candidate, or to what the live one follows."""
        at = command.issued_at.timestamp() if heard is None else heard
        if objection := self._objection(at):
            return Refused(objection)
        target = command.version or (self.live if self.candidate else self._before_live())
        if not target:
            return Refused(f"{self.live} follows no other version: name the one to go back to")
        if target not in self._versions:
            return Refused(f"there is no version {target!r} to go back to")
        return self._all_to(target, now=now, reason=f"rolled back: {command.reason}", chosen_at=at)

    def _objection(self, at: float) -> str:
        """To any wish that the broker took at this time; empty for none.

        Who made a split had heard all that lay in the log for long by then.
        """
        if self._split is None:
            return "there is no split yet: no search node has begun"
        heard_before = at <= self._chosen_at or at + CROSSING_SECONDS < self._appended
        return "it was followed or refused before, or a later one was followed" if heard_before else ""

    def decide(self, now: float) -> SplitChanged | None:
        """The next split, if it is time for one."""
        if self._split is None:
            return self._first(now)
        if self.candidate and self.candidate in self._rejected(now):
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
        if not self._base:
            return None
        return self._all_to(self._base, now=now, reason="first version of the index")

    def on_its_way(self, now: float) -> str:
        """The version that is to be live next: it has a share, or nodes are loading it. Empty for none."""
        if self._split is None or self.paused:
            return ""
        return self.candidate or (self._next(now) if self._present(now) else "")

    def _next(self, now: float) -> str:
        """What is to get traffic next: the candidate, else what passed first, or the newest that follows it.

        What passed beside it was compared with the same version, but not with it, and may be worse: that has no
        turn while this one has not been rejected. One that does not say with what it was compared takes over. What
        the nodes can't get ready within a day is in no one's way.
        """
        heads = waiting(self.live, self._versions, after=self._chosen_at)
        rejected = self._rejected(now)
        names = [name for name in heads if name not in rejected]
        silent = {name for name in names if not self._versions[name].against}
        candidate = self.candidate
        if candidate:
            better = (n for n in reversed(names) if n in silent or follows(n, candidate, self._versions))
            return next(better, candidate) if candidate in heads else candidate
        for head in dict.fromkeys(heads[name] for name in names):
            for name in reversed(names):
                if heads[name] != head and name not in silent:
                    continue
                if now - self._versions[name].published < PATIENCE_SECONDS or self._ready(name, now):
                    return name
        return ""

    @property
    def _chosen_at(self) -> float:
        """When an operator last chose: what had been published by then has no turn any more."""
        chosen = self._split.chosen_at if self._split is not None else None
        return chosen.timestamp() if chosen is not None else 0.0

    def _rejected(self, now: float) -> set[str]:
        """By some node that is there."""
        return set[str]().union(*(node.rejected for node in self._present(now)))

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
        """A larger share, while every node that is there has the candidate: one that it killed says nothing."""
        waited = now - split.changed_at.timestamp()
        is_time = self._answered >= self._min_queries or waited >= self._max_wait
        if not is_time or not self._ready(self.candidate, now):
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

    def _all_to(self, version: str, *, now: float, reason: str, chosen_at: float | None = None) -> SplitChanged:
        salt, arms = self._salt() or _digest(self._index, version), [_buckets(LIVE, version, ALL_BUCKETS)]
        return self._change(arms, salt=salt, now=now, reason=reason, chosen_at=chosen_at)

    def _change(
        self, arms: list[Arm], *, salt: str, now: float, reason: str, chosen_at: float | None = None
    ) -> SplitChanged:
        chosen = chosen_at or self._chosen_at
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
            chosen_at=datetime.fromtimestamp(chosen, UTC) if chosen else None,
        )

    def _before_live(self) -> str:
        """What the live version was compared with; where that is not known, what was live before it."""
        live = self._versions.get(self.live)
        if live is not None and live.against in self._versions:
            return live.against
        before = reversed(self._was_live[:-1])
        return next((name for name in before if not follows(name, self.live, self._versions)), "")

    def _share(self) -> int:
        split = self._split
        return next((arm.buckets for arm in split.arms if arm.name == CANDIDATE), 0) if split else 0

    def _salt(self) -> str:
        return self._split.salt if self._split else ""


def _buckets(name: str, version: str, buckets: int) -> Arm:
    return Arm(name=name, version=version, buckets=buckets)


def _percent(buckets: int) -> str:
    return f"{100 * buckets / ALL_BUCKETS:g} %"


def _digest(*parts: str) -> str:
    return hashlib.blake2b("/".join(parts).encode(), digest_size=8).hexdigest()
