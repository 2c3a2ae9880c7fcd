"""``clickloop trigger`` and ``clickloop buffer`` against a running broker."""

from __future__ import annotations

import json
import re
import time

import pytest

from clickloop import codec, topics
from clickloop.commands import Reason, Retrain
from clickloop.errors import SettingsError
from clickloop.events import DriftMeasured, ExampleFormed, OffsetRange, Verdict
from clickloop.kafka import Producer, offsets_since
from streams.cli import parse_time
from tests.conftest import Broker
from tests.contract.test_admin import clickloop
from tests.unit.streams_facts import progress


def told(broker: Broker, start: int, end: int) -> DriftMeasured:
    """The report of examples in partition 1."""
    return DriftMeasured(
        event_id=f"default/1/{start}",
        index="default",
        partition=1,
        window_start=codec.now(),
        window_end=codec.now(),
        queries=90,
        examples=end - start,
        ranges=[place(broker, start, end)],
        sketches=90,
        sketch_sum=[1, -2, 3],
    )


def place(broker: Broker, start: int, end: int) -> OffsetRange:
    name = topics.TRAINING_EXAMPLES.name(broker.prefix)
    return OffsetRange(topic=name, partition=1, start=start, end=end)


async def fill(broker: Broker, examples: int, *, reported: int | None = None) -> None:
    """Examples in partition 1 of the log, and the report that tells of all of them or the first ``reported``."""
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        for number in range(examples):
            example = ExampleFormed(
                event_id=f"x{number}",
                index="default",
                example_id=f"x{number}",
                revision=1,
                query_id=f"q{number}",
                query="how to sort",
                doc_id="d",
                label="positive" if number % 3 else "negative",
                weight=0.5,
                served_at=codec.now(),
                formed_at=codec.now(),
                clicks=1,
            )
            await producer.send_and_wait(topics.TRAINING_EXAMPLES, example, partition=1)
        await producer.send_and_wait(topics.DRIFT_REPORTS, told(broker, 0, reported or examples))
        await producer.send_raw(topics.DRIFT_REPORTS.name(broker.prefix), b"rubbish", key=None)


async def test_the_trigger_explains_what_it_waits_for_and_when_it_would_fire(broker: Broker) -> None:
    await fill(broker, 30)
    done = clickloop(broker, "trigger", "--explain")
    assert done.returncode == 0, done.stderr
    assert "not now: 30 of 100 new examples" in done.stdout
    assert "wait: threshold" in done.stdout
    assert "rubbish" not in done.stdout
    assert "offset 1" in done.stderr
    done = clickloop(broker, "trigger", "--threshold", "30", "--json")
    first, *_ = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["priority"] == 1
    assert first["what"] == "train adapter, query_encoder on 30 new examples"
    assert first["gain"] > 0
    assert first["seconds"] > 0


@pytest.mark.parametrize(("verdict", "again"), [("inconclusive", 30), ("fail", 0)])
async def test_what_no_gate_has_decided_on_comes_again(broker: Broker, verdict: Verdict, again: int) -> None:
    await fill(broker, 40, reported=30)
    wish = Retrain(
        command_id="first",
        index="default",
        issued_at=codec.now(),
        kinds=["adapter"],
        ranges=[place(broker, 0, 30)],
        reason=Reason(policies=["threshold"], text="enough"),
    )
    done = progress("first", "adapter", "done", when=0.0, verdict=verdict)
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        await producer.send_and_wait(topics.RETRAIN_COMMANDS, wish)
        await producer.send_and_wait(topics.TRAINING_RUNS, done)
        await producer.send_and_wait(topics.DRIFT_REPORTS, told(broker, 30, 40))
    first, *_ = clickloop(broker, "trigger", "--threshold", "10", "--json").stdout.splitlines()
    added = f" and {again} that no gate has decided on" if again else ""
    assert json.loads(first)["what"] == f"train adapter, query_encoder on 10 new examples{added}"
    found = json.loads(clickloop(broker, "buffer", "--json").stdout)
    assert (found["new_examples"], found["undecided"]) == (10, again)


async def test_a_dry_run_says_when_it_would_have_fired_why_and_at_what_cost(broker: Broker) -> None:
    await fill(broker, 30)
    done = clickloop(broker, "trigger", "--dry-run", "--since", "1h", "--threshold", "25")
    assert done.returncode == 0, done.stderr
    assert "30 new examples (threshold 25); expected +" in done.stdout
    assert "would have fired 1 times" in done.stdout
    quiet = clickloop(broker, "trigger", "--dry-run", "--since", "1h")
    assert "would have fired 0 times" in quiet.stdout
    later = clickloop(broker, "trigger", "--dry-run", "--since", "2100-01-01T00:00:00Z", "--threshold", "25")
    assert "over 0 drift reports: would have fired 0 times" in later.stdout
    raw = clickloop(broker, "trigger", "--dry-run", "--since", "1h", "--threshold", "25", "--json")
    assert json.loads(raw.stdout)["type"] == "Retrain"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dry-run"], "go together"),
        (["--since", "1h"], "go together"),
        (["--dry-run", "--explain", "--since", "1h"], "choose one"),
        (["--dry-run", "--since", "soon"], "no time"),
        (["--dry-run", "--since", "2026-03-02T09:00:00"], "no zone"),
        (["--policies", "luck"], "setting policies"),
        (["--policies", "schedule"], "needs the setting schedule"),
    ],
)
async def test_a_mistake_is_one_line_and_code_2(broker: Broker, flags: list[str], said: str) -> None:
    done = clickloop(broker, "trigger", *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


async def test_the_buffer_shows_ranges_slices_and_what_the_trigger_waits_for(broker: Broker) -> None:
    await fill(broker, 30)
    done = clickloop(broker, "buffer", "default")
    assert done.returncode == 0, done.stderr
    assert "training-examples.v1/1 0-30" in done.stdout
    assert "label negative 10, label positive 20" in done.stdout
    assert "30 of 100 new examples" in done.stdout
    assert re.search(r"^oldest +\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ, \d+ (s|min|h|d) ago$", done.stdout, re.MULTILINE)
    found = json.loads(clickloop(broker, "buffer", "default", "--json").stdout)
    assert found["distinct_examples"] == found["reservoir_size"] == 30
    assert len(found["reservoir"]) == 30
    assert (found["query_sketches"], found["sketch_sum"]) == (90, [1, -2, 3])
    assert found["oldest_seconds"] >= found["newest_seconds"] >= 0
    other = json.loads(clickloop(broker, "buffer", "elsewhere", "--json").stdout)
    assert (other["new_examples"], other["ranges"]) == (0, [])


async def test_offsets_are_found_by_the_time_of_their_records(any_broker: Broker) -> None:
    before = time.time() - 1.0
    await fill(any_broker, 3)
    name = topics.TRAINING_EXAMPLES.name(any_broker.prefix)
    found = await offsets_since(any_broker.bootstrap_servers, name, before)
    assert found[1] == (0, 3)
    assert found[0] == (0, 0)
    later = await offsets_since(any_broker.bootstrap_servers, name, time.time() + 3600.0)
    assert later[1] == ((3, 3) if any_broker.kind == "kafka" else (0, 3))


def test_a_time_is_an_age_or_rfc_3339() -> None:
    assert parse_time("90m", now=10_000.0) == 4600.0
    assert parse_time("1970-01-01T01:00:00+01:00", now=0.0) == 0.0
    assert parse_time("999999d", now=10_000.0) == 0.0, "before there were any times"
    with pytest.raises(SettingsError):
        parse_time("yesterday", now=0.0)
