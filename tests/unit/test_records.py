"""Header names are bytes that anyone may send: one that is no UTF-8 stops no consumer."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

import clickloop.kafka  # noqa: F401 - what is imported by every consumer
from clickloop.records import LenientRecords, Read, as_read

NAME = "abcdefgh"


def batch(*headers: list[tuple[str, bytes | None]], compression: int = 0, first: int = 10) -> bytes:
    """One record for each list of headers, with its number as the value."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=compression,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=100_000,
    )
    for number, each in enumerate(headers):
        builder.append(number, timestamp=1, key=b"k", value=b"%d" % number, headers=each)
    data = bytearray(builder.build())
    data[:8] = first.to_bytes(8)
    return bytes(data)


def broken(data: bytes) -> bytes:
    return data.replace(NAME.encode(), b"\xff" + NAME.encode()[1:])


def read(data: bytes) -> list[Any]:
    records, found = LenientRecords(data), []
    while records.has_next():
        found += list(records.next_batch())
    return found


def handed_out(data: bytes, *, first: int = 0) -> list[Read]:
    """What a consumer with ``as_read`` gets, that has read up to ``first``."""
    place, records = TopicPartition("clicks", 0), LenientRecords(data)
    found = fetcher.PartitionRecords(place, records, None, first, None, as_read, False, fetcher.READ_UNCOMMITTED)
    return list(found)


def test_a_header_name_that_is_no_utf8_fails_aiokafka_and_is_read_here() -> None:
    data = broken(batch([("fine", b"1")], [(NAME, b"2"), ("ce_id", None)], [("fine", b"3")]))
    with pytest.raises((UnicodeDecodeError, CorruptRecordException)):
        list(MemoryRecords(data).next_batch())
    found = read(data)
    assert [(r.offset, r.key, r.value) for r in found] == [(10 + n, b"k", b"%d" % n) for n in range(3)]
    assert [list(r.headers) for r in found] == [
        [("fine", b"1")],
        [("\ufffdbcdefgh", b"2"), ("ce_id", None)],
        [("fine", b"3")],
    ]


def test_batches_beside_a_broken_one_are_read_as_ever() -> None:
    good, bad = batch([], [("a", b"b")], first=0, compression=3), broken(batch([(NAME, b"")], first=2))
    found = read(good + bad + batch([], first=3))
    assert [r.offset for r in found] == [0, 1, 2, 3]


def test_the_batch_says_of_itself_what_aiokafkas_does() -> None:
    data = batch([], [])
    ours, theirs = LenientRecords(data).next_batch(), MemoryRecords(data).next_batch()
    for name in ("base_offset", "next_offset", "producer_id", "is_control_batch", "is_transactional"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.validate_crc()
    assert not LenientRecords(broken(batch([(NAME, b"")]))).next_batch().validate_crc()


def test_what_is_corrupt_otherwise_stays_an_error() -> None:
    data = bytearray(batch([("a", b"b")]))
    data[-4] = 0x7E  # the length of the name
    with pytest.raises(CorruptRecordException):
        read(bytes(data))


def test_every_consumer_reads_so() -> None:
    assert fetcher.MemoryRecords is LenientRecords


def test_records_as_read_say_what_aiokafkas_do() -> None:
    data = batch([("a", b"1"), ("a", None)], [], [("\u00e9", b"\xff")], compression=3)
    for ours, theirs in zip(handed_out(data), MemoryRecords(data).next_batch(), strict=True):
        for name in ("offset", "timestamp", "key", "value", "headers"):
            assert getattr(ours, name) == getattr(theirs, name)


def test_records_as_read_go_on_where_the_consumer_was() -> None:
    data = batch([], [], [], first=10) + batch([], [], first=13)
    assert [record.offset for record in handed_out(data, first=12)] == [12, 13, 14]


def test_records_as_read_have_header_names_that_are_no_utf8_too() -> None:
    data = broken(batch([("fine", b"1")], [(NAME, b"2")]))
    assert [record.headers for record in handed_out(data)] == [[("fine", b"1")], [("\ufffdbcdefgh", b"2")]]


def test_the_garbage_collector_has_no_work_with_records_as_read() -> None:
    found = handed_out(batch(*[[("ce_id", b"1"), ("ce_type", b"2")]] * 3))
    assert not any(gc.is_tracked(record) for record in found)
