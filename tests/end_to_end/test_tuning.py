"""``clickloop tune``: the search on a made-up world, and the command from files to a settings file."""

from __future__ import annotations

import fcntl
import json
import math
import resource
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
import optuna
import pytest
import torch
import typer
from sentence_transformers import SentenceTransformer

from benchmarks._recorded import Habits, base_answers, stdlib_world, traffic, write_world
from clickloop import replay, tuning
from clickloop.cli import run
from clickloop.errors import SettingsError, TrainingError
from clickloop.events import Estimate
from clickloop.golden import GoldenSet
from clickloop.recorded import Judged
from clickloop.tuning import LastPart, Tuned
from streams.payoff import LADDER
from tests.unit.trainer_facts import documents, errs_elsewhere, example, world
from trainer.gate import SliceTrial, Trial
from trainer.methods.base import Parent
from trainer.recorded import Lines
from trainer.settings import TrainerSettings
from trainer.tuning import (
    AS_SET,
    METRIC,
    SPACE,
    Bench,
    Part,
    Settings,
    Tried,
    concluded,
    done,
    earlier,
    keeping,
    open_study,
    results,
    search,
    space_of,
    today_of,
    verdict,
)

ROOT = Path(__file__).parents[2]
BEST, BAD = 3e-3, {"adapter_learning_rate": 1e-6}


class MadeUp(Bench):
    """A rung that learns the better the nearer its rate is to BEST, on queries that differ from part to part."""

    def run(self, part: Part, tuned: Settings) -> Tried:
        rng = np.random.default_rng(len(part.past))
        before = rng.uniform(0.1, 0.9, 400)
        distance = abs(math.log10(float(tuned["adapter_learning_rate"]) / BEST))
        after = before * (1.1 - 0.05 * distance) + rng.normal(0.0, 0.02, 400)
        return Tried([Trial(np.ones(400), {METRIC: before}, {METRIC: after}, 0, 0)])


def bench(**tuned: Any) -> Bench:
    return MadeUp("adapter", TrainerSettings.load(**tuned), Lines(lambda _: None), GoldenSet([]))


def part(number: int) -> Part:
    clicks, corpus = world(queries=20)
    model = SentenceTransformer(modules=[torch.nn.Identity()])
    return Part(Parent("base", model, None, model), corpus, clicks, [(clicks, clicks)] * number)


MIDDLE, LAST_PART = part(1), part(2)


def searched(study: optuna.Study, of: Bench, trials: int) -> list[dict[str, Any]]:
    search(study, of, MIDDLE, trials=trials, seconds_left=lambda: 60.0, say=lambda _: None)
    return [{"settings": trial.settings, "change": trial.mrr_at_10.change} for trial in results(study)]


@pytest.mark.parametrize("name", ["what?", "50%20#1", "{x}"])
def test_trials_lie_in_the_folder_that_was_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    open_study(tmp_path / name / "tune.sqlite", "s")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name / "tune.sqlite"]


def test_a_search_finds_what_learns_where_todays_settings_hardly_do(tmp_path: Path) -> None:
    of = bench(**BAD)
    study = open_study(tmp_path / "tune.sqlite", "s")
    found = searched(study, of, 5)
    assert found[0]["settings"] == today_of(of.settings, "adapter")
    tuned = concluded(study, of, LAST_PART, resumed=0, trials=5)
    assert tuned.better
    assert tuned.winner != 1
    assert tuned.last is not None
    assert tuned.last.gain is not None
    assert tuned.last.gain.low > 0.0
    assert tuned.last.gain.before == tuned.last.today.after
    assert tuned.chosen == found[(tuned.winner or 0) - 1]["settings"]
    assert tuned.looks == 1


def test_what_was_tried_on_the_last_part_is_not_tried_again_and_other_winners_are_counted(tmp_path: Path) -> None:
    of = bench(**BAD)
    study = open_study(tmp_path / "tune.sqlite", "s")
    searched(study, of, 3)
    first = concluded(study, of, LAST_PART, resumed=0, trials=3)
    assert concluded(study, of, replace(LAST_PART, past=[]), resumed=3, trials=3) == msgspec.structs.replace(
        first, resumed=3
    )
    study.set_user_attr(
        "last", {"of another": study.user_attrs["last"][repr(first.chosen)], **study.user_attrs["last"]}
    )
    assert concluded(study, of, LAST_PART, resumed=0, trials=3).looks == 2


