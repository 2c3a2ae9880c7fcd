"""Local copies: what a node may need stays, with all that it is made of, and nothing else does for ever."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from clickloop.errors import ArtifactError
from clickloop.model_store import ModelStore
from tests.unit.version_facts import make_base_model, put


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def store(cache: Path, tmp_path: Path) -> ModelStore:
    """All of it fetched: a base, two query encoders that store what differs, and an adapter of the first one."""
    publisher = ModelStore(str(tmp_path / "store"), cache=tmp_path / "publisher")
    base = put(publisher, tmp_path, "base-1")
    encoder = put(publisher, tmp_path, "query-encoder-2", "query_encoder", base)
    put(publisher, tmp_path, "adapter-3", "adapter", encoder)
    put(publisher, tmp_path, "query-encoder-4", "query_encoder", base, seed=4)
    store = ModelStore(str(tmp_path / "store"), cache=cache)
    for version in publisher.versions():
        store.fetch(version)
    return store


def copies(cache: Path) -> set[str]:
    return {path.name.rpartition("-")[0] for path in cache.iterdir()}


def test_a_copy_stays_with_all_that_it_is_made_of(store: ModelStore, cache: Path) -> None:
    assert copies(cache) == {"base-1", "query-encoder-2", "adapter-3", "query-encoder-4"}
    store.keep_copies({"adapter-3", "never-fetched"})
    assert copies(cache) == {"base-1", "query-encoder-2", "adapter-3"}
    store.keep_copies({"base-1"})
    assert copies(cache) == {"base-1"}


def test_a_copy_that_was_removed_is_fetched_again(store: ModelStore) -> None:
    before, _ = store.fetch("query-encoder-4")
    store.keep_copies({"base-1"})
    assert not before.exists()
    after, _ = store.fetch("query-encoder-4")
    assert after == before


def test_what_a_killed_fetch_has_left_goes_after_an_hour_and_what_is_no_copy_stays(
    store: ModelStore, cache: Path
) -> None:
    for name in (".adapter-9-a1b2c3_4", ".adapter-9-zzzzzzzz", "lost+found", ".snapshot"):
        (cache / name / "encoder").mkdir(parents=True)
    (cache / "notes.txt").write_text("an operator's")
    old = time.time() - 3700
    for path in (*(cache / ".adapter-9-a1b2c3_4").rglob("*"), cache / ".adapter-9-a1b2c3_4", cache / ".snapshot"):
        os.utime(path, (old, old))
    store.keep_copies({"base-1"})
    left = {path.name for path in cache.iterdir() if not path.name.startswith("base-1-")}
    assert left == {".adapter-9-zzzzzzzz", "lost+found", ".snapshot", "notes.txt"}


def test_what_a_killed_publisher_leaves_lies_beside_the_copies_and_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could never be told from another's in the system's folder for scratch, and stayed there for ever."""
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    store, write = ModelStore(str(tmp_path / "store"), cache=cache), ModelStore._write
    unfinished: set[str] = set()

    def look(*args: Any) -> None:
        unfinished.update(path.name for path in cache.iterdir() if path.name.startswith("."))
        assert not list(elsewhere.iterdir())
        write(*args)

    monkeypatch.setattr(ModelStore, "_write", look)
    store.ensure_base(make_base_model(tmp_path, "tiny"), name="tiny")
    assert {name[:-8] for name in unfinished} == {".base-", ".deltas-"}
    assert not list(cache.iterdir())
    old = time.time() - 3700
    for name in unfinished:
        (cache / name).mkdir()
        os.utime(cache / name, (old, old))
    store.keep_copies(set())
    assert not list(cache.iterdir())


def test_a_folder_that_is_not_there_or_not_ours_to_empty_is_no_error(
    store: ModelStore, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ModelStore(str(tmp_path / "store"), cache=tmp_path / "nothing-yet").keep_copies(set())

    def refuse(_: Path) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("shutil.rmtree", refuse)
    store.keep_copies(set())
    assert "base-1" in copies(cache)


def test_a_default_folder_that_another_user_made_is_refused_and_ones_own_is_closed(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    user = os.getuid()
    (tmp_path / f"clickloop-models-{user}").mkdir(mode=0o777)
    folder, _ = ModelStore(store.url).fetch("base-1")
    assert folder.parent == tmp_path / f"clickloop-models-{user}"
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    folder.parent.rename(tmp_path / f"clickloop-models-{user + 1}")
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(ArtifactError, match="made by another user"):
        ModelStore(store.url).fetch("base-1")
