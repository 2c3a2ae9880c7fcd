"""What a rung is compared with."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from clickloop.errors import TooFewError, TrainingError
from clickloop.events import Estimate, GateResult, GoldenResult, Verdict, VersionKind
from clickloop.model_store import Manifest, ModelStore, Published
from clickloop.propensity import Examination
from tests.unit.trainer_facts import START, retrain, world
from tests.unit.version_facts import gate, put
from trainer.beside import Candidate
from trainer.dataset import Prepared
from trainer.gate import GoldenTrial, Trial, beside_live
from trainer.loading import Loaded
from trainer.methods.base import Job, Parent, Progress, Trained
from trainer.model import Adapter
from trainer.past import Data
from trainer.rung import TRAINING_SHARE, Ladder
from trainer.settings import TrainerSettings

# The ladder, with rungs that only say what they were given


@dataclass
class Recorder:
    """A rung that learns nothing, and remembers which parent it was to start from."""

    kind: VersionKind
    moments: int
    parents: list[Adapter | None] = field(default_factory=list)
    made: list[Adapter] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """That it had left."""
    replayed: list[float] = field(default_factory=list)
    given: list[bool] = field(default_factory=list)

    def train(self, job: Job) -> Trained:
        self.parents.append(job.parent.adapter)
        self.seconds.append(job.seconds_left())
        self.replayed.append(job.replayed)
        self.given.append(job.given)
        map_ = Adapter.identity(24)
        self.made.append(Adapter(map_.weight * (1.0 + len(self.made)), map_.bias))
        return Trained(adapter=self.made[-1])


class Silent:
    async def stage(self, *_: object, **__: object) -> None: ...

    def from_thread(self, progress: Progress) -> None: ...

    def encoding(self, done: int, texts: int) -> None: ...


@dataclass
class Climbs:
    """Runs commands on a ladder whose rungs are the recorders."""

    ladder: Ladder
    base: Manifest
    rungs: dict[VersionKind, Recorder]
    data: Data

    async def run(
        self,
        command_id: str,
        kinds: list[VersionKind],
        parent: Manifest | None = None,
        *,
        budget: float = 3600.0,
        live: Sequence[str] = (),
    ) -> list[Manifest]:
        """``live``: what users have at each look; nothing where no one is to look."""
        for rung in self.rungs.values():
            rung.parents.clear()
            rung.made.clear()
        wish = retrain(kinds, command_id=command_id, budget_seconds=budget)

        async def read() -> Data:
            return self.data

        looks = iter(live)

        async def by_now() -> str:
            return next(looks)

        climb = self.ladder.climb(wish, parent or self.base, read, Silent(), live=by_now if live else None)
        return [published.manifest async for published in climb]


@pytest.fixture
def climbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Climbs:
    clicks, corpus = world(queries=300)
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    settings = TrainerSettings(store_url=store.url, work_dir=tmp_path / "work", device="cpu")
    ladder = Ladder(settings, store)
    adapters: dict[str, Adapter] = {}

    def load(manifest: Manifest, *_: object, **__: object) -> Loaded:
        encoder: Any = object()
        kept = adapters.setdefault(manifest.version, Adapter.identity(24))
        none = clicks.of_queries([])
        brought = climbs.data.given or none
        parent = Parent(manifest.version, encoder, kept if manifest.parent else None, encoder)
        return Loaded(parent, corpus, clicks, brought, none)

    rungs: dict[VersionKind, Recorder] = {
        "adapter": Recorder("adapter", 3),
        "query_encoder": Recorder("query_encoder", 2),
    }
    monkeypatch.setattr(ladder.loader, "load", load)
    monkeypatch.setattr("trainer.rung.method_of", lambda kind, *_: rungs[kind])
    monkeypatch.setattr("trainer.rung.cost_of", lambda *_, **__: None)
    monkeypatch.setattr("trainer.rung.judge", lambda *_, **__: gate("pass"))
    examination = Examination()
    for position in (1, 2):
        for swapped in (1, None):
            examination.click(position, propensity=0.5, swapped=swapped, times=200)
    prepared = Prepared(clicks, clicks.of_queries([]), 300, 0, None, 0, examination)
    climbs = Climbs(ladder, put(store, tmp_path, "base-1"), rungs, Data(prepared, corpus.documents))
    return climbs


async def test_each_moment_of_a_rung_is_against_the_rung_below_at_that_moment(climbs: Climbs) -> None:
    await climbs.run("c1", ["adapter", "query_encoder"])
    below, above = climbs.rungs["adapter"], climbs.rungs["query_encoder"]
    assert below.parents == [None] * 3
    assert len(above.parents) == 2
    assert above.parents[0] is below.made[1], "what it was before the last clicks"
    assert above.parents[1] is not below.made[1]


async def test_each_moment_is_against_the_whole_parent_where_another_command_made_it(climbs: Climbs) -> None:
    [adapter] = await climbs.run("c1", ["adapter"])
    await climbs.run("c2", ["query_encoder"], adapter)
    first, second = climbs.rungs["query_encoder"].parents
    assert first is second is not None


@dataclass
class Onlooker:
    """Stands beside the live version, and says what it was told to."""

    verdict: Verdict
    seen: list[tuple[str, list[str]]] = field(default_factory=list)
    """The live version, and the held-out queries of each candidate."""

    def __call__(self, *_: object) -> Callable[..., GateResult]:
        def look(found: GateResult, live: str, made: Candidate, *_: object, **__: object) -> GateResult:
            assert len(made.side(made.later).queries) == len(made.later.queries)
            self.seen.append((live, made.later.queries))
            return beside_live(found, live, gate(self.verdict))

        return look


@pytest.fixture
def onlooker(monkeypatch: pytest.MonkeyPatch) -> Onlooker:
    found = Onlooker("pass")
    monkeypatch.setattr("trainer.rung.Beside", found)
    return found


async def test_the_first_rung_that_passes_must_beat_the_live_version_too_and_the_next_ones_follow_it(
    climbs: Climbs, onlooker: Onlooker
) -> None:
    adapter, above = await climbs.run("c1", ["adapter", "query_encoder"], live=["live-1"])
    [(live, queries)] = onlooker.seen
    assert live == "live-1"
    assert len(queries) > 50
    assert queries[-1] == climbs.data.prepared.clicks.queries[-1], "of the last moment"
    assert adapter.gate is not None
    assert adapter.gate.live is not None
    assert (adapter.gate.verdict, adapter.gate.live.version) == ("pass", "live-1")
    assert (above.parent, above.gate and above.gate.live) == (adapter.version, None)


async def test_what_does_not_beat_the_live_version_is_no_ones_parent(climbs: Climbs, onlooker: Onlooker) -> None:
    onlooker.verdict = "inconclusive"
    made = await climbs.run("c1", ["adapter", "query_encoder"], live=["live-1", "live-2"])
    assert [live for live, _ in onlooker.seen] == ["live-1", "live-2"], "as it is when the gate is done"
    assert [one.parent for one in made] == [climbs.base.version] * 2
    assert [one.gate.verdict for one in made if one.gate] == ["inconclusive"] * 2


def told_to_the_gate(name: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What each gate from now on is given by that name; all of them say ``verdict``."""
    told: list[object] = []

    def judged(*_: object, **given: object) -> GateResult:
        told.append(given[name])
        return gate(verdict)

    monkeypatch.setattr("trainer.rung.judge", judged)
    return told


