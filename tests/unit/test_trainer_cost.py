from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from clickloop.accounts import gate_rows
from clickloop.events import CostResult, Estimate
from tests.unit.trainer_facts import world
from trainer.cost import FEWEST_PAIRS, PAIRS, WARM_UP, Served, cost_of, loaded_bytes, slowdown, timed
from trainer.gate import Side, Thresholds, judge, measure
from trainer.methods.base import Parent, Trained
from trainer.model import Adapter, Vectors, normalised

THRESHOLDS = Thresholds(min_queries=50, max_lost_recall=0.1, max_slowdown=1.5)
TIMES = Estimate(before=0.005, after=0.0052, change=0.04, low=0.01, high=0.07)


class Machine:
    """A clock that moves by what is done, and by a noise that both sides meet."""

    def __init__(self, *, noise: float, seed: int = 0) -> None:
        self.now = 0.0
        self.asked: list[tuple[str, str]] = []
        self._noise, self._rng = noise, np.random.default_rng(seed)

    def side(self, name: str, seconds: float) -> Callable[[str], None]:
        def ask(query: str) -> None:
            self.asked.append((name, query))
            # As a neighbour's load would have it: slow phases that last for many queries, and single outliers.
            phase = 1.0 + (len(self.asked) // 40) % 2
            self.now += seconds * phase * float(self._rng.lognormal(0.0, self._noise))

        return ask


def cost(factor: float, *, noise: float = 0.2, seed: int = 0) -> CostResult:
    machine = Machine(noise=noise, seed=seed)
    sides = machine.side("parent", 0.005), machine.side("candidate", 0.005 * factor)
    before, after = timed(*sides, ["a", "b", "c"], clock=lambda: machine.now)
    return CostResult(encode_seconds=slowdown(before, after, seed=0), bytes_before=100, bytes_after=150)


def verdict(of: CostResult) -> tuple[str, str]:
    clicks, corpus = world()
    better = normalised(clicks.vectors + 0.5 * corpus.vectors[: len(clicks.vectors)])
    trial = measure(clicks, Side(clicks.vectors, corpus.vectors), Side(better, corpus.vectors))
    result = judge([trial], thresholds=THRESHOLDS, seed=0, cost=of)
    assert result.cost == of
    return result.verdict, result.reasons[0]


def test_parent_and_candidate_take_turns_at_the_same_queries_and_at_being_first():
    machine = Machine(noise=0.0)
    timed(machine.side("p", 0.01), machine.side("c", 0.01), ["a", "b"], clock=lambda: machine.now)
    pairs = [machine.asked[i : i + 2] for i in range(0, len(machine.asked), 2)]
    assert all({name for name, _ in pair} == {"p", "c"} and len({q for _, q in pair}) == 1 for pair in pairs)
    assert sum(pair[0][0] == "p" for pair in pairs[-PAIRS:]) == PAIRS // 2


def test_a_slow_encoder_is_timed_less_often():
    machine = Machine(noise=0.0)
    before, after = timed(machine.side("p", 1.0), machine.side("c", 1.0), ["a"], clock=lambda: machine.now)
    assert len(before) == len(after) == FEWEST_PAIRS


def test_what_both_do_alike_is_done_once_and_counts_for_each():
    machine = Machine(noise=0.0)
    encodes, maps = machine.side("both", 0.004), machine.side("map", 0.001)
    before, after = timed(lambda _: None, maps, ["a", "b"], both=encodes, clock=lambda: machine.now)
    assert sum(name == "both" for name, _ in machine.asked) - WARM_UP == len(before) == PAIRS
    assert np.all(before >= 0.004 - 1e-9)
    assert np.all(after - before >= 0.001 - 1e-9)


def test_versions_that_share_an_encoder_have_it_asked_once_a_query(monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []

    def encode(encoder: object, texts: list[str]) -> Vectors:
        asked.append(encoder)
        return np.ones((len(texts), 4), np.float32)

    monkeypatch.setattr("trainer.cost.encode", encode)
    one, other = (SentenceTransformer(modules=[torch.nn.Linear(3, 4)]) for _ in range(2))
    parent = Parent("base", one, None, one)
    result = cost_of(
        Served.of(parent), Served.of(parent, Trained(adapter=Adapter.identity(4))), ["a", "b"], seed=0
    )
    assert asked == [one] * (WARM_UP + PAIRS)
    assert result.bytes_after == result.bytes_before + 4 * (4 * 4 + 4)
    asked.clear()
    cost_of(Served.of(parent), Served.of(parent, Trained(encoder=other)), ["a", "b"], seed=0)
    assert asked.count(one) == asked.count(other) == WARM_UP + PAIRS


@pytest.mark.parametrize("seed", range(5))
def test_a_version_twice_as_slow_fails_however_well_it_finds(seed: int):
    found, reason = verdict(cost(2.0, seed=seed))
    assert found == "fail"
    assert reason.endswith("at most 1.5 is allowed")


@pytest.mark.parametrize("seed", range(5))
def test_a_version_as_fast_as_its_parent_passes_on_a_noisy_machine(seed: int):
    same = cost(1.0, noise=0.4, seed=seed)
    assert same.encode_seconds.low < 0.0 < same.encode_seconds.high
    assert verdict(same)[0] == "pass"


def test_what_is_beyond_the_limit_by_chance_only_does_not_fail():
    close = cost(1.52, noise=0.4, seed=1)
    assert close.encode_seconds.low < 0.5
    assert verdict(close)[0] == "pass"


def test_too_slow_a_version_fails_where_no_clicks_were_held_out():
    result = judge([], thresholds=THRESHOLDS, seed=0, cost=cost(3.0))
    assert (result.verdict, len(result.reasons)) == ("fail", 2)
    assert judge([], thresholds=THRESHOLDS, seed=0, cost=cost(1.0)).verdict == "inconclusive"


def test_an_encoder_that_is_there_twice_is_loaded_once():
    one, other = (SentenceTransformer(modules=[torch.nn.Linear(3, 4)]) for _ in range(2))
    each = 4 * (3 * 4 + 4)
    adapter = Adapter.identity(4)
    assert loaded_bytes([one, one], None) == each
    assert loaded_bytes([one, other], adapter) == 2 * each + 4 * (4 * 4 + 4)


def test_the_gates_table_shows_time_and_size():
    clicks, corpus = world(queries=100)
    side = Side(clicks.vectors, corpus.vectors)
    of = msgspec.structs.replace(cost(1.0), encode_seconds=TIMES)
    rows = list(gate_rows(judge([measure(clicks, side, side)], thresholds=THRESHOLDS, seed=0, cost=of)))
    assert rows[-2] == ["time to encode a query", "5.00 ms", "5.20 ms", "+4.0%", "+1.0% to +7.0%"]
    assert rows[-1] == ["weights to load", "100 B", "150 B", "+50.0%", "-"]
