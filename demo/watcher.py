"""What the topics say: the demo's view of the loop is that of any outside program, read from Kafka."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from clickloop import codec, topics
from clickloop.commands import Retrain
from clickloop.errors import MessageError
from clickloop.events import (
    DriftMeasured,
    ExampleFormed,
    Message,
    MessageQuarantined,
    ModelVersionPublished,
    NodeReported,
    SplitChanged,
    TrainingProgressed,
    VersionKind,
)
from clickloop.kafka import Follower

WATCHED = (
    topics.TRAINING_EXAMPLES,
    topics.DRIFT_REPORTS,
    topics.RETRAIN_COMMANDS,
    topics.TRAINING_RUNS,
    topics.MODEL_VERSIONS,
    topics.TRAFFIC_SPLITS,
    topics.NODE_STATUS,
    topics.DEAD_LETTERS,
)


@dataclass
class Loop:
    """The state of the loop as its topics tell it. The watcher owns it; the run and the display read it."""

    examples: set[str] = field(default_factory=set)
    drift_reports: int = 0
    drifted: int = 0
    commands: list[Retrain] = field(default_factory=list)
    progress: TrainingProgressed | None = None
    ended: dict[str, set[VersionKind]] = field(default_factory=dict)
    """Rungs that ended, by command id."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a run failed, by command id."""
    versions: dict[str, ModelVersionPublished] = field(default_factory=dict)
    split: SplitChanged | None = None
    nodes: dict[str, NodeReported] = field(default_factory=dict)
    swaps: set[tuple[str, str]] = field(default_factory=set)
    """(node, version) of every swap to a trained version."""
    quarantined: dict[str, int] = field(default_factory=dict)

    def is_over(self, command: Retrain) -> bool:
        """Each of the command's rungs has ended, or its run has failed."""
        return command.command_id in self.failures or self.ended.get(command.command_id, set()) >= set(
            command.kinds
        )

    def live(self) -> str:
        """The version that has all traffic, or ``""``."""
        arms = self.split.arms if self.split else []
        return arms[0].version if len(arms) == 1 else ""


class Watcher:
    """Follows the topics, keeps ``loop`` up to date, and hands every message to ``tell``."""

    def __init__(
        self, bootstrap_servers: str, *, prefix: str, index: str, tell: Callable[[Message], None]
    ) -> None:
        self.loop = Loop()
        self._index = index
        self._tell = tell
        self._follower = Follower(bootstrap_servers, WATCHED, prefix=prefix)

    async def run(self) -> None:
        """Until cancelled."""
        async with self._follower:
            while True:
                batch = await self._follower.batch(timeout_seconds=0.2, max_records=2000)
                # Topics have no order among them; the loop's own is what a reader expects.
                for topic, record in sorted(batch, key=lambda pair: WATCHED.index(pair[0])):
                    try:
                        message = codec.decode(record.value, *topic.types)
                    except MessageError:
                        continue
                    if getattr(message, "index", None) == self._index:
                        self._take(message)

    def _take(self, message: Message) -> None:
        loop = self.loop
        match message:
            case ExampleFormed():
                loop.examples.add(message.example_id)
                return
            case DriftMeasured():
                loop.drift_reports += 1
                loop.drifted += any(m.exceeded for m in message.measurements)
            case Retrain():
                if any(known.command_id == message.command_id for known in loop.commands):
                    return
                loop.commands.append(message)
            case TrainingProgressed():
                loop.progress = message
                if message.stage == "done":
                    loop.ended.setdefault(message.command_id, set()).add(message.kind)
                elif message.stage == "failed":
                    loop.failures[message.command_id] = message.message
            case ModelVersionPublished():
                if message.version in loop.versions:
                    return
                loop.versions[message.version] = message
            case SplitChanged():
                if loop.split is not None and message.sequence <= loop.split.sequence:
                    return
                loop.split = message
            case NodeReported():
                loop.nodes[message.node_id] = message
                swap = (message.node_id, message.version)
                if message.state == "swapped" and not message.version.startswith("base-"):
                    if swap in loop.swaps:
                        return
                    loop.swaps.add(swap)
            case MessageQuarantined():
                loop.quarantined[message.error] = loop.quarantined.get(message.error, 0) + 1
        self._tell(message)
