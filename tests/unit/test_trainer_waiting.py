"""A trainer whose broker falls silent gives no command up, and ends when it is asked to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from clickloop import codec
from clickloop.errors import ArtifactError, BrokerError, ClickloopError, RangeGoneError, StoreUnavailableError
from clickloop.kafka import Follower, Record
from clickloop.settings import load_mappings
from clickloop.sources import Sources
from tests.unit.trainer_facts import retrain
from trainer.examples import read_documents, read_live_version, read_passed_versions
from trainer.service import Trainer, build_trainer
from trainer.settings import TrainerSettings

AT = {"prefix": "p", "index": "default"}
COMMAND = codec.encode(retrain())


class Told:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    async def send(self, _: object, message: Any) -> None:
        self.stages.append(message.stage)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def trainer(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    made = build_trainer(
        TrainerSettings.load(store_url=f"file://{tmp_path}/s", work_dir=tmp_path / "w", device="cpu")
    )
    monkeypatch.setattr(made, "producer", told)
    return made


@asynccontextmanager
async def no_wishes(*_: object) -> AsyncIterator[set[str]]:
    yield set()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers of a broker that held something, and has nothing to say any more."""

    async def nothing(*_: object, **__: object) -> list[object]:
        await asyncio.sleep(0.01)
        return []

    for name in ("start", "stop", "caught_up", "batch"):
        monkeypatch.setattr(Follower, name, nothing)


@pytest.mark.parametrize(
    "read",
    [
        lambda: read_documents("nowhere", sources=Sources("default", load_mappings()), **AT),
        lambda: read_live_version("nowhere", **AT),
        lambda: read_passed_versions("nowhere", **AT),
    ],
)
@pytest.mark.usefixtures("silent")
@pytest.mark.timeout(20)
async def test_what_a_run_reads_is_not_waited_for_without_end(
    read: Callable[[], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clickloop.kafka.SILENT_SECONDS", 0.2)
    with pytest.raises(BrokerError, match="stopped answering"):
        await read()


@pytest.mark.usefixtures("silent")
@pytest.mark.timeout(20)
async def test_a_trainer_that_waits_for_a_silent_broker_ends_when_it_is_asked_to(trainer: Trainer) -> None:
    asyncio.get_running_loop().call_later(0.1, trainer.stop)
    assert not await trainer.handle(Record("commands", 0, 0, None, COMMAND))


@pytest.mark.parametrize(
    ("error", "dealt_with"),
    [(BrokerError("no record at 0 within 30 s"), False), (RangeGoneError("holds offsets 5 to 9"), True)],
)
async def test_only_what_the_log_no_longer_holds_is_given_up(
    error: ClickloopError, dealt_with: bool, trainer: Trainer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(*_: object) -> None:
        raise error

    monkeypatch.setattr(trainer, "run", run)
    monkeypatch.setattr(trainer, "_following_wishes", no_wishes)
    record = Record("commands", 0, 0, None, COMMAND)
    if dealt_with:
        assert await trainer.handle(record)
    else:
        with pytest.raises(BrokerError):
            await trainer.handle(record)
    assert told.stages == ["failed"] * dealt_with


@pytest.mark.parametrize(
    ("error", "lasts", "tries", "stages"),
    [
        (StoreUnavailableError("s3://b: slow down"), 2, 3, ["reading"]),
        (StoreUnavailableError("s3://b: slow down"), 99, None, ["reading", "failed"]),
        (ArtifactError("no version adapter-9"), 99, 1, ["failed"]),
    ],
    ids=["comes back", "stays away", "lacks it"],
)
@pytest.mark.timeout(20)
async def test_a_store_that_is_away_is_asked_again_for_what_to_start_from(
    error: ClickloopError,
    lasts: int,
    tries: int | None,
    stages: list[str],
    trainer: Trainer,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = list[int]()

    async def run(*_: object) -> None:
        tried.append(len(tried))
        if len(tried) <= lasts:
            raise error

    monkeypatch.setattr(trainer, "run", run)
    monkeypatch.setattr(trainer, "_following_wishes", no_wishes)
    if tries is None:
        monkeypatch.setattr("trainer.service.STORE_SECONDS", 0.5)
    assert await trainer.handle(Record("commands", 0, 0, None, COMMAND)), "dealt with"
    assert len(tried) == tries if tries else len(tried) > 1
    # On a slow machine a tick tells that nothing was begun yet.
    assert [stage for stage in dict.fromkeys(told.stages) if stage != "waiting"] == stages


@pytest.mark.timeout(20)
async def test_who_waits_for_the_store_ends_when_it_is_asked_to(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object) -> str:
        trainer.stop()
        raise StoreUnavailableError("s3://b: slow down")

    monkeypatch.setattr(trainer, "_live_version", away)
    monkeypatch.setattr(trainer, "_following_wishes", no_wishes)
    assert not await trainer.handle(Record("commands", 0, 0, None, COMMAND))
