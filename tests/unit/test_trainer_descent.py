"""The way down: its course over a run, and the checkpoints that it goes on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from structlog.testing import capture_logs

from tests.unit.trainer_facts import job, world
from trainer.methods.checkpoint import Checkpoint, Checkpoints
from trainer.methods.descent import Descended, Indexes, descend
from trainer.methods.towers import NOT_REPRODUCIBLE, Course


def test_the_learning_rate_comes_to_rest_with_the_deadline_when_time_is_short():
    left = 100.0
    course = Course(1000, lambda: left)
    left = 50.0
    assert course.done(10) == pytest.approx(0.5)
    left = 0.0
    assert course.over(11)
    assert course.factor(11) == pytest.approx(0.0)


def test_a_course_with_time_enough_is_the_same_whatever_the_clock_says():
    left = [100.0]
    hasty, slow = Course(1000, lambda: 1e9), Course(1000, lambda: left[0])
    for step in range(1000):
        left[0] = 100.0 - 0.09 * step - (2.0 if step < 5 else 0.0)  # the first steps take longest
        assert slow.factor(step) == hasty.factor(step)
    assert not slow.cut_short
    assert not slow.notes()


def test_the_learning_rate_follows_the_steps_when_there_is_time():
    course = Course(100, lambda: 1e9)
    assert course.factor(10) == pytest.approx(1.0)
    assert course.factor(100) == pytest.approx(0.0)
    assert not course.over(99)


def test_a_training_that_the_clock_steered_says_so_after_a_restart_too(tmp_path: Path):
    def run(seconds: float) -> Descended:
        clock, weight = [0.0], torch.nn.Parameter(torch.zeros(4))

        def loss(_: Indexes) -> torch.Tensor:
            clock[0] += 1.0
            return ((weight - torch.arange(4.0)) ** 2).mean()

        given: Any = replace(
            job(*world(queries=50)),
            seconds_left=lambda: seconds - clock[0],
            checkpoint=Checkpoint(tmp_path / "m.safetensors", "x"),
        )
        layers: Any = SimpleNamespace(parameters=[weight], complete_gradients=lambda: None)
        return descend(
            given,
            torch.optim.AdamW([weight]),
            lambda _: iter(np.arange(20).reshape(10, 2)),
            loss,
            steps=40,
            learning_rate=0.1,
            layers=layers,
            identity=["same"],
        )

    cut = run(15.0)
    assert cut.steps < 40
    again = run(1e9)
    assert (again.steps, again.notes) == (40, cut.notes)
    assert NOT_REPRODUCIBLE in again.notes


def test_a_checkpoint_of_another_training_or_a_torn_one_is_thrown_away(tmp_path: Path):
    path = tmp_path / "moment-1.safetensors"
    Checkpoint(path, "one").save({"w": torch.ones(3)}, {"step": 7})
    assert Checkpoint(path, "one").load() is not None
    assert Checkpoint(path, "one").for_training("more").load() is None
    assert not path.exists()
    Checkpoint(path, "one").save({"w": torch.ones(3)}, {"step": 7})
    path.write_bytes(path.read_bytes()[:-5])
    assert Checkpoint(path, "one").load() is None
    assert not path.exists()


def test_a_training_goes_on_where_there_is_no_room_for_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"a part")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    checkpoint = Checkpoint(tmp_path / "c" / "moment-1.safetensors", "one")
    checkpoint.save({"w": torch.ones(3)}, {"step": 7})
    with monkeypatch.context() as patched, capture_logs() as told:
        patched.setattr("trainer.methods.checkpoint.save_file", full)
        checkpoint.save({"w": torch.ones(3)}, {"step": 8})
        checkpoint.save({"w": torch.ones(3)}, {"step": 9})
    assert [line["event"] for line in told] == ["no checkpoint kept"]
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["moment-1.safetensors"]
    found = checkpoint.load()
    assert found is not None
    assert found[1] == {"step": 7}, "the last one that had room"


def test_only_the_version_in_the_making_keeps_its_checkpoints(tmp_path: Path):
    old = Checkpoints(tmp_path, "products", "old")
    old.of("moment-1", "facts").save({"w": torch.ones(1)}, {"step": 1})
    assert old.of("moment-1", "facts").load() is not None
    new = Checkpoints(tmp_path, "products", "new")
    assert old.of("moment-1", "facts").load() is None
    new.of("moment-1").save({"w": torch.ones(1)}, {"step": 1})
    new.remove()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_one_indexs_training_leaves_anothers_checkpoints_alone(tmp_path: Path):
    """Both have the same ``work_dir`` unless they are told otherwise."""
    products = Checkpoints(tmp_path, "products", "full-1")
    products.of("moment-1", "facts").save({"w": torch.ones(1)}, {"step": 1})
    news = Checkpoints(tmp_path, "news", "full-2")
    news.of("moment-1", "facts").save({"w": torch.ones(1)}, {"step": 1})
    news.remove()
    assert products.of("moment-1", "facts").load() is not None
