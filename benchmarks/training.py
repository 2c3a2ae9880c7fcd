"""``python -m benchmarks.training``: both towers trained by us, and by the stock sentence-transformers trainer.

The rung ``full`` against ``SentenceTransformerTrainer`` in fp32 with its default settings and
MultipleNegativesRankingLoss: the same pairs, the same epochs, the same threads, one after the other. The pairs are
functions of Python's standard library and their docstrings' first sentences; quality is the MRR@10 on others of
them, that none has trained on, among all documents.

* ``ratio``: examples a second of training, ours to theirs. What ours does once before its first step is counted.
* ``ratio_to_searchable``: the same up to vectors for all documents. Ours then also fits a map on the queries.
* ``quality_difference``: MRR@10, ours minus theirs, with a 95 % interval of the difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.common import JsonFile, Quick, finish, say
from clickloop.base_model import base_model_folder
from clickloop.documents import document_text
from clickloop.evaluation import reciprocal_rank
from clickloop.vector_store import content_digest
from demo.corpus import Corpus as Functions
from demo.corpus import stdlib_corpus
from trainer.dataset import Clicks, Corpus
from trainer.examples import Document
from trainer.methods.base import Job, Parent, Progress
from trainer.methods.full import FullMethod
from trainer.model import Vectors, encode, fast_bf16, load_encoder

BASE = "all-MiniLM-L6-v2"
STOCK = Path(sys.prefix) / "stock-trainer"
"""Where ``make bench`` puts what the stock trainer needs."""
TARGET_RATIO = 3.0
RESAMPLES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    pairs: int
    asked: int
    epochs: int


FULL = Size(pairs=600, asked=500, epochs=2)
SMALL = Size(pairs=64, asked=150, epochs=1)


@dataclass(frozen=True)
class Task:
    documents: list[str]
    queries: list[str]
    wanted: list[int]
    """of the query with the same number, into ``documents``"""
    asked: list[str]
    asked_wanted: list[int]


def task(functions: Functions, size: Size) -> Task:
    pairs, asked = functions.clicking[: size.pairs], functions.held_out[: size.asked]
    needed = {doc_id for query in (*pairs, *asked) for doc_id in query.relevant}
    kept = [d for d in functions.documents if d.doc_id in needed]
    position = {document.doc_id: number for number, document in enumerate(kept)}
    return Task(
        [document_text(d.title, d.text) for d in kept],
        [q.text for q in pairs],
        [position[min(q.relevant)] for q in pairs],
        [q.text for q in asked],
        [position[min(q.relevant)] for q in asked],
    )


@dataclass(frozen=True)
class Side:
    """What one trainer took, and what its model finds."""

    training_seconds: float
    searchable_seconds: float
    found: Floats
    """(asked,) reciprocal rank"""


def command(json_file: JsonFile = None, quick: Quick = False, seed: int = 0) -> None:
    """Train with both, one after the other, and compare."""
    import torch

    if not (STOCK / "datasets").is_dir():
        typer.echo(
            f"benchmarks.training: {STOCK} lacks the stock trainer's packages; make bench installs them", err=True
        )
        raise typer.Exit(2)
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    size = SMALL if quick else FULL
    given = task(stdlib_corpus(seed=seed), size)
    say(f"{len(given.queries)} pairs, {size.epochs} epochs, {len(given.documents)} documents, {threads} threads")
    base = load_encoder(base_model_folder(BASE), "cpu")
    before = encode(base, given.documents)
    base_found = found(encode(base, given.asked), before, given.asked_wanted)
    say(f"before    MRR@10 {base_found.mean():.3f}")
    ours = train_ours(given, before, base, size.epochs, seed)
    examples = len(given.queries) * size.epochs
    say(f"ours      MRR@10 {ours.found.mean():.3f}, {examples / ours.training_seconds:.1f} examples/s")
    theirs = train_stock(given, size.epochs, seed, threads)
    say(f"stock     MRR@10 {theirs.found.mean():.3f}, {examples / theirs.training_seconds:.1f} examples/s")
    low, high = interval(ours.found - theirs.found, seed=seed)
    ratio = theirs.training_seconds / ours.training_seconds
    figures: dict[str, Any] = {
        "pairs": len(given.queries),
        "epochs": size.epochs,
        "documents": len(given.documents),
        "asked": len(given.asked),
        "bf16": fast_bf16(torch.device("cpu")),
        "stock_examples_per_second": examples / theirs.training_seconds,
        "our_examples_per_second": examples / ours.training_seconds,
        "ratio": ratio,
        "ratio_to_searchable": theirs.searchable_seconds / ours.searchable_seconds,
        "mrr_before": float(base_found.mean()),
        "mrr_stock": float(theirs.found.mean()),
        "mrr_ours": float(ours.found.mean()),
        "quality_difference": float((ours.found - theirs.found).mean()),
        "quality_difference_low": low,
        "quality_difference_high": high,
        "target_ratio": TARGET_RATIO,
        "met": ratio >= TARGET_RATIO and high >= 0.0,
    }
    finish(figures, json_file=json_file)


def train_ours(given: Task, vectors: Vectors, base: Any, epochs: int, seed: int) -> Side:
    ones = np.ones(len(given.queries), dtype=np.float32)
    clicks = Clicks(
        queries=given.queries,
        query=np.arange(len(given.queries), dtype=np.int64),
        document=np.asarray(given.wanted, dtype=np.int64),
        weight=ones,
        evidence=ones,
        vectors=encode(base, given.queries),
    )
    documents = [Document(str(n), text, content_digest("", text)) for n, text in enumerate(given.documents)]
    trained_at: list[float] = []

    def report(progress: Progress) -> None:
        if progress.stage == "encoding" and not trained_at:
            trained_at.append(time.monotonic())

    job = Job(
        Parent("base", base, None, base), clicks, Corpus(documents, vectors), clicks.of_queries([]), seed, report
    )
    started = time.monotonic()
    trained = FullMethod(epochs=epochs).train(job)
    ended = time.monotonic()
    if trained.encoder is None or trained.documents is None or trained.adapter is None:
        raise TypeError("the rung full makes an encoder, the documents' vectors and an adapter")
    asked = trained.adapter.apply(encode(trained.encoder, given.asked))
    return Side(trained_at[0] - started, ended - started, found(asked, trained.documents, given.asked_wanted))


def train_stock(given: Task, epochs: int, seed: int, threads: int) -> Side:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = {
            "model": str(base_model_folder(BASE)),
            "queries": given.queries,
            "documents": [given.documents[n] for n in given.wanted],
            "epochs": epochs,
            "seed": seed,
            "threads": threads,
            "scratch": str(folder / "scratch"),
            "output": str(folder / "model"),
            "result": str(folder / "result.json"),
        }
        (folder / "job.json").write_text(json.dumps(job))
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(STOCK)]))
        subprocess.run(
            [sys.executable, "-m", "benchmarks._stock", str(folder / "job.json")],
            check=True,
            stdout=sys.stderr,
            env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        seconds = json.loads((folder / "result.json").read_text())["seconds"]
        model = load_encoder(folder / "model", "cpu")
        started = time.monotonic()
        documents = encode(model, given.documents)
        searchable = seconds + time.monotonic() - started
        return Side(seconds, searchable, found(encode(model, given.asked), documents, given.asked_wanted))


def found(asked: Vectors, documents: Vectors, wanted: list[int]) -> Floats:
    """(asked,) reciprocal rank of what each query wants among all documents, 0 beyond 10."""
    scores = asked @ documents.T
    own = scores[np.arange(len(scores)), wanted]
    return reciprocal_rank((scores > own[:, None]).sum(axis=1) + 1)


def interval(differences: Floats, *, seed: int) -> tuple[float, float]:
    """95 % of the mean difference's bootstrap distribution over queries."""
    rng = np.random.default_rng(seed)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    typer.run(command)
