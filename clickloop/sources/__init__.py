"""Records of any source: our own messages, UBI, CloudEvents around either, and an app's own JSON.

``Sources.read`` is the way from a record's bytes to a message for every topic that apps write. Our own messages
take the codec's path and cost nothing more; whatever is no such message is looked at again, in this order: a
CloudEvent is opened, then a mapping whose conditions hold takes the record, then it may be UBI's, and last comes a
mapping without conditions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from collections.abc import Mapping as AnyMapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from clickloop import codec, topics
from clickloop.errors import InvalidMessageError, MessageError, UnreadableMessageError
from clickloop.events import DocumentChanged, Message, QueryServed, ResultClicked, ResultPreferred, ResultRated
from clickloop.sources import cloudevents, ubi
from clickloop.sources.cloudevents import Context, Headers
from clickloop.sources.mapping import IDS, KINDS, TIMES, Mapping, mappings_of
from clickloop.sources.values import EPOCH, moment, shown

__all__ = ["Mapping", "Sources", "mappings_of", "time_of", "topic_of"]

_TOPICS: dict[type[Message], topics.Topic] = {
    QueryServed: topics.QUERIES,
    ResultClicked: topics.CLICKS,
    ResultRated: topics.RATINGS,
    ResultPreferred: topics.RATINGS,
    DocumentChanged: topics.DOCUMENTS,
}
_NAMES: dict[str, type[Message]] = {kind.__name__: kind for kind in _TOPICS}
_FEEDBACK = (ResultClicked, ResultRated, ResultPreferred)
_SHARED = {topics.CLICKS.suffix, topics.RATINGS.suffix}
_UNNAMED = "-"


def topic_of(message: Message) -> topics.Topic:
    """Where a message of an app belongs."""
    return _TOPICS[type(message)]


def time_of(message: Message) -> datetime:
    """When it happened, by its own account."""
    found: datetime = getattr(message, TIMES[type(message)])
    return found


class Sources:
    """How the records of one index are read.

    ``index`` is the index of records that name none; ``mappings`` by name, in the order in which they are tried.
    """

    def __init__(self, index: str, mappings: AnyMapping[str, Mapping] | None = None) -> None:
        self._index = index
        every = list((mappings or {}).values())
        self._every = every
        # Clicks and ratings often share one stream. There a mapping must say which records are its own.
        self._of_topic = {
            _TOPICS[kind]: [m for m in every if m.topic == suffix]
            + [m for m in every if m.topic != suffix and {m.topic, suffix} == _SHARED and m.when]
            for suffix, kind in KINDS.items()
        }

    def read(
        self, value: bytes | None, headers: Headers, topic: topics.Topic, *, logged: float | None = None
    ) -> Any:
        """The message in a record of ``topic``, which carries what apps send (or only what Clickloop does).

        On clicks and ratings, UBI events and mapped records may be either, and None stands for a UBI event whose
        action carries no feedback. ``logged`` is when the broker took the
        record, seconds since the epoch: the time of a foreign record that has none of its own.

        Raises UnreadableMessageError (no JSON) and InvalidMessageError (nothing that can be used, and why).
        """
        try:
            return codec.decoder(topic.types)(value)
        except MessageError as error:
            return self._foreign(error, value, headers, topic, logged)

    def reader(self, topic: topics.Topic) -> Callable[[Any, float], Any]:
        """``read`` for tens of thousands of records a second: call it with a record and when the broker took it.

        A record has ``value`` and ``headers``, which are not looked at where the value is a message of our own.
        """
        decoded, foreign = codec.decoder(topic.types), self._foreign

        def read(record: Any, logged: float) -> Any:
            try:
                return decoded(record.value)
            except MessageError as error:
                return foreign(error, record.value, record.headers, topic, logged)

        return read

    def _foreign(
        self,
        own: MessageError,
        value: bytes | None,
        headers: Headers,
        topic: topics.Topic,
        logged: float | None,
    ) -> Message | None:
        """The message, if any, in a record that is none of ours, for the reason ``own``. Raises MessageError."""
        if topic not in self._of_topic:
            raise own
        context, body = _opened(value, headers)
        found = self._recognised(body, context, self._of_topic[topic], typed=bool(context))
        if found is None:
            raise own
        kind, fields = found
        if kind is None:
            _check_shared(topic)
            return None
        if kind not in (_FEEDBACK if topic.suffix in _SHARED else topic.types):
            raise InvalidMessageError(f"a {kind.__name__} on {topic.suffix}: its topic is {_TOPICS[kind].suffix}")
        return self._finished(kind, fields, context, logged)

    def read_row(self, value: bytes, topic: topics.Topic | None = None, *, now: datetime) -> Message | None:
        """The message in a row of a file, of any topic unless one is given; None where it carries no feedback.

        A row may also have our messages' field names without ``type``, ``event_id`` and ``index``, and integers
        for ids; without ``topic``, the name of its time tells what it is. ``now`` is the time of documents that
        have none. Raises MessageError.
        """
        context, body = _opened(value, ())
        mappings = self._every if topic is None else self._of_topic[topic]
        kind, fields = self._recognised(body, context, mappings, typed=True) or (_named(body, topic), dict(body))
        if kind is None:
            _check_shared(topic)
            return None
        if topic is not None and kind not in topic.types:
            raise InvalidMessageError(f"a {kind.__name__}, which does not belong on {topic.suffix}")
        numbered = _texts_of_ids(fields)
        return self._finished(kind, numbered, context, now.timestamp() if kind is DocumentChanged else None)

    def _recognised(
        self, body: dict[str, Any], context: Context, mappings: Sequence[Mapping], *, typed: bool
    ) -> tuple[type[Message] | None, dict[str, Any]] | None:
        """What a record that is not as ours are is, and its fields; None where its form is none that is known.

        A kind of None is that of a UBI event whose action carries no feedback.

        ``typed`` records name our type and may leave out what CloudEvents or a file's row says otherwise.
        """
        name = body.get("type") or context.message
        kind = _NAMES.get(name) if isinstance(name, str) else None
        if kind is not None:
            return (kind, dict(body)) if typed else None
        mapping = next((m for m in mappings if m.when and m.takes(body)), None)
        if mapping is None and ubi.is_event(body):
            return ubi.event(body) or (None, {})
        if mapping is None and ubi.is_query(body):
            return ubi.query(body)
        mapping = mapping or next((m for m in mappings if not m.when), None)
        return None if mapping is None else (mapping.kind, mapping.read(body))

    def _finished(
        self, kind: type[Message], fields: dict[str, Any], context: Context, logged: float | None
    ) -> Message:
        """The message, with what its form leaves open: index, time, and an id that is the same when sent again."""
        time_field, stamped = TIMES[kind], False
        fields.setdefault("index", self._index)
        if fields.get(time_field) is None:
            if context.time:
                fields[time_field] = moment(context.time, "time", "rfc3339")
            elif logged is not None:
                fields[time_field], stamped = _stamp(logged), True
        given = fields.get("event_id") or context.identity
        fields["event_id"] = given or _UNNAMED
        message = codec.build(fields, kind)
        if given:
            return message
        same = msgspec.structs.replace(message, **{time_field: EPOCH}) if stamped else message
        digest = hashlib.blake2b(codec.encode(same), digest_size=16).hexdigest()
        return msgspec.structs.replace(message, event_id=digest)


def _stamp(logged: float) -> datetime:
    """When the broker took a record. A producer may say anything. Raises InvalidMessageError."""
    try:
        return datetime.fromtimestamp(logged, UTC)
    except (ValueError, OverflowError, OSError):
        raise InvalidMessageError(f"no time of its own, and its record's is no date: {logged:g} s") from None


def _check_shared(topic: topics.Topic | None) -> None:
    """Raises InvalidMessageError for a UBI event on a topic of no feedback."""
    if topic is not None and topic.suffix not in _SHARED:
        raise InvalidMessageError(f"a UBI event on {topic.suffix}: its topic is {topics.CLICKS.suffix}")


def _named(body: dict[str, Any], topic: topics.Topic | None) -> type[Message]:
    """What a row with our messages' field names is. Raises InvalidMessageError."""
    for kind, name in TIMES.items():
        if name in body and (topic is None or kind in topic.types):
            return kind
    if topic is not None:
        return topic.types[0]
    names = ", ".join(TIMES.values())
    raise InvalidMessageError(f"no form that is known: no type, no UBI, no mapping's, none of {names}")


def _texts_of_ids(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with text for ids that are integers, which topics don't take, and which CSV can't tell apart."""
    out = {n: str(v) if n in IDS and type(v) is int else v for n, v in fields.items()}
    results = out.get("results")
    if isinstance(results, list):
        out["results"] = [_texts_of_ids(result) if isinstance(result, dict) else result for result in results]
    return out


def _opened(value: bytes | None, headers: Headers) -> tuple[Context, dict[str, Any]]:
    """The record's object and, of a CloudEvent, its context. Raises MessageError."""
    if value is None:
        raise UnreadableMessageError("no value")
    if len(value) > codec.MAX_MESSAGE_BYTES:
        raise InvalidMessageError(f"{len(value)} bytes, more than the limit of {codec.MAX_MESSAGE_BYTES}")
    try:
        body = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableMessageError(f"no readable JSON: {error}") from None
    context = cloudevents.of_headers(headers) if headers else cloudevents.NONE
    if cloudevents.is_structured(body, headers):
        context, body = cloudevents.opened(body)
    if not isinstance(body, dict):
        raise InvalidMessageError(f"{shown(body)} where an object was expected")
    return context, body
