"""Does a rung that passes its gate ever make search worse? Real documents and queries, simulated clicks.

    python -m benchmarks.safety                             adapter on every set, five seeds: twenty minutes
    python -m benchmarks.safety --rungs adapter,query_encoder --sets clinc150 --seeds 2
    python -m benchmarks.safety --search hybrid             people see what BM25 finds, too
    python -m benchmarks.safety --quick                     one set, one manner, one seed

The sets: clinc150 and scifact of ``CLICKLOOP_DATA`` (clicks on their train queries, truth on test and dev queries)
and the standard library (always there). Each is clicked in three manners: ``usual`` as in the demo, ``noisy`` with
more than half of the clicks mistaken, and ``few`` with a tenth of the clicks. Each manner and seed goes through
``clickloop replay`` by itself, so the gate sees only what those people did.

What people are shown is a search by the vectors alone, or with ``--search hybrid`` one that is fused with BM25, as
search nodes do unless told otherwise; much of what is clicked is then nowhere near the top of the vectors' search.
Then the truth is told of both searches.

A pass is **wrong** where the version is worse than its parent on the held-out truth beyond noise: the whole 95 %
interval (paired bootstrap over the judged queries) of its relative change of MRR@10 lies below 0, in the one or
the other search. The gate never sees that truth. ``wrong_passes`` counts them over all sets, manners, seeds and
rungs; the target is 0. ``missed`` are the opposite: versions that are better beyond noise and did not pass. A
gain is lost then, but no user is worse off.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import asdict as asdict_of

from benchmarks._recorded import (
    Asked,
    Habits,
    World,
    base_answers,
    data_world,
    replay_of,
    stdlib_world,
    traffic,
)
from benchmarks._searched import Fused, SearchedBy
from benchmarks.common import JsonFile, Quick, finish, say
from clickloop import cli
from clickloop.errors import SettingsError
from clickloop.events import Estimate, VersionKind
from clickloop.recorded import RungResult
from clickloop.replay import kinds_of

MOST_DOCUMENTS = 2000
"""Of a large set, so that encoding it takes a minute; judged documents stay."""
MANNERS = {
    "usual": Habits(impressions=8000),
    "noisy": Habits(impressions=8000, attractive=0.5, mistaken=0.3),
    "few": Habits(impressions=800),
}
QUICK_ASKED, QUICK_JUDGED, QUICK_IMPRESSIONS = 2500, 1000, 4000
SETS: dict[str, Callable[[], World | None]] = {
    "clinc150": lambda: data_world("clinc150", clicking="train", held_out="test"),
    "scifact": lambda: data_world("scifact", clicking="train", held_out="dev", documents=MOST_DOCUMENTS),
    "stdlib": lambda: stdlib_world(documents=MOST_DOCUMENTS),
}


@dataclass(frozen=True)
class Try:
    """One rung of one replay. ``change``, ``low`` and ``high`` are of its truth, against its parent."""

    set: str
    manner: str
    seed: int
    rung: VersionKind
    verdict: str
    gate_change: float
    gate_low: float
    gate_high: float
    change: float
    low: float
    high: float
    hybrid: Estimate | None = None
    """The same in hybrid search, where people were shown that."""

    @property
    def wrong_pass(self) -> bool:
        worse = self.high < 0.0 or (self.hybrid is not None and self.hybrid.high < 0.0)
        return self.verdict == "pass" and worse

    @property
    def missed(self) -> bool:
        return self.verdict != "pass" and self.low > 0.0


def tried(name: str, manner: str, seed: int, rung: RungResult, hybrid: Estimate | None) -> Try:
    truth = rung.over_parent["mrr_at_10"]
    gate = rung.gate.metrics.get("mrr_at_10") if rung.gate else None
    seen = gate or Estimate(before=0.0, after=0.0, change=0.0, low=0.0, high=0.0)
    of_gate = seen.change, seen.low, seen.high
    return Try(name, manner, seed, rung.kind, rung.verdict, *of_gate, truth.change, truth.low, truth.high, hybrid)


def main(
    rungs: Annotated[str, typer.Option(help="Rungs, comma-separated.")] = "adapter",
    sets: Annotated[str, typer.Option(help="Sets, comma-separated.")] = ",".join(SETS),
    manners: Annotated[str, typer.Option(help="Manners of clicking, comma-separated.")] = ",".join(MANNERS),
    seeds: Annotated[int, typer.Option(min=1, help="Populations of each manner.")] = 5,
    search: SearchedBy = "dense",
    json_file: JsonFile = None,
    quick: Quick = False,
) -> None:
    """Whether a rung that passes its gate is ever worse than its parent."""
    kinds = cli.checked(lambda: kinds_of(rungs))
    names = cli.checked(lambda: _chosen("--sets", sets, list(SETS)))
    wanted = cli.checked(lambda: _chosen("--manners", manners, list(MANNERS)))
    if quick:
        names, wanted, seeds = [_quick_set(names)], wanted[:1], 1
    tries: list[Try] = []
    left_out: list[str] = []
    for name in names:
        world = SETS[name]()
        if world is not None and quick:
            world = replace(
                world, clicking=_some(world.clicking, QUICK_ASKED), held_out=_some(world.held_out, QUICK_JUDGED)
            )
        if world is None:
            say(f"{name}: left out, CLICKLOOP_DATA names no folder that has it")
            left_out.append(name)
            continue
        habits = {manner: MANNERS[manner] for manner in wanted}
        if quick:
            habits = {manner: replace(one, impressions=QUICK_IMPRESSIONS) for manner, one in habits.items()}
        tries += _tries(name, world, habits, kinds, seeds, hybrid=search == "hybrid")
    _print(tries)
    figures: dict[str, Any] = {
        "tries": len(tries),
        "passes": sum(one.verdict == "pass" for one in tries),
        "wrong_passes": sum(one.wrong_pass for one in tries),
        "wrong_passes_target": 0,
        "missed": sum(one.missed for one in tries),
        "worst_change_of_a_pass": min((one.change for one in tries if one.verdict == "pass"), default=None),
        "search": search,
    }
    of_hybrid = [one.hybrid.change for one in tries if one.hybrid is not None and one.verdict == "pass"]
    if of_hybrid:
        figures["mean_hybrid_change_of_a_pass"] = sum(of_hybrid) / len(of_hybrid)
        figures["worst_hybrid_change_of_a_pass"] = min(of_hybrid)
    finish(figures, json_file=None)
    if json_file is not None:
        every = [
            asdict(one)
            | {"hybrid": one.hybrid and asdict_of(one.hybrid)}
            | {"wrong_pass": one.wrong_pass, "missed": one.missed}
            for one in tries
        ]
        text = json.dumps(figures | {"quick": quick, "left_out": left_out, "results": every}, indent=2)
        json_file.write_text(text + "\n", encoding="utf-8")


def _tries(
    name: str, world: World, manners: dict[str, Habits], kinds: list[VersionKind], seeds: int, *, hybrid: bool
) -> list[Try]:
    found: list[Try] = []
    with tempfile.TemporaryDirectory(prefix="clickloop-safety-") as work:
        say(f"{name}: {len(world.documents):,} documents, {len(world.held_out):,} judged queries; encoding ...")
        answers = base_answers(world, Path(work))
        fused = Fused(world, Path(work)) if hybrid else None
        if fused is not None:
            answers = fused.answers()
        for manner, habits in manners.items():
            for seed in range(seeds):
                sent = traffic(world, answers, habits, seed=seed)
                outcome = replay_of(world, sent, kinds=kinds, work=Path(work), seed=seed, say=lambda _: None)
                for rung in outcome.climbed.rungs:
                    of_hybrid = fused.change(rung.parent, rung.version) if fused and rung.version else None
                    found.append(tried(name, manner, seed, rung, of_hybrid))
                    say(_line(found[-1]))
    return found


def _line(one: Try) -> str:
    mark = "  WRONG PASS" if one.wrong_pass else "  missed" if one.missed else ""
    return (
        f"{one.set:<9} {one.manner:<6} seed {one.seed}  {one.rung:<13} {one.verdict:<12} "
        f"gate {one.gate_change:+.1%} ({one.gate_low:+.1%} to {one.gate_high:+.1%}), "
        f"truth {one.change:+.1%} ({one.low:+.1%} to {one.high:+.1%}){_of_hybrid(one)}{mark}"
    )


def _of_hybrid(one: Try) -> str:
    found = one.hybrid
    return f", hybrid {found.change:+.1%} ({found.low:+.1%} to {found.high:+.1%})" if found else ""


def _print(tries: list[Try]) -> None:
    """For each rung, set and manner the mean gain, the verdicts, and the wrong passes, over the seeds."""
    groups: dict[tuple[str, str, str], list[Try]] = {}
    for one in tries:
        groups.setdefault((one.rung, one.set, one.manner), []).append(one)
    print(f"{'rung':<13} {'set':<9} {'manner':<6} {'mean gain':>10} {'worst':>7}  verdicts, wrong passes")
    for (rung, name, manner), some in groups.items():
        verdicts = [one.verdict for one in some]
        said = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
        mean, worst = sum(one.change for one in some) / len(some), min(one.change for one in some)
        wrong = sum(one.wrong_pass for one in some)
        print(f"{rung:<13} {name:<9} {manner:<6} {mean:>+10.1%} {worst:>+7.1%}  {said}, {wrong} wrong")


def _chosen(option: str, text: str, known: list[str]) -> list[str]:
    """Raises SettingsError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise SettingsError(f"{option} {text}: {name!r} is none of {', '.join(known)}")
    if not names:
        raise SettingsError(f"{option}: name some of {', '.join(known)}")
    return names


def _some(queries: list[Asked], most: int) -> list[Asked]:
    """One in so many, from everywhere."""
    return queries[:: -(-len(queries) // most)]


def _quick_set(names: list[str]) -> str:
    """clinc150 where it is there: its documents are titles, and are encoded at once."""
    return next((name for name in names if name == "clinc150" and SETS[name]() is not None), "stdlib")


if __name__ == "__main__":
    typer.run(main)
