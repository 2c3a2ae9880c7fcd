"""How both towers are trained by the settings of ``full``, seen on an encoder of four tiny layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from trainer.methods.descent import add_gradients, grouped
from trainer.methods.full import FullMethod
from trainer.model import load_encoder

Report = Callable[[Progress], None]
SMALL = FullMethod(epochs=3, batch=10)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_encoder(folder)
    return load_encoder(folder / "encoder", "cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job_of(encoder: SentenceTransformer, report: Report = lambda _: None, **changed: Any) -> Job:
    return replace(small_job(encoder, None, report), **changed)


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
    assert next(step for step in steps if step) >= at, "it goes on, and does not begin anew"
    return trained


# Gradients of several batches


def test_the_gradients_of_several_batches_are_those_of_all_their_rows():
    torch.manual_seed(0)
    inputs, layer = torch.randn(10, 4), torch.nn.Linear(4, 1)

    def loss_of(rows: np.ndarray) -> torch.Tensor:
        return (layer(inputs[torch.from_numpy(rows)]) ** 2).mean()

    whole = add_gradients([np.arange(10)], loss_of)
    expected = layer.weight.grad
    assert expected is not None
    layer.zero_grad()
    parts = add_gradients([np.arange(4), np.arange(4, 8), np.arange(8, 10)], loss_of)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, expected, atol=1e-6)
    assert [len(together) for together in grouped(iter([np.arange(1)] * 5), 2)] == [2, 2, 1]


def test_a_step_of_several_batches_is_one_of_fewer_and_the_course_counts_them(encoder: SentenceTransformer):
    told: list[Progress] = []
    method = replace(SMALL, accumulate=2)
    trained = method.train(job_of(encoder, told.append))
    # 45 pairs are five batches, and three steps of an epoch.
    assert trained.steps == 9
    steps = [p for p in told if p.steps == 9]
    assert [p.step for p in steps] == [*range(1, 10)]
    assert [p.examples for p in steps][:4] == [20, 40, 45, 65]
    assert bits(trained) != bits(SMALL.train(job_of(encoder)))


@pytest.mark.parametrize("at", [2, 3, 7])
def test_a_training_of_several_batches_a_step_is_resumed_to_the_same_bits(
    at: int, encoder: SentenceTransformer, tmp_path: Path
):
    method = replace(SMALL, accumulate=2)
    trained = killed_and_resumed(method, encoder, tmp_path / "moment-1.safetensors", at=at)
    assert bits(trained) == bits(method.train(job_of(encoder)))
