"""The whole loop with real processes: what ``make demo`` does, on a smaller corpus."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from demo.corpus import Corpus, stdlib_corpus

DOCUMENTS = 700
EXAMPLES = 700


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "clickloop", "demo", *arguments]


def write_corpus(folder: Path, corpus: Corpus, *, count: int) -> tuple[Path, Path]:
    """Files as a user has them: the documents of some topics and the queries that they answer."""
    documents, queries = folder / "documents.jsonl", folder / "queries.jsonl"
    chosen = random.Random(5).sample(corpus.documents, count)
    names = {document.doc_id for document in chosen}
    with documents.open("w") as stream:
        for d in chosen:
            line = {"doc_id": d.doc_id, "title": d.title, "text": d.text, "topic": d.topic}
            stream.write(json.dumps(line) + "\n")
    with queries.open("w") as stream:
        for q in corpus.clicking + corpus.held_out:
            if q.relevant <= names:
                line = {"query": q.text, "relevant": dict.fromkeys(q.relevant, 1), "topic": q.topic}
                stream.write(json.dumps(line) + "\n")
    return documents, queries


@pytest.fixture(scope="module")
def corpus_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_corpus(tmp_path_factory.mktemp("corpus"), stdlib_corpus(seed=3), count=DOCUMENTS)


def descendants_with(marker: str) -> list[str]:
    """Command lines of processes that carry this run's folder in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it ended, or is another user's
            if marker in process.environ().get("CLICKLOOP_STORE_URL", ""):
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.timeout(600)
def test_the_loop_closes_and_nothing_fails(tmp_path: Path, corpus_files: tuple[Path, Path]) -> None:
    documents, queries = corpus_files
    figures, work = tmp_path / "figures.json", tmp_path / "work"
    arguments = ["--documents", str(documents), "--queries", str(queries), "--examples", str(EXAMPLES)]
    done = subprocess.run(
        command(*arguments, "--json", str(figures), "--work-dir", str(work)),
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    logs = "\n".join(f"== {p.name}\n{p.read_text()[-1500:]}" for p in sorted((work / "run/logs").glob("*.log")))
    assert figures.is_file(), f"{done.stdout}\n{done.stderr}\n{logs}"
    report = json.loads(figures.read_text())
    story = done.stdout

    # Learning on so little must be honest, not good: how much better is measured by the demo itself, in full size.
    assert set(report["rungs"]) == {"adapter", "query_encoder"}, story
    for rung in report["rungs"].values():
        assert rung["verdict"] in {"pass", "fail", "inconclusive"}
        assert rung["train_seconds"] > 0
    assert report["failed_queries"] == 0, story
    assert report["wrong_space_answers"] == 0, story
    assert report["retrain_commands"] == 1
    assert report["examples"] >= EXAMPLES
    assert report["drift_reports"] > 0
    passed = [rung for rung in report["rungs"].values() if rung["verdict"] == "pass"]
    assert report["swaps"] == 2 * len(passed), "each of the two nodes swaps to each version that passed"
    assert done.returncode == (0 if not report["problems"] else 1)
    for rung in passed:
        assert f"model ready: {rung['version']}" in story, "the outside app hears of it"
        assert rung["click_to_serving_seconds"] > 0
    assert descendants_with(str(work)) == []


@pytest.mark.parametrize("seconds", [0.3, 3.0, 12.0])
def test_interrupted_at_any_moment_it_leaves_no_process(
    tmp_path: Path, corpus_files: tuple[Path, Path], seconds: float
) -> None:
    documents, queries = corpus_files
    work = tmp_path / "work"
    demo = subprocess.Popen(
        command("--documents", str(documents), "--queries", str(queries), "--work-dir", str(work)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(seconds)
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=30)
    if seconds < 1.0:  # Python itself may not be up yet
        assert demo.returncode in {130, -signal.SIGINT}, errors
    else:
        assert demo.returncode == 130, errors
        assert "Traceback" not in errors
    assert descendants_with(str(work)) == []


def test_killed_outright_its_children_end_too(tmp_path: Path, corpus_files: tuple[Path, Path]) -> None:
    documents, queries = corpus_files
    work = tmp_path / "work"
    demo = subprocess.Popen(
        command("--documents", str(documents), "--queries", str(queries), "--work-dir", str(work)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not descendants_with(str(work)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert descendants_with(str(work)), "the services have started"
    os.kill(demo.pid, signal.SIGKILL)
    demo.wait()
    deadline = time.monotonic() + 30
    while descendants_with(str(work)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert descendants_with(str(work)) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--documents", "missing.jsonl"], "missing.jsonl is no file"),
        (["--documents", __file__], "go together"),
        (["--examples", "5"], "at least 100"),
        (["--json", "/nowhere/at/all.json"], "does not exist"),
        (["--documents", __file__, "--queries", __file__], "test_demo.py:1:"),
        (["--nonsense"], "--nonsense"),
        (["--examples", "many"], "--examples"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        command(*arguments, "--work-dir", str(tmp_path)), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert words in done.stderr


def test_a_second_demo_in_the_same_folder_is_refused(tmp_path: Path, corpus_files: tuple[Path, Path]) -> None:
    import fcntl

    documents, queries = corpus_files
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            command("--documents", str(documents), "--queries", str(queries), "--work-dir", str(tmp_path)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert "another demo is running" in done.stderr
