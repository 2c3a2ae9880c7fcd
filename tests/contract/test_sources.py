"""Foreign records on the topics themselves, on every broker: they join, and the unusable keep their headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clickloop import topics
from clickloop.events import ExampleFormed, Header, MessageQuarantined
from clickloop.kafka import Producer
from clickloop.settings import load_mappings
from clickloop.sources import Sources
from demo.processes import ProcessGroup
from tests.streams_worker import until, worker
from tests.unit.source_records import AT, TOML, UBI_EVENT, UBI_QUERY, envelope
from trainer.examples import read_documents

BINARY = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/shop"), ("ce_type", b"clicked")]


def ubi(query_id: str, record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "query_id": query_id}


async def test_records_of_any_source_become_examples_beside_our_own(any_broker: Any, tmp_path: Path) -> None:
    broker = any_broker
    config = tmp_path / "shop.toml"
    config.write_text(TOML)
    mapped = {
        "event": {"kind": "product_click"},
        "search": {"id": "q-3"},
        "sku": "sku-17",
        "ts": AT.timestamp() * 1000,
    }
    stars = {
        "event": {"kind": "stars"},
        "search": {"id": "q-4"},
        "sku": "sku-4",
        "stars": 10,
        "ts": AT.timestamp(),
    }
    rating = {**UBI_EVENT["event_attributes"], "rating": 1}
    clicks: list[tuple[str, Any, Any]] = [
        ("q-1", ubi("q-1", UBI_EVENT), ()),
        ("q-2", envelope(ubi("q-2", UBI_EVENT)), [("content-type", b"application/cloudevents+json")]),
        ("q-3", {**mapped, "index": "ignored"}, ()),
        ("q-4", stars, ()),
        ("q-5", {**ubi("q-5", UBI_EVENT), "timestamp": None}, [*BINARY, ("ce_time", AT.isoformat().encode())]),
        ("q-6", {**ubi("q-6", UBI_EVENT), "action_name": "rating", "event_attributes": rating}, ()),
        ("q-7", ubi("q-7", {**UBI_EVENT, "event_attributes": {}}), BINARY),
        *[(f"q-{n}", ubi(f"q-{n}", {**UBI_EVENT, "action_name": "item_hover"}), ()) for n in range(1, 8)] * 200,
    ]
    with ProcessGroup() as processes:
        process = processes.start(worker(broker, tmp_path, config=config))
        async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
            for number in range(1, 8):
                query = json.dumps(ubi(f"q-{number}", UBI_QUERY)).encode()
                await producer.send_raw(topics.QUERIES.name(broker.prefix), query, key=f"q-{number}".encode())
            for key, record, headers in clicks:
                value = json.dumps(record).encode()
                name = topics.CLICKS.name(broker.prefix)
                await producer.send_raw(name, value, key=key.encode(), headers=headers)
        wanted = {("q-1", "sku-17"), ("q-2", "sku-17"), ("q-4", "sku-4"), ("q-5", "sku-17"), ("q-6", "sku-17")}
        examples = await until(
            broker,
            topics.TRAINING_EXAMPLES,
            ExampleFormed,
            lambda found: {(e.query_id, e.doc_id) for e in found} >= wanted,
            seconds=60,
        )
        letters = await until(broker, topics.DEAD_LETTERS, MessageQuarantined, bool, seconds=20)
        process.check()
    assert {(e.query_id, e.doc_id) for e in examples} == wanted
    # The mapping of the shop's clicks says that they are of the index "shop", which this worker is not for.
    assert {(e.query_id, e.label, e.rating) for e in examples if e.rating} == {
        ("q-4", "positive", 5.0),
        ("q-6", "negative", 1.0),
    }
    (letter,) = letters
    assert "without event_attributes.object.object_id" in letter.reason
    assert letter.headers == [Header(name=name, value=value) for name, value in BINARY]


async def test_the_trainer_reads_mapped_documents(
    broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop.toml").write_text(TOML)
    monkeypatch.setenv("CLICKLOOP_CONFIG", str(tmp_path / "shop.toml"))
    async with Producer(broker.bootstrap_servers, prefix=broker.prefix) as producer:
        for value in (b'{"sku": 7, "name": "Shoe", "about": "Grips."}', b'{"name": "no id"}'):
            await producer.send_raw(topics.DOCUMENTS.name(broker.prefix), value, key=b"7")
    found, unreadable = await read_documents(
        broker.bootstrap_servers,
        prefix=broker.prefix,
        index="default",
        sources=Sources("default", load_mappings()),
    )
    assert [(d.doc_id, d.text) for d in found] == [("7", "Shoe\nGrips.")]
    assert len(unreadable) == 1
