"""What the demo measured: the figures as one object, as a table for people, as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from clickloop.accounts import METRIC_NAMES, changed, interval
from clickloop.evaluation import Ranks, compare, per_query_metrics
from clickloop.events import Estimate, ModelVersionPublished, VersionKind

METRICS = ("mrr_at_10", "recall_at_1", "recall_at_5")


@dataclass
class Rung:
    """One version of the ladder against the base model, on held-out queries."""

    kind: VersionKind
    version: str
    verdict: str
    train_seconds: float
    click_to_serving_seconds: float | None
    """From the newest click that it learned from to the first answer it gave to a user."""
    dense: dict[str, Estimate] = field(default_factory=dict)
    hybrid: dict[str, Estimate] = field(default_factory=dict)

    @property
    def better(self) -> bool:
        """Its MRR@10 in dense search is above the base model's, beyond chance."""
        return bool(self.dense) and self.dense["mrr_at_10"].low > 0.0


@dataclass
class Report:
    rungs: list[Rung] = field(default_factory=list)
    held_out: int = 0
    queries: int = 0
    failed_queries: int = 0
    wrong_space_answers: int = 0
    clicks: int = 0
    examples: int = 0
    drift_reports: int = 0
    retrain_commands: int = 0
    swaps: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    """Why the loop did not close, or is not better; empty is success."""

    def problems_of_rungs(self, wanted: Sequence[VersionKind]) -> list[str]:
        """Why the new versions are not what was promised.

        A rung that can't be told from the one that passed below it is no problem: it is not served.
        """
        trained = {rung.kind for rung in self.rungs}
        found = [f"no {kind} version was trained" for kind in wanted if kind not in trained]
        one_passed = any(rung.verdict == "pass" for rung in self.rungs)
        for rung in self.rungs:
            if rung.verdict == "pass" and not rung.better:
                found.append(f"{rung.version} is not better than the base model beyond chance")
            elif rung.verdict != "pass" and not (rung.verdict == "inconclusive" and one_passed):
                found.append(f"{rung.version} did not pass its gate ({rung.verdict})")
        return found

    def to_json(self) -> dict[str, Any]:
        rungs = {}
        for rung in self.rungs:
            rungs[rung.kind] = {
                **{name: _figures(estimate) for name, estimate in rung.dense.items()},
                "train_seconds": round(rung.train_seconds, 3),
                "click_to_serving_seconds": rung.click_to_serving_seconds,
                "verdict": rung.verdict,
                "version": rung.version,
                "hybrid": {name: _figures(estimate) for name, estimate in rung.hybrid.items()},
            }
        plain = asdict(self)
        del plain["rungs"]
        return {"rungs": rungs, **plain}

    def write(self, path: Path) -> None:
        path.write_bytes(orjson.dumps(self.to_json(), option=orjson.OPT_INDENT_2) + b"\n")


def _figures(estimate: Estimate) -> dict[str, float]:
    return {name: round(getattr(estimate, name), 5) for name in ("before", "after", "change", "low", "high")}


def estimates(before: Ranks, after: Ranks) -> dict[str, Estimate]:
    """Each metric before and after, on the same queries."""
    first, second = per_query_metrics(before), per_query_metrics(after)
    return {name: compare(first[name], second[name]) for name in METRICS}


def rung_of(event: ModelVersionPublished, *, first_answer: float | None) -> Rung:
    """What is known of a version before it is measured on held-out queries."""
    newest = event.lineage.newest_example_at
    waited = None
    if first_answer is not None and newest is not None:
        waited = round(first_answer - newest.timestamp(), 2)
    return Rung(
        kind=event.kind,
        version=event.version,
        verdict=event.gate.verdict if event.gate else "none",
        train_seconds=event.lineage.train_seconds,
        click_to_serving_seconds=waited,
    )


def print_table(report: Report, console: Console) -> None:
    """The one table at the end."""
    if any(rung.dense for rung in report.rungs):
        title = f"Search quality on {report.held_out} held-out queries, no click of which was seen"
        table = Table(title=title, title_justify="left", title_style="bold")
        for name in ("version", "search", "metric"):
            table.add_column(name, no_wrap=True)
        for name in ("before", "after", "change", "95 % interval"):
            table.add_column(name, justify="right", no_wrap=True)
        for rung in report.rungs:
            for mode, figures in (("dense", rung.dense), ("hybrid", rung.hybrid)):
                for name, e in figures.items():
                    cells = [f"{e.before:.3f}", f"{e.after:.3f}", changed(e), interval(e)]
                    table.add_row(rung.kind, mode, METRIC_NAMES[name], *cells)
            table.add_section()
        console.print(table)
    for rung in report.rungs:
        serving = rung.click_to_serving_seconds
        waited = f"{serving:.1f} s from click to serving" if serving is not None else "not served"
        console.print(f"{rung.kind}: gate {rung.verdict}, trained in {rung.train_seconds:.1f} s, {waited}")
    console.print(
        f"{report.queries:,} queries, {report.failed_queries} failed, "
        f"{report.wrong_space_answers} from a wrong space; {report.clicks:,} clicks, "
        f"{report.examples:,} examples, {report.drift_reports} drift reports, "
        f"{report.retrain_commands} retrain commands, {report.swaps} swaps; {report.seconds:.0f} s"
    )
    for problem in report.problems:
        console.print(f"PROBLEM: {problem}", style="bold red")
