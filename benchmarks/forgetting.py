"""What five incremental rounds forget: people's topics shift, and the first topic's queries are asked to the end.

    python -m benchmarks.forgetting             four worlds of 2,250 functions each, some minutes
    python -m benchmarks.forgetting --rungs adapter,query_encoder     the query encoder after each adapter, long
    python -m benchmarks.forgetting --quick     one of 450, and the first comparison alone

Topics are groups of modules. In each round people ask about one of them alone, the live version answers, their
clicks go through the stream rules, and the strategy ``incremental`` trains the adapter, or ``--rungs``, on the
round's examples and a sample of all older ones. After each round the held-out queries of the first topic are
asked, for which nobody ever clicked.

* ``retained``: MRR@10 on them after the last round, as a share of its best after any: the mean of the worlds, and
  ``retained_least`` of them. Every version goes live, whatever its gate says, which is harder than what is done.
* ``..._gated``: the same as it is done: what does not pass its gate never goes live, and the examples on which no
  gate has decided come again with the next round's.
* ``..._without_sample``: every version goes live, and no older example is learnt again.

What learns nothing forgets nothing: ``mrr_before``, ``mrr_last`` are the first topic's, ``all_before`` and
``all_last`` those of the held-out queries of all topics.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import typer

from benchmarks._recorded import Asked, Habits, World, stdlib_world
from benchmarks._rounds import FirstSeed, Index, Rungs, Worlds, is_decided, verdicts_of
from benchmarks.common import JsonFile, Quick, finish, say
from clickloop import cli
from clickloop.events import ExampleFormed, VersionKind
from clickloop.model_store import Manifest
from clickloop.replay import kinds_of

ROUNDS = 5
TARGET = 0.98
DOCUMENTS, QUICK_DOCUMENTS = 2250, 450
WORLDS = 4
"""A hundred queries tell MRR to a few per cent: one world alone may keep 97 % or all by chance."""


@dataclass(frozen=True)
class Round:
    """One round's outcome: MRR@10 of the first topic's held-out queries, and of all topics'."""

    mrr: float
    of_all: float
    verdicts: list[str]


@dataclass(frozen=True)
class Way:
    """Of going through the rounds."""

    label: str
    gated: bool = False
    sample: bool = True


WAYS = (Way(""), Way("_gated", gated=True), Way("_without_sample", sample=False))


def command(
    rungs: Rungs = "adapter",
    worlds: Worlds = WORLDS,
    seed: FirstSeed = 0,
    json_file: JsonFile = None,
    quick: Quick = False,
) -> None:
    """Five rounds: adopting all versions, only what passes, and without the sample of old examples."""
    kinds = cli.checked(lambda: kinds_of(rungs))
    ways = WAYS[:1] if quick else WAYS
    seeds = range(seed, seed + (1 if quick else worlds))
    found: dict[str, list[list[Round]]] = {way.label: [] for way in ways}
    for number in seeds:
        with tempfile.TemporaryDirectory(prefix="clickloop-forgetting-") as name:
            rounds = Rounds(Path(name), kinds, seed=number, quick=quick)
            for way in ways:
                found[way.label].append(rounds.run(way))
    figures: dict[str, Any] = {"worlds": len(seeds), "rounds": ROUNDS}
    for label, of_way in found.items():
        retained = [rounds[-1].mrr / max(one.mrr for one in rounds) for rounds in of_way]
        figures |= {
            f"retained{label}": fmean(retained),
            f"retained_least{label}": min(retained),
            f"mrr_before{label}": fmean(rounds[0].mrr for rounds in of_way),
            f"mrr_last{label}": fmean(rounds[-1].mrr for rounds in of_way),
            f"all_before{label}": fmean(rounds[0].of_all for rounds in of_way),
            f"all_last{label}": fmean(rounds[-1].of_all for rounds in of_way),
            f"passed{label}": sum(one.verdicts.count("pass") for rounds in of_way for one in rounds),
        }
    figures |= {"target": TARGET, "met": figures["retained"] >= TARGET}
    finish(figures, json_file=json_file)


def group(doc_id: str) -> str:
    """The module that a function is of."""
    return doc_id.partition(".")[0]


def topics_of(world: World, count: int) -> dict[str, int]:
    """Module → topic; each topic is asked about as often as another, as nearly as whole modules allow."""
    sizes = Counter(group(min(one.relevant)) for one in (*world.clicking, *world.held_out))
    filled = [0] * count
    topics: dict[str, int] = {}
    for module, size in sorted(sizes.items(), key=lambda found: (-found[1], found[0])):
        topics[module] = filled.index(min(filled))
        filled[topics[module]] += size
    return topics


class Rounds:
    """A world, its topics, and what the first topic's queries want."""

    def __init__(self, folder: Path, kinds: list[VersionKind], *, seed: int, quick: bool) -> None:
        world = stdlib_world(documents=QUICK_DOCUMENTS if quick else DOCUMENTS, seed=seed)
        self._topics = topics_of(world, ROUNDS)
        self._habits = Habits(impressions=300 if quick else 1_000)
        self._index = Index(folder, world, kinds, seed=seed)
        of_first = [self._topic(one) == 0 for one in world.held_out]
        self._first = np.flatnonzero(of_first)
        say(
            f"world {seed}: {len(world.documents):,} documents, {len(self._first)} of {len(of_first)} held-out "
            "queries are of the first topic; encoding ..."
        )

    def run(self, way: Way) -> list[Round]:
        """From the base model through all rounds; the first entry is the base model's."""
        index = self._index
        live = index.base()
        found = [Round(*self._mrr(live), [])]
        older, undecided = list[ExampleFormed](), list[ExampleFormed]()
        sample = index.settings.replay_examples if way.sample else 0
        for number in range(ROUNDS):
            asked = [one for one in index.world.clicking if self._topic(one) == number]
            new = undecided + index.clicked(live, asked, self._habits, seed=number, day=number)
            name = f"incremental{way.label}"
            made = index.trained(f"{name}-{number}", live, new, older, sample=sample)
            verdicts = verdicts_of(made)
            for manifest, verdict in zip(made, verdicts, strict=True):
                if not way.gated or verdict == "pass":
                    live = manifest
            if way.gated and not is_decided(made):
                undecided = new
            else:
                older, undecided = older + new, []
            found.append(Round(*self._mrr(live), verdicts))
            said = ", ".join(verdicts)
            say(f"{name}, round {number + 1}: {len(new)} examples, {said}, MRR@10 {found[-1].mrr:.3f}")
        return found

    def _topic(self, one: Asked) -> int:
        return self._topics[group(min(one.relevant))]

    def _mrr(self, live: Manifest) -> tuple[float, float]:
        """Of the first topic's queries, and of all."""
        found = self._index.truth(live)
        return float(found[self._first].mean()), float(found.mean())


if __name__ == "__main__":
    typer.run(command)
