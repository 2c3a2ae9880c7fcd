"""One command for examples and for models: which of the two is meant is clear, and said where it isn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from clickloop import data, model_export
from clickloop.errors import ArtifactError
from clickloop.model_store import ModelStore
from tests.unit.version_facts import put


class Exporter:
    """Stands where an installed service announces its own."""

    def __init__(self, answer: Exception | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answer = answer

    def load(self) -> Any:
        if isinstance(self._answer, ModuleNotFoundError):
            raise self._answer
        return self

    def __call__(self, store: ModelStore, version: str, form: str, folder: Path, *, quantize: bool) -> str:
        assert store.has(version)
        self.calls.append((version, form, str(folder), quantize))
        if self._answer:
            raise self._answer
        return "written"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.chdir(tmp_path)
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    put(store, tmp_path, "base-1")
    return store


def installed(monkeypatch: pytest.MonkeyPatch, *exporters: Exporter) -> None:
    found = {"clickloop.model_exporters": exporters}
    monkeypatch.setattr(model_export, "entry_points", lambda group: found[group])


def export(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(data.export)
    return CliRunner().invoke(app, list(arguments))


def test_a_version_is_handed_to_what_is_installed(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = Exporter()
    installed(monkeypatch, exporter)
    done = export("base-1", "--as", "onnx", "--quantize", "--store-url", store.url)
    assert done.exit_code == 0, done.output
    assert done.stderr == "written\n"
    export("base-1", "--as", "gguf", "--output", "there", "--store-url", store.url)
    assert exporter.calls == [("base-1", "onnx", "base-1-onnx", True), ("base-1", "gguf", "there", False)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["base-1"], "--as (nothing): choose one of sentence-transformers"),
        (["base-1", "--as", "csv"], "leave the version out for examples"),
        (["base-1", "--as", "pickle"], "--as pickle: choose one of sentence-transformers"),
        (["base-1", "--as", "onnx", "--format", "pairs"], "--format is about examples"),
        (["base-1", "--as", "onnx", "--since", "2026-01-01"], "--since is about examples"),
        (["adapter-9", "--as", "onnx"], "has no version 'adapter-9'"),
    ],
)
def test_what_does_not_fit_a_version_is_one_line_and_2(
    arguments: list[str], reason: str, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = Exporter()
    installed(monkeypatch, exporter)
    done = export(*arguments, "--store-url", store.url)
    assert (done.exit_code, len(done.stderr.splitlines()), exporter.calls) == (2, 1, [])
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--format is needed"),
        (["--format", "pairs", "--as", "gguf"], "name the version to write a model"),
        (["--format", "pairs", "--as", "xml"], "choose one of jsonl, csv, parquet"),
        (["--format", "pairs", "--quantize"], "--quantize is about a version"),
    ],
)
def test_what_does_not_fit_examples_is_one_line_and_2(arguments: list[str], reason: str) -> None:
    done = export(*arguments)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("exporters", "code", "reason"),
    [
        ([], 2, "pip install 'clickloop[trainer,export]'"),
        ([Exporter(ModuleNotFoundError("x", name="onnxruntime.capi"))], 2, "pip install 'clickloop[export]'"),
        ([Exporter(ModuleNotFoundError("x", name="torch"))], 2, "pip install 'clickloop[trainer]'"),
        ([Exporter(ArtifactError("cosine 0.4"))], 1, "cosine 0.4"),
    ],
    ids=["none", "extra", "trainer", "failed"],
)
def test_what_is_missing_or_fails_is_one_line(
    exporters: list[Exporter], code: int, reason: str, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, *exporters)
    done = export("base-1", "--as", "onnx", "--store-url", store.url)
    assert (done.exit_code, len(done.stderr.splitlines())) == (code, 1)
    assert reason in done.stderr