@pytest.mark.parametrize("new_space", [True, False])
async def test_what_is_of_a_new_space_must_not_err_elsewhere(
    new_space: bool, climbs: Climbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = told_to_the_gate("apart", "fail", monkeypatch)
    train = climbs.rungs["adapter"].train
    monkeypatch.setattr(climbs.rungs["adapter"], "train", lambda job: replace(train(job), new_space=new_space))
    await climbs.run("c1", ["adapter"])
    assert told == [new_space]


@pytest.mark.parametrize("verdict", ["pass", "inconclusive"])
async def test_only_on_top_of_what_has_just_passed_a_one_sided_test_is_enough(
    verdict: Verdict, climbs: Climbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = told_to_the_gate("on_top", verdict, monkeypatch)
    first, _ = await climbs.run("c1", ["adapter", "query_encoder"])
    assert told == [False, verdict == "pass"]
    await climbs.run("c2", ["query_encoder"], first)
    assert told[2:] == [False], "another command's parent has just done nothing"


@pytest.mark.parametrize("live", [["base-1"], [""], []])
async def test_who_is_made_of_the_live_version_needs_no_second_look(
    live: list[str], climbs: Climbs, onlooker: Onlooker
) -> None:
    [made] = await climbs.run("c1", ["adapter"], live=live)
    assert onlooker.seen == []
    assert made.gate is not None
    assert (made.gate.verdict, made.gate.live) == ("pass", None)


async def test_the_lineage_says_on_how_many_swapped_clicks_the_examination_rests(climbs: Climbs) -> None:
    [made] = await climbs.run("c1", ["adapter"])
    assert made.lineage.settings["swapped_clicks"] == 400
    examination = climbs.data.prepared.examination
    assert examination is not None
    assert made.lineage.settings["examined_at_5"] == pytest.approx(examination.curve(5)[-1], abs=1e-4)
    assert made.lineage.settings["examined_at_5"] != pytest.approx(Examination().curve(5)[-1], abs=1e-2)


async def test_the_lineage_tells_apart_the_vectors_that_were_trained_against(
    climbs: Climbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder gives a text other last bits in other company."""
    load, nudged = climbs.ladder.loader.load, list[str]()

    def nudging(*given: Any, **more: Any) -> Loaded:
        loaded = load(*given, **more)
        corpus, clicks = loaded.corpus, loaded.clicks
        if "documents" in nudged:
            corpus = replace(corpus, vectors=np.nextafter(corpus.vectors, np.float32(2)))
        if "queries" in nudged:
            clicks = replace(clicks, vectors=np.nextafter(clicks.vectors, np.float32(2)))
        return replace(loaded, corpus=corpus, clicks=clicks)

    monkeypatch.setattr(climbs.ladder.loader, "load", nudging)

    async def digests(command_id: str, *names: str) -> list[object]:
        nudged[:] = names
        [made] = await climbs.run(command_id, ["adapter"])
        return [made.lineage.settings[f"{of}_vectors_sha256"] for of in ("document", "query")]

    documents, queries = await digests("c1")
    assert await digests("c2") == [documents, queries]
    other, same = await digests("c3", "documents")
    assert (other != documents, same) == (True, queries)
    same, other = await digests("c4", "queries")
    assert (same, other != queries) == (documents, True)


async def test_the_budget_begins_before_anything_is_encoded(
    climbs: Climbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = climbs.ladder.loader.load

    def slow(*given: Any, **more: Any) -> Loaded:
        time.sleep(0.3)
        return load(*given, **more)

    monkeypatch.setattr(climbs.ladder.loader, "load", slow)
    await climbs.run("c1", ["query_encoder"], budget=20.0)
    last = climbs.rungs["query_encoder"].seconds[-1]
    assert 0.0 < last < TRAINING_SHARE * 19.7


async def test_a_rung_that_had_no_time_for_a_step_is_not_published(
    climbs: Climbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = climbs.ladder.loader.load

    def slow(*given: Any, **more: Any) -> Loaded:
        time.sleep(0.1)
        return load(*given, **more)

    monkeypatch.setattr(climbs.ladder.loader, "load", slow)
    with pytest.raises(TrainingError, match=r"0\.0 s of the budget were left for adapter: no step was done"):
        await climbs.run("c1", ["adapter"], budget=0.05)
    assert len(climbs.rungs["adapter"].made) == 1, "the first moment told"


async def test_the_lineage_says_how_many_examples_had_no_room(climbs: Climbs) -> None:
    climbs.data = replace(climbs.data, dropped=400)
    [made] = await climbs.run("c1", ["adapter"])
    assert made.lineage.settings["dropped_examples"] == 400


async def test_a_rung_knows_how_much_of_what_it_learns_is_learnt_again(climbs: Climbs) -> None:
    climbs.data = replace(climbs.data, replayed_share=0.4)
    await climbs.run("c1", ["adapter"])
    assert climbs.rungs["adapter"].replayed == [0.4] * 3


async def test_what_a_killed_maker_left_of_a_whole_version_goes_and_anothers_stays(
    climbs: Climbs, tmp_path: Path
) -> None:
    """A rung that is in the making has its checkpoint there, and goes on from it."""
    [made] = await climbs.run("c1", ["adapter"])
    work = tmp_path / "work"
    for folder in ("checkpoints/default", "making"):
        for version in (made.version, "another"):
            (work / folder / version).mkdir(parents=True)
            (work / folder / version / "moment-1.safetensors").write_bytes(b"weights")
    assert await climbs.run("c1", ["adapter"]) == [made]
    assert climbs.rungs["adapter"].parents == [], "it was not made again"
    assert [path.parent.name for path in work.rglob("moment-1.safetensors")] == ["another", "another"]


@pytest.mark.parametrize("most", [0, 20, 10_000])
async def test_the_gate_measures_no_more_queries_than_are_set_and_says_so(
    most: int, climbs: Climbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[list[float]] = []

    def judged(trials: list[Trial], **_: object) -> GateResult:
        measured.append([weight for trial in trials for weight in trial.weight.tolist()])
        return gate("pass")

    monkeypatch.setattr("trainer.rung.judge", judged)
    climbs.ladder._settings = climbs.ladder._settings.model_copy(update={"gate_max_queries": most})
    [first] = await climbs.run("c1", ["adapter"])
    [_] = await climbs.run("c2", ["adapter"])
    assert measured[0] == measured[1], "the same ones each time"
    assert first.gate is not None
    if most == 20:
        assert len(measured[0]) == 20
        assert re.fullmatch(r"measured on 20 of \d+ held-out queries \(gate_max_queries\)", first.gate.reasons[-1])
    else:
        assert len(measured[0]) > 100
        assert first.gate.reasons == gate("pass").reasons
    assert first.lineage.settings["gate_max_queries"] == most


async def test_weights_that_are_no_numbers_are_not_published(
    climbs: Climbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Trained:
        return Trained(adapter=Adapter(np.full((24, 24), np.nan, np.float32), np.zeros(24, np.float32)), steps=1)

    monkeypatch.setattr(Recorder, "train", broken)
    with pytest.raises(TrainingError, match="adapter: the weights that were trained are no finite numbers"):
        await climbs.run("c1", ["adapter"])
    assert climbs.ladder._store.versions() == [climbs.base.version]


def test_a_command_that_is_given_again_at_another_time_goes_on_from_its_checkpoint() -> None:
    ladder: Any = SimpleNamespace(_settings=TrainerSettings(), device="cpu", _ranks=None)
    corpus: Any = SimpleNamespace(documents=[SimpleNamespace(digest=b"x" * 32)])
    base: Any = SimpleNamespace(version="base-1")

    def facts(**changes: Any) -> list[object]:
        return Ladder._facts(ladder, retrain(["full"], **changes), base, corpus)

    assert facts() == facts(issued_at=START + timedelta(days=1))
    assert facts() != facts(budget_seconds=7.0)


async def test_documents_without_text_are_too_little_to_learn_from(climbs: Climbs) -> None:
    climbs.data = replace(climbs.data, documents=[replace(one, text=" ") for one in climbs.data.documents])
    with pytest.raises(TooFewError, match="the documents of index 'default' have no text"):
        await climbs.run("c1", ["adapter"])


class NewSpace(Recorder):
    """A rung of a new space, in which the documents lie where they lay."""

    def train(self, job: Job) -> Trained:
        return replace(super().train(job), new_space=True, documents=job.corpus.vectors)


@pytest.mark.parametrize("another", [False, True])
async def test_a_spaces_vectors_are_kept_once_its_own_encoder_is_published(
    climbs: Climbs, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    """Before that a kill leaves vectors of an encoder that no one has; and of two trainers one comes second."""
    climbs.rungs["full"] = NewSpace("full", 1)
    kept: list[bool] = []
    store = climbs.ladder._store
    monkeypatch.setattr(climbs.ladder.loader, "keep", lambda space, *_: kept.append(store.has(space)))

    def published(store: ModelStore, work: Path, manifest: Manifest, *_: object, **__: object) -> Published:
        if another:
            lineage = msgspec.structs.replace(manifest.lineage, train_seconds=1e6)
            manifest = msgspec.structs.replace(manifest, lineage=lineage)
        work.mkdir(parents=True, exist_ok=True)
        return store.publish(work, manifest)

    monkeypatch.setattr("trainer.rung.publish", published)
    await climbs.run("c1", ["full"])
    assert kept == ([] if another else [True])


async def test_pairs_that_were_brought_along_are_told_from_clicks(climbs: Climbs) -> None:
    await climbs.run("c1", ["adapter"])
    climbs.data = replace(climbs.data, given=climbs.data.prepared.clicks)
    await climbs.run("c2", ["adapter"])
    assert climbs.rungs["adapter"].given == [False] * 3 + [True]


async def test_what_versions_lose_on_the_golden_set_is_carried_along(
    climbs: Climbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = {"mrr_at_10": np.full(20, 0.5)}, {"mrr_at_10": np.full(20, 0.4)}
    held: list[float] = []

    def judged(*_: object, golden: GoldenTrial, **__: object) -> GateResult:
        held.append(golden.held)
        mrr = Estimate(before=0.5, after=0.4, change=-0.2, low=-0.3, high=-0.1)
        told = GoldenResult(digest=golden.digest, queries=20, metrics={"mrr_at_10": mrr})
        return GateResult(verdict="pass", queries=60, golden=told)

    monkeypatch.setattr("trainer.rung.golden_trial", lambda *_: GoldenTrial("ab", 0, before, after))
    monkeypatch.setattr("trainer.rung.judge", judged)
    first, second = await climbs.run("c1", ["adapter", "query_encoder"])
    assert held == [1.0, 0.8]
    assert first.lineage.settings["golden_held"] == 0.8
    assert second.lineage.settings["golden_held"] == pytest.approx(0.64)
