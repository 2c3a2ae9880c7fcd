"""Trackers: MLflow in a local file, W&B offline, and that none of them can hold up a training."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from clickloop import topics
from clickloop.errors import SettingsError
from clickloop.events import Arm, Estimate, GateResult, Lineage, SplitChanged, Verdict
from clickloop.kafka import Producer
from clickloop.model_store import Manifest, Published
from tests.conftest import Broker
from tests.unit.trainer_facts import START
from trainer.examples import follow_live_version
from trainer.methods.base import Progress
from trainer.settings import TrainerSettings
from trainer.trackers import MOST_WAITING, MlflowTracker, Tracking, WandbTracker, build_tracking

ROOT = Path(__file__).parents[2]


def version(name: str, verdict: Verdict = "pass") -> Published:
    gate = GateResult(
        verdict=verdict,
        queries=99,
        metrics={"mrr_at_10": Estimate(before=0.5, after=0.6, change=0.2, low=0.1, high=0.3)},
    )
    lineage = Lineage(command_id="c1", ranges=[], examples=25, settings={"adapter_epochs": 4}, train_seconds=1.5)
    manifest = Manifest(
        version=name, kind="adapter", space="base", encoder="base", parent="base", lineage=lineage, gate=gate
    )
    return Published(uri=f"s3://models/versions/{name}", digest="sha", signature="", manifest=manifest)


class Noted:
    """A tracker that notes what it is told."""

    def __init__(self) -> None:
        self.facts: list[tuple[Any, ...]] = []

    def loss(self, version: str, step: int, loss: float) -> None:
        self.facts.append(("loss", version, step, loss))

    def published(self, published: Published) -> None:
        self.facts.append(("published", published.manifest.version))

    def failed(self, version: str) -> None:
        self.facts.append(("failed", version))

    def live(self, version: str) -> None:
        self.facts.append(("live", version))


class Broken(Noted):
    """A tracker whose server is away for the first ``calls``."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self._calls = calls

    def published(self, published: Published) -> None:
        self._calls -= 1
        if self._calls >= 0:
            raise ConnectionError("away")
        super().published(published)


@pytest.fixture(autouse=True)
def _uncached_logs() -> Iterator[None]:
    """So that warnings of any logger are seen here."""
    structlog.configure(cache_logger_on_first_use=False)
    yield
    structlog.reset_defaults()


# What holds for any tracker


def test_a_tracker_is_told_in_order_and_the_steps_go_on_from_training_to_training() -> None:
    tracker = Noted()
    tracking = Tracking(lambda: tracker)
    for loss in (0.9, 0.7):
        tracking._next = 0.0
        tracking.progress("v", Progress("training"))
        for step in (1, 2, 3):
            tracking.progress("v", Progress("training", step, 3, loss))
    tracking.progress("", Progress("training", 1, 3, 0.5))
    tracking.published(version("v"))
    tracking.live("v")
    tracking.live("v")
    tracking.close()
    assert tracker.facts == [("loss", "v", 1, 0.9), ("loss", "v", 4, 0.7), ("published", "v"), ("live", "v")]


def test_a_tracker_that_fails_is_warned_of_once_and_told_of_what_comes_later() -> None:
    tracker = Broken(2)
    tracking = Tracking(lambda: tracker)
    with capture_logs() as logs:
        for name in ("one", "two", "three"):
            tracking.published(version(name))
        tracking.close()
    assert tracker.facts == [("published", "three")]
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert len(warnings) == 1
    assert "away" in warnings[0]["reason"]


def test_a_tracker_that_can_not_even_be_made_costs_a_warning() -> None:
    def away() -> Noted:
        raise OSError("no route to host")

    tracking = Tracking(away)
    with capture_logs() as logs:
        tracking.published(version("v"))
        tracking.close()
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_a_tracker_that_hangs_holds_up_neither_training_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.trackers.CLOSING_SECONDS", 0.1)
    monkeypatch.setattr("trainer.trackers.EVERY_SECONDS", 0.0)
    hang, reached = threading.Event(), threading.Event()

    class Hanging(Noted):
        def loss(self, *_: object) -> None:
            reached.set()
            hang.wait(60.0)

    tracking = Tracking(Hanging)
    with capture_logs() as logs:
        started = time.monotonic()
        for step in range(1, 5 * MOST_WAITING):
            tracking.progress("v", Progress("training", step, 5 * MOST_WAITING, 0.5))
        assert tracking._facts.qsize() <= MOST_WAITING // 2 + 1, "losses leave room for what matters more"
        assert reached.wait(4.0)
        for _ in range(MOST_WAITING):
            tracking.published(version("v"))
        tracking.close()
        assert time.monotonic() - started < 5.0
    assert [entry["event"] for entry in logs] == ["tracker is behind, facts are dropped", "tracker left behind"]
    hang.set()


def test_without_a_tracker_nothing_is_begun() -> None:
    tracking = build_tracking(TrainerSettings.load())
    tracking.published(version("v"))
    tracking.progress("v", Progress("training", 1, 3, 0.5))
    tracking.close()
    assert not tracking.wanted
    assert tracking._thread is None


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_without_its_extra_is_a_users_mistake(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.trackers.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=rf"pip install 'clickloop\[{name}\]'"):
        build_tracking(TrainerSettings.load(tracker=name))


