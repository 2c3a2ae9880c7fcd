"""Trainings of both towers on an encoder of four tiny layers, whole, or killed and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests.ranks_worker import KilledError, small_job, write_tiny_encoder
from trainer.methods.base import Job, Progress, Trained
from trainer.methods.checkpoint import Checkpoint
from trainer.methods.full import FullMethod
from trainer.model import load_encoder, normalised

Report = Callable[[Progress], None]
SMALL = FullMethod(epochs=3, batch=10)


def tiny_encoder(folder: Path) -> SentenceTransformer:
    write_tiny_encoder(folder)
    return load_encoder(folder / "encoder", "cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """To compute with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job_of(encoder: SentenceTransformer, report: Report = lambda _: None, **changed: Any) -> Job:
    """The small world's; its queries are told apart, which the encoder's random weights do not do."""
    job = small_job(encoder, None, report)
    apart = normalised(np.random.default_rng(0).normal(size=job.clicks.vectors.shape))
    return replace(job, clicks=replace(job.clicks, vectors=apart), **changed)


def bits(trained: Trained) -> list[bytes]:
    assert trained.encoder is not None
    return [p.detach().numpy().tobytes() for p in trained.encoder.parameters()]


def killed_and_resumed(method: FullMethod, encoder: SentenceTransformer, path: Path, *, at: int) -> Trained:
    """The training, killed at the step of this number of the encoder's and resumed."""
    steps: list[int] = []

    def checkpoint() -> Checkpoint:
        ticks = count(step=1000)  # always due
        return Checkpoint(path, "this", now=lambda: float(next(ticks)))

    def killed(progress: Progress) -> None:
        if progress.stage == "training" and progress.step == at:
            raise KilledError

    with pytest.raises(KilledError):
        method.train(job_of(encoder, killed, checkpoint=checkpoint()))
    assert path.is_file()
    trained = method.train(job_of(encoder, lambda p: steps.append(p.step), checkpoint=checkpoint()))
    assert next(step for step in steps if step) > 1, "it goes on, and does not begin anew"
    return trained
