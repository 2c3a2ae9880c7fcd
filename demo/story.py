"""The loop's messages in a newcomer's words, and its counters."""

from __future__ import annotations

from clickloop.commands import Retrain
from clickloop.events import (
    DriftMeasured,
    Message,
    MessageQuarantined,
    ModelVersionPublished,
    NodeReported,
    SplitChanged,
    TrainingProgressed,
)
from demo.display import Row
from demo.users import Traffic
from demo.watcher import Loop


class Story:
    """Turns messages into lines. It keeps just enough to say a thing once."""

    def __init__(self) -> None:
        self._stage = ""
        self._drift_told = False
        self._quarantined = 0

    def line(self, message: Message) -> tuple[str, str] | None:
        """(subject, text), or None where there is nothing to say."""
        match message:
            case DriftMeasured():
                return self._drift(message)
            case Retrain():
                self._drift_told = False
                total = sum(r.end - r.start for r in message.ranges)
                return (
                    "retrain",
                    f"{', '.join(message.kinds)} on {total:,} messages, because {message.reason.text}",
                )
            case TrainingProgressed():
                return self._training(message)
            case ModelVersionPublished() if message.gate is None:
                return "version", f"{message.version} is the base model"
            case ModelVersionPublished():
                return "gate", self._gate(message)
            case SplitChanged():
                shares = ", ".join(f"{arm.version} {arm.buckets / 100:g} %" for arm in message.arms)
                return "split", shares + (f" ({message.reason})" if message.reason else "")
            case NodeReported() if message.state in {"swapped", "rejected"}:
                return "swap", self._swap(message)
            case MessageQuarantined():
                self._quarantined += 1
                if self._quarantined in {1, 10, 100, 1000}:
                    return "quarantine", f"{message.topic} offset {message.offset}: {message.reason[:100]}"
        return None

    def _drift(self, report: DriftMeasured) -> tuple[str, str] | None:
        exceeded = [m for m in report.measurements if m.exceeded]
        if not exceeded or self._drift_told:
            return None
        self._drift_told = True
        words = ", ".join(
            f"{m.detector} {m.value:.3f}" + (f" (p = {m.p_value:.3f})" if m.p_value is not None else "")
            for m in exceeded
        )
        return "drift", f"partition {report.partition}: {words}"

    def _training(self, progress: TrainingProgressed) -> tuple[str, str] | None:
        stage = f"{progress.kind}/{progress.stage}"
        if stage == self._stage:
            return None
        self._stage = stage
        match progress.stage:
            case "failed":
                return "trainer", f"failed: {progress.message}"
            case "training":
                return "trainer", f"{progress.kind}: training"
            case "done":
                return "trainer", f"{progress.kind}: {progress.verdict or 'done'}: {progress.message}".rstrip(": ")
        return "trainer", f"{progress.kind}: {progress.stage}"

    @staticmethod
    def _gate(event: ModelVersionPublished) -> str:
        gate = event.gate
        if gate is None:
            return event.version
        mrr = gate.metrics.get("mrr_at_10")
        figures = (
            f", MRR@10 {mrr.before:.3f} to {mrr.after:.3f} ({mrr.change:+.1%}, {mrr.low:+.1%} to {mrr.high:+.1%})"
            if mrr
            else ""
        )
        reasons = f": {'; '.join(gate.reasons)}" if gate.reasons and gate.verdict != "pass" else ""
        return f"{event.version} {gate.verdict} on {gate.queries} later queries{figures}{reasons}"

    @staticmethod
    def _swap(report: NodeReported) -> str:
        if report.state == "rejected":
            return f"{report.node_id} rejects {report.version}: {report.message}"
        took = f" in {report.swap_seconds:.1f} s" if report.swap_seconds is not None else ""
        return f"{report.node_id} has {report.version} loaded and warm{took}"


def rows(loop: Loop, traffic: Traffic, *, documents: int, examples: int) -> list[Row]:
    """The counters as they stand."""
    indexed = [report.documents for report in loop.nodes.values()]
    found = [
        Row("documents indexed", min(indexed, default=0), documents),
        Row("queries served", traffic.queries, detail=f"{traffic.failed_queries} failed"),
        Row("clicks", traffic.clicks, detail=f"{traffic.ratings} ratings"),
        Row("examples", len(loop.examples), examples),
        Row("drift reports", loop.drift_reports, detail=f"{loop.drifted} with drift"),
    ]
    progress = loop.progress
    if progress is not None and progress.stage not in {"done", "failed"}:
        words: list[str] = [progress.stage]
        if progress.loss is not None:
            words.append(f"loss {progress.loss:.4f}")
        if progress.eta_seconds is not None:
            words.append(f"{progress.eta_seconds:.0f} s left")
        name = f"training {progress.kind}"
        found.append(Row(name, progress.step, progress.steps or None, detail=", ".join(words)))
    return found
