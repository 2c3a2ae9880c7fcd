"""What an operator types, against a running broker."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from clickloop import codec, topics
from clickloop.commands import Cancel, ForgetUser, Pause, Promote, Retrain, Rollback
from clickloop.errors import InvalidMessageError
from clickloop.events import ExampleFormed, GateResult
from clickloop.kafka import Producer, Record
from clickloop.model_store import ModelStore
from tests.conftest import Broker
from tests.contract.test_kafka import read_all
from tests.unit.streams_facts import version
from tests.unit.version_facts import put, split

PROGRAM = [sys.executable, "-c", "from clickloop.__main__ import main; main()"]


def raw_output(broker: Broker, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    where = ["--bootstrap-servers", broker.bootstrap_servers, "--topic-prefix", broker.prefix]
    return subprocess.run([*PROGRAM, *arguments, *where], capture_output=True, timeout=60, check=False)


def clickloop(broker: Broker, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = raw_output(broker, *arguments)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


async def test_a_dead_letter_is_listed_shown_and_replayed_byte_for_byte(broker: Broker) -> None:
    original = b'\xff\x00 "poison"\n'
    name = topics.CLICKS.name(broker.prefix)
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        record = Record(name, 1, 7, b"key", original, [("ce_id", b"\xff7"), ("ce_id", b"again"), ("empty", None)])  # type: ignore[list-item]
        await producer.quarantine((record, InvalidMessageError("position 0")), service="streams", index="default")
    listed = clickloop(broker, "dead-letters", "list")
    assert f"{name}/1/7" in listed.stdout
    assert "position 0" in listed.stdout
    shown = raw_output(broker, "dead-letters", "show", "0")
    assert shown.stdout == original
    assert clickloop(broker, "dead-letters", "replay", "0").returncode == 0
    (again,) = await read_all(broker, topics.CLICKS)
    assert (again.value, again.key) == (original, b"key")
    assert list(again.headers) == [("ce_id", b"\xff7"), ("ce_id", b"again")]
    missing = clickloop(broker, "dead-letters", "show", "99")
    assert missing.returncode == 1
    assert "no dead letter 99" in missing.stderr


async def test_a_dead_letter_that_was_cut_is_shown_with_a_warning_and_not_sent_again(broker: Broker) -> None:
    name = topics.DOCUMENTS.name(broker.prefix)
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        record = Record(name, 0, 7, b"key", b"x" * 600_000)
        await producer.quarantine((record, InvalidMessageError("no mapping")), service="search", index="default")
    said = f"dead letter 0 lacks a part that was too long (value); whole it lies at {name} partition 0 offset 7\n"
    shown = clickloop(broker, "dead-letters", "show", "0")
    assert (shown.returncode, len(shown.stdout), shown.stderr) == (0, 500_000, said)
    sent = clickloop(broker, "dead-letters", "replay", "0")
    assert (sent.returncode, sent.stdout, sent.stderr) == (1, "", f"clickloop: not sent: {said}")
    assert await read_all(broker, topics.DOCUMENTS) == []


async def test_every_wish_arrives_as_its_command(broker: Broker) -> None:
    for arguments in (
        ["rollback", "--reason", "worse"],
        ["promote", "adapter-1", "--reason", "better"],
        ["pause", "--reason", "sale"],
        ["resume"],
        ["forget-user", "abc"],
        ["retrain", "--cancel", "command-7"],
    ):
        done = clickloop(broker, *arguments)
        assert done.returncode == 0, done.stderr
    kinds = topics.COMMANDS.types
    found = [codec.decode(record.value, *kinds) for record in await read_all(broker, topics.COMMANDS)]
    assert [type(command) for command in found] == [Rollback, Promote, Pause, Pause, ForgetUser, Cancel]
    assert [command.paused for command in found if isinstance(command, Pause)] == [True, False]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("pass", ""),
        ("inconclusive", "its gate: inconclusive (too few)\n"),
        ("fail", "its gate: fail (too few): it will be refused\n"),
        (None, "no version 'adapter-1' of index 'default' was announced: it will be refused\n"),
    ],
)
async def test_a_promotion_says_what_the_gate_said(broker: Broker, verdict: Any, said: str) -> None:
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        for number, index in enumerate(("elsewhere", "default") if verdict else ("elsewhere",)):
            gate = GateResult(verdict=verdict or "pass", queries=3, reasons=["too few"])
            told = replace(version("adapter-1"), event_id=f"v{number}", index=index, gate=gate)
            await producer.send_and_wait(topics.MODEL_VERSIONS, told)
    done = clickloop(broker, "promote", "adapter-1", "--reason", "better")
    assert done.returncode == 0
    assert done.stdout.startswith("Promote ")
    assert done.stderr == said


async def test_retrain_covers_every_example_in_the_log(broker: Broker) -> None:
    empty = clickloop(broker, "retrain")
    assert empty.returncode == 1
    assert "no examples yet" in empty.stderr
    now = codec.now()
    example = ExampleFormed(
        event_id="e", index="default", example_id="x", revision=1, query_id="q", query="shoes", doc_id="d",
        label="positive", weight=1.0, served_at=now, formed_at=now,
    )  # fmt: skip
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        for partition in (0, 2, 2):
            await producer.send_and_wait(topics.TRAINING_EXAMPLES, example, partition=partition)
    done = clickloop(broker, "retrain", "--kind", "adapter")
    assert done.returncode == 0, done.stderr
    (record,) = await read_all(broker, topics.RETRAIN_COMMANDS)
    command = codec.decode(record.value, Retrain)
    assert command.kinds == ["adapter"]
    assert [(r.partition, r.start, r.end) for r in command.ranges] == [(0, 0, 1), (2, 0, 2)]
    assert clickloop(broker, "retrain", "--kind", "giant").returncode == 2


async def test_listing_names_what_it_cannot_read_and_goes_on(broker: Broker) -> None:
    raw = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    await raw.start()
    try:
        await raw.send_and_wait(topics.DEAD_LETTERS.name(broker.prefix), b"rubbish", key=b"k")
    finally:
        await raw.stop()
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        record = Record("x.clicks.v1", 1, 7, None, b"x")
        await producer.quarantine((record, InvalidMessageError("position 0")), service="streams", index="default")
    done = clickloop(broker, "dead-letters", "list")
    assert done.returncode == 0
    assert "position 0" in done.stdout
    assert "offset 0" in done.stderr


async def test_the_splits_tell_what_got_traffic_and_so_what_may_be_pruned(broker: Broker, tmp_path: Path) -> None:
    store = ModelStore(f"file://{tmp_path}/store", cache=tmp_path / "cache")
    base = put(store, tmp_path, "base-1", hours=0)
    for number in (1, 2, 3):
        put(store, tmp_path, f"adapter-{number}", "adapter", base, hours=number, verdict="fail")
    where = ["--store-url", store.url]
    prune = clickloop(broker, "versions", "prune", "--keep", "1", *where)
    assert prune.returncode == 2
    assert "index 'default' has no split" in prune.stderr

    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        for change in (split(1, "base-1"), split(2, "base-1", "adapter-1"), split(9, "adapter-9", index="shoes")):
            await producer.send_and_wait(topics.TRAFFIC_SPLITS, change)
    lineage = clickloop(broker, "versions", "lineage", "adapter-1", *where)
    assert lineage.returncode == 0, lineage.stderr
    assert "rollout    2026-01-01 02:00:00 default: candidate, 10 %: first share" in lineage.stdout
    assert "rollout    2026-01-01 01:00:00 default: live, 100 %" in lineage.stdout

    prune = clickloop(broker, "versions", "prune", "--keep", "1", *where)
    assert prune.returncode == 0, prune.stderr
    assert store.versions() == ["adapter-1", "adapter-3", "base-1"]

    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        await producer.send_and_wait(topics.TRAFFIC_SPLITS, split(3, "adapter-of-another-store"))
    prune = clickloop(broker, "versions", "prune", "--keep", "1", *where)
    assert prune.returncode == 2
    assert "another store?" in prune.stderr
    assert store.versions() == ["adapter-1", "adapter-3", "base-1"]


def test_a_signed_base_is_accepted_and_an_unsigned_one_refused(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    private = base64.b64encode(key.private_bytes_raw()).decode()
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()

    def versions(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        program = [*PROGRAM, "versions", *arguments]
        clean = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
        return subprocess.run(
            program, env=clean | environment, capture_output=True, text=True, timeout=60, check=False
        )

    for name, signing, code in (("signed", {"CLICKLOOP_PRIVATE_KEY": private}, 0), ("unsigned", {}, 1)):
        store = str(tmp_path / name)
        published = versions("publish-base", "--store-url", store, **signing)
        assert published.returncode == 0, published.stderr
        base = published.stdout.strip().rsplit("/", 1)[-1]
        verified = versions("verify", base, "--store-url", store, CLICKLOOP_PUBLIC_KEY=public)
        assert verified.returncode == code, verified.stderr
        assert ("signature" in verified.stderr) == (code == 1)
