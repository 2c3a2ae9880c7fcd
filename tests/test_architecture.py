"""The layout and its borders: who may import whom, and what a rule may not touch.

Each border is a function from a file's path and source to complaints. It is tested twice: on the code, where it
must find nothing, and on snippets that break it, where it must.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICES = {"streams", "trainer", "search", "console"}
PACKAGES = {"clickloop", "demo", *SERVICES}
SUBFOLDERS = {"clickloop": {"sources"}, "search": {"index"}, "trainer": {"methods"}}
TOP_LEVEL = PACKAGES | {"schemas", "tests", "benchmarks", "deploy", "docs", "requirements"}
LONGEST_FILE = 500

# In streams/, these are the shell; every other file is a rule.
SHELL = {
    "streams/app.py",
    "streams/batches.py",
    "streams/__main__.py",
    "streams/cli.py",
    "streams/settings.py",
    "streams/caps.py",
    "streams/forgotten.py",
    "streams/sending.py",
}
MAY_IMPORT_AIOKAFKA = {
    "clickloop/cluster.py",
    "clickloop/kafka.py",
    "clickloop/offsets.py",
    "clickloop/records.py",
    "clickloop/standby.py",
}
MAY_IMPORT_FAUST = {"streams/app.py", "streams/batches.py", "streams/__main__.py"}
IO_LIBRARIES = {
    "aiohttp", "aiokafka", "asyncio", "faust", "fsspec", "glob", "http", "httpx", "kafka", "mode",
    "multiprocessing", "redis", "requests", "secrets", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl",
    "subprocess", "tempfile", "threading", "urllib",
    "clickloop.admin", "clickloop.cli", "clickloop.client", "clickloop.cluster", "clickloop.kafka",
    "clickloop.model_store", "clickloop.service", "clickloop.vector_store",
}  # fmt: skip
OUTSIDE_WORLD = {
    "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today",
    "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter",
    "time.perf_counter_ns", "time.process_time", "time.gmtime", "time.localtime", "time.sleep",
    "clickloop.codec.now", "clickloop.codec.new_id", "clickloop.codec.headers", "clickloop.codec.time_header",
    "os.environ", "os.environb", "os.getenv", "os.urandom", "os.open", "os.listdir", "os.scandir",
    "io.open", "pathlib.Path", "uuid.uuid1", "uuid.uuid4", "open", "input", "print", "exec", "eval",
}  # fmt: skip
PICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pandas.read_pickle"}
LOADS_CODE = {"torch.load", "torch.jit.load", "torch.hub.load", "pandas.read_pickle"}

Check = Callable[[str, str], list[str]]


# What a file imports and names


def imports(path: str, tree: ast.AST) -> Iterator[str]:
    """Every module that the file imports, at the top or in a function, by name or by ``import_module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(path, node)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if name in {"import_module", "__import__", "find_spec", "run_module"} and isinstance(
                first, ast.Constant
            ):
                yield str(first.value)


