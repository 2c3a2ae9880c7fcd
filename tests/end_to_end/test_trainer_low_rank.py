"""Query encoders that were trained as low-rank changes: what is stored, what is loaded, what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from clickloop import lora
from clickloop.errors import ArtifactError, TrainingError
from clickloop.events import GateResult, Lineage
from clickloop.model_store import Manifest, ModelStore
from search import sentence_model
from tests.ranks_worker import small_job, write_tiny_encoder
from trainer.methods.base import Parent, Trained
from trainer.methods.full import FullMethod
from trainer.methods.query_encoder import LOW_RANK_PACE, QueryEncoderMethod
from trainer.methods.towers import set_rate
from trainer.methods.upper_layers import UpperLayers, low_rank_of
from trainer.model import load_encoder, load_model
from trainer.publish import describe, publish

METHOD = QueryEncoderMethod(epochs=4, batch=10, learning_rate=2e-3, rank=3)
GATE = GateResult(verdict="pass", queries=1)
TEXTS = ["red car", "old house with tree"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_encoder(folder)
    return load_encoder(folder / "encoder", "cpu")


def trained_from(
    parent: Parent, method: QueryEncoderMethod | FullMethod = METHOD, *, replayed: float = 0.0
) -> Trained:
    job = small_job(parent.query_encoder, None, lambda _: None)
    return method.train(replace(job, parent=parent, replayed=replayed))


def base_parent(encoder: SentenceTransformer) -> Parent:
    return Parent("base", encoder, None, encoder)


def differences(one: SentenceTransformer, other: SentenceTransformer) -> dict[str, torch.Tensor]:
    old = dict(other.named_parameters())
    found = {name: (new - old[name]).detach() for name, new in one.named_parameters()}
    return {name: difference for name, difference in found.items() if difference.any()}


def test_only_linear_maps_of_the_last_layers_change_and_by_no_more_than_the_rank(encoder: SentenceTransformer):
    trained = trained_from(base_parent(encoder))
    assert trained.encoder is not None
    changed = differences(trained.encoder, encoder)
    assert {name.split("layer.")[1][0] for name in changed} == {"2", "3"}
    assert len(changed) == 2 * 6, "query, key, value, and three dense maps, of each layer"
    for name, difference in changed.items():
        assert int(torch.linalg.matrix_rank(difference, rtol=1e-4)) == METHOD.rank, name


@pytest.mark.parametrize("replayed", [0.0, 0.5])
def test_the_next_training_goes_on_from_the_changes_and_keeps_their_rank(
    encoder: SentenceTransformer, replayed: float
):
    first = trained_from(base_parent(encoder))
    assert first.encoder is not None
    parent = Parent("first", first.encoder, first.adapter, encoder, first.low_rank)
    gentle = replace(METHOD, epochs=1, learning_rate=2e-6)
    second = trained_from(parent, gentle, replayed=replayed)
    assert second.encoder is not None
    assert second.low_rank is not None
    assert second.low_rank.base is not second.encoder
    assert not differences(second.low_rank.base, encoder)
    moved = differences(second.encoder, first.encoder)
    assert max(float(difference.abs().max()) for difference in moved.values()) < 1e-3
    for name, difference in differences(second.encoder, encoder).items():
        assert int(torch.linalg.matrix_rank(difference, rtol=1e-4)) == METHOD.rank, name


def test_a_parent_that_was_trained_otherwise_is_what_the_changes_are_made_to(encoder: SentenceTransformer):
    plain = trained_from(base_parent(encoder), replace(METHOD, rank=0))
    assert plain.encoder is not None
    assert plain.low_rank is None
    other_rank = trained_from(base_parent(encoder), replace(METHOD, rank=2))
    assert other_rank.encoder is not None
    for before in (plain, other_rank):
        assert before.encoder is not None
        parent = Parent("before", before.encoder, before.adapter, encoder, before.low_rank)
        after = trained_from(parent)
        assert after.low_rank is not None
        assert not differences(after.low_rank.base, before.encoder)


@pytest.mark.parametrize("method", [METHOD, replace(METHOD, rank=0), FullMethod(epochs=2, batch=10)])
def test_the_changes_are_drawn_back_as_far_as_the_share_says(
    method: QueryEncoderMethod | FullMethod, encoder: SentenceTransformer
):
    near, far = (trained_from(base_parent(encoder), replace(method, share=share)) for share in (1e-4, 1.0))
    assert near.encoder is not None
    assert far.encoder is not None
    moved = [sum(float(d.norm()) for d in differences(one.encoder, encoder).values()) for one in (near, far)]
    assert 0.0 < moved[0] < 0.01 * moved[1]


def test_changes_learn_faster_than_the_layers_and_the_map_as_ever():
    one, other = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([{"params": [one], "pace": LOW_RANK_PACE}, {"params": [other]}])
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25 * LOW_RANK_PACE, 0.25]
    assert LOW_RANK_PACE > 1.0


@pytest.mark.parametrize("layers", [2, 4, 9])
def test_nothing_but_the_changes_is_trained_for_nothing_else_is_stored(layers: int, encoder: SentenceTransformer):
    dense = Dense(32, 32)
    whole = SentenceTransformer(modules=[*copy.deepcopy(encoder), dense], device="cpu")
    low_rank = low_rank_of(whole, layers, 2)
    with UpperLayers(whole, TEXTS, layers, low_rank=low_rank) as upper:
        assert len(upper.parameters) == len(upper.factors()) == 2 * 6 * min(layers, 4)


def test_an_encoder_without_linear_maps_is_refused_with_a_reason():
    nothing = SentenceTransformer(modules=[torch.nn.Identity()], device="cpu")
    with pytest.raises(ArtifactError, match="no transformer"):
        low_rank_of(nothing, 2, 4)
    nothing[0].model = torch.nn.Embedding(3, 4)
    with pytest.raises(TrainingError, match="no linear"):
        low_rank_of(nothing, 2, 4)


# In the store


class Shelf:
    """A store with a base and, on top of it, a version of low rank."""

    def __init__(self, folder: Path, trained: Trained) -> None:
        self.store = ModelStore(f"file://{folder}/store", cache=folder / "cache")
        write_tiny_encoder(folder / "tiny")
        self.base = self.store.ensure_base(folder / "tiny" / "encoder", name="tiny").manifest
        self.folder = folder
        self.trained = trained
        self.version = self.publish("one", self.base, self.trained)

    def publish(self, name: str, parent: Manifest, trained: Trained) -> Manifest:
        made = describe(version=name, kind="query_encoder", parent=parent, lineage=Lineage(), gate=GATE)
        known = load_model(self.store, self.base.version, "cpu").encoder
        return publish(self.store, self.folder, made, Parent("base", known, None, known), trained).manifest


@pytest.fixture(scope="module")
def trained(encoder: SentenceTransformer) -> Trained:
    return trained_from(base_parent(encoder))


@pytest.fixture
def shelf(tmp_path: Path, trained: Trained) -> Shelf:
    return Shelf(tmp_path, trained)


def by_the_trainer(shelf: Shelf, version: str) -> np.ndarray:
    model = load_model(shelf.store, version, "cpu")
    return model.encoder.encode(TEXTS, normalize_embeddings=True)


def by_a_node(shelf: Shelf, version: str) -> np.ndarray:
    folder, _ = shelf.store.fetch(version)
    return sentence_model.loader(1)(folder / "encoder", version).encode_queries(TEXTS)


@pytest.mark.parametrize("load", [by_the_trainer, by_a_node])
def test_what_was_judged_is_what_is_loaded(load: Callable[[Shelf, str], np.ndarray], shelf: Shelf):
    assert shelf.trained.encoder is not None
    expected = shelf.trained.encoder.encode(TEXTS, normalize_embeddings=True)
    base = load(shelf, shelf.base.version)
    assert np.abs(base - expected).max() > 0.01, "or nothing is shown"
    precision = 0.02 if sentence_model.cpu_has_bf16() and load is by_a_node else 1e-5
    assert np.allclose(load(shelf, "one"), expected, atol=precision)


def test_only_the_changes_are_stored_and_older_readers_are_told(shelf: Shelf):
    version = shelf.version
    assert version.schema_version == 3, "or whoever doesn't know of changes would serve the encoder without them"
    assert "encoder/model.safetensors" in version.shared
    factors = sum(t.numel() for t in load_file(shelf.store.fetch("one")[0] / lora.FOLDER / lora.WEIGHTS).values())
    own = {name: entry.bytes for name, entry in version.files.items() if name.startswith(("lora/", "encoder/"))}
    assert sum(own.values()) < 4 * factors + 30_000, own
    # A second one on top of it stores its changes alone, too.
    known = load_model(shelf.store, "one", "cpu")
    parent = Parent(
        "one", known.encoder, known.adapter, load_model(shelf.store, shelf.base.version, "cpu").encoder
    )
    second = trained_from(replace(parent, low_rank=known.low_rank))
    after = shelf.publish("two", version, second)
    assert "encoder/model.safetensors" in after.shared
    assert abs(after.stored_bytes - version.stored_bytes) < 30_000


def test_peft_loads_the_changes_by_itself_as_the_model_card_says(shelf: Shelf, encoder: SentenceTransformer):
    import peft

    folder, _ = shelf.store.fetch("one")
    assert "merge `lora/` into its transformer with peft" in (folder / "README.md").read_text()
    own = copy.deepcopy(encoder)
    peft.PeftModel.from_pretrained(own[0].model, str(folder / lora.FOLDER)).merge_and_unload()
    assert np.allclose(own.encode(TEXTS, normalize_embeddings=True), by_the_trainer(shelf, "one"), atol=1e-6)


def other_method(version: Path) -> None:
    _change(version, use_dora=True)


def other_kind(version: Path) -> None:
    _change(version, peft_type="PROMPT_TUNING")


def another_layer(version: Path) -> None:
    _change(version, target_modules=["encoder.layer.9.output.dense"])


def other_rank(version: Path) -> None:
    _change(version, r=2)


def factor_gone(version: Path) -> None:
    tensors = load_file(version / lora.FOLDER / lora.WEIGHTS)
    tensors.pop(min(tensors))
    save_file(tensors, version / lora.FOLDER / lora.WEIGHTS)


def no_weights(version: Path) -> None:
    (version / lora.FOLDER / lora.WEIGHTS).write_bytes(b"\x93NUMPY")


def no_json(version: Path) -> None:
    (version / lora.FOLDER / lora.CONFIG).write_bytes(b"[" * 100_000)


def _change(version: Path, **fields: object) -> None:
    path = version / lora.FOLDER / lora.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "harm", [other_method, other_kind, another_layer, other_rank, factor_gone, no_weights, no_json]
)
def test_changes_that_clickloop_did_not_write_are_refused(
    harm: Callable[[Path], None], shelf: Shelf, tmp_path: Path, encoder: SentenceTransformer
):
    folder, _ = shelf.store.fetch("one")
    harm(folder)
    with pytest.raises(ArtifactError):
        lora.merge(copy.deepcopy(encoder)[0].model, folder)
    with pytest.raises(ArtifactError):
        sentence_model.loader(1)(folder / "encoder", "one")
