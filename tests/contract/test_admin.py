"""What an operator types, against a running broker."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

from aiokafka import AIOKafkaProducer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clickloop import codec, topics
from clickloop.commands import Cancel, ForgetUser, Pause, Promote, Retrain, Rollback
from clickloop.errors import InvalidMessageError
from clickloop.events import ExampleFormed
from clickloop.kafka import Producer, Record
from tests.conftest import Broker
from tests.contract.test_kafka import read_all, version

PROGRAM = [sys.executable, "-c", "from clickloop.__main__ import main; main()"]


def raw_output(broker: Broker, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    where = ["--bootstrap-servers", broker.bootstrap_servers, "--topic-prefix", broker.prefix]
    return subprocess.run([*PROGRAM, *arguments, *where], capture_output=True, timeout=60, check=False)


def clickloop(broker: Broker, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = raw_output(broker, *arguments)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


async def test_versions_are_listed_with_their_verdicts(broker: Broker) -> None:
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        await producer.send_and_wait(topics.MODEL_VERSIONS, version("base-1", None))
        await producer.send_and_wait(topics.MODEL_VERSIONS, version("adapter-1", "fail"))
    done = clickloop(broker, "models", "list")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(line[0], line[5]) for line in lines] == [("base-1", "-"), ("adapter-1", "fail")]


async def test_a_dead_letter_is_listed_shown_and_replayed_byte_for_byte(broker: Broker) -> None:
    original = b'\xff\x00 "poison"\n'
    name = topics.CLICKS.name(broker.prefix)
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        record = Record(name, 1, 7, b"key", original, [("ce_id", b"\xff7"), ("ce_id", b"again"), ("empty", None)])  # type: ignore[list-item]
        await producer.quarantine(record, InvalidMessageError("position 0"), service="streams", index="default")
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
        await raw.send_and_wait(topics.MODEL_VERSIONS.name(broker.prefix), b"rubbish", key=b"k")
    finally:
        await raw.stop()
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        await producer.send_and_wait(topics.MODEL_VERSIONS, version("adapter-1"))
    done = clickloop(broker, "models", "list")
    assert done.returncode == 0
    assert "adapter-1" in done.stdout
    assert "offset 0" in done.stderr


def test_a_signed_base_is_accepted_and_an_unsigned_one_refused(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    private = base64.b64encode(key.private_bytes_raw()).decode()
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()

    def models(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        program = [*PROGRAM, "models", *arguments]
        clean = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
        return subprocess.run(
            program, env=clean | environment, capture_output=True, text=True, timeout=60, check=False
        )

    for name, signing, code in (("signed", {"CLICKLOOP_PRIVATE_KEY": private}, 0), ("unsigned", {}, 1)):
        store = str(tmp_path / name)
        published = models("publish-base", "--store-url", store, **signing)
        assert published.returncode == 0, published.stderr
        base = published.stdout.strip().rsplit("/", 1)[-1]
        verified = models("verify", base, "--store-url", store, CLICKLOOP_PUBLIC_KEY=public)
        assert verified.returncode == code, verified.stderr
        assert ("signature" in verified.stderr) == (code == 1)
