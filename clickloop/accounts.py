"""What a manifest tells people: the gate's figures as a table, the lineage, what sets two versions apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec

from clickloop.events import Estimate, GateResult, SplitChanged
from clickloop.manifest import Manifest

Row = list[str]
METRIC_NAMES = {
    "mrr_at_10": "MRR@10",
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "recall_at_10": "recall@10",
    "ndcg_at_10": "nDCG@10",
}
"""What people are shown of those of clickloop.evaluation."""
GATE_COLUMNS = ["metric", "before", "after", "change", "95 % interval"]


def gate_rows(gate: GateResult) -> Iterator[Row]:
    """The before/after table, one row a metric."""
    for name, m in gate.metrics.items():
        yield _row(name, m)
    if gate.golden is not None:
        for name, m in gate.golden.metrics.items():
            yield _row(f"golden {name}", m)
        if not gate.golden.queries:
            yield [f"golden set, none of {gate.golden.left_out} queries tried", "-", "-", "-", "-"]
    if gate.live is not None and gate.live.metrics:
        beside = f"beside {gate.live.version}, which is live ({gate.live.queries} queries)"
        yield _row(f"mrr_at_10 {beside}", gate.live.metrics["mrr_at_10"])
    for part in gate.slices:
        yield _row(f"mrr_at_10 of {part.slice} ({part.queries} queries)", part.mrr_at_10)
    if gate.kept is not None:
        still = str(round(gate.kept * gate.confirmed))
        yield ["surely wanted, found", str(gate.confirmed), still, f"{gate.kept - 1.0:+.1%}", "-"]
    if gate.swaps is not None:
        yield _row(f"swaps agree ({gate.swaps.clicks} clicks)", gate.swaps.agreement)
    if gate.cost is not None:
        time, before, after = gate.cost.encode_seconds, gate.cost.bytes_before, gate.cost.bytes_after
        taken = [f"{1000 * seconds:.2f} ms" for seconds in (time.before, time.after)]
        yield ["time to encode a query", *taken, *_row("", time)[3:]]
        yield ["weights to load", size(before), size(after), f"{after / max(before, 1) - 1.0:+.1%}", "-"]


def _row(name: str, m: Estimate) -> Row:
    return [name, f"{m.before:.4f}", f"{m.after:.4f}", changed(m), interval(m)]


def changed(estimate: Estimate) -> str:
    """By what share a figure has changed; where there was nothing before, by how much."""
    return _part(estimate, estimate.change)


def interval(estimate: Estimate) -> str:
    """Where that may lie."""
    return f"{_part(estimate, estimate.low)} to {_part(estimate, estimate.high)}"


def _part(estimate: Estimate, value: float) -> str:
    return f"{value:+.1%}" if estimate.before > 0.0 else f"{value:+.4f}"


def mrr_of(gate: GateResult | None) -> str:
    found = gate.metrics.get("mrr_at_10") if gate else None
    return change(found) if found else "-"


def change(estimate: Estimate) -> str:
    return f"{changed(estimate)} [{_part(estimate, estimate.low)}, {_part(estimate, estimate.high)}]"


def size(number: float) -> str:
    """Bytes as people read them: 1.5 MB is 1,500,000.

    >>> size(999), size(1_500_000)
    ('999 B', '1.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"


def when(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else "-"


def origin_lines(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Label and text: how a version was made, and what the gate said."""
    lineage = manifest.lineage
    if manifest.parent is None:
        yield "base model", lineage.base_model or "-"
    else:
        yield "parent", manifest.parent
        seed = f"seed {lineage.seed}, Clickloop {lineage.code_version}"
        yield "command", f"{lineage.command_id}, run {lineage.run_id}, strategy {lineage.strategy}, {seed}"
        for r in lineage.ranges:
            yield "offsets", f"{r.topic}/{r.partition} [{r.start}, {r.end})"
        newest = f"the newest of {when(lineage.newest_example_at)}" if lineage.newest_example_at else "none dated"
        yield "examples", f"{lineage.examples:,}, {newest}; {lineage.documents:,} documents in the index"
        yield "base model", lineage.base_model or "-"
        yield "training", f"{lineage.train_seconds:.1f} s"
    if manifest.gate is not None:
        yield (
            "gate",
            f"{manifest.gate.verdict} on {manifest.gate.queries:,} queries, MRR@10 {mrr_of(manifest.gate)}",
        )
        for reason in manifest.gate.reasons:
            yield "", reason


def split_lines(version: str, splits: Sequence[SplitChanged]) -> Iterator[str]:
    """Each split that gave the version a share, oldest first."""
    for split in sorted(splits, key=lambda s: (s.changed_at, s.sequence)):
        for arm in split.arms:
            if arm.version == version:
                reason = f": {split.reason}" if split.reason else ""
                yield f"{when(split.changed_at)} {split.index}: {arm.name}, {arm.buckets / 100:g} %{reason}"


def differences(one: Manifest, other: Manifest) -> Iterator[Row]:
    """What differs, by name, with both values; files apart, which differ always."""
    left, right = _flat(one), _flat(other)
    for name in dict.fromkeys([*left, *right]):
        if left.get(name, "-") != right.get(name, "-"):
            yield [name, left.get(name, "-"), right.get(name, "-")]


def _flat(manifest: Manifest) -> dict[str, str]:
    gate, lineage = manifest.gate, manifest.lineage
    parts: dict[str, Any] = {name: getattr(manifest, name) for name in ("kind", "parent", "space", "encoder")}
    parts["stored"] = size(manifest.stored_bytes)
    apart = {"settings", "ranges"}
    parts |= {name: value for name, value in msgspec.structs.asdict(lineage).items() if name not in apart}
    parts["offsets"] = ", ".join(f"{r.topic}/{r.partition} [{r.start}, {r.end})" for r in lineage.ranges)
    parts |= {f"setting {name}": value for name, value in sorted(lineage.settings.items())}
    if gate is not None:
        parts |= {"verdict": gate.verdict, "gate queries": gate.queries, "reasons": "; ".join(gate.reasons)}
        parts |= {f"{row[0]} before, after": f"{row[1]}, {row[2]}" for row in gate_rows(gate)}
        parts |= {f"{row[0]} change": f"{row[3]} ({row[4]})" for row in gate_rows(gate)}
    return {name: _text(value) for name, value in parts.items() if value not in (None, "")}


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return when(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
