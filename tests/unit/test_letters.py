"""A record that can't be used becomes a letter that fits into a message, whatever the record holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from clickloop import codec
from clickloop.errors import UnreadableMessageError
from clickloop.events import Header, MessageQuarantined
from clickloop.kafka import Record
from clickloop.letters import letter_of

LONG = b"x" * 900_000


def letter(value: bytes | None = b"?", headers: Sequence[tuple[str, Any]] = (), **more: Any) -> MessageQuarantined:
    record = Record("x.clicks.v1", 2, 17, value=value, headers=tuple(headers), **{"key": b"k", **more})
    return letter_of(record, UnreadableMessageError("no JSON " * 1000), service="streams", index="default")


def test_a_letter_keeps_the_record_whole_its_place_and_headers() -> None:
    found = letter(headers=[("ce_id", b"1"), ("null", None)])
    assert (found.event_id, found.key, found.value) == ("x.clicks.v1/2/17", b"k", b"?")
    assert found.headers == [Header(name="ce_id", value=b"1")]
    assert (found.error, len(found.reason)) == ("UnreadableMessageError", 1000)
    assert (letter(None, key=None).value, letter(None, key=None).key) == (b"", None)
    assert found.cut == []


@pytest.mark.parametrize(
    ("record", "cut"),
    [
        ({"value": b"x" * 500_000, "key": b"k" * 10_000}, []),
        ({"value": b"x" * 500_001}, ["value"]),
        ({"key": b"k" * 10_001}, ["key"]),
        ({"headers": [("n" * 100_000, b"")]}, ["headers"]),
        ({"value": LONG, "key": LONG, "headers": [("n" * 100_000, b"")]}, ["value", "key", "headers"]),
    ],
    ids=["whole", "value", "key", "headers", "all"],
)
def test_a_letter_says_what_of_the_record_it_lacks(record: dict[str, Any], cut: list[str]) -> None:
    assert letter(**record).cut == cut


@pytest.mark.parametrize(
    "headers",
    [[("n" * 100_000, b"")], [("\x01" * 20_000, b"")], [("n", b"v" * 80_000)], [("", b"")] * 50_000],
    ids=["long names", "names that JSON escapes", "long values", "many of no length"],
)
def test_a_letter_of_the_longest_record_fits_into_a_message_and_its_headers_are_left_out(headers: Any) -> None:
    found = letter(LONG, headers, key=LONG)
    assert found.headers == []
    assert len(codec.encode(found)) <= codec.MAX_MESSAGE_BYTES
    assert LONG.startswith(found.value)
    assert len(found.value) == codec.MAX_MESSAGE_BYTES // 2


def test_headers_that_fit_stay_with_the_longest_record() -> None:
    found = letter(LONG, [("n", b"v" * 70_000)], key=LONG)
    assert len(found.headers) == 1
    assert len(codec.encode(found)) <= codec.MAX_MESSAGE_BYTES
