"""One rank of a training without broker or store, for torchrun: ``python -m tests.ranks_worker FOLDER PRECISION``.

Rank 0 trains on a small world with the encoder in FOLDER, and leaves there each rung's losses, its weights, and
those of the same training once it was killed on the way and resumed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

from tests.precision import computing_in
from tests.unit.trainer_facts import documents
from trainer.dataset import Clicks, Corpus
from trainer.methods import methods_of
from trainer.methods.base import Job, Method, Parent, Progress, Trained
from trainer.methods.checkpoint import Checkpoint
from trainer.methods.spread import follow
from trainer.model import encode, load_encoder
from trainer.ranks import Ranks, place
from trainer.rung_settings import RungSettings

LOW_RANK = "query_encoder of low rank"
IN_PARTS = "full in parts"
NAMES = ("query_encoder", LOW_RANK, "full", IN_PARTS)
STEPS = 15
"""of each rung's training"""
WORDS = ("red", "blue", "green", "old", "new", "fast", "car", "house", "boat", "tree", "with", "and", "without")


def write_tiny_encoder(folder: Path) -> None:
    """Four layers of 32 dimensions, random weights, and a word for each word of WORDS."""
    torch.manual_seed(7)
    bert = folder / "bert"
    bert.mkdir(parents=True)
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast(vocab_file=str(bert / "vocab.txt"))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    transformer = Transformer(str(bert), max_seq_length=32)
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save_pretrained(
        str(folder / "encoder"), create_model_card=False
    )


def small_job(encoder: SentenceTransformer, ranks: Ranks | None, report: Callable[[Progress], None]) -> Job:
    rng = np.random.default_rng(3)
    queries = list(dict.fromkeys(" ".join(rng.choice(WORDS, size=rng.integers(2, 12))) for _ in range(45)))
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(5, 25))) for _ in range(30)]
    each = np.arange(len(queries))
    clicks = Clicks(
        queries=queries,
        query=each,
        document=rng.integers(0, len(texts), len(queries)),
        weight=np.ones(len(queries), np.float32),
        evidence=np.full(len(queries), 2.0, np.float32),
        vectors=encode(encoder, queries),
    )
    known = [replace(document, text=text) for document, text in zip(documents(len(texts)), texts, strict=True)]
    corpus = Corpus(known, encode(encoder, texts))
    parent = Parent("base", encoder, None, encoder)
    return Job(parent, clicks, corpus, clicks.of_queries([]), 0, report, ranks=ranks)


def small_method(name: str) -> Method:
    settings = RungSettings.model_construct(query_encoder_rank=3 if name == LOW_RANK else 0)
    usual = methods_of(settings)["full" if name in ("full", IN_PARTS) else "query_encoder"]
    method = replace(usual, epochs=3, batch=10)  # type: ignore[type-var]
    if name == IN_PARTS:
        return replace(method, batch=5, accumulate=2, cached_batch=4)  # type: ignore[type-var]
    return replace(method, hard_negatives=2) if name == "full" else method  # type: ignore[type-var]


def trained_with_losses(name: str, folder: Path, ranks: Ranks | None) -> tuple[Trained, list[float]]:
    losses: list[float] = []

    def report(progress: Progress) -> None:
        if progress.loss is not None:
            losses.append(progress.loss)

    encoder = load_encoder(folder / "encoder", "cpu")
    return small_method(name).train(small_job(encoder, ranks, report)), losses


class KilledError(Exception):
    """Stands for the end of the process."""


def resumed(name: str, folder: Path, ranks: Ranks | None) -> Trained:
    """The training, killed after its eighth step and resumed from what it had left."""
    encoder, path = load_encoder(folder / "encoder", "cpu"), folder / "checkpoints" / f"{name}.safetensors"

    def checkpoint() -> Checkpoint:
        ticks = count(step=1000)  # always due
        return Checkpoint(path, "this", now=lambda: float(next(ticks)))

    def killed(progress: Progress) -> None:
        if progress.steps == STEPS and progress.step == 8:
            raise KilledError

    with suppress(KilledError):
        small_method(name).train(replace(small_job(encoder, ranks, killed), checkpoint=checkpoint()))
    assert path.is_file()
    goes_on = replace(small_job(encoder, ranks, lambda _: None), checkpoint=checkpoint())
    return small_method(name).train(goes_on)


def weights_of(trained: Trained) -> dict[str, torch.Tensor]:
    assert trained.encoder is not None
    assert trained.adapter is not None
    found = {name: p.detach().clone() for name, p in trained.encoder.named_parameters()}
    return found | {"weight": torch.from_numpy(trained.adapter.weight)}


def main(folder: Path, precision: str) -> None:
    torch.set_num_threads(1)
    where = place()
    assert where is not None
    with computing_in(precision), Ranks.join(where, device="cpu", threads=1) as ranks:
        if where.rank:
            follow(ranks)
            return
        for name in NAMES:
            trained, losses = trained_with_losses(name, folder, ranks)
            save_file(weights_of(trained), folder / f"{name}.safetensors")
            save_file(weights_of(resumed(name, folder, ranks)), folder / f"{name}-resumed.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
