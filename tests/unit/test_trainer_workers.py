"""Computing side by side: the same vectors and gradients, however many workers there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from clickloop.base_model import base_model_folder
from tests.precision import PRECISIONS, computing_in
from trainer.methods.upper_layers import UpperLayers
from trainer.model import autocast, encode, load_encoder
from trainer.workers import Workers

TEXTS = [f"how do I {verb} a {thing} {'very quickly ' * (n % 5)}" for n, (verb, thing) in enumerate(
    [(v, t) for v in ("open", "close", "read", "sort", "merge") for t in ("file", "list", "socket", "queue")] * 5
)]  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> SentenceTransformer:
    return load_encoder(base_model_folder("all-MiniLM-L6-v2"), "cpu").eval()


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_encoding_gives_the_same_bits_and_leaves_torch_as_it_was(
    encoder: SentenceTransformer, threads: int
) -> None:
    told: list[int] = []
    found = encode(encoder, TEXTS, on_batch=told.append)
    assert torch.get_num_threads() == threads
    assert told == [32, 64, 96, 100]
    torch.set_num_threads(1)
    assert np.array_equal(found, encode(encoder, TEXTS))


def test_what_a_batch_raises_ends_the_work(encoder: SentenceTransformer, threads: int) -> None:
    def stop(done: int) -> None:
        raise InterruptedError(done)

    with pytest.raises(InterruptedError, match="32"):
        encode(encoder, TEXTS, on_batch=stop)
    assert torch.get_num_threads() == threads


def gradients(encoder: SentenceTransformer, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    with UpperLayers(encoder, TEXTS, 2) as layers:
        vectors = layers.embed(rows)
        weight = torch.linspace(-1.0, 1.0, vectors.numel()).view_as(vectors)
        (vectors * weight).sum().backward()
        found = torch.cat([p.grad.ravel() for p in layers.parameters if p.grad is not None])
        for parameter in layers.parameters:
            parameter.grad = None
    return vectors.detach(), found


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_those_of_one_worker_and_the_same_in_every_run(
    encoder: SentenceTransformer, precision: str
) -> None:
    rows = [*range(40), 3, 3, 99]
    with computing_in(precision):
        vectors, found = gradients(encoder, rows)
        assert all(map(torch.equal, gradients(encoder, rows), (vectors, found)))
        torch.set_num_threads(1)
        expected, wanted = gradients(encoder, rows)
    loose = {"float32": 1.0, "bf16": 1000.0}[precision]
    assert torch.allclose(vectors, expected, atol=1e-5 * loose)
    assert torch.allclose(found, wanted, atol=1e-4 * loose * float(wanted.abs().max()))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5 * loose


def test_workers_share_no_cast_weights() -> None:
    """Of torch's cache one worker may take what another one put there, and the gradients' last bits with it."""
    with computing_in("bf16"), autocast(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_cache_enabled()


def test_the_order_of_results_is_that_of_the_arguments(threads: int) -> None:
    def work(number: int, text: str) -> Any:
        return number, text

    with Workers(torch.device("cpu")) as workers:
        assert workers.count == threads
        assert [*workers.each(work, range(9), "abcdefghi")] == [*enumerate("abcdefghi")]
