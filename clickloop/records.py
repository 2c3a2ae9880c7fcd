"""Records whose header names are no UTF-8: read all the same.

A broker takes any bytes for a header's name, and aiokafka fails on the whole fetch, again and again: one such
record would stop every consumer of the topic for good. aiokafka has no hook for it, so ``read_any_header_name``
puts our reader in front of its own. Only a batch that fails is read again, in Python, with what can't be decoded
replaced.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import msgspec
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

_LENGTH = struct.Struct(">i")
_LENGTH_OFFSET, _OVERHEAD = 8, 12

_UNREADABLE = (UnicodeDecodeError, CorruptRecordException)

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[tuple[str, bytes | None]]).decode


def read_any_header_name() -> None:
    """For every consumer of this process, Faust's too."""
    fetcher.MemoryRecords = LenientRecords
    fetcher.PartitionRecords = _PartitionRecords


def as_read(value: bytes) -> bytes:
    """As a consumer's ``value_deserializer``: hand out ``Read`` records, without making a ConsumerRecord of each,
    which takes as long as reading it.

    Such a consumer must not limit the records of one fetch: whole batches count as handed out.
    """
    return value


class Read(msgspec.Struct, frozen=True, gc=False):
    """One record, as cheap to keep as its bytes.

    Of records that wait by the ten thousand, the garbage collector would look at each header again and again.
    """

    offset: int
    timestamp: int
    """Milliseconds since the epoch."""
    key: bytes | None
    value: bytes | None
    packed_headers: bytes

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        return _unpack(self.packed_headers)


def _reads(records: Iterable[Any]) -> list[Read]:
    return [
        Read(record.offset, record.timestamp, record.key, record.value, _pack(record.headers))
        for record in records
    ]


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """aiokafka's, which knows ``as_read``."""

    next_fetch_offset: int

    def __iter__(self) -> Any:
        if self._value_deserializer is as_read:
            return chain.from_iterable(self._batches())
        return self._records_iterator

    def _batches(self) -> Iterator[list[Read]]:
        """The records of one batch after the other. Control batches and what was read before are left out."""
        records = self._records
        while records.has_next():
            batch = records.next_batch()
            if self._check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"Invalid CRC - {self._tp}")
            if not batch.is_control_batch:
                found = batch.reads()
                if found and found[0].offset < self.next_fetch_offset:
                    found = [record for record in found if record.offset >= self.next_fetch_offset]
                yield found
            self.next_fetch_offset = max(self.next_fetch_offset, batch.next_offset)


class LenientRecords:
    """aiokafka's MemoryRecords, with batches that can be read again."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._records = MemoryRecords(data)
        self._position = 0

    def size_in_bytes(self) -> int:
        return int(self._records.size_in_bytes())

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if batch is None:
            return None
        start = self._position
        self._position += _OVERHEAD + _LENGTH.unpack_from(self._data, start + _LENGTH_OFFSET)[0]
        return _Batch(batch, self._data[start : self._position])


class _Batch:
    """A record batch as aiokafka knows it, but for its records."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except _UNREADABLE:
            return self._again()

    def reads(self) -> list[Read]:
        """All of its records."""
        try:
            return _reads(self._batch)
        except _UNREADABLE:
            return _reads(self._again())

    def _again(self) -> Iterator[Any]:
        again = _DefaultRecordBatchPy(bytearray(self._data))
        again._maybe_uncompress()
        again._buffer = _Buffer(again._buffer)
        return iter(again)


class _Buffer(bytearray):
    """Bytes that decode whatever they are."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Buffer(found) if isinstance(found, bytearray) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        del errors
        return super().decode(encoding, "replace")
