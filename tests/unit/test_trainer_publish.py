from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import cramjam
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models

from clickloop import codec
from clickloop.base_model import base_model_folder
from clickloop.errors import ArtifactError
from clickloop.events import Estimate, ExampleFormed, GateResult, Lineage, OffsetRange
from clickloop.model_store import Manifest, ModelStore
from tests.unit.trainer_facts import START, documents, example
from trainer.domain import MOST_CHARACTERS, domain_queries, pieces, words
from trainer.examples import Document
from trainer.methods.base import Parent, Trained
from trainer.methods.upper_layers import layer_stack
from trainer.model import Adapter, encode, load_adapter, load_model
from trainer.publish import announcement, describe, model_card, publish, run_name, take_tokenizer, version_name

PARENT = Manifest(version="base-1", kind="full", space="base-1", encoder="base-1")
GATE = GateResult(
    verdict="fail",
    queries=99,
    metrics={"mrr_at_10": Estimate(before=0.5, after=0.4, change=-0.2, low=-0.3, high=-0.1)},
    reasons=["worse than its parent"],
)
LINEAGE = Lineage(
    command_id="c1", ranges=[OffsetRange(topic="examples", partition=3, start=17, end=42)], examples=25
)


def adapter_manifest() -> Manifest:
    return describe(version="adapter-1", kind="adapter", parent=PARENT, lineage=LINEAGE, gate=GATE)


def test_a_command_names_one_version_of_each_kind_and_one_run():
    assert version_name("query_encoder", "c1") == version_name("query_encoder", "c1")
    assert version_name("query_encoder", "c1").startswith("query-encoder-")
    assert len({version_name(k, c) for k in ("adapter", "full") for c in ("c1", "c2")}) == 4
    assert run_name("c1") != run_name("c2")


def test_only_a_full_version_has_a_space_of_its_own():
    made = {
        kind: describe(version="v", kind=kind, parent=PARENT, lineage=LINEAGE, gate=GATE)
        for kind in ("adapter", "query_encoder", "full")
    }
    assert {kind: (m.encoder, m.space) for kind, m in made.items()} == {
        "adapter": ("base-1", "base-1"),
        "query_encoder": ("v", "base-1"),
        "full": ("v", "v"),
    }


def test_a_version_for_which_there_is_no_room_is_an_error_that_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("trainer.model.save_file", full)
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    trained = Trained(adapter=Adapter.identity(4))
    with pytest.raises(ArtifactError, match="can't be written: I/O error: No space left"):
        publish(store, tmp_path, adapter_manifest(), Parent("base-1", None, None, None), trained)  # type: ignore[arg-type]
    assert store.versions() == []


def test_a_failed_version_is_published_whole_with_its_reasons(tmp_path: Path):
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    adapter = Adapter(np.eye(4, dtype=np.float32) * 2, np.ones(4, np.float32))
    nothing: object = None
    parent = Parent("base-1", nothing, None, nothing)  # type: ignore[arg-type]
    published = publish(store, tmp_path, adapter_manifest(), parent, Trained(adapter=adapter))
    folder, manifest = store.fetch("adapter-1", digest=published.digest)
    found = load_adapter(folder)
    assert found is not None
    assert np.array_equal(found.weight, adapter.weight)
    assert sorted(manifest.files) == ["README.md", "adapter.safetensors", "gate.json"]
    event = announcement(published, index="default", at=START)
    assert event.gate == GATE
    assert event.lineage.ranges == LINEAGE.ranges
    assert not list((tmp_path / "making").iterdir())


def test_a_version_stores_only_its_own_weights_and_is_loaded_whole(tmp_path: Path):
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    base = store.ensure_base(base_model_folder("all-MiniLM-L6-v2"), name="all-MiniLM-L6-v2").manifest
    parent = load_model(store, base.version, "cpu")
    encoder = copy.deepcopy(parent.encoder)
    with torch.no_grad():
        for layer in list(layer_stack(encoder) or [])[-2:]:
            for weights in layer.parameters():
                weights.mul_(1.01)
    mapped = Adapter(np.eye(384, dtype=np.float32) * 2, np.zeros(384, np.float32))
    old = Parent(base.version, parent.encoder, None, parent.encoder)
    upper = describe(version="query-encoder-1", kind="query_encoder", parent=base, lineage=LINEAGE, gate=GATE)
    made = publish(store, tmp_path, upper, old, Trained(encoder=encoder, adapter=mapped)).manifest
    small = describe(version="adapter-1", kind="adapter", parent=made, lineage=LINEAGE, gate=GATE)
    adapter = publish(store, tmp_path, small, old, Trained(adapter=mapped)).manifest

    assert base.stored_bytes > 90e6
    assert made.stored_bytes < 16e6, "two layers of six, of 3.6 million weights, and a map"
    assert "encoder/tokenizer.json" in made.shared, "saving writes it anew, and a little differently"
    assert adapter.stored_bytes < 0.7e6, "384 x 384 weights"
    texts = ["how to open a file", "sort a list of numbers", "longer than the file has it cut " * 30]
    expected = mapped.apply(encode(encoder, texts))
    for name in (made.version, adapter.version):
        assert np.array_equal(load_model(store, name, "cpu").encode_queries(texts), expected)
    whole = store.fetch(made.version)[0] / "encoder"
    there = {p.relative_to(whole).as_posix() for p in whole.rglob("*") if p.is_file()}
    assert there >= {"model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"}


