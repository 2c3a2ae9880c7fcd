"""Training over two ranks, as torchrun starts them: real processes that speak gloo over the loopback interface."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.precision import PRECISIONS, computing_in
from tests.ranks_worker import NAMES, STEPS, trained_with_losses, weights_of, write_tiny_encoder
from trainer.methods.spread import dealt, packed_gradients, unpack_gradients


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def two_ranks(precision: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two ranks have filled."""
    folder = tmp_path_factory.mktemp("ranks")
    write_tiny_encoder(folder)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = ["-m", "tests.ranks_worker", str(folder), precision]
    done = subprocess.run([*torchrun, *worker], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_train_along_the_loss_curve_of_one(name: str, precision: str, two_ranks: Path):
    with computing_in(precision):
        trained, alone = trained_with_losses(name, two_ranks, None)
    together = json.loads((two_ranks / f"{name}.json").read_text())
    assert len(alone) >= STEPS
    assert together == pytest.approx(alone, rel={"float32": 1e-5, "bf16": 5e-3}[precision])
    found = load_file(two_ranks / f"{name}.safetensors")
    for weight, tensor in weights_of(trained).items():
        assert torch.allclose(found[weight], tensor, atol={"float32": 1e-3, "bf16": 1e-2}[precision]), weight


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_that_were_killed_and_resumed_end_at_the_same_bits(name: str, two_ranks: Path):
    whole, resumed = (load_file(two_ranks / f"{end}.safetensors") for end in (name, f"{name}-resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[weight], resumed[weight]) for weight in whole)


def test_ranks_hold_each_text_once_and_texts_of_like_lengths():
    texts = ["x" * length for length in (1, 50, 2, 60, 3, 70, 4, 80, 5)]
    owner, number = dealt(texts, 2)
    lengths = np.asarray([len(text) for text in texts])
    assert sorted(zip(owner.tolist(), number.tolist(), strict=True)) == [
        *((0, n) for n in range(5)),
        *((1, n) for n in range(4)),
    ]
    assert abs(int(lengths[owner == 0].sum()) - int(lengths[owner == 1].sum())) <= 80


def test_a_parameter_without_gradient_on_every_rank_stays_without():
    seen, unseen = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    seen.grad = torch.full((2, 3), 2.0)
    packed = packed_gradients([seen, unseen])
    unpack_gradients(packed + packed, [seen, unseen])
    assert seen.grad is not None
    assert torch.equal(seen.grad, torch.full((2, 3), 4.0))
    assert unseen.grad is None
