"""Bytes to messages and back.

The value is JSON in UTF-8, validated while it is decoded. The headers are CloudEvents 1.0, Kafka binding,
binary mode, so that a router can sort messages without reading them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from clickloop.commands import Command
from clickloop.errors import InvalidMessageError, UnreadableMessageError
from clickloop.events import Message

M = TypeVar("M", bound=Message)
Headers = list[tuple[str, bytes]]

MAX_MESSAGE_BYTES = 1_000_000
"""Kafka's own default limit; what is larger is refused before it is parsed."""
MAX_KEY = 256

FIRST_YEAR, LAST_YEAR = 1970, 8999
"""Times outside of it are refused: conversions to other zones and to seconds would fail on them."""

_encoder = msgspec.json.Encoder()


def now() -> datetime:
    """The present in UTC. Only the edges of a service call it; rules are told the time."""
    return datetime.now(UTC)


def new_id() -> str:
    """A new identifier that sorts by creation time (UUID version 7, RFC 9562), 32 hex digits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    value = (milliseconds & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return f"{value:032x}"


def split_key(user_or_session: str, *, salt: str = "") -> str:
    """A pseudonym for a user or a session: 32 hex digits that don't lead back to the name.

    Give your own secret ``salt``, else anyone with a list of your users can compute them.
    """
    return hashlib.blake2b(user_or_session.encode(), digest_size=16, key=salt.encode()[:64]).hexdigest()


def short_key(key: str) -> str:
    """A split key as it is kept, and as ForgetUser names it: one of over 256 characters goes by its pseudonym."""
    return key if len(key) <= MAX_KEY else split_key(key)


def encode(message: Message) -> bytes:
    """The message as it goes over the wire. Raises InvalidMessageError for values that JSON can't hold."""
    try:
        return _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidMessageError(f"not a valid {type(message).__name__}: {error}") from None


def pretty(value: msgspec.Struct) -> str:
    """Indented JSON, for a person."""
    return msgspec.json.format(_encoder.encode(value), indent=2).decode()


@cache
def _time_fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the fields that hold a time, and of those that hold a structure with times in it."""
    hints = get_type_hints(kind)
    times = tuple(name for name, hint in hints.items() if hint is datetime or datetime in get_args(hint))
    parts = tuple(
        name
        for name, hint in hints.items()
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and any(_time_fields(hint))
    )
    return times, parts


def _check_times(value: msgspec.Struct) -> None:
    times, parts = _time_fields(type(value))
    for name in times:
        moment = getattr(value, name)
        if moment is not None and not FIRST_YEAR <= moment.year <= LAST_YEAR:
            raise InvalidMessageError(f"{name} is in the year {moment.year}, not in {FIRST_YEAR} to {LAST_YEAR}")
    for name in parts:
        _check_times(getattr(value, name))


@cache
def decoder(types: tuple[type[Message], ...]) -> Callable[[bytes | None], Any]:
    """What ``decode`` does for messages of these types; for who decodes tens of thousands a second."""
    wanted: Any = types[0]
    for other in types[1:]:
        wanted = wanted | other
    parsed, names = msgspec.json.Decoder(wanted).decode, _names(types)

    def decoded(value: bytes | None) -> Any:
        if value is None:
            raise UnreadableMessageError(f"no value where {names} was expected")
        if len(value) > MAX_MESSAGE_BYTES:
            raise InvalidMessageError(f"{len(value)} bytes, more than the limit of {MAX_MESSAGE_BYTES}")
        try:
            message = parsed(value)
        except msgspec.ValidationError as error:
            raise InvalidMessageError(f"not a valid {names}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UnreadableMessageError(f"no readable JSON: {error}") from None
        _check_times(message)
        return message

    return decoded


def decode(value: bytes | None, *types: type[M]) -> M:
    """The message in ``value``, which must be of one of ``types``.

    With one type, a missing ``type`` field is fine; another type's name is not.

    Raises UnreadableMessageError (no JSON), InvalidMessageError (JSON, but not such a message).
    """
    message: M = decoder(types)(value)
    return message


def build(fields: Mapping[str, Any], kind: type[M]) -> M:
    """The message with these fields, by the rules of ``decode``, except that numbers may come as text.

    Raises InvalidMessageError.
    """
    try:
        message = msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidMessageError(f"not a valid {kind.__name__}: {error}") from None
    _check_times(message)
    return message


def headers(
    message: Message, *, source: str, traceparent: str | None = None, sent_at: bytes | None = None
) -> Headers:
    """CloudEvents headers. ``source`` names the sender, as in ``clickloop/search/node-1``.

    ``sent_at`` is ``time_header()`` of a moment ago, for who sends many at once.
    """
    identity = message.command_id if isinstance(message, Command) else getattr(message, "event_id", "")
    pairs = [
        *_fixed_headers(type(message), source),
        ("ce_id", identity.encode()),
        ("ce_time", sent_at or time_header()),
    ]
    if traceparent:
        pairs.append(("traceparent", traceparent.encode()))
    return pairs


def time_header() -> bytes:
    """The present, as ``ce_time`` has it (RFC 3339)."""
    return now().isoformat().removesuffix("+00:00").encode() + b"Z"


@lru_cache
def _fixed_headers(kind: type[Message], source: str) -> Headers:
    return [
        ("ce_specversion", b"1.0"),
        ("ce_type", f"io.clickloop.{kind.__name__}.v1".encode()),
        ("ce_source", source.encode()),
        ("content-type", b"application/json"),
    ]


def _names(types: Sequence[type[Message]]) -> str:
    return " or ".join(t.__name__ for t in types)
