"""Short ways to write the facts that the stream rules take, with a hand-wound clock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from clickloop.events import (
    Arm,
    ArmCounts,
    DriftMeasured,
    Estimate,
    GateResult,
    Lineage,
    LiveResult,
    Measurement,
    ModelVersionPublished,
    NodeReported,
    OffsetRange,
    QueryServed,
    Result,
    ResultClicked,
    ResultPreferred,
    ResultRated,
    SplitChanged,
    TrainingProgressed,
)
from streams.partition import Partition
from streams.settings import StreamsSettings

NOON = 1_700_000_000.0


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOON + seconds, UTC)


def query(
    query_id: str = "q1",
    docs: Sequence[str] = ("a", "b", "c", "d"),
    *,
    served: float = 0.0,
    key: str = "user",
    version: str = "base-1",
    text: str = "how to sort",
    sketch: bytes = b"",
    scores: Sequence[float] = (),
    domain: str = "",
) -> QueryServed:
    return QueryServed(
        event_id=f"served-{query_id}",
        index="default",
        query_id=query_id,
        query=text,
        served_at=at(served),
        results=[
            Result(doc_id=d, position=p, score=scores[p - 1] if scores else 0.0)
            for p, d in enumerate(docs, start=1)
        ],
        split_key=key,
        version=version,
        space="base-1",
        arm="live",
        sketch=sketch,
        domain=domain,
    )


def click(
    doc: str, query_id: str = "q1", *, when: float = 2.0, event: str = "", dwell: float | None = None
) -> ResultClicked:
    return ResultClicked(
        event_id=event or f"click-{query_id}-{doc}-{when}-{dwell}",
        index="default",
        query_id=query_id,
        doc_id=doc,
        clicked_at=at(when),
        dwell_seconds=dwell,
    )


def rating(
    doc: str,
    stars: float,
    query_id: str = "q1",
    *,
    when: float = 3.0,
    event: str = "",
    accuracy: float | None = None,
    relevance: float | None = None,
) -> ResultRated:
    return ResultRated(
        event_id=event or f"rating-{query_id}-{doc}-{when}",
        index="default",
        query_id=query_id,
        doc_id=doc,
        rating=stars,
        rated_at=at(when),
        accuracy=accuracy,
        relevance=relevance,
    )


def preference(
    doc: str, over: str, query_id: str = "q1", *, strength: float = 1.0, when: float = 4.0
) -> ResultPreferred:
    return ResultPreferred(
        event_id=f"preference-{query_id}-{doc}-{over}-{when}-{strength}",
        index="default",
        query_id=query_id,
        preferred=doc,
        alternative=over,
        preferred_at=at(when),
        strength=strength,
    )


def range_(partition: int, start: int, end: int) -> OffsetRange:
    return OffsetRange(topic="clickloop.training-examples.v1", partition=partition, start=start, end=end)


def report(
    number: int,
    *,
    examples: int = 0,
    partition: int = 0,
    ranges: Sequence[OffsetRange] = (),
    drift: Sequence[str] | None = None,
    when: float = 0.0,
    arms: Sequence[ArmCounts] = (),
) -> DriftMeasured:
    names = sorted({"query_distance", "new_terms", *(drift or ())})
    return DriftMeasured(
        event_id=f"default/{partition}/{number}",
        index="default",
        partition=partition,
        window_start=at(when - 1),
        window_end=at(when),
        queries=10,
        examples=examples,
        ranges=list(ranges),
        arms=list(arms),
        measurements=[]
        if drift is None
        else [Measurement(detector=n, value=1.0, exceeded=n in drift) for n in names],
    )


def progress(
    command_id: str, kind: str, stage: str, *, when: float, verdict: str | None = None
) -> TrainingProgressed:
    return TrainingProgressed(
        event_id=f"{command_id}-{kind}-{stage}-{when}",
        index="default",
        run_id=f"run-{command_id}",
        command_id=command_id,
        kind=kind,  # type: ignore[arg-type]
        stage=stage,  # type: ignore[arg-type]
        at=at(when),
        verdict=verdict,  # type: ignore[arg-type]
    )


def trained(
    name: str,
    command_id: str,
    *,
    kind: str = "adapter",
    parent: str = "base-1",
    verdict: str = "pass",
    gain: float = 0.02,
    examples: int = 100,
    documents: int = 0,
    seconds: float = 10.0,
    when: float = 0.0,
) -> ModelVersionPublished:
    """A version as the trainer announces it, with what its gate measured."""
    metric = Estimate(before=0.4, after=0.4 * (1 + gain), change=gain, low=gain - 0.01, high=gain + 0.01)
    return ModelVersionPublished(
        event_id=f"default/{name}",
        index="default",
        version=name,
        kind=kind,  # type: ignore[arg-type]
        space="base-1",
        artifact_uri=f"file:///{name}",
        digest="0" * 64,
        published_at=at(when),
        parent=parent,
        lineage=Lineage(command_id=command_id, examples=examples, documents=documents, train_seconds=seconds),
        gate=GateResult(verdict=verdict, queries=100, metrics={"mrr_at_10": metric}),  # type: ignore[arg-type]
    )


def version(
    name: str,
    *,
    verdict: str | None = "pass",
    parent: str | None = None,
    when: float = 0.0,
    beside: str = "",
) -> ModelVersionPublished:
    """``beside``: the live version that its gate compared it with as well."""
    live = LiveResult(version=beside) if beside else None
    return ModelVersionPublished(
        event_id=f"default/{name}",
        index="default",
        version=name,
        kind="full" if verdict is None else "adapter",
        space="base-1",
        artifact_uri=f"file:///{name}",
        digest="0" * 64,
        published_at=at(when),
        parent=parent,
        gate=None if verdict is None else GateResult(verdict=verdict, queries=100, live=live),  # type: ignore[arg-type]
    )


def node(name: str, *versions: str, state: str = "serving", about: str = "", documents: int = 0) -> NodeReported:
    return NodeReported(
        event_id=f"{name}-{state}",
        index="default",
        node_id=name,
        reported_at=at(0),
        state=state,  # type: ignore[arg-type]
        versions=list(versions),
        version=about,
        documents=documents,
    )


def arms(split: SplitChanged) -> list[tuple[str, str, int]]:
    return [(a.name, a.version, a.buckets) for a in split.arms]


def arm(name: str, version: str, buckets: int) -> Arm:
    return Arm(name=name, version=version, buckets=buckets)


def partition(**changes: object) -> Partition:
    handled = changes.pop("handled", {})
    forgotten = changes.pop("forgotten", set())
    settings = StreamsSettings(**changes)  # type: ignore[arg-type]
    return Partition(0, settings, handled=handled, forgotten=forgotten, now=NOON)  # type: ignore[arg-type]
