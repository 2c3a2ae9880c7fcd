"""``python -m benchmarks.trust``: what a click farm can do, and whether the bias of clicks is found and undone.

Everything runs through the rules of a partition and the trainer's adapter rung; only broker and encoder are left
out (vectors are made up, so that the truth is known).

* A farm's clicks are 30 % of all and push one document, from few keys, from many, and from many that look like
  people. The rank that the next model gives the document is compared with that of a model without the farm, over
  the new queries for which it is among the first 50 with either; and once more with the rules off.
* The curve of where people look is estimated from swapped results, for power laws and for a curve of the shape
  that eye trackers show, and compared with the truth over positions 1 to 10.
* Two models learn from the same biased clicks, one from the debiased and one from the plain; both are asked new
  queries.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks._clicking import (
    ATTRACTIVE,
    BETWEEN,
    MISTAKEN,
    SHOWN,
    START,
    Event,
    Farm,
    People,
    World,
    make_world,
    power_law,
    rank,
)
from benchmarks.common import JsonFile, Quick, finish, say
from clickloop.events import ExampleFormed, QueryServed, ResultClicked
from clickloop.propensity import Correction, Examination, propensities
from streams.partition import Partition
from streams.settings import StreamsSettings
from trainer.model import Adapter

FARM_SHARE = 0.3
NEAR = 50
DOCUMENT_SHARE = 0.02
RULES_OFF = {"clicks_per_minute": 0, "clicks_per_document": 0, "max_key_share": 0, "max_document_share": 0}
EYE_TRACKED = np.asarray([0.68, 0.61, 0.48, 0.34, 0.28, 0.20, 0.11, 0.10, 0.08, 0.06]) / 0.68
"""A curve that bends otherwise than a power law (of the shape in Joachims et al. 2017, figure 1)."""


@dataclass(frozen=True)
class Size:
    impressions: int
    targets: int
    swapped: int
    """Swapped impressions from which each curve is estimated."""
    repeats: int


FULL = Size(impressions=6_000, targets=6, swapped=2_000_000, repeats=5)
SMALL = Size(impressions=4_000, targets=2, swapped=1_000_000, repeats=2)


def command(json_file: JsonFile = None, quick: Quick = False) -> None:
    """Push a document with farms, estimate where people look, and learn with and without it."""
    import torch

    torch.set_num_threads(1)
    size = SMALL if quick else FULL
    figures = farms(size) | examination(size) | debiasing(size)
    figures["throughput_events_per_second"] = throughput()
    finish(figures, json_file=json_file)


# A click farm


def farms(size: Size) -> dict[str, float]:
    """Positions that the pushed document is moved, up or down, with the rules and without."""
    world = make_world()
    people = list(People(world, size.impressions, power_law(1.0)).events())
    clicks = round(sum(isinstance(e, ResultClicked) for e in people) * FARM_SHARE / (1.0 - FARM_SHARE))
    clean = model_of(world, examples_of(people))
    kinds = {"few_keys": (5, False), "many_keys": (clicks, False), "disguised": (clicks // 2, True)}
    moved: dict[str, list[float]] = {}
    for target in np.random.default_rng(7).choice(len(world.documents), size.targets, replace=False):
        for name, (keys, disguised) in kinds.items():
            farm = Farm(world, int(target), clicks, keys, size.impressions * BETWEEN, disguised)
            both = list(heapq.merge(people, sorted(farm.events(), key=seconds), key=seconds))
            guarded = model_of(world, examples_of(both), max_document_share=DOCUMENT_SHARE)
            moved.setdefault(f"rank_shift_{name}", []).append(rise(world, int(target), clean, guarded))
            if name == "many_keys":
                free = model_of(world, examples_of(both, **RULES_OFF))
                moved.setdefault("rank_shift_without_rules", []).append(rise(world, int(target), clean, free))
        say(f"document {target}: " + ", ".join(f"{name} {shifts[-1]:+.2f}" for name, shifts in moved.items()))
    mean = {name: float(np.mean(np.abs(shifts))) for name, shifts in moved.items()}
    largest = max(mean[f"rank_shift_{name}"] for name in kinds)
    return {"farm_share_of_clicks": FARM_SHARE, "rank_shift": largest, **mean}


def rise(world: World, target: int, before: Adapter, after: Adapter) -> float:
    """Mean positions that ``target`` is higher ``after``, over the new queries that have it near the top."""
    old = rank(before.apply(world.held_out), world.documents, target)
    new = rank(after.apply(world.held_out), world.documents, target)
    near = np.minimum(old, new) <= NEAR
    return float((old - new)[near].mean())


def examples_of(events: Iterable[Event], **settings: object) -> list[ExampleFormed]:
    """The last revisions that a partition with these settings sends, oldest impression first."""
    partition = partition_with(**settings)
    offsets: Counter[type] = Counter()
    last: dict[str, ExampleFormed] = {}
    for event in events:
        at, offset = seconds(event), offsets[type(event)]
        offsets[type(event)] += 1
        for example in put(partition, event, offset=offset, at=at):
            known = last.get(example.example_id)
            if known is None or example.revision > known.revision:
                last[example.example_id] = example
    return sorted(last.values(), key=lambda e: (e.served_at, e.example_id))


def partition_with(**settings: object) -> Partition:
    return Partition(0, StreamsSettings.load(**settings), handled={}, forgotten=set(), now=START)


def put(partition: Partition, event: Event, *, offset: int, at: float) -> list[ExampleFormed]:
    """What the event makes of the open impressions."""
    if isinstance(event, QueryServed):
        return partition.query(event, offset=offset, log_time=at, now=at).examples
    return partition.feedback(event, offset=offset, log_time=at, now=at).examples


def model_of(
    world: World,
    examples: Sequence[ExampleFormed],
    *,
    bias: Correction = "estimated",
    max_document_share: float = 0.0,
    debiased: bool = False,
) -> Adapter:
    """What the adapter rung learns; ``debiased`` from clicks each times the inverse of its chance to be seen."""
    from sentence_transformers import SentenceTransformer
    from torch.nn import Identity

    from trainer.dataset import Corpus, prepare
    from trainer.examples import Document
    from trainer.methods.adapter import AdapterMethod
    from trainer.methods.base import Job, Parent

    encoder = SentenceTransformer(modules=[Identity()])
    documents = [Document(f"d{number}", "", b"") for number in range(len(world.documents))]
    clicks = prepare(examples, documents, bias=bias, max_document_share=max_document_share).clicks
    clicks = replace(clicks, vectors=world.texts[[int(text.removeprefix("t")) for text in clicks.queries]])
    clicks = replace(clicks, debiased=debiased)
    corpus, parent = Corpus(documents, world.documents), Parent("base", encoder, None, encoder)
    job = Job(parent, clicks, corpus, clicks.of_queries([]), 0, lambda _: None)
    return AdapterMethod().train(job).adapter or Adapter.identity(world.documents.shape[1])


def seconds(event: Event) -> float:
    at: datetime = event.served_at if isinstance(event, QueryServed) else event.clicked_at
    return at.timestamp()


# Where people look


def examination(size: Size) -> dict[str, float]:
    """Largest relative error of the estimated curve over positions 1 to 10, for several truths."""
    truths = {f"power_{exponent:g}": power_law(exponent) for exponent in (0.5, 1.0, 1.5)} | {"eye": EYE_TRACKED}
    errors = {}
    for number, (name, truth) in enumerate(truths.items()):
        estimated = np.asarray(swap_log(truth, swapped=size.swapped, seed=number).curve(SHOWN))
        errors[f"propensity_error_{name}"] = float(np.abs(estimated / truth - 1.0).max())
        prior = float(np.abs(power_law(1.0) / truth - 1.0).max())
        say(f"{name}: error {errors[f'propensity_error_{name}']:.3f}, with 1/position {prior:.3f}")
    return {"swapped_impressions": size.swapped, "propensity_error": max(errors.values()), **errors}


def swap_log(truth: NDArray[np.float64], *, swapped: int, exploration: float = 0.25, seed: int = 0) -> Examination:
    """Sums of a log of people who look as ``truth`` says, a share ``exploration`` of it with a pair swapped.

    At the default share of 2 % the same evidence takes 12.5 times as many impressions.
    """
    rng, log, block = np.random.default_rng(seed), Examination(), 200_000
    for _ in range(-(-round(swapped / exploration) // block)):
        like = np.full((block, SHOWN), MISTAKEN)
        wanted = rng.geometric(0.25, block) - 1
        seen = np.flatnonzero(wanted < SHOWN)
        like[seen, wanted[seen]] = ATTRACTIVE
        pair = np.where(rng.random(block) < exploration, rng.integers(1, SHOWN, block), 0)
        rows = np.flatnonzero(pair)
        upper = pair[rows] - 1
        like[rows, upper], like[rows, upper + 1] = like[rows, upper + 1].copy(), like[rows, upper].copy()
        clicked = rng.random((block, SHOWN), dtype=np.float32) < truth * like
        for number in range(SHOWN):
            chances = propensities(SHOWN, exploration, number or None)
            counts = clicked[pair == number].sum(axis=0)
            for position, (chance, times) in enumerate(zip(chances, counts, strict=True), start=1):
                log.click(position, propensity=chance, swapped=number or None, times=int(times))
    return log


# Learning with and without


def debiasing(size: Size) -> dict[str, float]:
    """MRR on queries that no one has asked, learnt from the same clicks with and without debiasing."""
    rows: dict[str, list[float]] = {}
    for seed in range(size.repeats):
        world = make_world(seed=seed)
        people = People(world, size.impressions, power_law(1.0), exploration=0.02, seed=seed)
        examples = examples_of(people.events())
        models = {
            "mrr_with": model_of(world, examples, debiased=True),
            "mrr_without": model_of(world, examples, bias="off"),
        }
        rows.setdefault("mrr_base", []).append(mrr(world, None))
        for name, adapter in models.items():
            rows.setdefault(name, []).append(mrr(world, adapter))
        say(f"world {seed}: " + ", ".join(f"{name} {values[-1]:.4f}" for name, values in rows.items()))
    return {name: float(np.mean(values)) for name, values in rows.items()}


def mrr(world: World, adapter: Adapter | None) -> float:
    queries = adapter.apply(world.held_out) if adapter else world.held_out
    return float((1.0 / rank(queries, world.documents, world.held_out_of)).mean())


# What the rules cost


def throughput(impressions: int = 20_000) -> float:
    """Events in a second of one processor's time: decoded, joined, judged, and formed into examples."""
    from clickloop import codec

    events = list(_traffic(impressions))
    raw: list[tuple[type[Event], bytes]] = [(type(event), codec.encode(event)) for event in events]
    partition = partition_with()
    started = time.process_time()
    for offset, (kind, value) in enumerate(raw):
        put(partition, codec.decode(value, kind), offset=offset, at=START + 0.01 * offset)
    return len(raw) / (time.process_time() - started)


def _traffic(impressions: int) -> Iterator[Event]:
    """Two impressions of ten results for each click."""
    waiting: ResultClicked | None = None
    for event in People(make_world(), impressions, power_law(1.0)).events():
        if isinstance(event, QueryServed):
            yield event
            if waiting is not None and int(event.query_id.rpartition("-")[2]) % 2:
                yield waiting
                waiting = None
        else:
            waiting = event


if __name__ == "__main__":
    typer.run(command)
