"""How often the drift detectors cry wolf, and how soon they see a shift.

    python -m benchmarks.drift                  simulated worlds, and real queries where CLICKLOOP_DATA names them
    python -m benchmarks.drift --quick          fewer simulated worlds, no real queries

Each stream is windows of 500 queries, put through the worker's own ``DriftWatch``: each window is compared with a
sample of the earlier ones. Windows before a shift, and all those of streams that don't shift, must raise no alarm.
A shift is missed if none of the first three windows after it does. The delay counts windows from the shift on, so
1 is the best; what came of a query is known in the window after it. All of it must hold as well where two versions
answer half of the queries each, and where new versions take over. Nor may there be an alarm where traffic grows
25-fold at once and falls again (``busier``): it goes through a partition's own rules, and clicks take their time.
Sketches are made as the search node makes them. Of the real sets, settings were chosen on train and validation
queries; the figures here are those of the test (clinc150) and dev (scifact) queries.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import typer

from benchmarks._traffic import Phase, measured
from benchmarks._worlds import Outcome, Shift, World, clinc150, data_folder, encoder, fill, scifact, simulated
from benchmarks.common import JsonFile, Quick, finish, say
from streams.detectors import default_detectors
from streams.drift import DriftWatch
from streams.windows import Sample

WINDOW = 500
SHARE = 0.2
BEFORE = 4
"""Windows before a shift; the first of them has nothing to be compared with."""
AFTER = 3
COMBINATION = "combination"
BUSIER: Sequence[Phase] = ((1.0, 2400.0), (25.0, 240.0), (1.0, 1200.0))
TARGETS = {"false_alarm_rate": 0.01, "median_delay_windows": 3, "missed_rate": 0.0}


@dataclass(frozen=True)
class Stream:
    """Which detectors exceeded, window by window. ``shift_at`` is the first window that is different."""

    exceeded: Sequence[frozenset[str]]
    shift_at: int

    def false_alarms(self, detector: str) -> tuple[int, int]:
        """Of how many windows that should be quiet."""
        quiet = self.exceeded[1 : self.shift_at]
        return sum(_by(detector, window) for window in quiet), len(quiet)

    def delay(self, detector: str) -> int | None:
        """Windows from the shift to the first alarm, 1 for the first one; None where it was missed."""
        after = self.exceeded[self.shift_at :]
        return next((count for count, window in enumerate(after, start=1) if _by(detector, window)), None)


def _by(detector: str, window: frozenset[str]) -> bool:
    return bool(window) if detector == COMBINATION else detector in window


Versions = Callable[[int], Sequence[str]]
"""Those that answer in a window, by its number."""


def one_version(number: int) -> Sequence[str]:  # noqa: ARG001
    return ("v1",)


def even_split(number: int) -> Sequence[str]:  # noqa: ARG001
    return ("v1", "v2")


def take_over(number: int) -> Sequence[str]:
    """Every fourth window another version comes, gets one query in ten, then half of them, then all."""
    old, new = f"v{number // 4}", f"v{number // 4 + 1}"
    return ((old,) * 9 + (new,), (old, new), (new,), (new,))[number % 4]


def run(
    world: World, shift: Shift, *, before: int, after: int, seed: int, versions: Versions = one_version
) -> Stream:
    """One stream through a watch of its own."""
    rng = np.random.default_rng([seed, 11])
    watch = DriftWatch(seed=seed)
    exceeded: list[frozenset[str]] = []
    closing: list[Outcome] = []
    for number in range(before + after):
        window = Sample()
        queries = world.draw(rng, WINDOW, shift if number >= before else "none", SHARE)
        closing = fill(window, queries, closing, rng, versions(number))
        exceeded.append(frozenset(m.detector for m in watch.measure(window) if m.exceeded))
    return Stream(exceeded, before)


@dataclass
class Group:
    """The streams of one sort of world, by shift."""

    streams: dict[Shift, list[Stream]] = field(default_factory=lambda: defaultdict(list))

    def run(
        self,
        world: Callable[[int], World],
        shift: Shift,
        count: int,
        *,
        before: int,
        after: int,
        versions: Versions = one_version,
    ) -> None:
        for seed in range(count):
            stream = run(world(seed), shift, before=before, after=after, seed=seed, versions=versions)
            self.streams[shift].append(stream)

    def figures(self, detector: str) -> dict[str, Any]:
        every = [stream for streams in self.streams.values() for stream in streams]
        told = [stream.false_alarms(detector) for stream in every]
        rate, low, high = clustered_rate(told)
        shifts = {name: self._shift(detector, name) for name in self.streams if name != "none"}
        return {
            "false_alarm_rate": rate,
            "false_alarm_interval": [low, high],
            "windows": sum(windows for _, windows in told),
            "streams": len(every),
            **shifts.get("unseen_topics", {}),
            "shifts": shifts,
        }

    def _shift(self, detector: str, shift: Shift) -> dict[str, Any]:
        delays = [stream.delay(detector) for stream in self.streams[shift]]
        seen = [delay for delay in delays if delay is not None]
        missed = 1.0 - sum(delay <= AFTER for delay in seen) / len(delays)
        return {
            "median_delay_windows": median(seen) if seen else None,
            "missed_rate": missed,
            "shifted_streams": len(delays),
        }


def clustered_rate(counts: Iterable[tuple[int, int]]) -> tuple[float, float, float]:
    """Share of alarms over (alarms, windows) of each stream, with its 95 % interval.

    Wilson's interval, for as many windows as the streams are worth: windows of one stream share a reference and
    so aren't quite independent (Korn and Graubard, "Confidence intervals for proportions with small expected
    number of positive counts", Survey Methodology 1998).
    """
    pairs = [(alarms, windows) for alarms, windows in counts if windows]
    n = sum(windows for _, windows in pairs)
    p = sum(alarms for alarms, _ in pairs) / n
    worth = float(n)
    if p > 0.0:
        between = sum((alarms - p * windows) ** 2 for alarms, windows in pairs) / n**2
        worth = min(n, p * (1 - p) / between)
    z = 1.96
    centre = (p + z * z / (2 * worth)) / (1 + z * z / worth)
    half = z / (1 + z * z / worth) * math.sqrt(p * (1 - p) / worth + z * z / (4 * worth * worth))
    return p, max(0.0, centre - half), centre + half


def main(json_file: JsonFile = None, quick: Quick = False) -> None:
    """Measure false alarms, delay and missed shifts of every detector, and of all together."""
    names = [COMBINATION, *(detector.name for detector in default_detectors())]
    worlds = {}
    for name, group in _groups(quick):
        worlds[name] = {detector: group.figures(detector) for detector in names}
        _print(name, worlds[name])
    headline = worlds["simulated"][COMBINATION]
    figures = {
        "compared": f"each window of {WINDOW} queries with the earlier ones; shift: {SHARE:.0%} of the traffic",
        **{key: headline[key] for key in (*TARGETS, "false_alarm_interval", "windows", "streams")},
        "targets": TARGETS,
    }
    _finish(figures, worlds, json_file)


def _finish(figures: dict[str, Any], worlds: dict[str, Any], json_file: Path | None) -> None:
    finish(figures, json_file=None)
    if json_file is not None:
        text = json.dumps(figures | {"detectors": worlds["simulated"], "worlds": worlds}, indent=2)
        json_file.write_text(text + "\n", encoding="utf-8")


def _groups(quick: bool) -> Iterator[tuple[str, Group]]:
    yield "simulated", _simulated(quick)
    for versions in (even_split, take_over):
        yield versions.__name__, _several_versions(quick, versions)
    yield "busier", _busier(quick)
    if quick:
        say("real queries: left out of a quick run")
    else:
        yield from _real()


def _worlds_from(first: int) -> Callable[[int], World]:
    return lambda seed: simulated(first + seed)


def _simulated(quick: bool) -> Group:
    streams, windows = (16, 12) if quick else (80, 20)
    group = Group()
    say(f"simulated: {2 * streams + streams // 2} streams ...")
    group.run(simulated, "none", streams, before=windows, after=0)
    group.run(_worlds_from(1000), "unseen_topics", streams, before=BEFORE, after=AFTER)
    group.run(_worlds_from(2000), "worse_answers", streams // 4, before=BEFORE, after=AFTER)
    group.run(_worlds_from(3000), "worse_topic", streams // 4, before=BEFORE, after=AFTER)
    return group


def _several_versions(quick: bool, versions: Versions) -> Group:
    streams = 2 if quick else 30
    group = Group()
    say(f"{versions.__name__}: {3 * streams} streams ...")
    group.run(_worlds_from(4000), "none", streams, before=12, after=0, versions=versions)
    shifts: tuple[tuple[Shift, int], ...] = (("unseen_topics", 5000), ("worse_answers", 6000))
    for shift, first in shifts:
        group.run(_worlds_from(first), shift, streams, before=BEFORE, after=AFTER, versions=versions)
    return group


def _busier(quick: bool) -> Group:
    streams = 1 if quick else 40
    group = Group()
    say(f"busier: {streams} streams ...")
    for seed in range(streams):
        exceeded = [frozenset[str](), *measured(simulated(7000 + seed), BUSIER, seed=seed)]
        group.streams["none"].append(Stream(exceeded, len(exceeded)))
    return group


def _real() -> Iterator[tuple[str, Group]]:
    folder = data_folder()
    if folder is None:
        say("real queries: left out, CLICKLOOP_DATA names no folder")
        return
    say("real queries: encoding ...")
    encode = encoder()
    worlds = clinc150(folder, encode, "test", per_domain=200) | scifact(folder, encode, "dev")
    for name, world in worlds.items():
        say(f"{name}: 20 streams ...")
        group = Group()
        group.run(lambda _, world=world: world, "none", 8, before=12, after=0)  # type: ignore[misc]
        group.run(lambda _, world=world: world, "unseen_topics", 12, before=BEFORE, after=AFTER)  # type: ignore[misc]
        yield name, group


def _print(name: str, by_detector: dict[str, dict[str, Any]]) -> None:
    first = by_detector[COMBINATION]
    shifts = first["shifts"]
    print(f"\n{name}: {first['streams']} streams, {first['windows']} windows that should be quiet")
    print(f"{'':16}{'false alarms':>13}{'95 %':>18}" + "".join(f"{shift:>26}" for shift in shifts))
    for detector, found in by_detector.items():
        low, high = found["false_alarm_interval"]
        cells = "".join(f"{_cell(found['shifts'][shift]):>26}" for shift in shifts)
        print(
            f"{detector:16}{found['false_alarm_rate']:>13.2%}{f'{low:.2%} to {high:.2%}':>18}{cells}", flush=True
        )


def _cell(shift: dict[str, Any]) -> str:
    delay = shift["median_delay_windows"]
    after = "-" if delay is None else f"after {delay:g}"
    return f"{after}, {shift['missed_rate']:.0%} missed"


if __name__ == "__main__":
    typer.run(main)
