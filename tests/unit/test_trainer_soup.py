"""The mean of several trainings: of which, when the time is short, and what is told of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from clickloop.errors import TrainingError
from tests.unit.full_facts import SMALL, bits, job_of, killed_and_resumed, one_thread, tiny_encoder
from trainer.methods.base import Job, Notes, Progress
from trainer.methods.descent import Descended
from trainer.methods.soup import mean_of_seeds
from trainer.methods.towers import NOT_REPRODUCIBLE

WHOLE = replace(SMALL, share=1.0, head=None)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    return tiny_encoder(tmp_path_factory.mktemp("tiny"))


def weights(encoder: SentenceTransformer) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(p.detach() for p in encoder.parameters())


def test_the_weights_are_the_mean_of_the_seeds(encoder: SentenceTransformer) -> None:
    job = job_of(encoder)
    alone = [WHOLE.train(replace(job, seed=job.seed + number)) for number in range(3)]
    mean = replace(WHOLE, seeds=3).train(job)
    each = torch.stack([weights(one.encoder) for one in alone if one.encoder])
    assert mean.encoder is not None
    torch.testing.assert_close(weights(mean.encoder), each.mean(dim=0), atol=1e-6, rtol=1e-5)
    assert (each[0] - each[1]).abs().max() > 1e-4, "seeds differ"
    assert mean.steps == sum(one.steps for one in alone)


def test_progress_is_that_of_all_trainings(encoder: SentenceTransformer) -> None:
    told: list[Progress] = []
    steps = replace(WHOLE, seeds=2).train(job_of(encoder, told.append)).steps
    training = [progress for progress in told if progress.stage == "training" and progress.steps]
    assert [progress.step for progress in training] == sorted(progress.step for progress in training)
    assert {progress.steps for progress in training} == {steps}
    assert training[-1].step == steps
    seen = [progress.examples for progress in training if progress.loss is not None]
    assert seen == sorted(seen)
    assert seen[-1] == 2 * seen[len(seen) // 2 - 1]


@pytest.mark.parametrize("at", [2, 14], ids=["in the first", "in the second"])
def test_a_training_from_several_seeds_is_resumed_to_the_same_bits(
    at: int, encoder: SentenceTransformer, tmp_path: Path
) -> None:
    method = replace(SMALL, seeds=2)
    with one_thread():
        whole = method.train(job_of(encoder))
        resumed = killed_and_resumed(method, encoder, tmp_path / "checkpoint.safetensors", at=at)
    assert bits(resumed) == bits(whole)
    assert resumed.steps == whole.steps


class Clock:
    """Trainings that take so many seconds each; from one of them on, the clock cuts them short."""

    def __init__(self, seconds: float, took: float, *, cut_short_from: int = 99, fails: bool = False) -> None:
        self.now, self.end, self.took, self.from_ = 0.0, seconds, took, cut_short_from
        self.fails, self.seeds = fails, list[int]()

    def train(self, job: Job) -> tuple[Any, Descended]:
        self.seeds.append(job.seed)
        self.now += self.took
        if self.fails and len(self.seeds) >= self.from_:
            self.now = self.end
            raise TrainingError("no time to prepare the texts")
        made = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(made.weight, float(len(self.seeds)))
        notes: Notes = {"best_epoch": len(self.seeds), "kept": 3}
        if len(self.seeds) >= self.from_:
            notes |= {NOT_REPRODUCIBLE: "cut short"}
        return made, Descended(10, notes, 100)


@pytest.mark.parametrize(
    ("clock", "seeds", "trained"),
    [
        (Clock(float("inf"), 5.0), [7, 8, 9], 3),
        (Clock(12.0, 5.0), [7, 8], 2),
        (Clock(6.0, 5.0), [7], 1),
        (Clock(20.0, 5.0, cut_short_from=2), [7, 8], 1),
        (Clock(20.0, 5.0, cut_short_from=2, fails=True), [7, 8], 1),
    ],
    ids=["no limit", "time for two", "for one", "the second cut short", "the second not begun"],
)
def test_another_training_begins_where_there_is_time_for_it(
    clock: Clock,
    seeds: list[int],
    trained: int,
    encoder: SentenceTransformer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainer.methods.soup.time.monotonic", lambda: clock.now)
    job = job_of(encoder, seed=7, seconds_left=lambda: clock.end - clock.now)
    mean, whole = mean_of_seeds(job, 3, clock.train)
    assert clock.seeds == seeds
    (weight,) = mean.parameters()
    assert weight.item() == pytest.approx(sum(range(1, trained + 1)) / trained)
    assert whole.steps == 10 * trained
    assert whole.examples == 100 * trained
    assert whole.notes["best_epoch"] == 1
    assert whole.notes["kept"] == 3
    assert "kept_2" not in whole.notes
    if trained == 3:
        assert whole.notes["best_epoch_3"] == 3
        assert NOT_REPRODUCIBLE not in whole.notes
    else:
        assert whole.notes["seeds_trained"] == trained
        assert "no time for all seeds" in str(whole.notes[NOT_REPRODUCIBLE])
