"""What operators read and start is in step with the code: settings tables, compose file, metrics, commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import SecretStr

from clickloop.settings import ArtifactSettings, GenerateSettings, Settings
from search.settings import SearchSettings
from streams.settings import StreamsSettings
from trainer.rung_settings import RungSettings
from trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
CLASSES: list[type[Settings]] = [
    *[Settings, ArtifactSettings, GenerateSettings],
    *[SearchSettings, StreamsSettings, TrainerSettings, RungSettings],
]
SERVICES: dict[str, type[Settings]] = {
    "search": SearchSettings,
    "streams": StreamsSettings,
    "trainer": TrainerSettings,
    "topics": Settings,
}


def shown(default: Any) -> str:
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, list):
        default = ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in default)
    if isinstance(default, float):
        default = f"{default:g}"
    return f"`{default}`" if str(default) else "(empty)"


def escaped(text: str | None) -> str:
    return (text or "").replace("<", "&lt;").replace("|", "\\|")


def table(cls: type[Settings]) -> str:
    """The settings that ``cls`` adds to its parent, as a Markdown table."""
    inherited = cls.__mro__[1].model_fields if cls is not Settings else {}
    rows = [
        f"| `{name}` | `CLICKLOOP_{name.upper()}` | {shown(field.default)} | {escaped(field.description)} |"
        for name, field in cls.model_fields.items()
        if name not in inherited
    ]
    return "\n".join(["| setting | variable | default | meaning |", "| --- | --- | --- | --- |", *rows])


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_settings_table_is_that_of_the_class(cls: type[Settings]) -> None:
    found = re.search(rf"<!-- settings: {cls.__name__} -->\n(.*?)\n?<!-- end -->", OPERATIONS, re.DOTALL)
    assert found is not None
    assert found[1].strip() == table(cls)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_setting_is_described(cls: type[Settings]) -> None:
    assert [name for name, field in cls.model_fields.items() if not field.description] == []


def test_metrics_that_the_page_names_exist() -> None:
    code = (
        "import prometheus_client as p, streams.metrics, search.metrics\n"
        "r = [p.REGISTRY, search.metrics.Metrics().registry]\n"
        "print(*(m.name for x in r for m in x.collect()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    known = set(done.stdout.split())
    named = {name.removesuffix("_total") for name in re.findall(r"`(clickloop_[a-z_]+)", OPERATIONS)}
    assert len(named) > 10
    assert named - known == set()


def test_commands_that_the_page_names_exist() -> None:
    named = {
        tuple(words.split())
        for words in re.findall(r"`clickloop ((?:topics|models|dead-letters) [a-z]+|[a-z-]+)", OPERATIONS)
    }
    code = (
        "import clickloop.cli as c, typer.main\n"
        "c.add_commands()\n"
        "for name, command in typer.main.get_command(c.app).commands.items():\n"
        "    print(name)\n"
        "    print(*(f'{name} {sub}' for sub in getattr(command, 'commands', {})), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    known = {tuple(line.split()) for line in done.stdout.splitlines()}
    assert len(named) > 8
    assert named - known == set()


# Compose


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def dockerfile() -> str:
    return (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


def ours() -> dict[str, dict[str, Any]]:
    return {name: s for name, s in compose()["services"].items() if s["image"] == "clickloop"}


def test_compose_runs_every_service_and_two_search_nodes() -> None:
    assert set(ours()) == {"topics", "search-1", "search-2", "streams", "trainer"}
    assert {"kafka", "redis", "qdrant"} <= set(compose()["services"])


@pytest.mark.parametrize("name", ["topics", "search-1", "search-2", "streams", "trainer"])
def test_compose_sets_only_what_is_a_setting_and_valid(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = ours()[name]
    cls = SERVICES[service["command"][0]]
    variables = dict(re.findall(r"\b(CLICKLOOP_[A-Z_]+)=(\S+)", dockerfile()))
    for variable, value in service["environment"].items():
        if variable.startswith("CLICKLOOP_"):
            assert variable.removeprefix("CLICKLOOP_").lower() in cls.model_fields, variable
            variables[variable] = re.sub(r"\$\{[A-Z_]+:-(.*)\}", r"\1", str(value))
    monkeypatch.chdir(tmp_path)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    settings = cls.load()
    assert settings.bootstrap_servers == "kafka:19092"
    assert settings.log_format == "json"


def test_image_sets_only_what_is_a_setting() -> None:
    known = {f"CLICKLOOP_{name.upper()}" for cls in CLASSES for name in cls.model_fields}
    assert set(re.findall(r"\b(CLICKLOOP_[A-Z_]+)=", dockerfile())) <= known


def test_services_wait_for_what_they_need_to_be_healthy() -> None:
    services = compose()["services"]
    for name, service in ours().items():
        for needed, how in service["depends_on"].items():
            if how["condition"] == "service_healthy":
                assert "test" in services[needed]["healthcheck"], (name, needed)
            else:
                assert how["condition"] == "service_completed_successfully"
                assert services[needed]["command"] == ["topics", "create"]
        assert service["restart"]


def test_search_nodes_share_the_store_and_nothing_else() -> None:
    first, second = (set(ours()[name]["volumes"]) for name in ("search-1", "search-2"))
    assert {v.split(":")[0] for v in first & second} == {"store"}
    assert ours()["search-1"]["ports"] != ours()["search-2"]["ports"]
    assert any(v.startswith("store:") for v in ours()["trainer"]["volumes"])


def test_every_volume_is_declared_and_belongs_to_the_images_user() -> None:
    used = {v for s in ours().values() for v in s.get("volumes", [])}
    assert {v.split(":")[0] for v in used} <= set(compose()["volumes"])
    made = re.search(r"mkdir -p (.*?) \\", dockerfile())
    assert made is not None
    assert {v.split(":")[1] for v in used} <= set(made[1].split())
    assert re.search(r"^USER \d+$", dockerfile(), re.MULTILINE)


def test_prometheus_scrapes_ports_that_are_served() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = {t for job in config["scrape_configs"] for s in job["static_configs"] for t in s["targets"]}
    ports = {
        name: s["environment"].get("CLICKLOOP_METRICS_PORT") or s["environment"].get("CLICKLOOP_PORT")
        for name, s in ours().items()
    }
    assert targets == {f"{name}:{port}" for name, port in ports.items() if port}


def test_image_is_made_of_every_package_and_names_no_registry() -> None:
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    copied = set(re.findall(r"^COPY (\w+)/ \1/$", dockerfile(), re.MULTILINE))
    assert packages <= copied
    ignore = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert {f"!{name}" for name in copied} <= set(ignore)
    assert "://" not in re.sub(r"(file|http)://(/|127\.0\.0\.1)", "", dockerfile())


def test_no_typer_is_taken_that_lacks_what_the_command_line_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [typer] = [one for one in map(Requirement, project["dependencies"]) if one.name == "typer"]
    assert "0.27.1" not in typer.specifier, "typer.exceptions came with 0.27.2"
    assert version("typer") in typer.specifier
