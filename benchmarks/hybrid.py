"""What weight the dense list should have when it is fused with BM25's: hybrid search before and after learning.

    python -m benchmarks.hybrid                             base model and adapter on every set
    python -m benchmarks.hybrid --rungs adapter,full        the last rung as well
    python -m benchmarks.hybrid --quick                     one set, the base model alone

The sets and the usual clicks are those of ``benchmarks.safety``. Held-out queries are put to a search node's own
index with each version's vectors: dense alone, and fused by reciprocal ranks, where so many places in the dense
list are one in BM25's. Each is compared with both lists weighing alike, with a 95 % interval by paired bootstrap.
Where places in the two lists tie, the engine has another order each time: all are asked twice with equal weights
and with the default, and how many answers differ is told.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks._recorded import World, base_answers, judged_of, ladder_in, replay_of, traffic
from benchmarks._searched import Searched
from benchmarks.common import JsonFile, Quick, finish, say
from benchmarks.safety import MANNERS, SETS
from clickloop import cli
from clickloop.evaluation import compare
from clickloop.events import Estimate, VersionKind
from clickloop.replay import figures, kinds_of
from search.settings import DENSE_WEIGHT
from trainer.examples import document_of
from trainer.model import Model, Vectors
from trainer.truth import Truth

ALIKE = 1.0
WEIGHTS = (0.52, 1.27, 1.58, DENSE_WEIGHT, 2.53, 3.07)
"""Ties are broken by chance, so none of them is a ratio of small numbers; equal weights can't help it."""
DENSE_ALONE = float("inf")
"""Stands for a search without BM25."""
QUICK_HELD_OUT = 300


@dataclass(frozen=True)
class Figures:
    """Of one version on one set, by the dense list's weight."""

    mrr: dict[float, Estimate]
    """MRR@10, against both lists weighing alike."""
    differing: dict[float, float]
    """Share of the queries that had another top ten when they were asked again."""


def main(
    rungs: Annotated[str, typer.Option(help="Rungs, comma-separated.")] = "adapter",
    json_file: JsonFile = None,
    quick: Quick = False,
) -> None:
    """What weight the dense list should have in hybrid search."""
    kinds = cli.checked(lambda: kinds_of(rungs))
    found: dict[str, dict[str, Figures]] = {}
    for name, make in SETS.items():
        world = make()
        if world is None:
            say(f"{name}: left out, CLICKLOOP_DATA names no folder that has it")
            continue
        if quick:
            world = replace(world, held_out=world.held_out[:QUICK_HELD_OUT])
        say(f"{name}: {len(world.documents):,} documents, {len(world.held_out):,} judged queries; encoding ...")
        found[name] = _of_set(world, [] if quick else kinds)
        _print(name, found[name])
        if quick:
            break
    told = summary(found)
    finish(told, json_file=None)
    if json_file is not None:
        every = {
            name: {
                version: {
                    "mrr_at_10": {_named(weight): figures(estimate) for weight, estimate in one.mrr.items()},
                    "differing": {_named(weight): share for weight, share in one.differing.items()},
                }
                for version, one in versions.items()
            }
            for name, versions in found.items()
        }
        text = json.dumps(told | {"quick": quick, "results": every}, indent=2)
        json_file.write_text(text + "\n", encoding="utf-8")


def summary(found: dict[str, dict[str, Figures]]) -> dict[str, Any]:
    """The default weight against equal ones over all sets and versions, and where it gains the least."""
    every = {f"{name}, {version}": one for name, versions in found.items() for version, one in versions.items()}
    changes = {name: one.mrr[DENSE_WEIGHT].change for name, one in every.items()}
    least = min(changes, key=changes.__getitem__)
    return {
        "weight": DENSE_WEIGHT,
        "compared": len(changes),
        "mean_change": float(np.mean(list(changes.values()))),
        "least_change": changes[least],
        "least_change_at": least,
        "most_differing": max(one.differing[DENSE_WEIGHT] for one in every.values()),
        "least_differing_alike": min(one.differing[ALIKE] for one in every.values()),
        "most_differing_alike": max(one.differing[ALIKE] for one in every.values()),
    }


def _of_set(world: World, kinds: list[VersionKind]) -> dict[str, Figures]:
    """By version, the base model's first; only what passed its gate is a version that users meet."""
    with tempfile.TemporaryDirectory(prefix="clickloop-hybrid-") as scratch:
        work = Path(scratch)
        answers = base_answers(world, work)
        versions: dict[str, str] = {}
        if kinds:
            sent = traffic(world, answers, MANNERS["usual"], seed=0)
            outcome = replay_of(world, sent, kinds=kinds, work=work, seed=0, say=lambda _: None)
            versions = {rung.kind: rung.version for rung in outcome.climbed.rungs if rung.verdict == "pass"}
        ladder = ladder_in(work)
        documents = [document_of(one) for one in world.documents]
        found = {}
        for kind, version in {"base": ladder.base().version, **versions}.items():
            model, vectors = ladder.loader.searched(version, documents, on_text=lambda *_: None)
            found[kind] = asyncio.run(_of_version(world, model, vectors, work / kind))
        return found


async def _of_version(world: World, model: Model, vectors: Vectors, folder: Path) -> Figures:
    judged = judged_of(world)
    truth = Truth(judged, [document_of(one) for one in world.documents])
    texts = [one.query for one in judged]
    asked = model.encode_queries(texts)
    async with Searched(world, model, vectors, folder) as searched:

        async def answers(weight: float) -> NDArray[np.int64]:
            if weight == DENSE_ALONE:
                return await searched.top(texts, asked, mode="dense")
            return await searched.top(texts, asked, dense_weight=weight)

        tops = {weight: await answers(weight) for weight in (ALIKE, *WEIGHTS, DENSE_ALONE)}
        ranks = {weight: truth.of_top(top)["mrr_at_10"] for weight, top in tops.items()}
        return Figures(
            {weight: compare(ranks[ALIKE], found) for weight, found in ranks.items()},
            {w: float((await answers(w) != tops[w]).any(axis=1).mean()) for w in (ALIKE, DENSE_WEIGHT)},
        )


def _print(name: str, versions: dict[str, Figures]) -> None:
    print(f"{'set':<9} {'version':<13} {'dense : BM25':>12} {'MRR@10':>7}  against 1 : 1, asked again")
    for version, found in versions.items():
        for weight, one in found.mrr.items():
            again = f", {found.differing[weight]:.1%} differ" if weight in found.differing else ""
            print(
                f"{name:<9} {version:<13} {_named(weight):>12} {one.after:>7.3f}  "
                f"{one.change:+.1%} ({one.low:+.1%} to {one.high:+.1%}){again}"
            )


def _named(weight: float) -> str:
    return "dense alone" if weight == DENSE_ALONE else f"{weight:g} : 1"


if __name__ == "__main__":
    typer.run(main)
