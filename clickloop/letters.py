"""What goes to ``dead-letters``: a record that can't be used, with the reason, and whole where it fits in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from clickloop import codec
from clickloop.errors import MessageError
from clickloop.events import Header, MessageQuarantined, Part

if TYPE_CHECKING:
    from clickloop.kafka import Record

_LONGEST_VALUE = codec.MAX_MESSAGE_BYTES // 2
"""Base64 makes it a third longer, and the letter must fit into a message itself."""
_LONGEST_KEY = 10_000
_LONGEST_HEADERS = 100_000
"""As JSON: a header of no length at all takes 23 bytes of a letter."""


def letter_of(record: Record, error: MessageError, *, service: str, index: str) -> MessageQuarantined:
    value, key = record.value or b"", record.key
    headers = [Header(name=name, value=content) for name, content in record.headers if content is not None]
    too_long: dict[Part, bool] = {
        "value": len(value) > _LONGEST_VALUE,
        "key": len(key or b"") > _LONGEST_KEY,
        "headers": len(msgspec.json.encode(headers)) > _LONGEST_HEADERS,
    }
    return MessageQuarantined(
        event_id=f"{record.topic}/{record.partition}/{record.offset}",
        index=index,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=None if key is None else key[:_LONGEST_KEY],
        value=value[:_LONGEST_VALUE],
        quarantined_at=codec.now(),
        service=service,
        error=type(error).__name__,
        reason=str(error)[:1000],
        headers=[] if too_long["headers"] else headers,
        cut=[part for part, is_so in too_long.items() if is_so],
    )
