"""What five incremental rounds forget: people's topics shift, and the first topic's queries are asked to the end.

    python -m benchmarks.forgetting             2,250 functions of the standard library, some minutes
    python -m benchmarks.forgetting --quick     450 of them, and the first comparison alone

Topics are groups of modules. In each round people ask about one of them alone, the live version answers, their
clicks go through the stream rules, and the strategy ``incremental`` trains the adapter on the round's examples and
a sample of all older ones. After each round the held-out queries of the first topic are asked; nobody ever clicked
for one.

* ``retained``: MRR@10 on them after the last round, as a share of its best after any. Every version goes live,
  whatever its gate says, which is harder than what is done.
* ``retained_gated``: the same as it is done: what does not pass its gate never goes live.
* ``retained_without_sample``: every version goes live, and no older example is learnt again.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import typer

from benchmarks._recorded import SHOWN, Habits, World, stdlib_world, traffic
from benchmarks.common import JsonFile, Quick, finish, say
from clickloop import codec
from clickloop.commands import Reason, Retrain
from clickloop.events import ExampleFormed, QueryServed, ResultClicked, ResultPreferred, ResultRated
from clickloop.model_store import Manifest, ModelStore
from clickloop.recorded import Judged
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


@dataclass(frozen=True)
class Round:
    """One round's outcome on the first topic's queries."""

    mrr: float
    verdict: str


class Silent:
    """Told of progress, says nothing."""

    async def stage(self, *_: Any, **__: Any) -> None: ...

    def from_thread(self, progress: Progress) -> None: ...

    def encoding(self, done: int, texts: int) -> None: ...


def command(json_file: JsonFile = None, quick: Quick = False, seed: int = 0) -> None:
    """Five rounds: adopting all versions, only what passes, and without the sample of old examples."""
    world = stdlib_world(documents=QUICK_DOCUMENTS if quick else DOCUMENTS, seed=seed)
    topics = topics_of(world, ROUNDS)
    first = [one for one in world.held_out if topics[group(min(one.relevant))] == 0]
    habits = Habits(impressions=300 if quick else 1_000)
    say(f"{len(world.documents):,} documents, {len(first)} held-out queries of the first topic; encoding ...")
    with tempfile.TemporaryDirectory(prefix="clickloop-forgetting-") as name:
        settings = TrainerSettings.load(store_url=f"file://{name}/store", work_dir=Path(name) / "work", seed=seed)
        rounds = Rounds(
            world, topics, habits, settings, [Judged(one.text, dict.fromkeys(one.relevant, 1.0)) for one in first]
        )
        figures: dict[str, Any] = {"documents": len(world.documents), "queries": len(first), "rounds": ROUNDS}
        ways = [("", False, settings.replay_examples)]
        if not quick:
            ways += [("_gated", True, settings.replay_examples), ("_without_sample", False, 0)]
        for label, gated, sample in ways:
            found = rounds.run(f"incremental{label}", gated=gated, sample=sample)
            mrr = [one.mrr for one in found]
            figures |= {
                f"mrr_before{label}": mrr[0],
                f"mrr_best{label}": max(mrr),
                f"mrr_last{label}": mrr[-1],
                f"passed{label}": sum(one.verdict == "pass" for one in found),
                f"retained{label}": mrr[-1] / max(mrr),
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

    def __init__(
        self,
        world: World,
        topics: dict[str, int],
        habits: Habits,
        settings: TrainerSettings,
        judged: Sequence[Judged],
    ) -> None:
        self._world = world
        self._topics = topics
        self._habits = habits
        self._settings = settings
        self._documents: list[Document] = [document_of(one) for one in world.documents]
        self._store = ModelStore(settings.store_url, cache=settings.work_dir / "cache")
        self._ladder = Ladder(settings, self._store)
        self._truth = Truth(judged, self._documents)
        self._loaded: dict[str, tuple[Model, Vectors]] = {}

    def run(self, name: str, *, gated: bool, sample: int) -> list[Round]:
        """From the base model through all rounds; the first entry is the base model's."""
        live = self._ladder.base()
        found = [Round(self._mrr(live), "")]
        older: list[ExampleFormed] = []
        for number in range(ROUNDS):
            new = list(self._examples(live, number))
            manifest = asyncio.run(self._train(f"{name}-{number}", live, self._data(new, older, sample)))
            older += new
            verdict = manifest.gate.verdict if manifest.gate else ""
            if not gated or verdict == "pass":
                live = manifest
            found.append(Round(self._mrr(live), verdict))
            say(f"{name}, round {number + 1}: {len(new)} examples, {verdict}, MRR@10 {found[-1].mrr:.3f}")
        return found

    def _examples(self, live: Manifest, number: int) -> Iterator[ExampleFormed]:
        """What the round's people click on what the live version shows, a day after the last round's."""
        asked = [one for one in self._world.clicking if self._topics[group(min(one.relevant))] == number]
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

    async def _train(self, name: str, live: Manifest, data: Data) -> Manifest:
        async def read() -> Data:
            return data

        wish = Retrain(
            command_id=name,
            index="default",
            issued_at=codec.now(),
            kinds=["adapter"],
            ranges=[],
            reason=Reason(policies=["manual"], text="a round"),
        )
        made = [one.manifest async for one in self._ladder.climb(wish, live, read, Silent())]
        return made[0]

    def _mrr(self, live: Manifest) -> float:
        model, vectors = self._searched(live)
        return float(self._truth.measure(model, vectors)["mrr_at_10"].mean())

    def _searched(self, live: Manifest) -> tuple[Model, Vectors]:
        if live.version not in self._loaded:
            found = self._ladder.loader.searched(live.version, self._documents, on_text=lambda *_: None)
            self._loaded = {live.version: found}
        return self._loaded[live.version]


if __name__ == "__main__":
    typer.run(command)
