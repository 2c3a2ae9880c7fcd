"""``clickloop replay`` from files to figures, with the real base model, rules, trainer and gate."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import cramjam
import pytest
import typer
from rich.console import Console

from benchmarks._recorded import PARTS, Habits, World, base_answers, stdlib_world, traffic, write_world
from clickloop import replay as module
from clickloop.cli import run
from clickloop.events import VersionKind
from clickloop.manifest import sha256_file
from clickloop.model_store import ModelStore
from clickloop.replay import Options, Outcome, print_outcome, replay_files

Replay = Callable[..., Outcome]


@pytest.fixture(scope="module")
def world() -> World:
    return stdlib_world(documents=300)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


@pytest.fixture(scope="module")
def again(world: World, work: Path) -> Replay:
    """Replays so many simulated impressions of ``world``, always in the same folder."""
    documents, judged = write_world(world, work)
    answers = base_answers(world, work)

    def go(
        impressions: int,
        *,
        judge: bool = True,
        kinds: list[VersionKind] | None = None,
        most: int | None = None,
    ) -> Outcome:
        events = work / "events.jsonl"
        made = traffic(world, answers, Habits(impressions=impressions), seed=1)
        events.write_text("".join(json.dumps(event) + "\n" for event in made) + "{torn\n")
        options = Options(
            documents, events, work, kinds or ["adapter"], judged if judge else None, max_queries=most
        )
        return replay_files(options, PARTS, say=lambda _: None)

    return go


@pytest.mark.timeout(200)
def test_a_replay_trains_judges_and_measures_what_it_was_worth(again: Replay, work: Path) -> None:
    outcome = again(2500)
    found = outcome.to_json()
    rung = found["rungs"]["adapter"]
    assert found["documents"] == outcome.documents >= 280
    assert (found["queries"], found["unreadable"], found["judged_queries"]) == (2500, 1, outcome.judged)
    assert found["clicks"] > 1000
    assert found["ratings"] > 0
    assert 0 < found["quarantined"] < found["clicks"] / 4
    for name in ("mrr_at_10", "recall_at_1", "recall_at_5", "ndcg_at_10"):
        figures = rung[name]
        assert figures == rung["truth"][name]
        assert math.isclose(figures["after"] / figures["before"] - 1.0, figures["change"], abs_tol=1e-3)
        assert figures["low"] <= figures["change"] <= figures["high"]
    assert rung["gate"]["verdict"] == rung["verdict"]
    assert rung["gate"]["queries"] > 50
    assert rung["parent"] == found["start"]
    assert rung["train_seconds"] > 0.0
    store = ModelStore(f"file://{work}/store", cache=work / "other-cache")
    assert rung["version"] in store.versions()
    folder, manifest = store.fetch(rung["version"])
    raw = bytes(cramjam.zstd.decompress((folder / "examples.jsonl.zst").read_bytes()))
    assert len(raw.splitlines()) >= found["examples"] >= manifest.lineage.examples > 0
    settings = manifest.lineage.settings
    assert settings["steps"] != 0
    assert settings["events_sha256"] == sha256_file(work / "events.jsonl")
    assert f"(SHA-256 `{settings['events_sha256']}`)" in (folder / "README.md").read_text()


@pytest.mark.timeout(200)
def test_a_replay_of_the_same_log_finds_its_versions_and_the_same_figures(again: Replay, work: Path) -> None:
    first = again(2500).to_json()
    before = sorted(path.name for path in (work / "store" / "versions").iterdir())
    second = again(2500).to_json()
    assert second | {"seconds": 0} == first | {"seconds": 0}
    assert sorted(path.name for path in (work / "store" / "versions").iterdir()) == before


@pytest.mark.timeout(200)
def test_no_more_queries_are_measured_than_was_said(again: Replay) -> None:
    outcome = again(2500, most=60)
    found = outcome.to_json()
    assert found["judged_queries"] == 60
    rung = outcome.climbed.rungs[0]
    assert rung.gate is not None
    assert rung.gate.queries == 60
    assert rung.reasons[-1].startswith("measured on 60 of ")
    assert rung.truth == again(2500, most=60).climbed.rungs[0].truth


@pytest.mark.timeout(200)
def test_without_judged_queries_the_figures_are_the_gates(again: Replay) -> None:
    rung = again(2500, judge=False).to_json()["rungs"]["adapter"]
    assert rung["mrr_at_10"] == rung["gate"]["metrics"]["mrr_at_10"]
    assert "truth" not in rung


@pytest.mark.timeout(200)
def test_a_few_clicks_are_not_enough_and_nothing_gets_worse(again: Replay) -> None:
    outcome = again(45, kinds=["adapter", "query_encoder"])
    found = outcome.to_json()
    assert 10 <= found["clicks"] <= 45
    assert found["live"] == found["start"]
    for rung in found["rungs"].values():
        assert (rung["verdict"], rung["version"], rung["gate"]) == ("inconclusive", None, None)
        assert rung["mrr_at_10"]["before"] == rung["mrr_at_10"]["after"] > 0.0
        assert rung["mrr_at_10"]["change"] == 0.0
        assert "100 are needed for a first model" in rung["reasons"][0]


@pytest.mark.timeout(200)
def test_a_rung_that_does_not_pass_leaves_its_parent_in_place(
    again: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKLOOP_GATE_MIN_QUERIES", "10000")
    outcome = again(220)
    (rung,) = outcome.climbed.rungs
    assert rung.version
    assert rung.verdict == "inconclusive"
    assert "10000 are needed" in rung.reasons[0]
    assert outcome.climbed.live == rung.parent == outcome.climbed.start


@pytest.mark.timeout(200)
def test_a_pipe_gets_plain_lines_and_a_terminal_a_table(again: Replay) -> None:
    outcome = again(45)
    plain, table = (Console(record=True, force_terminal=t, width=120, quiet=False) for t in (False, True))
    for console in (plain, table):
        print_outcome(outcome, console)
    lines = plain.export_text().splitlines()
    assert any(line.startswith("adapter") and "MRR@10" in line and "+0.0%" in line for line in lines)
    assert any(line.startswith("adapter: inconclusive, not trained: not enough") for line in lines)
    assert not any("━" in line or "│" in line for line in lines)
    assert "│ adapter" in table.export_text()


# The command line


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The entry points of ``clickloop.replay``, as this checkout's pyproject.toml names them."""
    table = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    named = table["project"]["entry-points"]["clickloop.replay"]
    found = [EntryPoint(name, value, "clickloop.replay") for name, value in named.items()]
    monkeypatch.setattr(module, "entry_points", lambda group: found if group == "clickloop.replay" else [])
    return found


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    documents, events = tmp_path / "documents.jsonl", tmp_path / "events.jsonl"
    documents.write_text("".join(json.dumps({"doc_id": f"d{n}", "text": f"text {n}"}) + "\n" for n in range(60)))
    events.write_text(
        json.dumps({"query_id": "q", "user_query": "text 3", "query_response_hit_ids": ["d3", "d4"],
                    "timestamp": "2026-01-05T00:00:00Z"}) + "\n"
    )  # fmt: skip
    return {"documents": documents, "events": events}


