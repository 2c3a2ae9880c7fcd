"""What goes to ``dead-letters``: a record that can't be used, whole, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from clickloop import codec
from clickloop.errors import MessageError
from clickloop.events import Header, MessageQuarantined

if TYPE_CHECKING:
    from clickloop.kafka import Record

_LONGEST_KEY = 10_000
_LONGEST_HEADERS = 100_000
"""As JSON: a header of no length at all takes 23 bytes of a letter."""


def letter_of(record: Record, error: MessageError, *, service: str, index: str) -> MessageQuarantined:
    return MessageQuarantined(
        event_id=f"{record.topic}/{record.partition}/{record.offset}",
        index=index,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        # Base64 makes it a third longer, and the letter must fit into a message itself.
        key=None if record.key is None else record.key[:_LONGEST_KEY],
        value=(record.value or b"")[: codec.MAX_MESSAGE_BYTES // 2],
        quarantined_at=codec.now(),
        service=service,
        error=type(error).__name__,
        reason=str(error)[:1000],
        headers=_kept(record.headers),
    )


def _kept(headers: Sequence[tuple[str, bytes]]) -> list[Header]:
    """A record's headers for its letter; none of them where they are too long to fit in."""
    kept = [Header(name=name, value=value) for name, value in headers if value is not None]
    return kept if len(msgspec.json.encode(kept)) <= _LONGEST_HEADERS else []
