"""One index, round after round, without a broker: people click on what the live version shows, it is trained."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
import typer

from benchmarks._recorded import SHOWN, Asked, Habits, World, judged_of, traffic
from clickloop import codec
from clickloop.commands import Reason, Retrain
from clickloop.errors import TooFewError
from clickloop.evaluation import Floats
from clickloop.events import ExampleFormed, QueryServed, ResultClicked, ResultPreferred, ResultRated, VersionKind
from clickloop.model_store import Manifest, ModelStore
from clickloop.sources import time_of
from streams.recorded import form_examples
from trainer.examples import Document, ExampleCollector, Reservoir, document_of, with_replayed
from trainer.methods.base import Progress
from trainer.model import Model, Vectors
from trainer.past import Data, data_of
from trainer.rung import Ladder
from trainer.settings import TrainerSettings
from trainer.truth import Truth, top

Rungs = Annotated[str, typer.Option(help="Rungs of each command, comma-separated.")]
Worlds = Annotated[int, typer.Option(min=1, help="How many.")]
FirstSeed = Annotated[int, typer.Option("--seed", help="Of the first world.")]
"""What a benchmark of rounds can be asked for."""
Sent = QueryServed | ResultClicked | ResultRated | ResultPreferred
SENT = (QueryServed, ResultClicked, ResultRated)


class Silent:
    """Told of progress, says nothing."""

    async def stage(self, *_: Any, **__: Any) -> None: ...

    def from_thread(self, progress: Progress) -> None: ...

    def encoding(self, done: int, texts: int) -> None: ...


class Index:
    """A world's documents, a store of its own in ``folder``, and the truth."""

    def __init__(self, folder: Path, world: World, kinds: list[VersionKind], *, seed: int) -> None:
        self.world = world
        self.settings = TrainerSettings.load(
            store_url=f"file://{folder}/store", work_dir=folder / "work", seed=seed
        )
        self._kinds = kinds
        self._documents: list[Document] = [document_of(one) for one in world.documents]
        store = ModelStore(self.settings.store_url, cache=self.settings.work_dir / "cache")
        self._ladder = Ladder(self.settings, store)
        self._truth = Truth(judged_of(world), self._documents)
        self._loaded: dict[str, tuple[Model, Vectors]] = {}

    def base(self) -> Manifest:
        return self._ladder.base()

    def clicked(
        self, live: Manifest, asked: Sequence[Asked], habits: Habits, *, seed: int, day: int
    ) -> list[ExampleFormed]:
        """What people who ask so click on what the live version shows, on that day."""
        model, vectors = self._searched(live)
        answers = top(model.encode_queries([one.text for one in asked]), vectors, SHOWN)
        sent = traffic(replace(self.world, clicking=list(asked)), answers, habits, seed=seed)
        events = [cast(Sent, codec.decode(msgspec.json.encode(event), *SENT)) for event in sent]
        later = timedelta(days=day)
        return [
            msgspec.structs.replace(one, served_at=one.served_at + later, formed_at=one.formed_at + later)
            for one in form_examples(sorted(events, key=time_of), index="default", counts=Counter())
        ]

    def trained(
        self,
        name: str,
        live: Manifest,
        new: Sequence[ExampleFormed],
        older: Sequence[ExampleFormed],
        *,
        sample: int,
    ) -> list[Manifest]:
        """What the strategy ``incremental`` makes of the new examples and a sample of the older ones.

        Nothing where the trainer says that they are too few.
        """
        wish = Retrain(
            command_id=name,
            index="default",
            issued_at=codec.now(),
            kinds=self._kinds,
            ranges=[],
            reason=Reason(policies=["manual"], text="a round"),
        )
        data = self._data(new, older, sample)

        async def read() -> Data:
            return data

        async def climbed() -> list[Manifest]:
            return [one.manifest async for one in self._ladder.climb(wish, live, read, Silent())]

        try:
            return asyncio.run(climbed())
        except TooFewError:
            return []

    def truth(self, live: Manifest) -> Floats:
        """(held-out queries,) MRR@10 of each."""
        return self._truth.measure(*self._searched(live))["mrr_at_10"]

    def _data(self, new: Sequence[ExampleFormed], older: Sequence[ExampleFormed], sample: int) -> Data:
        collector = ExampleCollector(index="default", most=self.settings.max_examples)
        reservoir = Reservoir(index="default", most=sample)
        for one in new:
            collector.keep(one)
        for one in older if sample else []:
            reservoir.keep(one)
        both = with_replayed(collector.result(), reservoir.result())
        return data_of(both.examples, self._documents, self.settings, replayed=both.replayed)

    def _searched(self, live: Manifest) -> tuple[Model, Vectors]:
        if live.version not in self._loaded:
            found = self._ladder.loader.searched(live.version, self._documents, on_text=lambda *_: None)
            self._loaded = {live.version: found}
        return self._loaded[live.version]


def verdicts_of(made: Sequence[Manifest]) -> list[str]:
    """Of a command's rungs."""
    return [one.gate.verdict if one.gate else "" for one in made]


def is_decided(made: Sequence[Manifest]) -> bool:
    """Its examples don't come again with the next command (``streams.commanded``)."""
    return bool({"pass", "fail"} & set(verdicts_of(made)))
