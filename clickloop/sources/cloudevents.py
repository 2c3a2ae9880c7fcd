"""CloudEvents 1.0 on Kafka: binary mode (attributes in headers) and structured mode (an envelope around the data).

Standard: CloudEvents 1.0.2, Kafka protocol binding and JSON event format.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from clickloop.errors import InvalidMessageError
from clickloop.sources.values import shown

Headers = Sequence[tuple[str, bytes]]

SPECVERSION = "1.0"
MEDIA_TYPE = "application/cloudevents"
OURS = "io.clickloop."
"""What the types of our own messages start with, as in ``io.clickloop.ResultClicked.v1``."""
LONGEST_ID = 256


@dataclass(frozen=True)
class Context:
    """What the event's attributes say; empty where they say nothing."""

    identity: str = ""
    """Of source and id together, which is what makes an event unique."""
    time: str = ""
    message: str = ""
    """Name of the message type, where it is one of ours."""

    def __bool__(self) -> bool:
        return bool(self.identity)


NONE = Context()


def is_structured(body: Any, headers: Headers) -> bool:
    """The value is an envelope. Raises InvalidMessageError for event formats that aren't read."""
    declared = next((v for name, v in headers if name.lower() == "content-type" and v), b"")
    kind = declared.decode("latin-1").split(";")[0].strip().lower()
    if not kind.startswith(MEDIA_TYPE):
        return isinstance(body, dict) and "specversion" in body and ("data" in body or "data_base64" in body)
    if kind != f"{MEDIA_TYPE}+json":
        raise InvalidMessageError(f"a record of content-type {shown(kind)}: send one {MEDIA_TYPE}+json a record")
    return True


def of_headers(headers: Headers) -> Context:
    """The context in binary mode; NONE where the headers are those of no CloudEvent."""
    found = {name[3:]: value for name, value in headers if name.startswith("ce_") and value is not None}
    if "specversion" not in found:
        return NONE
    try:
        return _context({name: value.decode() for name, value in found.items()})
    except UnicodeDecodeError:
        raise InvalidMessageError("a ce_ header is no UTF-8") from None


def opened(body: Any) -> tuple[Context, Any]:
    """The context and the data of an envelope. Raises InvalidMessageError."""
    if not isinstance(body, dict):
        raise InvalidMessageError(f"a CloudEvent is an object, not {shown(body)}")
    context = _context(body)
    kind = body.get("datacontenttype") or "application/json"
    if not isinstance(kind, str) or not kind.split(";")[0].strip().lower().endswith(("/json", "+json")):
        raise InvalidMessageError(f"a CloudEvent with data of {shown(kind)}, where JSON is needed")
    if "data_base64" not in body:
        return context, body.get("data")
    try:
        return context, msgspec.json.decode(base64.b64decode(body["data_base64"], validate=True))
    except (TypeError, ValueError, binascii.Error, RecursionError) as error:
        raise InvalidMessageError(f"data_base64 of a CloudEvent is no base64 of JSON: {error}") from None


def _context(attributes: dict[str, Any]) -> Context:
    version = attributes.get("specversion")
    if version != SPECVERSION:
        raise InvalidMessageError(f"a CloudEvent of specversion {shown(version)}; {SPECVERSION} is read")
    for name in ("id", "source", "type"):
        if not isinstance(attributes.get(name), str) or not attributes[name]:
            raise InvalidMessageError(f"a CloudEvent whose {name} is {shown(attributes.get(name))}")
    time = attributes.get("time") or ""
    if not isinstance(time, str):
        raise InvalidMessageError(f"a CloudEvent whose time is {shown(time)}")
    identity = f"{attributes['source']}#{attributes['id']}"
    if len(identity) > LONGEST_ID:
        identity = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    kind = attributes["type"]
    return Context(identity, time, kind.removeprefix(OURS).split(".")[0] if kind.startswith(OURS) else "")