async def test_what_is_live_is_followed_on_the_splits_of_the_index(broker: Broker) -> None:
    told = asyncio.Queue[str]()
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:

        async def split(sequence: int, index: str = "default", **shares: int) -> None:
            """``shares``: arm_version and how much of the traffic it gets."""
            named = [(*name.split("_"), buckets) for name, buckets in shares.items()]
            event = SplitChanged(
                event_id=f"{index}/{sequence}",
                split_id=f"{index}/{sequence}",
                salt="s",
                index=index,
                sequence=sequence,
                arms=[Arm(name=name, version=version, buckets=buckets) for name, version, buckets in named],
                changed_at=START,
            )
            await producer.send_and_wait(topics.TRAFFIC_SPLITS, event)

        await split(1, live_a=10_000)
        await split(9, "another", live_other=10_000)
        following = asyncio.create_task(
            follow_live_version(
                broker.bootstrap_servers, prefix=broker.prefix, index="default", on_live=told.put_nowait
            )
        )
        assert await asyncio.wait_for(told.get(), 20.0) == "a"
        await split(2, live_a=9_000, candidate_b=1_000)
        await split(3, live_b=10_000)
        assert await asyncio.wait_for(told.get(), 20.0) == "b"
        following.cancel()


# MLflow


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_mlflow_has_a_run_for_each_version_and_aliases_for_the_newest_passed_and_the_live_one(uri: str) -> None:
    # Its import and a new database take seconds, which a trainer has while it trains.
    MlflowTracker(uri, "another")
    tracking = Tracking(lambda: MlflowTracker(uri, "products"))
    tracking.progress("one", Progress("training", 1, 3, 0.9))
    tracking.published(version("one"))
    tracking.published(version("two"))
    tracking.published(version("bad", "fail"))
    tracking.failed("one")
    tracking.live("one")
    with capture_logs() as logs:
        tracking.close()
    assert logs == []
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("clickloop-products")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"one", "two", "bad"}
    one = runs["one"]
    assert one.info.status == "FINISHED", "a failure after its publishing is not the version's"
    assert one.data.params["adapter_epochs"] == "4"
    assert one.data.metrics["mrr_at_10/change"] == 0.2
    assert one.data.metrics["train_seconds"] == 1.5
    assert one.data.metrics["loss"] == 0.9
    assert one.data.tags["clickloop.artifact_uri"] == "s3://models/versions/one"
    by_alias = {
        alias: client.get_model_version_by_alias("clickloop-products", alias)
        for alias in ("challenger", "champion")
    }
    assert {alias: found.tags["clickloop.version"] for alias, found in by_alias.items()} == {
        "challenger": "two",
        "champion": "one",
    }
    assert by_alias["champion"].source == "s3://models/versions/one"
    assert by_alias["champion"].run_id == one.info.run_id
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_mlflow_told_again_has_everything_once_and_a_live_challenger_is_one_no_longer(uri: str) -> None:
    for _ in range(2):
        tracker = MlflowTracker(uri, "default")
        tracker.loss("one", 1, 0.9)
        tracker.published(version("one"))
    tracker.live("one")
    client = tracker._client
    assert len(client.search_runs([tracker._experiment])) == 1
    assert len(client.search_model_versions(f"name = '{tracker._name}'")) == 1
    assert client.get_registered_model(tracker._name).aliases.keys() == {"champion"}
    tracker.live("base-model")
    assert client.get_registered_model(tracker._name).aliases == {}


HUNG = """
import sys, time
import trainer.trackers
from tests.end_to_end.test_trainer_trackers import version
from trainer.trackers import MlflowTracker, Tracking
trainer.trackers.CLOSING_SECONDS = 0.5
tracking = Tracking(lambda: MlflowTracker(sys.argv[1], "default"))
tracking.published(version("one"))
time.sleep(0.5)
print("closing", flush=True)
tracking.close()
"""


def test_a_process_ends_though_its_mlflow_server_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        process = subprocess.Popen([sys.executable, "-c", HUNG, uri], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"closing\n"
        started = time.monotonic()
        rest, _ = process.communicate(timeout=60.0)
    assert process.returncode == 0
    assert b"tracker left behind" in rest
    assert time.monotonic() - started < 5.0


def test_mlflow_in_a_folder_leaves_nothing_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    tracker = MlflowTracker(f"file:{tmp_path}/runs", "default")
    tracker.published(version("one"))
    tracker.live("one")
    assert tracker._client.get_registered_model(tracker._name).aliases.keys() == {"champion"}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_mlflow_marks_what_failed_in_the_making(uri: str) -> None:
    tracker = MlflowTracker(uri, "default")
    tracker.loss("one", 1, 0.9)
    tracker.failed("one")
    tracker.failed("never heard of")
    (run,) = tracker._client.search_runs([tracker._experiment])
    assert run.info.status == "FAILED"


# W&B


@pytest.mark.timeout(120)
def test_wandb_has_an_offline_run_for_each_version_and_names_the_live_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("trainer.trackers.CLOSING_SECONDS", 60.0)
    tracking = Tracking(lambda: WandbTracker("products", tmp_path))
    tracking.progress("one", Progress("training", 1, 3, 0.9))
    tracking.published(version("one"))
    tracking.published(version("bad", "fail"))
    tracking.live("one")
    with capture_logs() as logs:
        tracking.close()
    assert logs == []
    # A process of W&B's own writes the files, and has them whole once it has ended, as it does with ours.
    import wandb

    wandb.teardown()
    runs = {path.name.rsplit("-", 1)[1]: path for path in (tmp_path / "wandb").glob("offline-run-*")}
    raw = {name: (path / f"run-{name}.wandb").read_bytes() for name, path in runs.items()}
    assert len(raw) == 3
    rollout = next(content for name, content in raw.items() if name not in {"one", "bad"})
    for wanted in (b"loss", b"adapter_epochs", b"mrr_at_10/change", b"s3://models/versions/one", b"challenger"):
        assert wanted in raw["one"]
    assert b"clickloop-products" in raw["one"]
    assert b"champion" not in raw["one"]
    assert b"challenger" not in raw["bad"]
    assert b"champion" in rollout
    assert b"live one" in rollout
