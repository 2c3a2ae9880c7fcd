"""A store that is away for a moment costs no training."""

from __future__ import annotations

from typing import Any

import pytest

from clickloop.errors import StoreUnavailableError
from clickloop.golden import GoldenSet
from clickloop.model_store import Published
from tests.unit.test_trainer_rung import Climbs, Recorder, climbs
from trainer.methods.base import Job, Progress, StoppedError, Trained
from trainer.publish import publish

__all__ = ["climbs"]


def away(times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The store takes nothing so many times. What is returned has an element for each time."""
    asked = list[int]()

    def published(*given: Any, **more: Any) -> Published:
        asked.append(len(asked))
        if len(asked) <= times:
            raise StoreUnavailableError("can't be written to s3://b: slow down")
        return publish(*given, **more)

    monkeypatch.setattr("trainer.rung.publish", published)
    return asked


async def test_what_was_trained_is_published_once_the_store_is_back(
    climbs: Climbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = away(2, monkeypatch)
    (made,) = await climbs.run("c1", ["adapter"])
    assert climbs.ladder._store.has(made.version)
    assert len(asked) == 3


async def test_who_waits_for_the_store_ends_when_asked_to(climbs: Climbs, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: object, progress: Progress) -> None:
        raise StoppedError("stopped")

    asked = away(99, monkeypatch)
    monkeypatch.setattr("tests.unit.test_trainer_rung.Silent.from_thread", stopped)
    with pytest.raises(StoppedError):
        await climbs.run("c1", ["adapter"])
    assert len(asked) == 1


async def test_the_golden_set_is_read_before_anything_is_trained(
    climbs: Climbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, train = list[str](), Recorder.train

    def trained(rung: Recorder, job: Job) -> Trained:
        done.append("train")
        return train(rung, job)

    def golden() -> GoldenSet:
        done.append("golden")
        return GoldenSet([])

    monkeypatch.setattr(Recorder, "train", trained)
    monkeypatch.setattr(climbs.ladder, "_golden", golden)
    await climbs.run("c1", ["adapter"])
    assert done == ["golden", *["train"] * 3]
