"""``import clickloop`` is cheap for an app: quick, and without the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

HEAVY = ["torch", "faust", "numpy", "scipy", "transformers", "sentence_transformers", "fastapi", "qdrant_client"]
LIMIT_SECONDS = 0.1
RUNS = 7


def seconds(code: str) -> float:
    """Wall time of an interpreter that runs ``code``, without site-packages' start-up hooks counting twice."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def loaded(code: str) -> set[str]:
    """Modules that are loaded after ``code`` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_takes_less_than_a_tenth_of_a_second() -> None:
    # The best of several runs, in turns: what the machine does beside can only add.
    empty, ours = zip(*[(seconds("pass"), seconds("import clickloop")) for _ in range(RUNS)], strict=True)
    assert min(ours) - min(empty) < LIMIT_SECONDS


@pytest.mark.parametrize(
    "code",
    [
        "import clickloop",
        "import clickloop.client",
        "from clickloop import FeedbackProducer, ModelSubscriber",
        "import clickloop.model_store",
        "import clickloop.cli",
    ],
)
def test_no_heavy_library_comes_with_the_import(code: str) -> None:
    assert loaded(code).isdisjoint(HEAVY)


def test_services_commands_load_without_their_heavy_libraries() -> None:
    code = "import clickloop.cli as c\nc.add_commands()"
    assert loaded(code).isdisjoint({"torch", "faust", "sentence_transformers", "transformers", "fastapi"})


def test_the_check_sees_a_heavy_library() -> None:
    assert not loaded("import clickloop.evaluation").isdisjoint(HEAVY)


def test_a_worker_has_loaded_what_its_rules_need_before_it_is_given_partitions() -> None:
    # The first partition would wait for river's import, and every message of the others with it.
    code = (
        "import clickloop.service\n"
        "clickloop.service.run_service = lambda *_: 0\n"
        "from streams.__main__ import command\n"
        "try:\n    command()\nexcept SystemExit:\n    pass\n"
        "import sys\n"
        "from streams.partition import Partition\n"
        "from streams.settings import StreamsSettings\n"
        "before = set(sys.modules)\n"
        "Partition(0, StreamsSettings(), handled={}, forgotten=set(), now=0.0)\n"
        "assert set(sys.modules) == before, sorted(set(sys.modules) - before)[:10]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("service", "library"), [("search", "uvicorn"), ("streams", "faust"), ("trainer", "torch")]
)
def test_a_service_whose_extra_is_not_installed_says_so_in_one_line(service: str, library: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None; sys.argv = ['clickloop', {service!r}]\n"
        "from clickloop.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert library in done.stderr
    assert "pip install 'clickloop[" in done.stderr
