"""A version in the formats of other programs. Each is read back and compared before anyone sees it.

What is written gives query vectors: the version's query encoder with its linear map. Documents of a query-side
version are encoded by its space's, which is a version of its own to export.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from clickloop.errors import ArtifactError, SettingsError
from clickloop.model_store import ModelStore
from trainer import gguf_model
from trainer.model import Adapter, Model, Vectors, load_encoder, load_model, load_space, normalised, writing

LEAST_COSINE = 0.999
LEAST_COSINE_QUANTIZED = 0.99
SAMPLES = (
    "how do I return shoes that don't fit",
    "a",
    "wireless headphones, noise-cancelling (2nd generation) under 100$",
    "ASYNCIO.run_until_complete() raises RuntimeError: this event loop is already running",
    "Café crème à la façon d'été",
    "42",
    "what is the difference between a list and a tuple? " * 12,
    "  spaces\tand\nlines  ",
    "unfamiliarwordwithoutanyspaceinit",
    "red dress size M",
)
DOCUMENTS = "documents"

Encode = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Form:
    """One format: how it is written, and how what was written is read back as a way to make vectors."""

    write: Callable[[Model, Path, bool], None]
    read: Callable[[Path, Model], Encode]
    quantizes: bool = True


def export_version(store: ModelStore, version: str, form: str, folder: Path, *, quantize: bool) -> str:
    """Write the version to ``folder``, which must not be there yet, and return what was found in checking it.

    Raises SettingsError for what can't be written so, ArtifactError where it reads back as something else; then
    nothing is left in ``folder``.
    """
    chosen = FORMS[form]
    if quantize and not chosen.quantizes:
        raise SettingsError(f"--quantize: {form} keeps its weights as they are")
    if folder.exists():
        raise SettingsError(f"--output {folder} is there already")
    model = load_model(store, version, "cpu")
    staging = folder.parent / f".{folder.name}-{uuid4().hex}"
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise SettingsError(f"--output {folder} can't be written: {error.strerror}") from None
    try:
        with _quiet():
            with writing(folder):
                chosen.write(model, staging, quantize)
                if form == "sentence-transformers" and model.space == version and model.adapter is not None:
                    documents = load_space(store, model, "cpu")
                    documents.save_pretrained(str(staging / DOCUMENTS), create_model_card=False)
                (staging / "README.md").write_text(_card(model, form), encoding="utf-8")
            worst = _worst_cosine(chosen.read(staging, model)(SAMPLES), expected(model, SAMPLES))
        least = LEAST_COSINE_QUANTIZED if quantize else LEAST_COSINE
        if not worst >= least:
            what = f"a sample's vector has cosine {worst:.5f} to the version's, needed is {least}"
            raise ArtifactError(f"{version} as {form}: {what}")
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return f"{version} as {form} in {folder}: {len(SAMPLES)} samples read back, least cosine {worst:.6f}"


def expected(model: Model, texts: Sequence[str]) -> Vectors:
    """(n, dim) float32: the version's query vectors in full precision, whatever the CPU has."""
    vectors = normalised(_plain(model.encoder)(texts))
    return model.adapter.apply(vectors) if model.adapter else vectors


def _plain(encoder: SentenceTransformer) -> Encode:
    return lambda texts: np.asarray(
        encoder.encode(list(texts), show_progress_bar=False, normalize_embeddings=True), np.float32
    )


def _worst_cosine(found: Vectors, wanted: Vectors) -> float:
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return 0.0
    return float((normalised(found) * wanted).sum(axis=1).min())


@contextmanager
def _quiet() -> Any:
    """The converters' chatter is for their makers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# sentence-transformers


def _write_folder(model: Model, folder: Path, _: bool) -> None:
    modules = list(model.encoder)
    if model.adapter is not None:
        if type(modules[-1]).__name__ != "Normalize":
            modules.append(Normalize())
        modules += [_dense(model.adapter), Normalize()]
    encoder = SentenceTransformer(modules=modules, device="cpu", prompts=model.encoder.prompts)
    encoder.save_pretrained(str(folder), create_model_card=False)


def _dense(adapter: Adapter) -> Dense:
    size = len(adapter.bias)
    return Dense(
        size,
        size,
        activation_function=torch.nn.Identity(),
        init_weight=torch.from_numpy(adapter.weight),
        init_bias=torch.from_numpy(adapter.bias),
    )


def _read_folder(folder: Path, _: Model) -> Encode:
    return _plain(load_encoder(folder, "cpu"))


# ONNX and OpenVINO

_ONNX = "model.onnx"
_XML = "model.xml"
_INPUTS = ["input_ids", "attention_mask"]
_OUTPUT = "sentence_embedding"


class _Graph(torch.nn.Module):
    """From tokens to the normalised query vector, the linear map included."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = model.encoder
        adapter = model.adapter
        self.weight = None if adapter is None else torch.nn.Parameter(torch.from_numpy(adapter.weight))
        self.bias = None if adapter is None else torch.nn.Parameter(torch.from_numpy(adapter.bias))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        for module in self.encoder:
            features = module(features)
        vector = torch.nn.functional.normalize(features["sentence_embedding"], dim=1)
        if self.weight is None or self.bias is None:
            return vector
        return torch.nn.functional.normalize(vector @ self.weight.T + self.bias, dim=1)


