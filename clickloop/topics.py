"""The topics: names, keys, partitions, retention, and which messages each one carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clickloop import commands as c
from clickloop import events as e

DAY_MS = 24 * 60 * 60 * 1000
FOREVER_MS = -1


@dataclass(frozen=True)
class Topic:
    """One topic of the contract. ``suffix`` is its short name, as in the schemas' file names."""

    suffix: str
    types: tuple[type[e.Message], ...]
    key: Callable[[Any], str]
    key_name: str
    partitioned: bool = False
    """Spread over the configured number of partitions; the others have one, to keep their order."""
    cleanup: str = "delete"
    retention_ms: int = 7 * DAY_MS

    def name(self, prefix: str = "clickloop") -> str:
        return f"{prefix}.{self.suffix}.v1"

    def config(self) -> dict[str, str]:
        return {
            "cleanup.policy": self.cleanup,
            "retention.ms": str(self.retention_ms),
            "message.timestamp.type": "LogAppendTime",
        }


def _query_id(message: Any) -> str:
    return str(message.query_id)


def _index(message: Any) -> str:
    return str(message.index)


DOCUMENTS = Topic(
    "documents",
    (e.DocumentChanged,),
    lambda m: str(m.doc_id),
    "doc_id",
    cleanup="compact",
    retention_ms=FOREVER_MS,
)
QUERIES = Topic("queries", (e.QueryServed,), _query_id, "query_id", partitioned=True)
CLICKS = Topic("clicks", (e.ResultClicked,), _query_id, "query_id", partitioned=True)
RATINGS = Topic("ratings", (e.ResultRated, e.ResultPreferred), _query_id, "query_id", partitioned=True)
TRAINING_EXAMPLES = Topic(
    "training-examples",
    (e.ExampleFormed,),
    lambda m: str(m.example_id),
    "example_id",
    partitioned=True,
    retention_ms=400 * DAY_MS,
)
DRIFT_REPORTS = Topic("drift-reports", (e.DriftMeasured,), _index, "index", retention_ms=90 * DAY_MS)
RETRAIN_COMMANDS = Topic("retrain-commands", (c.Retrain,), _index, "index", retention_ms=90 * DAY_MS)
TRAINING_RUNS = Topic(
    "training-runs",
    (e.TrainingProgressed,),
    lambda m: str(m.run_id),
    "run_id",
    cleanup="compact,delete",
    retention_ms=90 * DAY_MS,
)
MODEL_VERSIONS = Topic(
    "model-versions",
    (e.ModelVersionPublished,),
    lambda m: f"{m.index}/{m.version}",
    "index/version",
    cleanup="compact",
    retention_ms=FOREVER_MS,
)
TRAFFIC_SPLITS = Topic(
    "traffic-splits", (e.SplitChanged,), _index, "index", cleanup="compact,delete", retention_ms=FOREVER_MS
)
NODE_STATUS = Topic(
    "node-status", (e.NodeReported,), lambda m: str(m.node_id), "node_id", cleanup="compact,delete"
)
COMMANDS = Topic(
    "commands", (c.Rollback, c.Promote, c.Pause, c.ForgetUser, c.Cancel), _index, "index", retention_ms=FOREVER_MS
)
DEAD_LETTERS = Topic(
    "dead-letters",
    (e.MessageQuarantined,),
    lambda m: f"{m.topic}/{m.partition}/{m.offset}",
    "original position",
    retention_ms=30 * DAY_MS,
)

TOPICS: tuple[Topic, ...] = (
    DOCUMENTS,
    QUERIES,
    CLICKS,
    RATINGS,
    TRAINING_EXAMPLES,
    DRIFT_REPORTS,
    RETRAIN_COMMANDS,
    TRAINING_RUNS,
    MODEL_VERSIONS,
    TRAFFIC_SPLITS,
    NODE_STATUS,
    COMMANDS,
    DEAD_LETTERS,
)
