"""What a trainer keeps of the versions that it has loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from clickloop.model_store import ModelStore
from tests.unit.trainer_facts import retrain
from tests.unit.version_facts import put
from trainer.service import Trainer, build_trainer
from trainer.settings import TrainerSettings


class Report:
    async def stage(self, *_: object, **__: object) -> None: ...

    async def while_wanted(self, what: Awaitable[object]) -> object:
        return await what


def trainer_of(folder: Path, index: str) -> Trainer:
    return build_trainer(
        TrainerSettings.load(
            store_url=f"file://{folder}/store", work_dir=folder / "work", device="cpu", index=index
        )
    )


def copies(folder: Path, index: str) -> set[str]:
    return {path.name.rpartition("-")[0] for path in (folder / "work/cache" / index).iterdir()}


@pytest.mark.parametrize(
    "loaded",
    [("base-1", "adapter-1", "adapter-2", "adapter-3"), ("base-1", "adapter-1")],
    ids=["parent's too", "not the parent's"],
)
async def test_only_what_a_command_starts_from_and_what_is_live_keeps_its_copy(
    loaded: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "other")
    base = put(store, tmp_path, "base-1", hours=0)
    for number in (1, 2, 3):
        put(store, tmp_path, f"adapter-{number}", hours=number, parent=base)
    trainers = {index: trainer_of(tmp_path, index) for index in ("products", "news")}
    for trainer in trainers.values():
        for version in loaded:
            trainer._store.fetch(version)
    trainer = trainers["products"]

    async def live(_: str) -> str:
        return "adapter-3"

    async def climb(*_: object, **__: object) -> AsyncIterator[object]:
        for nothing in ():
            yield nothing

    monkeypatch.setattr(trainer, "_live_version", live)
    monkeypatch.setattr(trainer._ladder, "climb", climb)
    report: Any = Report()
    await trainer.run(retrain(index="products"), report)
    assert copies(tmp_path, "products") == {"base-1", "adapter-3"} & set(loaded)
    assert copies(tmp_path, "news") == set(loaded)
