"""The service against a real broker, a real store and the real base model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from msgspec.structs import replace

from clickloop import codec, topics
from clickloop.commands import Cancel, ForgetUser, Reason, Retrain, Strategy
from clickloop.events import (
    Arm,
    DocumentChanged,
    GateResult,
    MessageQuarantined,
    ModelVersionPublished,
    OffsetRange,
    SplitChanged,
    TrainingProgressed,
)
from clickloop.golden import GoldenSet, write_golden
from clickloop.kafka import Follower, Producer, Record, end_offsets
from clickloop.manifest import Manifest, sha256_file
from clickloop.model_store import ModelStore, Published
from clickloop.recorded import Judged
from demo.processes import free_port
from tests.conftest import Broker
from tests.unit.trainer_facts import START, example
from trainer.gate import judge
from trainer.service import Trainer, build_trainer
from trainer.settings import TrainerSettings

NAMES = ("open a file", "close a socket", "parse json text", "sort a list", "join two paths", "wait for a thread")


async def filled(
    broker: Broker, *, origin: Literal["clicks", "synthetic"] = "clicks", examples: int = 24
) -> list[OffsetRange]:
    """Documents and one click (or what else ``origin`` says) a query; where the examples lie."""
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        for number, name in enumerate(NAMES * 2):
            await producer.send_and_wait(
                topics.DOCUMENTS,
                DocumentChanged(
                    event_id=f"e{number}",
                    index="default",
                    doc_id=f"d{number}",
                    changed_at=START,
                    text=f"def {name.replace(' ', '_')}_{number}(): {name} number {number}",
                ),
            )
        for number in range(examples):
            query = f"{NAMES[number % 6]} please {number}"
            one = example(query, f"d{number % 12}", number=number, weight=0.1, origin=origin, key=f"u{number % 6}")
            await producer.send_and_wait(topics.TRAINING_EXAMPLES, one)
    name = topics.TRAINING_EXAMPLES.name(broker.prefix)
    ends = await end_offsets(broker.bootstrap_servers, name)
    return [OffsetRange(topic=name, partition=p, start=first, end=end) for p, (first, end) in ends.items()]


def trainer_for(broker: Broker, folder: Path, *, min_examples: int = 20, **more: str) -> tuple[Trainer, Producer]:
    settings = TrainerSettings.load(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=broker.prefix,
        store_url=f"file://{folder}/store",
        work_dir=folder / "work",
        device="cpu",
        min_examples=min_examples,
        **more,
    )
    trainer = build_trainer(settings)
    return trainer, trainer.producer


def command(
    ranges: list[OffsetRange],
    *,
    command_id: str = "c1",
    parent: str = "",
    strategy: Strategy = "incremental",
    pairs_uri: str = "",
) -> Record:
    wish = Retrain(
        command_id=command_id,
        index="default",
        issued_at=START,
        kinds=["adapter"],
        ranges=ranges,
        reason=Reason(policies=["manual"], text="test"),
        parent=parent,
        strategy=strategy,
        pairs_uri=pairs_uri,
    )
    return Record("commands", 0, 0, None, codec.encode(wish))


async def sent(broker: Broker, topic: topics.Topic) -> list[object]:
    async with Follower(broker.bootstrap_servers, [topic], prefix=broker.prefix) as follower:
        found: list[object] = []
        while not await follower.caught_up():
            found += [codec.decode(r.value, *topic.types) for _, r in await follower.batch()]
    return found


@pytest.mark.timeout(120)
async def test_nothing_is_trained_on_of_who_asked_to_be_forgotten(broker: Broker, tmp_path: Path):
    ranges = await filled(broker)
    trainer, producer = trainer_for(broker, tmp_path)
    async with producer:
        for number in range(6):
            wish = ForgetUser(
                command_id=f"forget-{number}",
                index="default" if number else "shoes",
                issued_at=START,
                split_key=f"u{number}",
            )
            await producer.send_and_wait(topics.COMMANDS, wish)
        assert await trainer.handle(command(ranges))
    assert await sent(broker, topics.MODEL_VERSIONS) == []
    *_, last = await sent(broker, topics.TRAINING_RUNS)
    assert isinstance(last, TrainingProgressed)
    assert (last.stage, last.verdict) == ("failed", "inconclusive")
    assert last.message.startswith("4 examples"), "of 24 those of one key in six"


@pytest.mark.timeout(120)
async def test_a_command_done_twice_publishes_one_version_and_announces_it_twice(broker: Broker, tmp_path: Path):
    ranges = await filled(broker)
    trainer, producer = trainer_for(broker, tmp_path)
    async with producer:
        assert await trainer.handle(command(ranges))
        assert await trainer.handle(command(ranges))
    announced = [m for m in await sent(broker, topics.MODEL_VERSIONS) if isinstance(m, ModelVersionPublished)]
    assert len(announced) == 2
    assert len({(m.event_id, m.version, m.digest) for m in announced}) == 1
    assert len({m.published_at for m in announced}) == 1, "announced again it is no newer"
    assert announced[0].gate is not None
    assert announced[0].gate.verdict == "inconclusive"
    assert announced[0].lineage.ranges == ranges
    assert announced[0].lineage.newest_example_at is not None
    versions = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache").versions()
    assert len([v for v in versions if not v.startswith("base-")]) == 1
    stages = [m.stage for m in await sent(broker, topics.TRAINING_RUNS) if isinstance(m, TrainingProgressed)]
    assert stages[0] == "reading"
    assert stages.count("done") == 2
    assert {"training", "gate", "publishing"} <= set(stages)


@pytest.mark.timeout(120)
async def test_the_gate_tries_what_operators_have_put_into_the_golden_set(broker: Broker, tmp_path: Path):
    ranges = await filled(broker)
    here, gone = Judged(f"{NAMES[0]} please", {"d0": 1.0, "d77": 2.0}), Judged("of another time", {"d99": 1.0})
    golden = GoldenSet([here, gone])
    write_golden(ModelStore(f"file://{tmp_path}/store"), "default", golden)
    trainer, producer = trainer_for(broker, tmp_path)
    async with producer:
        assert await trainer.handle(command(ranges))
    [announced] = [m for m in await sent(broker, topics.MODEL_VERSIONS) if isinstance(m, ModelVersionPublished)]
    assert announced.gate is not None
    result = announced.gate.golden
    assert result is not None
    assert (result.digest, result.queries, result.left_out) == (golden.digest, 1, 1)
    assert result.metrics["mrr_at_10"].before > 0.0
    folder = tmp_path / "store" / "versions" / announced.version
    assert "golden mrr_at_10" in (folder / "README.md").read_text()


@pytest.mark.timeout(120)
async def test_a_tracker_is_told_of_a_run_and_one_that_is_away_costs_nothing(broker: Broker, tmp_path: Path):
    import mlflow

    ranges = await filled(broker)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for name, tracker_uri in (("there", uri), ("away", "http://127.0.0.1:1")):
        trainer, producer = trainer_for(broker, tmp_path, tracker="mlflow", tracker_uri=tracker_uri)
        async with producer:
            assert await asyncio.wait_for(trainer.handle(command(ranges, command_id=name)), 60)
        await asyncio.to_thread(trainer.tracking.close)
    made = await published(broker)
    assert set(made) == {"there", "away"}
    client = mlflow.MlflowClient(uri, uri)
    (run,) = client.search_runs([client.get_experiment_by_name("clickloop-default").experiment_id])
    assert run.info.run_name == made["there"].version
    assert run.info.status == "FINISHED"
    assert run.data.tags["clickloop.artifact_uri"] == made["there"].artifact_uri
    assert run.data.params["adapter_epochs"] == "4"
    assert run.data.metrics["loss"] > 0.0


async def test_a_command_that_cannot_be_done_is_reported_and_the_trainer_goes_on(broker: Broker, tmp_path: Path):
    trainer, producer = trainer_for(broker, tmp_path)
    async with producer:
        assert await trainer.handle(command([], command_id="bad", parent="no-such-version"))
        assert await trainer.handle(command([], command_id="empty"))
    failed = [
        m
        for m in await sent(broker, topics.TRAINING_RUNS)
        if isinstance(m, TrainingProgressed) and m.stage == "failed"
    ]
    assert [m.command_id for m in failed] == ["bad", "empty"]
    assert "no-such-version" in failed[0].message


@pytest.mark.timeout(120)
async def test_the_first_model_trains_before_the_first_click_and_says_that_nothing_judged_it(
    broker: Broker, tmp_path: Path
):
    ranges = await filled(broker, origin="synthetic")
    trainer, producer = trainer_for(broker, tmp_path)
    async with producer:
        assert await trainer.handle(command(ranges))
    (version,) = [m for m in await sent(broker, topics.MODEL_VERSIONS) if isinstance(m, ModelVersionPublished)]
    assert version.gate is not None
    assert (version.gate.verdict, version.gate.queries) == ("inconclusive", 0)
    assert version.gate.reasons == ["no clicks were held out"]
    assert version.lineage.examples == 24


async def test_too_few_examples_train_nothing_and_the_reason_is_one_line(broker: Broker, tmp_path: Path):
    ranges = await filled(broker, examples=15)
    trainer, producer = trainer_for(broker, tmp_path)
    async with producer:
        assert await trainer.handle(command(ranges))
    runs = [m for m in await sent(broker, topics.TRAINING_RUNS) if isinstance(m, TrainingProgressed)]
    assert [(m.message, m.verdict) for m in runs if m.stage == "failed"] == [
        ("15 examples, 20 are needed for a first model (min_examples)", "inconclusive")
    ], "nothing is wrong: with the next ones they may be enough"


async def test_an_unreadable_command_goes_to_the_dead_letters(broker: Broker, tmp_path: Path):
    trainer, producer = trainer_for(broker, tmp_path)
    async with producer:
        assert await trainer.handle(Record("commands", 0, 5, None, b"\xff no json"))
    letters = [m for m in await sent(broker, topics.DEAD_LETTERS) if isinstance(m, MessageQuarantined)]
    assert [(m.offset, m.value) for m in letters] == [(5, b"\xff no json")]


async def test_a_stop_in_the_middle_leaves_the_command_undone(broker: Broker, tmp_path: Path):
    ranges = await filled(broker)
    trainer, producer = trainer_for(broker, tmp_path)
    trainer.stop()
    async with producer:
        assert not await asyncio.wait_for(trainer.handle(command(ranges)), 60)
    assert not await sent(broker, topics.MODEL_VERSIONS)


async def published(broker: Broker) -> dict[str, ModelVersionPublished]:
    """By command."""
    found = [m for m in await sent(broker, topics.MODEL_VERSIONS) if isinstance(m, ModelVersionPublished)]
    return {m.lineage.command_id: m for m in found}


@pytest.mark.timeout(120)
async def test_without_splits_the_version_that_passed_last_is_what_users_have(broker: Broker, tmp_path: Path):
    """Whoever follows model versions without a search node of ours never sees a split."""
    ranges = await filled(broker, examples=60)
    trainer, producer = trainer_for(broker, tmp_path)
    async with producer:
        assert await trainer.handle(command(ranges, command_id="first"))
        first = (await published(broker))["first"]
        assert first.gate is not None
        assert await trainer.handle(command(ranges, command_id="inconclusive"))
        passed = replace(first, gate=replace(first.gate, verdict="pass"))
        await producer.send_and_wait(topics.MODEL_VERSIONS, passed)
        for version, changes in {"pruned": {}, "elsewhere": {"index": "another"}}.items():
            later = replace(passed, version=version, published_at=codec.now(), **changes)
            await producer.send_and_wait(topics.MODEL_VERSIONS, later)
        assert await trainer.handle(command(ranges, command_id="then"))
        base = (await published(broker))["inconclusive"].parent
        for number, arms in enumerate(({"live": base}, {"live": base, "candidate": first.version})):
            split = SplitChanged(
                event_id=f"s{number}",
                index="default",
                split_id=f"s{number}",
                salt="s",
                arms=[Arm(name=n, version=v, buckets=10_000 // len(arms)) for n, v in arms.items()],
                changed_at=codec.now(),
                sequence=number + 1,
                reason="test",
            )
            await producer.send_and_wait(topics.TRAFFIC_SPLITS, split)
            assert await trainer.handle(command(ranges, command_id=f"split {number}"))
    made = await published(broker)
    assert base.startswith("base-")
    assert made["then"].parent == first.version
    assert made["split 0"].parent == base
    assert made["split 1"].parent == first.version, "it is to be live next"


@pytest.mark.timeout(120)
async def test_a_training_anew_is_compared_with_what_users_have_unless_someone_names_a_parent(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ranges = await filled(broker, examples=60)
    trainer, producer = trainer_for(broker, tmp_path)
    climb, told = trainer._ladder.climb, list[tuple[str, str]]()

    async def climbing(wish: Retrain, parent: Manifest, *given: Any, live: Any) -> AsyncIterator[Published]:
        told.append((parent.version.split("-")[0], await live() if live else "no one looks"))
        async for one in climb(wish, parent, *given, live=live):
            yield one

    monkeypatch.setattr(trainer._ladder, "climb", climbing)
    async with producer:
        assert await trainer.handle(command(ranges, command_id="first"))
        first = (await published(broker))["first"]
        assert first.gate is not None
        passed = replace(first, gate=replace(first.gate, verdict="pass"))
        await producer.send_and_wait(topics.MODEL_VERSIONS, passed)
        for number in range(100, 220):
            one = example(f"{NAMES[number % 6]} number {number}", f"d{number % 12}", number=number, weight=0.1)
            await producer.send_and_wait(topics.TRAINING_EXAMPLES, replace(one, version=first.version))
        ends = await end_offsets(broker.bootstrap_servers, topics.TRAINING_EXAMPLES.name(broker.prefix))
        ranges = [replace(one, end=ends[one.partition][1]) for one in ranges]

        # So few clicks don't tell a version from its parent; what is looked at here is what comes after.
        def passing(*given: Any, **more: Any) -> GateResult:
            return replace(judge(*given, **more), verdict="pass")

        monkeypatch.setattr("trainer.rung.judge", passing)
        assert await trainer.handle(command(ranges, command_id="anew", strategy="full_retrain"))
        wish = command(ranges, command_id="named", strategy="full_retrain", parent=first.version)
        assert await trainer.handle(wish)
    assert told == [("base", ""), ("base", first.version), ("adapter", "no one looks")]
    made = await published(broker)
    anew, named = made["anew"].gate, made["named"].gate
    assert anew is not None
    assert anew.live is not None
    assert anew.live.version == first.version
    assert 0 < anew.live.queries <= 45, "a quarter is held out, and the live version was the first to answer that"
    assert 0.0 < anew.live.metrics["mrr_at_10"].before <= 1.0
    assert anew.verdict == "inconclusive"
    assert (
        f"beside {first.version}, which is live: {anew.live.queries} held-out queries, 50 are needed"
        in anew.reasons
    )
    assert named is not None
    assert (named.verdict, named.live) == ("pass", None)


async def test_a_broker_that_is_away_when_the_gate_is_done_does_not_cost_the_training(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer, producer = trainer_for(broker, tmp_path)
    async with producer:
        away = trainer._settings.model_copy(update={"bootstrap_servers": f"127.0.0.1:{free_port()}"})
        monkeypatch.setattr(trainer, "_settings", away)
        assert await trainer._live_by_now("default", "before-1") == "before-1"


@pytest.mark.timeout(120)
async def test_each_strategy_trains_on_what_it_says_from_the_model_that_it_says(broker: Broker, tmp_path: Path):
    ranges = await filled(broker, examples=60)
    late = [OffsetRange(topic=r.topic, partition=r.partition, start=r.end - 4, end=r.end) for r in ranges]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "\n".join(f'{{"query": "how to {NAMES[n % 6]} {n}", "doc_id": "d{n % 12}"}}' for n in range(30))
    )
    trainer, producer = trainer_for(broker, tmp_path)
    async with producer:
        for color in ("red", "green", "blue", "brown"):
            for animal in ("parrot", "horse", "beetle", "whale", "spider", "lizard"):
                told = DocumentChanged(
                    event_id=f"{color}-{animal}",
                    index="default",
                    doc_id=f"{color}-{animal}",
                    changed_at=START,
                    title=f"The {color} {animal}",
                    text=f"How a {animal} with {color} skin finds food. Where the {color} {animal} sleeps.",
                )
                await producer.send_and_wait(topics.DOCUMENTS, told)
        assert await trainer.handle(command(ranges, command_id="first"))
        first = (await published(broker))["first"]
        parent = first.version
        for number, strategy in enumerate(get_args(Strategy)):
            uri = str(pairs) if strategy == "fine_tune" else ""
            named = "" if strategy == "full_retrain" else parent
            wish = command(late, command_id=f"s{number}", parent=named, strategy=strategy, pairs_uri=uri)
            assert await trainer.handle(wish)
    assert not [
        m.message
        for m in await sent(broker, topics.TRAINING_RUNS)
        if isinstance(m, TrainingProgressed) and m.stage == "failed"
    ]
    made = {m.lineage.strategy: m for command_id, m in (await published(broker)).items() if command_id != "first"}
    assert set(made) == set(get_args(Strategy))
    read = sum(r.end - r.start for r in late)
    old = sum(r.start for r in late)
    for strategy in ("incremental", "contrastive"):
        assert made[strategy].parent == parent
        assert made[strategy].lineage.ranges == late
        assert made[strategy].lineage.settings["replayed_examples"] == old
        assert made[strategy].lineage.examples > read / 2
    assert made["full_retrain"].parent.startswith("base-")
    assert made["full_retrain"].lineage.ranges == ranges
    assert made["fine_tune"].lineage.examples == 30
    assert made["fine_tune"].lineage.settings["pairs_uri"] == str(pairs)
    assert made["fine_tune"].lineage.settings["pairs_sha256"] == sha256_file(pairs)
    assert made["domain_adaptation"].lineage.examples >= 12
    for strategy in ("fine_tune", "domain_adaptation"):
        assert made[strategy].parent == parent
        gate = made[strategy].gate
        assert gate is not None
        assert 0 < gate.queries <= read, "clicks judge"


async def test_a_cancelled_command_fails_as_cancelled_before_it_begins(broker: Broker, tmp_path: Path):
    trainer, producer = trainer_for(broker, tmp_path)
    async with producer:
        for retrain in ("c1", "another"):
            wish = Cancel(command_id=f"k-{retrain}", index="default", issued_at=START, retrain=retrain)
            await producer.send_and_wait(topics.COMMANDS, wish)
        assert await trainer.handle(command([], command_id="c1"))
    runs = [m for m in await sent(broker, topics.TRAINING_RUNS) if isinstance(m, TrainingProgressed)]
    assert [(m.command_id, m.stage, m.message) for m in runs] == [("c1", "failed", "cancelled")]