def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = searched(open_study(tmp_path / "whole.sqlite", "s"), bench(), 13)
    of = bench()
    study = open_study(tmp_path / "tune.sqlite", "s")
    searched(study, of, 11)

    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            searched(study, of, 13)
    assert searched(open_study(tmp_path / "tune.sqlite", "s"), of, 13) == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.end_to_end.test_tuning import bench, open_study, searched
of, study = bench(), open_study(Path(sys.argv[1]), "s")
run, calls = of.run, 0
def killed(*given):
    global calls
    calls += 1
    if calls == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(*given)
of.run = killed
searched(study, of, 4)
"""


def test_a_search_that_was_killed_keeps_the_trials_that_were_done(tmp_path: Path) -> None:
    path = tmp_path / "tune.sqlite"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    study = open_study(path, "s")
    assert len(done(study)) == 2
    assert not study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    kept = results(study)
    searched(study, bench(), 4)
    assert results(study)[:2] == kept
    assert len(done(study)) == 4


def test_a_search_whose_time_is_up_begins_no_further_trial_but_does_todays_settings(tmp_path: Path) -> None:
    study = open_study(tmp_path / "tune.sqlite", "s")
    said: list[str] = []
    search(study, bench(), MIDDLE, trials=5, seconds_left=lambda: 0.0, say=said.append)
    assert len(done(study)) == 1
    assert said[-1] == "the budget is spent after 1 of 5 trials"


def test_a_disk_that_takes_no_trial_is_one_line_and_those_before_are_kept(tmp_path: Path) -> None:
    path, of = tmp_path / "tune.sqlite", bench()
    study = open_study(path, "s")
    searched(study, of, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def without_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
        try:
            with keeping(path):
                searched(study, of, 200)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(TrainingError, match=r"tune\.sqlite: .*; the same command goes on") as caught:
        without_room()
    assert "\n" not in str(caught.value)
    assert len(searched(open_study(path, "s"), of, 2)) >= 2


def test_a_file_that_is_no_search_is_a_users_mistake(tmp_path: Path) -> None:
    path = tmp_path / "tune.sqlite"
    path.write_text("not a database, and long enough to be looked at as one" * 20)
    with pytest.raises(SettingsError, match="can't be used for the search"):
        open_study(path, "s")


@pytest.mark.parametrize("kind", SPACE)
def test_todays_settings_are_within_the_space_wherever_they_are(kind: Any) -> None:
    settings = TrainerSettings.load()
    today = today_of(settings, kind)
    for name, distribution in space_of(kind, today).items():
        assert distribution == SPACE[kind][name], "the defaults need no widening"
        assert distribution._contains(distribution.to_internal_repr(today[name]))
    of_kind = {name for name in settings.of_rungs() if name.startswith(f"{kind}_")}
    assert today.keys() == of_kind - AS_SET, "a new setting is looked for, or named as one that isn't"
    odd = {name: 0.0 if name.endswith("distillation") else value for name, value in today.items()}
    odd |= {name: 9_000 for name in odd if name.endswith("_batch")}
    odd |= {name: 5 for name in odd if name.endswith("_rank")}
    for name, distribution in space_of(kind, odd).items():
        assert distribution._contains(distribution.to_internal_repr(odd[name]))


def test_the_trials_part_ends_before_the_first_impression_of_the_last_part() -> None:
    log = [example("old", "d0000", number=1), example("new", "gone", number=2), example("new", "d0001", number=5)]
    log += [example("old", "d0000", number=6)]
    assert earlier(log, documents(3), " NEW ") == log[:2]


def test_a_trial_is_tried_on_the_golden_set_as_its_version_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    clicks, corpus = world(queries=300)
    first = (clicks.vectors @ corpus.vectors.T).argmax(axis=1)
    wanted = [
        Judged(text, {corpus.documents[d].doc_id: 1.0}) for text, d in zip(clicks.queries, first, strict=True)
    ]
    monkeypatch.setattr(
        "trainer.rung.encode", lambda _, texts, **__: clicks.vectors[[clicks.queries.index(t) for t in texts]]
    )
    past = [(clicks.of_queries(range(200)), clicks.of_queries(range(200, 300)))]
    model = SentenceTransformer(modules=[torch.nn.Identity()])
    whole = Part(Parent("base", model, None, model), corpus, clicks.of_queries([]), past)
    today = today_of(TrainerSettings.load(), "adapter")
    for golden, said in ((GoldenSet([]), False), (GoldenSet(wanted), True)):
        of = Bench("adapter", TrainerSettings.load(), Lines(lambda _: None), golden)
        gate = of.gate(of.run(whole, today).last())
        assert any("of the golden set" in reason for reason in gate.reasons) is said
        assert (gate.golden is not None) is said


@pytest.mark.parametrize(("allowed", "failed"), [(0.03, True), (0.5, False)])
def test_a_trial_may_lose_on_a_domain_what_its_version_may(allowed: float, failed: bool) -> None:
    before = np.full(400, 0.5)
    shoes = np.arange(400) < 100
    after = np.where(shoes, 0.4, 0.6)
    slices = {"domain shoes": SliceTrial(np.ones(100), before[shoes], after[shoes])}
    gate = bench(gate_max_domain_loss=allowed).gate(
        Tried([Trial(np.ones(400), {METRIC: before}, {METRIC: after}, 0, 0, slices)])
    )
    assert (gate.verdict == "fail") is failed


def test_settings_of_full_that_err_elsewhere_are_no_winner() -> None:
    """They look better among what the parent showed than they are. A rung that stays close to it is not asked."""
    worse, change = errs_elsewhere(0.5, noise=2.1, seed=2)
    assert change < -0.05
    verdicts = {
        kind: Bench(kind, TrainerSettings.load(), Lines(lambda _: None), GoldenSet([]))
        .gate(Tried([worse]))
        .verdict
        for kind in LADDER
    }
    assert verdicts == {"adapter": "pass", "query_encoder": "pass", "full": "fail"}
    better, _ = errs_elsewhere(0.5, noise=1.4, seed=0)
    full = Bench("full", TrainerSettings.load(), Lines(lambda _: None), GoldenSet([]))
    assert full.gate(Tried([better])).verdict == "pass"


# What counts as better


def estimate(change: float, low: float, high: float) -> Estimate:
    return Estimate(before=0.5, after=0.5 * (1.0 + change), change=change, low=low, high=high)


WON = LastPart(
    queries=400,
    today=estimate(0.1, 0.05, 0.15),
    today_verdict="pass",
    winner=estimate(0.14, 0.1, 0.2),
    winner_verdict="pass",
    gain=estimate(0.04, 0.01, 0.07),
)


@pytest.mark.parametrize(
    ("change", "better", "said"),
    [
        ({}, True, "better beyond chance"),
        ({"gain": estimate(0.04, -0.01, 0.09)}, False, "not better beyond chance"),
        ({"gain": estimate(-0.04, -0.1, -0.01)}, False, "not better beyond chance"),
        ({"winner_verdict": "fail"}, False, "the gate fails the winner"),
        ({"queries": 40}, False, "50 are needed"),
        ({"winner": None, "winner_verdict": None, "gain": None}, False, "none of 9 trials"),
    ],
)
def test_only_what_wins_on_the_last_part_beyond_chance_is_better(
    change: dict[str, Any], better: bool, said: str
) -> None:
    found, reason = verdict(msgspec.structs.replace(WON, **change), trials=9, fewest=50)
    assert found is better
    assert said in reason
    assert ("settings stay" in reason) is not better


@pytest.mark.parametrize("kind", SPACE)
def test_the_trainer_reads_the_settings_file(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    today = today_of(TrainerSettings.load(), kind)
    chosen = {name: value if isinstance(value, str) else value / 2 for name, value in today.items()}
    chosen = {name: int(value) if isinstance(today[name], int) else value for name, value in chosen.items()}
    path = tmp_path / "tuned.toml"
    tuning.write_settings(Tuned(kind=kind, today=today, chosen=chosen, better=True, reason='it "is"'), path)
    monkeypatch.setenv("CLICKLOOP_CONFIG", str(path))
    assert today_of(TrainerSettings.load(), kind) == chosen
    assert chosen != today


# The command line


@pytest.fixture
def _points(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points of ``clickloop.replay``, as this checkout's pyproject.toml names them."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = table["project"]["entry-points"]["clickloop.replay"]
    found = [EntryPoint(name, value, "clickloop.replay") for name, value in named.items()]
    monkeypatch.setattr(replay, "entry_points", lambda group: found if group == "clickloop.replay" else [])


def called(files: dict[str, Path], work: Path, *more: str) -> int:
    program = typer.Typer(rich_markup_mode=None)
    tuning.add_to(program)
    named = [f"--{name}={path}" for name, path in files.items()]
    with pytest.MonkeyPatch.context() as patch:
        # Logs would go to this test's own standard error, also those of later tests.
        patch.setattr("clickloop.cli.configure_logs", lambda *_, **__: None)
        patch.setattr(sys, "argv", ["clickloop", *named, f"--work={work}", *more])
        return run(program)


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[[int], dict[str, Path]]:
    """Files of so many simulated impressions."""
    simulated = stdlib_world(documents=200)
    written, _ = write_world(simulated, tmp_path)

    def record(impressions: int) -> dict[str, Path]:
        made = traffic(
            simulated, base_answers(simulated, tmp_path / "work"), Habits(impressions=impressions), seed=1
        )
        events = tmp_path / "events.jsonl"
        events.write_text("".join(json.dumps(event) + "\n" for event in made))
        return {"documents": written, "events": events}

    return record


@pytest.mark.timeout(200)
@pytest.mark.usefixtures("_points")
def test_the_command_tries_says_writes_and_goes_on(
    recorded: Callable[[int], dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files, out, work = recorded(1500), tmp_path / "out.json", tmp_path / "work"
    monkeypatch.setenv("CLICKLOOP_ADAPTER_LEARNING_RATE", "1e-5")
    assert called(files, work, "--trials=2", f"--json={out}") == 0
    first: dict[str, Any] = json.loads(out.read_text())
    capsys.readouterr()
    assert called(files, work, "--trials=3", f"--json={out}") == 0
    found: dict[str, Any] = json.loads(out.read_text())
    told = capsys.readouterr()
    assert (first["resumed"], found["resumed"]) == (0, 2)
    assert "going on with 2 trials that are done" in told.err
    assert found["trials"][:2] == first["trials"]
    assert [trial["number"] for trial in found["trials"]] == [1, 2, 3]
    assert found["trials"][0]["settings"] == found["today"]
    assert found["today"]["adapter_learning_rate"] == 1e-5
    assert found["trials"][0]["queries"] > found["last"]["queries"] > 20
    assert found["settings"] == (
        found["trials"][found["winner"] - 1]["settings"] if found["better"] else found["today"]
    )
    assert f"settings: {work / 'tuned-adapter.toml'}" in told.out
    assert found["reason"] in told.out
    monkeypatch.setenv("CLICKLOOP_CONFIG", found["settings_file"])
    monkeypatch.delenv("CLICKLOOP_ADAPTER_LEARNING_RATE")
    assert today_of(TrainerSettings.load(), "adapter") == found["settings"]


@pytest.mark.usefixtures("_points")
def test_too_few_clicks_are_an_answer_and_todays_settings_are_written(
    recorded: Callable[[int], dict[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert called(recorded(60), tmp_path / "work", f"--json={out}") == 0
    found = json.loads(out.read_text())
    assert (found["better"], found["trials"], found["last"]) == (False, [], None)
    assert "not enough to learn from" in capsys.readouterr().out
    assert tomllib.loads(Path(found["settings_file"]).read_text())["trainer"] == found["today"]


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Path]:
    written, events = tmp_path / "documents.jsonl", tmp_path / "events.jsonl"
    written.write_text(json.dumps({"doc_id": "d", "text": "text"}) + "\n")
    events.write_text(
        json.dumps({"query_id": "q", "user_query": "text", "query_response_hit_ids": ["d"],
                    "timestamp": "2026-01-05T00:00:00Z"}) + "\n"
    )  # fmt: skip
    return {"documents": written, "events": events}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rung=nonsense"], "--rung nonsense: 'nonsense' is none of adapter, query_encoder, full"),
        (["--rung=adapter,full"], "--rung adapter,full: name one rung"),
        (["--trials=0"], "--trials"),
        (["--events=missing.jsonl"], "missing.jsonl can't be read"),
        (["--json=/no/such/folder/x.json"], "no file can be written there"),
        (["--json=EVENTS"], "is a file to read, too"),
        (["--work=/proc/nowhere"], "--work /proc/nowhere can't be used"),
    ],
)
@pytest.mark.usefixtures("_points")
def test_a_mistake_is_one_line_and_two(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    more = [word.replace("EVENTS", str(tiny["events"])) for word in more]
    assert called(tiny, tmp_path / "work", *more) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.usefixtures("_points")
def test_two_searches_in_one_folder_are_a_mistake(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    with (tmp_path / "work" / "tune.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert called(tiny, tmp_path / "work") == 2
    assert "in use by another search" in capsys.readouterr().err


@pytest.mark.usefixtures("_points")
def test_without_optuna_its_extra_is_named(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "trainer.tuning")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert called(tiny, tmp_path / "work") == 2
    assert "pip install 'clickloop[tune]'" in capsys.readouterr().err