def _absolute(path: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = path.split("/")[: -node.level]
    return ".".join([*package, node.module] if node.module else package)


def within(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def names(path: str, tree: ast.AST) -> Iterator[str]:
    """Every dotted name that the file uses, by its origin: after ``import time as t``, ``t.time`` is time.time."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name if alias.asname else alias.name.split(".")[0]
                known[alias.asname or top] = top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                known[alias.asname or alias.name] = f"{_absolute(path, node)}.{alias.name}"
                yield f"{_absolute(path, node)}.{alias.name}"
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            yield ".".join([known.get(node.id, node.id), *reversed(parts)])


# The borders


def package_of(path: str) -> str:
    return path.split("/")[0]


def services_meet_in_clickloop(path: str, source: str) -> list[str]:
    own = package_of(path)
    if own not in SERVICES:
        return []
    strangers = PACKAGES - {own, "clickloop"}
    return [f"{path} imports {name}" for name in imports(path, ast.parse(source)) if within(name, strangers)]


def clickloop_is_light(path: str, source: str) -> list[str]:
    if package_of(path) != "clickloop":
        return []
    heavy = {"torch", "faust", "sentence_transformers", "transformers", "fastapi", "demo", *SERVICES}
    return [f"{path} imports {name}" for name in imports(path, ast.parse(source)) if within(name, heavy)]


def demo_uses_the_public_package_only(path: str, source: str) -> list[str]:
    if package_of(path) != "demo":
        return []
    return [f"{path} imports {name}" for name in imports(path, ast.parse(source)) if within(name, SERVICES)]


def faust_stays_in_the_shell(path: str, source: str) -> list[str]:
    if path in MAY_IMPORT_FAUST:
        return []
    return [
        f"{path} imports {name}" for name in imports(path, ast.parse(source)) if within(name, {"faust", "mode"})
    ]


def qdrant_stays_in_the_index(path: str, source: str) -> list[str]:
    if path.startswith("search/index/"):
        return []
    qdrant = {"qdrant_client", "qdrant_edge"}
    return [f"{path} imports {name}" for name in imports(path, ast.parse(source)) if within(name, qdrant)]


def aiokafka_stays_at_the_edge(path: str, source: str) -> list[str]:
    if path in MAY_IMPORT_AIOKAFKA or path in SHELL:
        return []
    return [f"{path} imports {name}" for name in imports(path, ast.parse(source)) if within(name, {"aiokafka"})]


def is_rule(path: str) -> bool:
    return package_of(path) == "streams" and path not in SHELL


def rules_import_no_io(path: str, source: str) -> list[str]:
    if not is_rule(path):
        return []
    return [f"{path} imports {name}" for name in imports(path, ast.parse(source)) if within(name, IO_LIBRARIES)]


def rules_are_told_the_time_and_the_facts(path: str, source: str) -> list[str]:
    if not is_rule(path):
        return []
    return [f"{path} uses {name}" for name in names(path, ast.parse(source)) if within(name, OUTSIDE_WORLD)]


def nothing_is_unpickled(path: str, source: str) -> list[str]:
    tree = ast.parse(source)
    found = [f"{path} imports {name}" for name in imports(path, tree) if within(name, PICKLES)]
    found += [f"{path} uses {name}" for name in names(path, tree) if within(name, LOADS_CODE)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.keyword) or node.arg not in {"allow_pickle", "trust_remote_code"}:
            continue
        if not (isinstance(node.value, ast.Constant) and node.value.value is False):
            found.append(f"{path} may set {node.arg} in line {node.value.lineno}")
    return found


def files_stay_short(path: str, source: str) -> list[str]:
    lines = source.count("\n")
    return [f"{path} has {lines} lines: look for the second idea in it"] if lines > LONGEST_FILE else []


CHECKS: list[Check] = [
    services_meet_in_clickloop,
    clickloop_is_light,
    demo_uses_the_public_package_only,
    faust_stays_in_the_shell,
    qdrant_stays_in_the_index,
    aiokafka_stays_at_the_edge,
    rules_import_no_io,
    rules_are_told_the_time_and_the_facts,
    nothing_is_unpickled,
    files_stay_short,
]

# On the code


def sources() -> dict[str, str]:
    """Path (relative to the repository, with slashes) and text of every Python file of the packages."""
    files = (p for package in sorted(PACKAGES) for p in sorted((ROOT / package).rglob("*.py")))
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in files}


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_code_keeps_the_border(check: Check) -> None:
    complaints = [complaint for path, source in sources().items() for complaint in check(path, source)]
    assert complaints == []


def test_there_is_code_to_check() -> None:
    found = {package_of(path) for path in sources()}
    assert found >= {"clickloop", "demo", "streams", "trainer", "search"}
    assert sum(is_rule(path) for path in sources()) >= 5
    assert set(sources()) >= MAY_IMPORT_FAUST | {"clickloop/kafka.py", "search/index/__init__.py"}


def unexpected_folders(root: Path) -> list[str]:
    found = [
        f"{folder.name}/"
        for folder in root.iterdir()
        if folder.is_dir() and any(folder.rglob("*.py")) and not _made_by_tools(folder)
        if folder.name not in TOP_LEVEL
    ]
    for package in sorted(PACKAGES):
        found += [
            f"{package}/{folder.name}/"
            for folder in sorted((root / package).glob("*/"))
            if folder.name not in SUBFOLDERS.get(package, set()) and not _made_by_tools(folder)
        ]
    return found


def _made_by_tools(folder: Path) -> bool:
    return (
        folder.name.startswith(".")
        or folder.name in {"__pycache__", "build", "dist"}
        or folder.suffix == ".egg-info"
    )


def test_folders_are_those_of_the_layout() -> None:
    assert unexpected_folders(ROOT) == []


# On what breaks them

OFFENCES: list[tuple[Check, str, str]] = [
    (services_meet_in_clickloop, "search/node.py", "import trainer.gate"),
    (services_meet_in_clickloop, "search/index/edge.py", "from ...streams import join"),
    (services_meet_in_clickloop, "trainer/service.py", "def f():\n    from search.encoder import Encoder"),
    (services_meet_in_clickloop, "streams/app.py", "from demo import stack"),
    (services_meet_in_clickloop, "streams/join.py", "import importlib\nimportlib.import_module('trainer')"),
    (clickloop_is_light, "clickloop/codec.py", "import torch"),
    (clickloop_is_light, "clickloop/model_store.py", "def f():\n    import sentence_transformers"),
    (clickloop_is_light, "clickloop/client.py", "from faust.types import K"),
    (clickloop_is_light, "clickloop/cli.py", "from demo.__main__ import command"),
    (
        clickloop_is_light,
        "clickloop/__init__.py",
        "TYPE_CHECKING = True\nif TYPE_CHECKING:\n    import search.node",
    ),
    (demo_uses_the_public_package_only, "demo/run.py", "from streams.settings import StreamsSettings"),
    (faust_stays_in_the_shell, "streams/join.py", "import faust"),
    (faust_stays_in_the_shell, "clickloop/kafka.py", "from faust import App"),
    (faust_stays_in_the_shell, "trainer/service.py", "from mode import Service"),
    (qdrant_stays_in_the_index, "search/node.py", "import qdrant_edge"),
    (qdrant_stays_in_the_index, "search/backfill.py", "from qdrant_client.http import models"),
    (aiokafka_stays_at_the_edge, "search/node.py", "from aiokafka import AIOKafkaConsumer"),
    (aiokafka_stays_at_the_edge, "streams/join.py", "import aiokafka"),
    (aiokafka_stays_at_the_edge, "clickloop/client.py", "import aiokafka.errors"),
    (rules_import_no_io, "streams/join.py", "import asyncio"),
    (rules_import_no_io, "streams/drift.py", "from redis.asyncio import Redis"),
    (rules_import_no_io, "streams/trigger.py", "from clickloop import kafka"),
    (rules_import_no_io, "streams/trigger.py", "from clickloop.client import FeedbackProducer"),
    (rules_import_no_io, "streams/rollout.py", "def f():\n    import urllib.request"),
    (rules_are_told_the_time_and_the_facts, "streams/join.py", "import time\nt = time.time()"),
    (rules_are_told_the_time_and_the_facts, "streams/join.py", "import time as t\nx = t.monotonic"),
    (rules_are_told_the_time_and_the_facts, "streams/join.py", "from time import monotonic"),
    (rules_are_told_the_time_and_the_facts, "streams/join.py", "from datetime import datetime as d\nd.now()"),
    (rules_are_told_the_time_and_the_facts, "streams/join.py", "import datetime\ndatetime.datetime.utcnow()"),
    (rules_are_told_the_time_and_the_facts, "streams/join.py", "from clickloop import codec\ncodec.now()"),
    (rules_are_told_the_time_and_the_facts, "streams/join.py", "from clickloop.codec import new_id"),
    (rules_are_told_the_time_and_the_facts, "streams/join.py", "import os\nx = os.environ['X']"),
    (rules_are_told_the_time_and_the_facts, "streams/join.py", "import os\nos.getenv('X')"),
    (rules_are_told_the_time_and_the_facts, "streams/join.py", "def f():\n    return open('x').read()"),
    (rules_are_told_the_time_and_the_facts, "streams/join.py", "from pathlib import Path\nPath('x').read_text()"),
    (nothing_is_unpickled, "trainer/model.py", "import pickle"),
    (nothing_is_unpickled, "trainer/model.py", "import torch\ntorch.load('x')"),
    (nothing_is_unpickled, "trainer/model.py", "from torch import load"),
    (nothing_is_unpickled, "trainer/model.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
    (nothing_is_unpickled, "search/encoder.py", "load('x', trust_remote_code=flag)"),
    (files_stay_short, "search/node.py", "x = 1\n" * (LONGEST_FILE + 1)),
]


@pytest.mark.parametrize(
    ("check", "path", "source"), OFFENCES, ids=lambda v: v if isinstance(v, str) else v.__name__
)
def test_border_notices_who_breaks_it(check: Check, path: str, source: str) -> None:
    assert check(path, source) != []


def test_every_border_has_an_offence_that_it_notices() -> None:
    assert {check for check, _, _ in OFFENCES} == set(CHECKS)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("search/node.py", "from search.encoder import Encoder\nfrom clickloop import codec\nimport asyncio"),
        ("search/index/edge.py", "from . import bm25\nfrom ..metrics import Metrics\nimport qdrant_edge"),
        ("streams/app.py", "import faust, time, asyncio, aiokafka\nfrom streams import join\ntime.time()"),
        (
            "streams/join.py",
            "from datetime import datetime, timedelta\nimport time_machine\ndef f(now: datetime): ...",
        ),
        ("streams/join.py", "def f(event): return event.open.now, event.time.time"),
        ("clickloop/kafka.py", "import aiokafka"),
        ("demo/run.py", "from demo import stack\nfrom clickloop import FeedbackProducer"),
        (
            "trainer/model.py",
            "import numpy as np\nnp.load('x', allow_pickle=False)\nimport torch\ntorch.nn.Linear",
        ),
    ],
)
def test_borders_leave_alone_who_keeps_them(path: str, source: str) -> None:
    assert [complaint for check in CHECKS for complaint in check(path, source)] == []


def test_folder_that_is_not_in_the_layout_is_noticed(tmp_path: Path) -> None:
    for folder in ("utils", "search/helpers", "search/index", "search/__pycache__", ".venv"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.py").write_text("")
    assert unexpected_folders(tmp_path) == ["utils/", "search/helpers/"]