def test_a_space_that_is_torn_in_the_store_keeps_no_version_from_being_published(tmp_path: Path):
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    base = store.ensure_base(base_model_folder("all-MiniLM-L6-v2"), name="all-MiniLM-L6-v2").manifest
    parent = load_model(store, base.version, "cpu")
    encoder = copy.deepcopy(parent.encoder)
    with torch.no_grad():
        for weights in encoder.parameters():
            weights.mul_(1.01)
    torn = tmp_path / "store/versions" / base.version / "encoder/model.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    shutil.rmtree(tmp_path / "cache")
    old = Parent(base.version, parent.encoder, None, parent.encoder)
    upper = describe(version="query-encoder-1", kind="query_encoder", parent=base, lineage=LINEAGE, gate=GATE)
    made = publish(store, tmp_path, upper, old, Trained(encoder=encoder)).manifest
    assert {"encoder/model.safetensors", "encoder/tokenizer.json"} <= made.files.keys()


def test_a_tokenizer_of_its_own_is_stored_as_it_is(tmp_path: Path):
    own, other = tmp_path / "own", tmp_path / "other"
    for folder, word in ((own, "open"), (other, "close")):
        folder.mkdir()
        words = Tokenizer(models.WordLevel({"?": 0, word: 1}, "?"))
        words.enable_truncation(64 if folder is own else 128)
        words.save(str(folder / "tokenizer.json"))
    before = (own / "tokenizer.json").read_bytes()
    take_tokenizer(own, other)
    assert (own / "tokenizer.json").read_bytes() == before
    (other / "tokenizer.json").write_bytes(before.replace(b"64", b"32"))
    take_tokenizer(own, other)
    assert (own / "tokenizer.json").read_bytes() == before.replace(b"64", b"32")
    (other / "tokenizer.json").write_text("{}")
    take_tokenizer(own, other)
    assert (own / "tokenizer.json").read_bytes() == before.replace(b"64", b"32")
    take_tokenizer(own, tmp_path / "nowhere")


def test_announcing_a_version_again_has_the_same_event_id(tmp_path: Path):
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    nothing: object = None
    parent = Parent("base-1", nothing, None, nothing)  # type: ignore[arg-type]
    trained = Trained(adapter=Adapter.identity(4))
    first, second = (publish(store, tmp_path, adapter_manifest(), parent, trained) for _ in range(2))
    assert first == second
    assert (
        announcement(first, index="default", at=START).event_id
        == announcement(second, index="default", at=START).event_id
    )


def test_the_model_card_names_offsets_verdict_and_figures():
    card = model_card(adapter_manifest())
    assert "| examples | 3 | 17 | 42 |" in card
    assert "**fail**" in card
    assert "-20.0%" in card


def card_of(**lineage: Any) -> str:
    made = Lineage(command_id="c1", **lineage)
    manifest = describe(version="adapter-1", kind="adapter", parent=PARENT, lineage=made, gate=GATE)
    return model_card(manifest, enclosed=not made.ranges)


def test_the_model_card_says_what_taught_and_what_only_judged():
    settings: dict[str, Any] = {"pairs_uri": "s3://b/pairs.csv", "pairs_sha256": "ab12"}
    card = card_of(strategy="fine_tune", ranges=LINEAGE.ranges, settings=settings)
    assert "Trained on the pairs of `s3://b/pairs.csv` (SHA-256 `ab12`)" in card
    assert "of the clicks that it was judged on" in card
    assert "| examples | 3 | 17 | 42 |" in card
    assert "trained and judged" not in card
    made = card_of(strategy="domain_adaptation", ranges=LINEAGE.ranges)
    assert "Trained on queries made from the documents" in made
    assert "trained and judged" not in made
    settings = {"replayed_examples": 7, "dropped_examples": 400}
    usual = card_of(strategy="incremental", ranges=LINEAGE.ranges, settings=settings)
    assert "that it was trained and judged on:" in usual
    assert "7 older examples were learnt again" in usual
    assert "The 400 oldest of them had no room" in usual


def test_the_model_card_of_a_replay_points_to_its_examples_and_to_no_empty_table():
    card = card_of(strategy="incremental", settings={"events_file": "e.jsonl", "events_sha256": "cd34"})
    assert "trained and judged on are in `examples.jsonl.zst`" in card
    assert "the recorded events of `e.jsonl` (SHA-256 `cd34`)" in card
    assert "| topic |" not in card


def test_examples_that_are_in_no_log_lie_beside_the_version_under_its_digests(tmp_path: Path):
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    nothing: object = None
    parent = Parent("base-1", nothing, None, nothing)  # type: ignore[arg-type]
    given = [example(f"query {n}", "d1", number=n) for n in range(50)]
    trained = Trained(adapter=Adapter.identity(4))
    publish(store, tmp_path, adapter_manifest(), parent, trained, examples=given)
    folder, manifest = store.fetch("adapter-1")
    raw = bytes(cramjam.zstd.decompress((folder / "examples.jsonl.zst").read_bytes()))
    assert [codec.decode(line, ExampleFormed) for line in raw.splitlines()] == given
    assert "examples.jsonl.zst" in manifest.files


def test_identifiers_fall_apart_into_words_that_people_type():
    assert words("BaseEventLoop.run_forever(self)") == ["base", "event", "loop", "run", "forever", "self"]


def test_the_same_document_always_gives_the_same_pieces():
    document = Document("d", "name.of_it\ndef of_it(a): return a and some more words to choose from", b"\1" * 32)
    assert pieces(document) == pieces(document)
    assert pieces(document)[0] == "name of it"
    assert all(len(piece) <= MOST_CHARACTERS for piece in pieces(document))


def test_an_empty_document_gives_no_pieces():
    assert pieces(Document("d", "", b"\1" * 32)) == []
    assert len(domain_queries([Document("d", "...", b"\1" * 32)], seed=0)) == 0


def test_each_piece_wants_the_document_that_it_comes_from():
    found = domain_queries(documents(5), seed=0)
    assert [found.queries[q].split()[-1] for q in found.query] == [str(d) for d in found.document]
