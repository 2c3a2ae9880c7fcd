"""Loads a sentence-transformers folder for CPUs. The only module of the node that imports torch.

Encoding queries is most of what a node does, and a query is short. Two or more are encoded as one packed sequence:
no computing on padding, each token seeing only its own query's (Krell et al. 2021, packing for BERT). With
MiniLM-L6, 8 queries together cost a third less than padded. A model with which packing doesn't give the same
vectors is encoded the plain way; that is tried once when it is loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clickloop import lora
from clickloop.errors import ArtifactError
from search.encoder import WARM_UP, Encode, Encoder, Vectors, normalise

PACKED_TOKENS = 256
"""Attention's cost grows with the square of a sequence: longer packs lose what they win."""
LEAST_COSINE = 0.9999
"""Between a text's packed and its plain vector. A token that sees a stranger's moves them much further apart."""


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without that, bfloat16 is slower than float32."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def loader(threads: int) -> Callable[[Path, str], Encoder]:
    """A loader of encoder folders, with ``threads`` threads an encode. It may raise anything."""

    def load(folder: Path, version: str) -> Encoder:
        _refuse_foreign_modules(folder, version)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(threads)
        model: Any = SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        lora.merge(getattr(model[0], "model", None), folder.parent)
        model.eval()
        if cpu_has_bf16():
            model.bfloat16()
        dim = model.get_embedding_dimension()
        if not dim:
            raise ArtifactError(f"{version}: its encoder doesn't say how many dimensions it has")
        queries, documents = _encode_functions(model, torch)
        return Encoder(version, dim, queries, documents, _token_counter(model))

    return load


def _encode_functions(model: Any, torch: Any) -> tuple[Encode, Encode]:
    """For queries and for documents. A plain model skips what ``encode`` adds for prompts, routes and cuts."""

    def direct(texts: list[str]) -> Vectors:
        with torch.inference_mode():
            vectors = model(model.preprocess(texts))["sentence_embedding"]
        return np.asarray(vectors.float().numpy())

    def queries(texts: list[str]) -> Vectors:
        return np.asarray(model.encode_query(texts, batch_size=len(texts), show_progress_bar=False), np.float32)

    def documents(texts: list[str]) -> Vectors:
        return np.asarray(model.encode_document(texts, batch_size=len(texts), show_progress_bar=False), np.float32)

    plain = (
        not any(model.prompts.values())
        and model.truncate_dim is None
        and not any(type(module).__name__ == "Router" for module in model.children())
    )
    if not plain:
        return queries, documents
    packed = _packed(model, torch)
    return (packed if _agrees(packed, direct) else direct), direct


def _packed(model: Any, torch: Any) -> Encode:
    """Encode texts as packed sequences of at most ``PACKED_TOKENS`` (or one text)."""
    first, *others = model.children()

    def encode(texts: list[str]) -> Vectors:
        with torch.inference_mode():
            features = model.preprocess(texts)
            lengths = features["attention_mask"].sum(dim=1).tolist()
            parts = []
            start = 0
            while start < len(texts):
                end, total = start + 1, lengths[start]
                while end < len(texts) and total + lengths[end] <= PACKED_TOKENS:
                    total += lengths[end]
                    end += 1
                parts.append(one_pack(features["input_ids"][start:end], features["attention_mask"][start:end]))
                start = end
            return np.concatenate(parts)

    def one_pack(ids: Any, attention: Any) -> Vectors:
        rows, width = ids.shape
        real = attention.bool()
        position = torch.arange(width).expand(rows, width)[real]
        owner = torch.arange(rows)[:, None].expand(rows, width)[real]
        same_text = (owner[:, None] == owner[None, :])[None, None]
        hidden = first.model(input_ids=ids[real][None], position_ids=position[None], attention_mask=same_text)[0][
            0
        ]
        unpacked = hidden.new_zeros(rows, width, hidden.shape[1])
        unpacked[real] = hidden
        features = {"token_embeddings": unpacked, "attention_mask": attention}
        for module in others:
            features = module(features)
        vectors: Vectors = features["sentence_embedding"].float().numpy()
        return vectors

    return encode


def _agrees(packed: Encode, direct: Encode) -> bool:
    """Whether packing this model is possible at all, and changes nothing."""
    try:
        cosines = (normalise(packed(WARM_UP)) * normalise(direct(WARM_UP))).sum(axis=1)
    except Exception:  # noqa: BLE001 - a model of another build; the plain way is always open
        return False
    return bool((cosines >= LEAST_COSINE).all())


def _token_counter(model: Any) -> Callable[[list[str]], list[int]]:
    longest = model.get_max_seq_length() or 512

    def lengths(texts: list[str]) -> list[int]:
        # Far more characters than the model will read: long documents need not be counted to their end.
        short = [text[: 16 * longest] for text in texts]
        return (
            [min(longest, len(ids)) for ids in model.tokenizer(short, verbose=False)["input_ids"]] if short else []
        )

    return lengths


def _refuse_foreign_modules(folder: Path, version: str) -> None:
    """A model's ``modules.json`` names classes to import; only sentence-transformers' own are let in."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        types = [str(module["type"]) for module in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{version}: encoder/modules.json can't be read: {error!r}") from None
    for name in types:
        if not name.startswith("sentence_transformers."):
            raise ArtifactError(f"{version}: its encoder wants the class {name}, which is not let in")
