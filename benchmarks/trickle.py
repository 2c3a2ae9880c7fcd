"""What little traffic is learnt from: many commands of few examples, each too few for a gate to tell anything.

    python -m benchmarks.trickle            three worlds of 2,250 functions, 30 times a hundred impressions
    python -m benchmarks.trickle --rungs adapter,query_encoder    the query encoder after each adapter, long
    python -m benchmarks.trickle --quick    one half of a world, and five times four hundred

People ask, the live version answers, their clicks go through the stream rules, and a command trains the adapter,
or ``--rungs``, on each hundred impressions and a sample of all older examples; what passes its gate goes live. Two
ways:

* ``together``: as it is done. Examples on which no gate has decided come again with the next command, which waits
  for a tenth more of them.
* ``apart``: each command stands alone.

``gain``: by how much MRR@10 of the last live version is above the base model's, on held-out queries for which
nobody ever clicked; the mean of the worlds, and ``gain_least`` of them. ``wrong_passes``: versions that went live
and were worse there than the one before, beyond chance.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from benchmarks._recorded import Habits, stdlib_world
from benchmarks._rounds import FirstSeed, Index, Rungs, Worlds, is_decided, verdicts_of
from benchmarks.common import JsonFile, Quick, finish, say
from clickloop import cli
from clickloop.evaluation import compare
from clickloop.events import ExampleFormed
from clickloop.replay import kinds_of
from streams.policies import MORE

DOCUMENTS, WORLDS, COMMANDS = 2250, 3, 30
QUICK_DOCUMENTS, QUICK_COMMANDS, QUICK_IMPRESSIONS = 1125, 5, 400
WAYS = ("together", "apart")


@dataclass(frozen=True)
class Outcome:
    gain: float
    passes: int
    wrong: int


def command(
    rungs: Rungs = "adapter",
    impressions: Annotated[int, typer.Option(min=20, help="Of each command.")] = 100,
    commands: Annotated[int, typer.Option(min=1, help="One after the other.")] = COMMANDS,
    worlds: Worlds = WORLDS,
    seed: FirstSeed = 0,
    json_file: JsonFile = None,
    quick: Quick = False,
) -> None:
    """Many small commands in a row, with and without what no gate has decided on."""
    kinds = cli.checked(lambda: kinds_of(rungs))
    if quick:
        commands, impressions, worlds = QUICK_COMMANDS, QUICK_IMPRESSIONS, 1
    found: dict[str, list[Outcome]] = {way: [] for way in WAYS}
    for number in range(seed, seed + worlds):
        with tempfile.TemporaryDirectory(prefix="clickloop-trickle-") as name:
            world = stdlib_world(documents=QUICK_DOCUMENTS if quick else DOCUMENTS, seed=number)
            index = Index(Path(name), world, kinds, seed=number)
            say(f"world {number}: {len(index.world.documents):,} documents; encoding ...")
            for way in WAYS:
                found[way].append(run(index, way, impressions=impressions, commands=commands, seed=number))
    figures: dict[str, Any] = {"worlds": worlds, "commands": commands, "impressions": impressions}
    for way, outcomes in found.items():
        figures |= {
            f"gain_{way}": fmean(one.gain for one in outcomes),
            f"gain_least_{way}": min(one.gain for one in outcomes),
            f"passes_{way}": sum(one.passes for one in outcomes),
            f"wrong_passes_{way}": sum(one.wrong for one in outcomes),
        }
    finish(figures, json_file=json_file)


def run(index: Index, way: str, *, impressions: int, commands: int, seed: int) -> Outcome:
    """All commands of one world, from the base model on."""
    rng = random.Random(seed)
    live = index.base()
    first = truth = index.truth(live)
    older, undecided, new = list[ExampleFormed](), list[ExampleFormed](), list[ExampleFormed]()
    passes = wrong = 0
    for number in range(commands):
        asked = rng.choices(index.world.clicking, k=impressions)
        new += index.clicked(live, asked, Habits(impressions), seed=1000 + number, day=number)
        if len(new) < MORE * len(undecided):
            continue
        covered, new = undecided + new, []
        made = index.trained(f"{way}-{number}", live, covered, older, sample=index.settings.replay_examples)
        if is_decided(made) or way == "apart":
            older, undecided = older + covered, []
        else:
            undecided = covered
        said = ", ".join(verdicts_of(made)) or "too few"
        for one in made:
            if one.gate and one.gate.verdict == "pass":
                live, before = one, truth
                truth = index.truth(live)
                passes += 1
                wrong += compare(before, truth, seed=seed).high < 0.0
        gain = float(truth.mean() / first.mean()) - 1.0
        say(f"{way}, command {number + 1}: {len(covered)} examples, {said}; live: {gain:+.1%} on held-out queries")
    return Outcome(gain, passes, wrong)


if __name__ == "__main__":
    typer.run(command)