def _write_onnx(model: Model, folder: Path, quantize: bool) -> None:
    import onnx  # noqa: F401 - the converter needs it, and says so less clearly
    import onnxscript  # noqa: F401

    if any(model.encoder.prompts.values()):
        raise SettingsError("ONNX holds no prompt, and this encoder puts one before each text")
    path = folder / _ONNX
    features = model.encoder.preprocess(list(SAMPLES[:3]))
    batch, tokens = torch.export.Dim("batch", min=1), torch.export.Dim("tokens", min=1)
    axes = {0: batch, 1: tokens}
    torch.onnx.export(
        _Graph(model).eval(),
        tuple(features[name] for name in _INPUTS),
        str(path),
        input_names=_INPUTS,
        output_names=[_OUTPUT],
        dynamic_shapes=(axes, axes),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    if quantize:
        _quantize(path)
    model.encoder.tokenizer.save_pretrained(str(folder))


def _quantize(path: Path) -> None:
    """Weights in 8 bits, in place. Between them all stays float: to round that costs 0.01 of cosine."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    tables = path.with_suffix(".tables.onnx")
    only = ["Gather"]
    quantize_dynamic(str(path), str(tables), only, weight_type=QuantType.QInt8, per_channel=True)
    matrices = MatMulNBitsQuantizer(onnx.load(tables), bits=8, block_size=32, is_symmetric=True)
    matrices.process()
    matrices.model.save_model_to_file(str(path))
    tables.unlink()


def _read_onnx(folder: Path, model: Model) -> Encode:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / _ONNX), providers=["CPUExecutionProvider"])
    tokens = _tokens(folder, model)
    return lambda texts: np.concatenate([session.run([_OUTPUT], one)[0] for one in map(tokens, texts)])


def _write_openvino(model: Model, folder: Path, quantize: bool) -> None:
    import openvino

    _write_onnx(model, folder, quantize)
    openvino.save_model(openvino.convert_model(str(folder / _ONNX)), str(folder / _XML), compress_to_fp16=False)
    (folder / _ONNX).unlink()


def _read_openvino(folder: Path, model: Model) -> Encode:
    import openvino

    # Weights and vectors as they were written: by itself it computes in bf16 where the CPU has it.
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(folder / _XML), "CPU", precise)
    tokens = _tokens(folder, model)
    return lambda texts: np.concatenate([compiled(one)[_OUTPUT] for one in map(tokens, texts)])


def _tokens(folder: Path, model: Model) -> Callable[[str], dict[str, Any]]:
    """One text's inputs from the tokenizer that was written, not from the one in memory."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(model.encoder.get_max_seq_length() or 512))

    def inputs(text: str) -> dict[str, Any]:
        found = tokenizer.encode(text)
        return {
            "input_ids": np.asarray([found.ids], np.int64),
            "attention_mask": np.asarray([found.attention_mask], np.int64),
        }

    return inputs


# GGUF

_GGUF = "model.gguf"


def _write_gguf(model: Model, folder: Path, quantize: bool) -> None:
    if model.adapter is not None:
        raise SettingsError(
            "--as gguf: llama.cpp has no linear map after pooling, and this version has one; "
            "choose sentence-transformers, onnx or openvino"
        )
    gguf_model.write_gguf(model.encoder, folder / _GGUF, name=model.version, quantize=quantize)
    modelfile = gguf_model.modelfile(_GGUF, tokens=_longest(model))
    (folder / "Modelfile").write_text(modelfile, encoding="utf-8")


def _read_gguf(folder: Path, model: Model) -> Encode:
    return gguf_model.reader(folder / _GGUF, tokens=_longest(model))


def _longest(model: Model) -> int:
    return int(model.encoder.get_max_seq_length() or 512)


FORMS: dict[str, Form] = {
    "sentence-transformers": Form(_write_folder, _read_folder, quantizes=False),
    "onnx": Form(_write_onnx, _read_onnx),
    "openvino": Form(_write_openvino, _read_openvino),
    "gguf": Form(_write_gguf, _read_gguf),
}


_USE = {
    "sentence-transformers": "`SentenceTransformer(folder).encode(texts)` gives normalised vectors.",
    "onnx": f"`{_ONNX}` takes `input_ids` and `attention_mask` (int64, batch x tokens) and gives `{_OUTPUT}`, "
    "normalised. `tokenizer.json` makes the tokens; cut texts at {tokens}.",
    "openvino": f"`{_XML}` takes `input_ids` and `attention_mask` (int64, batch x tokens) and gives `{_OUTPUT}`, "
    "normalised. `tokenizer.json` makes the tokens; cut texts at {tokens}.",
    "gguf": "`ollama create NAME -f Modelfile`, or `llama-embedding -m model.gguf`; cut texts at {tokens} tokens, "
    "and normalise the vectors.",
}


def _card(model: Model, form: str) -> str:
    both = model.space == model.version
    documents = "encoded in the same way"
    if both and model.adapter is not None:
        documents = f"encoded by `{DOCUMENTS}/`" if form == "sentence-transformers" else "those of the node"
    elif not both:
        documents = f"those of version `{model.space}`: export it, too"
    use = _USE[form].format(tokens=_longest(model))
    return f"# {model.version}\n\nQueries: {use}\n\nDocuments of space `{model.space}` are {documents}.\n"
