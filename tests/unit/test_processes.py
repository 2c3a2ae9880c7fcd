"""A worker of several processes: they end together, however it ends. Real processes, without a broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from clickloop.errors import SettingsError
from streams.settings import StreamsSettings

WORKS = {
    "stays": "select.select([lifeline], [], [])",
    "ends": "time.sleep(0.3 * number)\nif number == 1: sys.exit(3)\nselect.select([lifeline], [], [])",
    "returns": "time.sleep(0.3 * number)\nif number == 1: return 0\nselect.select([lifeline], [], [])",
    "raises": "if number == 1: raise ValueError('broken')\nselect.select([lifeline], [], [])",
    "hangs": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)",
}
PROGRAM = """
import select, signal, sys, time
from clickloop import processes

def work(number, lifeline):
{work}
    return 0

processes.STOP_SECONDS = 1.0
sys.exit(processes.together("some", 3, work))
"""


@pytest.fixture
def crew(tmp_path: Path):
    """Starts a worker of three processes; gives it and them, and leaves none."""
    started: list[subprocess.Popen[bytes]] = []
    seen: list[psutil.Process] = []

    def start(work: str) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
        program = PROGRAM.format(work="\n".join(f"    {line}" for line in WORKS[work].splitlines()))
        with (tmp_path / "log").open("wb") as log:
            worker = subprocess.Popen([sys.executable, "-c", program], stderr=log)
        started.append(worker)
        deadline = time.monotonic() + 30
        children: list[psutil.Process] = []
        while len(children) < 3 and worker.poll() is None and time.monotonic() < deadline:
            children = psutil.Process(worker.pid).children()
            time.sleep(0.01)
        seen.extend(children)
        return worker, children

    yield start
    for worker in started:
        worker.kill()
        worker.wait()
    for child in seen:
        if child.is_running():
            child.kill()


def said(tmp_path: Path) -> str:
    return (tmp_path / "log").read_text()


def test_sigterm_ends_all_in_order(crew, tmp_path):
    worker, children = crew("stays")
    worker.terminate()
    assert worker.wait(30) == 0
    assert not any(child.is_running() for child in children)
    assert said(tmp_path) == ""


@pytest.mark.parametrize(
    ("work", "code", "told"),
    [
        ("ends", 3, "process 2 of 3 ended with exit code 3; the others stop as well"),
        ("returns", 1, "process 2 of 3 ended with exit code 1"),
        ("raises", 1, "ValueError: broken"),
    ],
)
def test_when_one_ends_so_do_the_others(crew, tmp_path, work, code, told):
    worker, children = crew(work)
    assert worker.wait(30) == code
    assert not any(child.is_running() for child in children)
    assert told in said(tmp_path)
    assert said(tmp_path).count("the others stop as well") == 1


def test_one_that_is_killed_ends_the_worker(crew, tmp_path):
    worker, children = crew("stays")
    children[2].send_signal(signal.SIGKILL)
    assert worker.wait(30) == 128 + signal.SIGKILL
    assert "ended with exit code 137" in said(tmp_path)


def test_none_outlives_a_worker_that_was_killed(crew):
    worker, children = crew("stays")
    worker.kill()
    worker.wait()
    gone, left = psutil.wait_procs(children, timeout=30)
    assert len(gone) == 3
    assert not left


def test_one_that_does_not_stop_is_killed(crew):
    worker, children = crew("hangs")
    worker.terminate()
    assert worker.wait(30) == 128 + signal.SIGKILL
    assert not any(child.is_running() for child in children)


def test_a_second_signal_waits_for_none(crew):
    worker, children = crew("hangs")
    os.kill(worker.pid, signal.SIGINT)
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(30) == 128 + signal.SIGKILL
    assert not any(child.is_running() for child in children)


def test_each_process_has_its_share_and_its_port():
    worker = StreamsSettings.load(processes=3, metrics_port=9100, max_open_impressions=900)
    parts = [worker.part(number) for number in range(3)]
    assert [part.metrics_port for part in parts] == [9100, 9101, 9102]
    assert {part.max_open_impressions for part in parts} == {300}
    assert StreamsSettings.load(processes=2).part(1).metrics_port == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"processes": 5, "partitions": 4}, "5 processes share 4 partitions"),
        ({"processes": 2, "metrics_port": 65_535}, "2 processes need as many ports from metrics_port 65535"),
    ],
)
def test_what_does_not_fit_together_is_said_without_what_was_given(given, told):
    with pytest.raises(SettingsError) as raised:
        StreamsSettings.load(redis_url="redis://:secret@redis:6379/0", **given)
    assert told in str(raised.value)
    assert "secret" not in str(raised.value)
