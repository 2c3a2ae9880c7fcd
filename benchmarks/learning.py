"""What the ladder learns on the standard library: clicks on four fifths of the queries, truth on the last fifth.

    python -m benchmarks.learning                           adapter and query_encoder, about four minutes
    python -m benchmarks.learning --rungs adapter,query_encoder,full     a quarter of an hour on two cores
    python -m benchmarks.learning --impressions 30000 --rungs full       what more clicks teach
    python -m benchmarks.learning --search hybrid           people see what BM25 finds, too
    CLICKLOOP_FULL_SEEDS=3 CLICKLOOP_FULL_SHARE=0.85 python -m benchmarks.learning --search hybrid \\
        --impressions 100000 --rungs full                   the mean of three trainings, over half an hour
    python -m benchmarks.learning --rounds 3 --rungs full   what it brings that people see what was learnt so far
    python -m benchmarks.learning --quick                   fewer documents, adapter only

People search 4,500 functions, and the base model answers; 900 queries are held out and never asked. What they did
goes through ``clickloop replay``: the stream rules, the trainer, the gate. Each rung is compared with the base
model on the held-out queries by exact dense search, with 95 % intervals by paired bootstrap. A rung that passes is
the parent of the next. The keys in the file are the demo's.

What people are shown is a search by the vectors alone, or with ``--search hybrid`` one that is fused with BM25, as
search nodes do unless told otherwise. Then what hybrid search has gained is told as well.

The base model answers all of it, unless there is more than one of ``--rounds``. Each lasts ``--impressions``, and
after each the rungs are trained from the base model on all there is so far (a ``full_retrain``). What passed last
answers in the next round, as it does in a running loop. The figures are the last round's; those before are told as
they come.
"""

from __future__ import annotations

import json
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks._recorded import (
    SECONDS_BETWEEN,
    START,
    Habits,
    answers_of,
    base_answers,
    replay_of,
    stdlib_world,
    traffic,
)
from benchmarks._searched import Fused, SearchedBy
from benchmarks.common import JsonFile, Quick, finish, say
from clickloop import cli
from clickloop.accounts import METRIC_NAMES
from clickloop.replay import Outcome, kinds_of, print_outcome
from clickloop.replay import figures as figures_of

TARGETS: dict[str, dict[str, float]] = {
    "adapter": {"mrr_at_10": 0.06, "train_seconds": 10.0},
    "query_encoder": {"mrr_at_10": 0.08},
    "full": {"mrr_at_10": 0.25, "recall_at_1": 0.30},
}
"""Least relative change of a metric, and most seconds of training."""
PAUSE = timedelta(hours=1)
"""Between two rounds: longer than feedback is waited for."""
QUICK_DOCUMENTS, QUICK_IMPRESSIONS = 1000, 4000


def main(
    rungs: Annotated[str, typer.Option(help="Rungs, comma-separated.")] = "adapter,query_encoder",
    seed: Annotated[int, typer.Option(help="Of the corpus and of what people do.")] = 0,
    search: SearchedBy = "dense",
    impressions: Annotated[int, typer.Option(min=1, help="Answers that people look at, each round.")] = 10_000,
    rounds: Annotated[int, typer.Option(min=1, help="Times that people search, and all is learnt anew.")] = 1,
    work: Annotated[Path | None, typer.Option(help="Folder to keep; what is there is not made again.")] = None,
    json_file: JsonFile = None,
    quick: Quick = False,
) -> None:
    """What the ladder learns on the standard library, against the base model."""
    kinds = cli.checked(lambda: kinds_of("adapter" if quick else rungs))
    with tempfile.TemporaryDirectory(prefix="clickloop-learning-") as scratch:
        folder = work or Path(scratch)
        world = stdlib_world(documents=QUICK_DOCUMENTS if quick else None, seed=seed)
        say(f"{len(world.documents):,} documents, {len(world.held_out):,} queries held out; encoding ...")
        habits = Habits(impressions=QUICK_IMPRESSIONS if quick else impressions)
        fused = Fused(world, folder) if search == "hybrid" else None
        answers = fused.answers() if fused is not None else base_answers(world, folder)
        sent, outcomes = list[dict[str, Any]](), list[Outcome]()
        for number in range(rounds):
            start = START + number * (timedelta(seconds=SECONDS_BETWEEN * habits.impressions) + PAUSE)
            sent += traffic(world, answers, habits, seed=seed + number, start=start)
            outcome = replay_of(world, sent, kinds=kinds, work=folder, seed=seed + number, say=say)
            outcomes.append(outcome)
            if number + 1 < rounds:
                live = outcome.climbed.live
                say(f"round {number + 1} of {rounds}: {_in_short(outcome)}; {live} answers in the next")
                answers = fused.answers(live) if fused is not None else answers_of(live, world, folder)
        hybrid = _of_hybrid(fused, outcome) if fused is not None else {}
    print_outcome(outcome, cli.console())
    figures = outcome.to_json()
    figures["rounds"] = [one.to_json()["rungs"] for one in outcomes]
    summary: dict[str, Any] = {"quick": quick, "search": search, "rounds": rounds}
    for kind, rung in figures["rungs"].items():
        if kind in hybrid:
            rung["hybrid"] = hybrid[kind]
            summary[f"{kind}_hybrid_mrr_at_10"] = rung["hybrid"]["mrr_at_10"]["change"]
        for name, target in TARGETS[kind].items():
            found = rung[name] if name == "train_seconds" else rung[name]["change"]
            summary[f"{kind}_{name}"] = found
            summary[f"{kind}_{name}_target"] = target
            summary[f"{kind}_{name}_met"] = found <= target if name == "train_seconds" else found >= target
    finish(summary, json_file=None)
    if json_file is not None:
        text = json.dumps(figures | {"targets": TARGETS, "summary": summary}, indent=2)
        json_file.write_text(text + "\n", encoding="utf-8")


def _in_short(outcome: Outcome) -> str:
    """Each rung's verdict, and what MRR@10 has gained on the truth."""
    rungs = outcome.to_json()["rungs"]
    return ", ".join(f"{kind} {one['mrr_at_10']['change']:+.1%} ({one['verdict']})" for kind, one in rungs.items())


def _of_hybrid(fused: Fused, outcome: Outcome) -> dict[str, dict[str, dict[str, float]]]:
    """For each rung that made a version, what hybrid search has gained over the base model's."""
    start = outcome.climbed.start
    return {
        rung.kind: {metric: figures_of(fused.change(start, rung.version, metric)) for metric in METRIC_NAMES}
        for rung in outcome.climbed.rungs
        if rung.version
    }


if __name__ == "__main__":
    typer.run(main)
