"""A version written for other programs gives the version's vectors there, or it is not written."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from clickloop.base_model import base_model_folder
from clickloop.errors import ArtifactError, SettingsError
from clickloop.events import GateResult, Lineage
from clickloop.model_store import Manifest, ModelStore
from tests.end_to_end.test_trainer_encoders import small_world
from tests.unit.trainer_facts import job
from trainer import exporting, gguf_model
from trainer.exporting import FORMS, SAMPLES, Form, export_version
from trainer.methods import methods_of
from trainer.methods.base import Parent, Trained
from trainer.methods.upper_layers import layer_stack
from trainer.model import Adapter, Model, Vectors, load_model
from trainer.publish import describe, publish
from trainer.rung_settings import RungSettings

SHORT_OF_ROOM = """
import resource, sys
from pathlib import Path
from clickloop.errors import ArtifactError
from clickloop.model_store import ModelStore
from trainer.exporting import export_version
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
url, cache, form, folder = sys.argv[1:]
try:
    export_version(ModelStore(url, cache=Path(cache)), "upper-1", form, Path(folder), quantize=False)
except ArtifactError as error:
    print(error)
"""
UNSEEN = ["a query that is no sample", "Ünïcode & punctuation!", "word " * 400]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """The real base, an adapter, a query encoder without a map, a full version with one, and one without."""
    folder = tmp_path_factory.mktemp("exports")
    made = ModelStore(f"file://{folder}/store", cache=folder / "cache")
    base = made.ensure_base(base_model_folder("all-MiniLM-L6-v2"), name="all-MiniLM-L6-v2").manifest
    model = load_model(made, base.version, "cpu")
    parent = Parent(base.version, model.encoder, None, model.encoder)
    rng = np.random.default_rng(0)
    turn = np.eye(384) + 0.03 * rng.normal(size=(384, 384))
    adapter = Adapter(turn.astype(np.float32), (0.01 * rng.normal(size=384)).astype(np.float32))
    encoder = copy.deepcopy(model.encoder)
    with torch.no_grad():
        for weights in (layer_stack(encoder) or [])[-1].parameters():
            weights.mul_(1.1)

    def new(version: str, kind: str) -> Manifest:
        gate = GateResult(verdict="pass", queries=100)
        return describe(version=version, kind=kind, parent=base, lineage=Lineage(), gate=gate)  # type: ignore[arg-type]

    publish(made, folder, new("adapter-1", "adapter"), parent, Trained(adapter=adapter))
    publish(made, folder, new("upper-1", "query_encoder"), parent, Trained(encoder=encoder))
    both = Trained(encoder=encoder, adapter=adapter, new_space=True)
    publish(made, folder, new("full-1", "full"), parent, both)
    without_head = methods_of(RungSettings.model_construct(full_head=False, full_epochs=1, full_batch=6))["full"]
    trained = without_head.train(job(*small_world(model.encoder), model.encoder))
    publish(made, folder, new("full-plain", "full"), parent, trained)
    return made


def agrees(found: Vectors, model: Model, least: float) -> bool:
    wanted = exporting.expected(model, UNSEEN)
    return bool(((found * wanted).sum(axis=1) >= least).all())


@pytest.mark.parametrize("version", ["adapter-1", "upper-1", "full-1", "full-plain"])
def test_sentence_transformers_loads_the_folder_as_it_is(version: str, store: ModelStore, tmp_path: Path) -> None:
    line = export_version(store, version, "sentence-transformers", tmp_path / "out", quantize=False)
    assert f"{len(SAMPLES)} samples read back" in line
    encoder = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    model = load_model(store, version, "cpu")
    assert agrees(encoder.encode(UNSEEN), model, 0.9999)
    has_map = [type(module).__name__ for module in encoder].count("Dense") == 1
    assert has_map == (model.adapter is not None)
    assert (tmp_path / "out" / "documents").is_dir() == (version == "full-1"), "full: documents have no map"
    if version == "full-1":
        documents = SentenceTransformer(str(tmp_path / "out" / "documents"), device="cpu", local_files_only=True)
        plain = exporting.expected(replace(model, adapter=None), UNSEEN)
        assert ((documents.encode(UNSEEN) * plain).sum(axis=1) >= 0.9999).all()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("quantize", [False, True], ids=["whole", "quantized"])
@pytest.mark.parametrize(
    ("version", "form"),
    [
        ("adapter-1", "onnx"),
        ("upper-1", "onnx"),
        ("adapter-1", "openvino"),
        ("upper-1", "gguf"),
        ("full-plain", "gguf"),
    ],
)
def test_other_programs_give_the_same_vectors(
    version: str, form: str, quantize: bool, store: ModelStore, tmp_path: Path
) -> None:
    export_version(store, version, form, tmp_path / "out", quantize=quantize)
    model = load_model(store, version, "cpu")
    assert agrees(FORMS[form].read(tmp_path / "out", model)(UNSEEN), model, 0.99 if quantize else 0.999)
    size = sum(p.stat().st_size for p in (tmp_path / "out").rglob("*"))
    assert (size < 60e6) == quantize, "in eight bits it is much smaller"
    assert version in (tmp_path / "out" / "README.md").read_text()


def test_a_gguf_is_what_llama_cpp_expects_of_bert(store: ModelStore, tmp_path: Path) -> None:
    import gguf

    export_version(store, "upper-1", "gguf", tmp_path / "out", quantize=False)
    found = gguf.GGUFReader(str(tmp_path / "out" / "model.gguf"))
    names = {tensor.name for tensor in found.tensors}
    assert {"token_embd.weight", "position_embd.weight", "token_types.weight", "token_embd_norm.bias"} <= names
    assert {f"blk.5.{part}.weight" for part in ("attn_q", "attn_output", "attn_output_norm", "ffn_up")} <= names
    assert not any("pooler" in name for name in names)
    fields = {name: field.contents() for name, field in found.fields.items()}
    assert (fields["general.architecture"], fields["bert.pooling_type"]) == ("bert", 1)
    assert (fields["bert.embedding_length"], fields["bert.context_length"]) == (384, 512)
    assert fields["bert.attention.causal"] is False
    assert (tmp_path / "out" / "Modelfile").read_text() == "FROM ./model.gguf\nPARAMETER num_ctx 256\n"
    tokenizer = load_model(store, "upper-1", "cpu").encoder.tokenizer
    words = {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])}
    for text in [*SAMPLES, *UNSEEN]:
        own = gguf_model.tokenized(text, words, fields, 256)
        assert own == tokenizer(text, truncation=True, max_length=256)["input_ids"]


def test_a_version_with_a_map_is_no_gguf_and_the_reason_says_so(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no linear map"):
        export_version(store, "adapter-1", "gguf", tmp_path / "out", quantize=False)
    assert list(tmp_path.iterdir()) == []


def test_what_reads_back_as_something_else_is_not_left_there(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = FORMS["sentence-transformers"]

    def without_map(model: Model, folder: Path, quantize: bool) -> None:
        good.write(replace(model, adapter=None), folder, quantize)

    monkeypatch.setitem(FORMS, "sentence-transformers", Form(without_map, good.read, quantizes=False))
    with pytest.raises(ArtifactError, match=r"cosine 0\.\d+ .* needed is 0\.999"):
        export_version(store, "adapter-1", "sentence-transformers", tmp_path / "out", quantize=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_without_room_is_an_error_that_says_so(store: ModelStore, tmp_path: Path, form: str) -> None:
    load_model(ModelStore(store.url, cache=tmp_path / "cache"), "upper-1", "cpu")  # what is read is there
    arguments = [store.url, str(tmp_path / "cache"), form, str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_ROOM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'out'} can't be written: ")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_nothing_is_overwritten_and_a_folder_of_floats_is_not_quantized(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(SettingsError, match="there already"):
        export_version(store, "upper-1", "onnx", tmp_path / "out", quantize=False)
    with pytest.raises(SettingsError, match="keeps its weights"):
        export_version(store, "upper-1", "sentence-transformers", tmp_path / "new", quantize=True)


def test_an_encoder_that_llama_cpp_reads_otherwise_is_refused(store: ModelStore, tmp_path: Path) -> None:
    encoder = load_model(store, "upper-1", "cpu").encoder
    encoder[0].model.config.model_type = "mpnet"
    with pytest.raises(SettingsError, match="only BERT encoders"):
        gguf_model.write_gguf(encoder, tmp_path / "x.gguf", name="x", quantize=False)
    assert json.loads((base_model_folder("all-MiniLM-L6-v2") / "config.json").read_text())["model_type"] == "bert"
