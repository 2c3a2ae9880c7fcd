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
* ``..._gated``: the same as it is done: what does not pass its gate never goes live.
* ``..._without_sample``: every version goes live, and no older example is learnt again.

What learns nothing forgets nothing: ``mrr_before``, ``mrr_last`` are the first topic's, ``all_before`` and
``all_last`` those of the held-out queries of all topics.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, cast

import msgspec
import numpy as np
import typer

from benchmarks._recorded import SHOWN, Asked, Habits, World, stdlib_world, traffic
from benchmarks.common import JsonFile, Quick, finish, say
from clickloop import cli, codec
from clickloop.commands import Reason, Retrain
from clickloop.events import ExampleFormed, QueryServed, ResultClicked, ResultPreferred, ResultRated, VersionKind
from clickloop.model_store import Manifest, ModelStore
from clickloop.recorded import Judged
from clickloop.replay import kinds_of
from clickloop.sources import time_of
from streams.recorded import form_examples
from trainer.examples import Document, ExampleCollector, Reservoir, document_of, with_replayed
from trainer.methods.base import Progress
from trainer.model import Model, Vectors
from trainer.rung import Data, Ladder, data_of
from trainer.settings import TrainerSettings
from trainer.truth import Truth, top

Sent = QueryServed | ResultClicked | ResultRated | ResultPreferred

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


class Silent:
    """Told of progress, says nothing."""

    async def stage(self, *_: Any, **__: Any) -> None: ...

    def from_thread(self, progress: Progress) -> None: ...

    def encoding(self, done: int, texts: int) -> None: ...


def command(
    rungs: Annotated[str, typer.Option(help="Rungs of each round, comma-separated.")] = "adapter",
    worlds: Annotated[int, typer.Option(min=1, help="How many.")] = WORLDS,
    seed: Annotated[int, typer.Option(help="Of the first world.")] = 0,
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
    """A world, a store, and what the first topic's queries want."""

    def __init__(self, folder: Path, kinds: list[VersionKind], *, seed: int, quick: bool) -> None:
        self._kinds = kinds
        self._world = stdlib_world(documents=QUICK_DOCUMENTS if quick else DOCUMENTS, seed=seed)
        self._topics = topics_of(self._world, ROUNDS)
        self._habits = Habits(impressions=300 if quick else 1_000)
        self._settings = TrainerSettings.load(
            store_url=f"file://{folder}/store", work_dir=folder / "work", seed=seed
        )
        self._documents: list[Document] = [document_of(one) for one in self._world.documents]
        self._store = ModelStore(self._settings.store_url, cache=self._settings.work_dir / "cache")
        self._ladder = Ladder(self._settings, self._store)
        judged = [Judged(one.text, dict.fromkeys(one.relevant, 1.0)) for one in self._world.held_out]
        of_first = [self._topic(one) == 0 for one in self._world.held_out]
        self._first = np.flatnonzero(of_first)
        self._truth = Truth(judged, self._documents)
        self._loaded: dict[str, tuple[Model, Vectors]] = {}
        say(
            f"world {seed}: {len(self._documents):,} documents, {len(self._first)} of {len(judged)} held-out "
            "queries are of the first topic; encoding ..."
        )

    def run(self, way: Way) -> list[Round]:
        """From the base model through all rounds; the first entry is the base model's."""
        live = self._ladder.base()
        found = [Round(*self._mrr(live), [])]
        older: list[ExampleFormed] = []
        sample = self._settings.replay_examples if way.sample else 0
        for number in range(ROUNDS):
            new = list(self._examples(live, number))
            name = f"incremental{way.label}"
            made = asyncio.run(self._train(f"{name}-{number}", live, self._data(new, older, sample)))
            older += new
            verdicts = [one.gate.verdict if one.gate else "" for one in made]
            for manifest, verdict in zip(made, verdicts, strict=True):
                if not way.gated or verdict == "pass":
                    live = manifest
            found.append(Round(*self._mrr(live), verdicts))
            said = ", ".join(verdicts)
            say(f"{name}, round {number + 1}: {len(new)} examples, {said}, MRR@10 {found[-1].mrr:.3f}")
        return found

    def _topic(self, one: Asked) -> int:
        return self._topics[group(min(one.relevant))]

    def _examples(self, live: Manifest, number: int) -> Iterator[ExampleFormed]:
        """What the round's people click on what the live version shows, a day after the last round's."""
        asked = [one for one in self._world.clicking if self._topic(one) == number]
        model, vectors = self._searched(live)
        answers = top(model.encode_queries([one.text for one in asked]), vectors, SHOWN)
        sent = traffic(replace(self._world, clicking=asked), answers, self._habits, seed=number)
        kinds = (QueryServed, ResultClicked, ResultRated)
        events = [cast(Sent, codec.decode(msgspec.json.encode(event), *kinds)) for event in sent]
        later = timedelta(days=number)
        for one in form_examples(sorted(events, key=time_of), index="default", counts=Counter()):
            yield msgspec.structs.replace(one, served_at=one.served_at + later, formed_at=one.formed_at + later)

    def _data(self, new: list[ExampleFormed], older: list[ExampleFormed], sample: int) -> Data:
        collector = ExampleCollector(index="default", most=self._settings.max_examples)
        reservoir = Reservoir(index="default", most=sample)
        for one in new:
            collector.keep(one)
        for one in older if sample else []:
            reservoir.keep(one)
        old = reservoir.result()
        both = with_replayed(collector.result(), old).examples
        return data_of(both, self._documents, self._settings, replayed=len(old))

    async def _train(self, name: str, live: Manifest, data: Data) -> list[Manifest]:
        async def read() -> Data:
            return data

        wish = Retrain(
            command_id=name,
            index="default",
            issued_at=codec.now(),
            kinds=self._kinds,
            ranges=[],
            reason=Reason(policies=["manual"], text="a round"),
        )
        return [one.manifest async for one in self._ladder.climb(wish, live, read, Silent())]

    def _mrr(self, live: Manifest) -> tuple[float, float]:
        """Of the first topic's queries, and of all."""
        found = self._truth.measure(*self._searched(live))["mrr_at_10"]
        return float(found[self._first].mean()), float(found.mean())

    def _searched(self, live: Manifest) -> tuple[Model, Vectors]:
        if live.version not in self._loaded:
            found = self._ladder.loader.searched(live.version, self._documents, on_text=lambda *_: None)
            self._loaded = {live.version: found}
        return self._loaded[live.version]


if __name__ == "__main__":
    typer.run(command)
