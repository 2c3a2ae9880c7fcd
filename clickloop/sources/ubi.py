"""User Behavior Insights: query and event records as UBI's clients and the search engines' plugins write them.

Standard: UBI 1.3.0 (https://o19s.github.io/ubi/). Clickloop asks for more where a record could not be used
otherwise: a ``query_id``, the hits of a query, the object of a click or rating, and a zone in their times. Times
may be milliseconds since the epoch, too, as a number or as text: OpenSearch's sample client writes ``Date.now()``.
Events of all other actions (``impression``, ``view``, ``page_exit``, an app's own) are taken whatever else is in
them, and teach nothing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from clickloop.errors import InvalidMessageError
from clickloop.events import Message, QueryServed, ResultClicked, ResultRated
from clickloop.sources.values import MOST_RESULTS, identity, moment, number, pseudonym, shown, whole

CLICKS = frozenset({"click", "click_through", "add_to_cart", "purchase", "watch"})
"""Actions by which a user takes a result."""
RATINGS = frozenset({"rating", "rate"})
LONGEST_ACTION = 100
LEAST_MILLISECONDS = 100_000_000_000
"""March 1973. Smaller numbers are seconds, and would all be the same month of 1970."""
_USERS = ("client_id", "session_id", "user_id")


def is_event(record: dict[str, Any]) -> bool:
    return "action_name" in record


def is_query(record: dict[str, Any]) -> bool:
    return "user_query" in record and not is_event(record)


def query(record: dict[str, Any]) -> tuple[type[Message], dict[str, Any]]:
    """The fields of a QueryServed. Raises InvalidMessageError."""
    if not record.get("query_id"):
        raise InvalidMessageError("a UBI query without query_id: no click can be joined with it")
    hits = record.get("query_response_hit_ids")
    if not isinstance(hits, list):
        raise InvalidMessageError(f"a UBI query whose query_response_hit_ids is {shown(hits)}: what was shown?")
    fields = {
        "query_id": identity(record["query_id"], "query_id"),
        "query": record["user_query"],
        "results": [
            {"doc_id": identity(hit, "query_response_hit_ids"), "position": place}
            for place, hit in enumerate(hits[:MOST_RESULTS], start=1)
        ],
    }
    return QueryServed, fields | _common(record, "served_at")


def event(record: dict[str, Any]) -> tuple[type[Message], dict[str, Any]] | None:
    """The fields of a ResultClicked or, for a rating, a ResultRated; None where the action carries no feedback.

    Raises InvalidMessageError.
    """
    action = record["action_name"]
    if not isinstance(action, str) or not 0 < len(action) <= LONGEST_ACTION:
        raise InvalidMessageError(f"UBI action {shown(action)} is no name of 1 to {LONGEST_ACTION} characters")
    if action not in CLICKS | RATINGS:
        return None
    if not record.get("query_id"):
        raise InvalidMessageError(f"a UBI event {action!r} without query_id can't be joined with what was shown")
    attributes = _part(record, "event_attributes")
    found = _part(attributes, "object").get("object_id")
    if found is None:
        raise InvalidMessageError(f"a UBI event {action!r} without event_attributes.object.object_id")
    fields: dict[str, Any] = {
        "query_id": identity(record["query_id"], "query_id"),
        "doc_id": identity(found, "object_id"),
    }
    if action in RATINGS:
        value = attributes.get("rating", attributes.get("value"))
        if value is None:
            raise InvalidMessageError(f"a UBI event {action!r} without event_attributes.rating")
        return ResultRated, fields | {"rating": number(value, "rating")} | _common(record, "rated_at")
    ordinal = _part(attributes, "position").get("ordinal")
    # Some clients count from 0. The impression knows the position in any case.
    if ordinal is not None and not isinstance(ordinal, dict) and (place := whole(ordinal, "ordinal")) >= 1:
        fields["position"] = place
    if attributes.get("dwell_seconds") is not None:
        fields["dwell_seconds"] = number(attributes["dwell_seconds"], "dwell_seconds")
    return ResultClicked, fields | _common(record, "clicked_at")


def _common(record: dict[str, Any], time_field: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    keys = (pseudonym(record[name], name) for name in _USERS if record.get(name))
    if key := next(filter(None, keys), ""):
        fields["split_key"] = key
    if record.get("timestamp") is not None:
        fields[time_field] = _time(record["timestamp"])
    return fields


def _time(timestamp: Any) -> datetime | str:
    if isinstance(timestamp, str) and not _is_number(timestamp):
        return timestamp
    if number(timestamp, "timestamp") < LEAST_MILLISECONDS:
        raise InvalidMessageError(f"timestamp is {shown(timestamp)}, neither RFC 3339 nor milliseconds: seconds?")
    return moment(timestamp, "timestamp", "epoch_ms")


def _is_number(text: str) -> bool:
    """All that a CSV has is text, and the codec takes a number in text for seconds."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidMessageError(f"{name} of a UBI event is {shown(found)}, no object")
    return found
