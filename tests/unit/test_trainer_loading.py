"""What is encoded for a training: once, as it would be in one go, and no longer than there is time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from clickloop.base_model import base_model_folder
from clickloop.errors import TrainingError
from clickloop.model_store import Manifest, ModelStore
from tests.unit.trainer_facts import documents
from tests.unit.trainer_facts import world as made_up
from trainer.dataset import Clicks
from trainer.examples import Document
from trainer.loading import Loader
from trainer.methods.base import StoppedError
from trainer.model import encode, load_encoder

TEXTS = [
    Document(d.doc_id, f"{d.text} " + "and more of it " * (int(d.doc_id[1:]) % 9), d.digest)
    for d in documents(200)
]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")


@pytest.fixture
def base(store: ModelStore) -> Manifest:
    return store.ensure_base(base_model_folder("all-MiniLM-L6-v2"), name="all-MiniLM-L6-v2").manifest


def load(loader: Loader, base: Manifest, **more: Any) -> Any:
    clicks: Clicks = made_up(queries=10)[0]
    return loader.load(base, TEXTS, clicks, clicks.of_queries([]), **{"on_text": lambda *_: None, **more})


def test_encoding_ends_when_the_time_is_up_and_goes_on_from_there(store: ModelStore, base: Manifest) -> None:
    left, told = [10.0], list[tuple[int, int]]()

    def on_text(done: int, texts: int) -> None:
        told.append((done, texts))
        left[0] -= 3.0

    with pytest.raises(TrainingError, match="spent with 128 of 200 texts encoded"):
        load(Loader(store, "cpu", seed=0), base, on_text=on_text, seconds_left=lambda: left[0])
    told.clear()
    loaded = load(Loader(store, "cpu", seed=0), base, on_text=lambda *t: told.append(t))
    assert told[:3] == [(32, 72), (64, 72), (72, 72)], "the rest of the documents, and nothing before"
    whole = encode(load_encoder(base_model_folder("all-MiniLM-L6-v2"), "cpu"), [d.text for d in TEXTS])
    assert np.allclose(loaded.corpus.vectors, whole, atol=1e-2)


@pytest.mark.parametrize("stopped", [True, False])
def test_a_store_that_takes_no_vectors_hides_no_stop_and_ends_no_training(
    stopped: bool, store: ModelStore, base: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was stopped does the command again; a failure would be the end of it."""

    def away(*_: object) -> None:
        raise OSError(5, "Input/output error")

    def on_text(*_: object) -> None:
        if stopped:
            raise StoppedError("stopped")

    loader = Loader(store, "cpu", seed=0)
    monkeypatch.setattr(LocalFileSystem, "pipe_file", away)
    if stopped:
        with pytest.raises(StoppedError):
            load(loader, base, on_text=on_text)
    else:
        assert len(load(loader, base).corpus.vectors) == len(TEXTS)


def test_a_version_to_compare_with_is_encoded_no_longer_than_there_is_time(
    store: ModelStore, base: Manifest
) -> None:
    loader = Loader(store, "cpu", seed=0)
    with pytest.raises(TrainingError, match="of 200 texts encoded"):
        loader.searched_by(base.version, TEXTS, on_text=lambda *_: None, seconds_left=lambda: 0.0)
    parent, vectors = loader.searched_by(base.version, TEXTS, on_text=lambda *_: None)
    _, same = loader.searched(base.version, TEXTS, on_text=lambda *_: None)
    assert (parent.version, parent.adapter) == (base.version, None)
    assert np.array_equal(vectors, same)


def test_a_few_texts_tell_how_long_all_will_take(store: ModelStore, base: Manifest) -> None:
    loader = Loader(store, "cpu", seed=0)
    encoder = load_encoder(base_model_folder("all-MiniLM-L6-v2"), "cpu")
    texts = [document.text for document in TEXTS]
    assert loader.seconds_to_encode(encoder, []) == 0.0
    few = loader.seconds_to_encode(encoder, texts[:20])
    assert 0.0 < few < loader.seconds_to_encode(encoder, texts * 10) / 20
    asked = ["how to sort"] * 200
    load(loader, base)
    # The least of a few: a machine may be held up in the middle of one.
    short = min(loader.seconds_to_encode(encoder, asked) for _ in range(3))
    assert short < loader.seconds_to_encode(encoder, ["word " * 400] * 200) / 4