def called(files: dict[str, Path], tmp_path: Path, *more: str) -> int:
    program = typer.Typer(rich_markup_mode=None)
    module.add_to(program)
    named = [f"--{name}={path}" for name, path in files.items()]
    with pytest.MonkeyPatch.context() as patch:
        # Logs would go to this test's own standard error, also those of later tests.
        patch.setattr("clickloop.cli.configure_logs", lambda *_, **__: None)
        patch.setattr(sys, "argv", ["clickloop", *named, f"--work={tmp_path / 'work'}", *more])
        return run(program)


@pytest.mark.timeout(200)
def test_a_log_without_a_click_ends_well_and_says_why(
    points: list[EntryPoint], files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert called(files, tmp_path, "--rungs=adapter,query_encoder", f"--json={out}") == 0
    found: dict[str, Any] = json.loads(out.read_text())
    assert {r["verdict"] for r in found["rungs"].values()} == {"inconclusive"}
    assert found["rungs"]["adapter"]["mrr_at_10"]["change"] == 0.0
    assert "no positive example" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rungs=adapter,nonsense"], "'nonsense' is none of adapter, query_encoder, full"),
        (["--rungs=adapter,adapter"], "name each rung once"),
        (["--events=missing.jsonl"], "missing.jsonl can't be read: No such file or directory"),
        (["--documents=notes.txt"], "the name must end in one of"),
        (["--json=/no/such/folder/x.json"], "no file can be written there"),
        (["--json=EVENTS"], "is a file to read, too"),
        (["--index=news"], "--index news: the events are of"),
        (["--work=/proc/nowhere"], "can't be used"),
        (["--work=a::b"], "--work a::b can't be used"),
        (["--evaluate=EMPTY"], "no query with a relevant document"),
    ],
)
def test_a_mistake_is_one_line_and_two(
    points: list[EntryPoint],
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    events = json.loads(files["events"].read_text())
    files["events"].write_text(json.dumps({**events, "type": "QueryServed"}) + "\n" + json.dumps(_named()) + "\n")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    names = {"EMPTY": str(empty), "EVENTS": str(files["events"])}
    asked = [word.replace(name, names[name]) for word in more for name in names if name in word] or more
    was = files["events"].read_bytes()
    assert called(files, tmp_path, *asked) == 2
    assert files["events"].read_bytes() == was
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clickloop")]
    assert len(lines) == 1
    assert said in lines[0]


def test_a_device_that_is_not_there_is_one_line_and_two(
    points: list[EntryPoint],
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLICKLOOP_DEVICE", "cuda:99")
    assert called(files, tmp_path) == 2
    assert "device cuda:99: torch finds no such device here" in capsys.readouterr().err


def _named() -> dict[str, Any]:
    return {"type": "ResultClicked", "event_id": "c", "index": "products", "query_id": "q", "doc_id": "d3",
            "clicked_at": "2026-01-05T00:00:03Z"}  # fmt: skip


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch,
    points: list[EntryPoint],
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = [EntryPoint(p.name, "no_such_module:x" if p.name == "trainer" else p.value, p.group) for p in points]
    monkeypatch.setattr(module, "entry_points", lambda **_: gone)
    assert called(files, tmp_path) == 2
    assert "pip install 'clickloop[trainer]'" in capsys.readouterr().err
