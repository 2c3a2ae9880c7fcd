"""Records with an app's own field names, read through a mapping in the settings file.

::

    [sources.shop-clicks]
    topic = "clicks"
    when = { "event.kind" = "product_click" }
    time_format = "epoch_ms"
    fields = { query_id = "search.id", doc_id = "sku", time = "ts", user = "visitor" }
    values = { index = "products" }
"""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from clickloop.errors import InvalidMessageError, SettingsError
from clickloop.events import (
    DocumentChanged,
    Message,
    QueryServed,
    Result,
    ResultClicked,
    ResultPreferred,
    ResultRated,
)
from clickloop.sources.values import MOST_RESULTS, TimeFormat, identity, moment, number, pseudonym, shown, whole

Suffix = Literal["queries", "clicks", "ratings", "documents"]

KINDS: dict[Suffix, type[Message]] = {
    "queries": QueryServed,
    "clicks": ResultClicked,
    "ratings": ResultRated,
    "documents": DocumentChanged,
}
TIMES: dict[type[Message], str] = {
    QueryServed: "served_at",
    ResultClicked: "clicked_at",
    ResultRated: "rated_at",
    ResultPreferred: "preferred_at",
    DocumentChanged: "changed_at",
}
_NEEDED: dict[type[Message], tuple[str, ...]] = {
    QueryServed: ("query_id", "query", "results"),
    ResultClicked: ("query_id", "doc_id"),
    ResultRated: ("query_id", "doc_id", "rating"),
    ResultPreferred: ("query_id", "preferred", "alternative"),
    DocumentChanged: ("doc_id",),
}
_PREFERENCE = ("preferred", "alternative")
_RATINGS = frozenset({"rating", "accuracy", "relevance"})
IDS = frozenset({"event_id", "query_id", "doc_id", "split_key", *_PREFERENCE})


class Mapping(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of the record's fields is which of the message's.

    ``fields`` maps the message's names to dotted paths in the record; ``values`` are the same for every record.
    Beside the message's own names there are ``time`` (whatever the message calls it), ``user`` (which goes on as a
    pseudonym, as ``split_key``), ``results.doc_id`` and its like (paths within one result) and, for documents,
    ``attributes.NAME``. A mapping to ratings that names ``preferred`` and ``alternative`` makes preferences.
    """

    topic: Suffix
    fields: dict[str, str] = {}
    values: dict[str, Any] = {}
    when: dict[str, str | int | float | bool] = {}
    """Paths and the values they must have; a record without them is none of this mapping's."""
    time_format: TimeFormat = "rfc3339"
    first_position: Literal[0, 1] = 1
    """What the app calls the topmost position."""
    rating_range: tuple[float, float] = (1.0, 5.0)
    """The app's worst and best, which become 1 and 5: of the rating, and of accuracy and relevance."""

    @property
    def kind(self) -> type[Message]:
        if self.topic == "ratings" and any(name in self.fields or name in self.values for name in _PREFERENCE):
            return ResultPreferred
        return KINDS[self.topic]

    def takes(self, record: dict[str, Any]) -> bool:
        # In JSON 1 is not true, in Python it is.
        return all(
            (found := at(record, path)) == value and isinstance(found, bool) == isinstance(value, bool)
            for path, value in self.when.items()
        )

    def read(self, record: dict[str, Any]) -> dict[str, Any]:
        """The message's fields, as far as the record has them. Raises InvalidMessageError."""
        out, attributes = dict[str, Any](), dict[str, Any]()
        for name, value in self.values.items():
            if name.startswith("attributes."):
                attributes[name.removeprefix("attributes.")] = value
            else:
                out[name] = value
        time_field = TIMES[self.kind]
        for name, path in self.fields.items():
            value = at(record, path)
            if value is None or name.startswith("results."):
                continue
            if name in {"time", time_field}:
                out[time_field] = moment(value, path, self.time_format)
            elif name == "user":
                out["split_key"] = pseudonym(value, path)
            elif name.startswith("attributes."):
                attributes[name.removeprefix("attributes.")] = value
            elif name in IDS:
                out[name] = identity(value, path)
            elif name == "position":
                out[name] = self._position(value, path)
            elif name in _RATINGS:
                out[name] = self._rating(value, path)
            elif name == "results":
                out[name] = self._results(value, path)
            else:
                out[name] = value
        return {**out, "attributes": attributes} if attributes else out

    def _position(self, value: Any, path: str) -> int:
        return whole(value, path) + 1 - self.first_position

    def _rating(self, value: Any, path: str) -> float:
        worst, best = self.rating_range
        return 1.0 + 4.0 * (number(value, path) - worst) / (best - worst)

    def _results(self, value: Any, path: str) -> list[dict[str, Any]]:
        if not isinstance(value, list):
            raise InvalidMessageError(f"{path} is {shown(value)}, no list of what was shown")
        inside = {n.removeprefix("results."): p for n, p in self.fields.items() if n.startswith("results.")}
        out = []
        for place, shown_result in enumerate(value[:MOST_RESULTS], start=1):
            if not isinstance(shown_result, dict):
                out.append({"doc_id": identity(shown_result, path), "position": place})
                continue
            result: dict[str, Any] = {"position": place}
            for name, inner in inside.items():
                found = at(shown_result, inner)
                if name == "doc_id":
                    result[name] = identity(found, f"{path}.{inner}")
                elif found is not None:
                    result[name] = self._position(found, inner) if name == "position" else number(found, inner)
            out.append(result)
        return out


def at(record: dict[str, Any], path: str) -> Any:
    """What lies at a dotted path; None where nothing does. A name that has a dot itself goes first."""
    if path in record:
        return record[path]
    found: Any = record
    for name in path.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    return found


def mappings_of(table: AnyMapping[str, Any]) -> dict[str, Mapping]:
    """The mappings of the settings file's table ``[sources]``, by name, in its order. Raises SettingsError."""
    return {name: _mapping(name, content) for name, content in table.items()}


def _mapping(name: str, content: Any) -> Mapping:
    try:
        mapping = msgspec.convert(content, Mapping)
    except msgspec.ValidationError as error:
        raise SettingsError(f"[sources.{name}]: {error}") from None
    own = set(mapping.kind.__struct_fields__) | {"time", "user"}
    if mapping.topic == "queries":
        own |= {f"results.{field}" for field in Result.__struct_fields__}
    for field in [*mapping.fields, *mapping.values]:
        if field not in own and not (mapping.topic == "documents" and field.startswith("attributes.")):
            known = ", ".join(sorted(own))
            raise SettingsError(f"[sources.{name}]: a {mapping.kind.__name__} has no {field!r}; it has {known}")
    for field in mapping.values:
        if field in {"time", "user"} or field.startswith("results."):
            raise SettingsError(
                f"[sources.{name}]: {field!r} can't be in values: each record has its own (fields)"
            )
    for field in _NEEDED[mapping.kind]:
        if field not in mapping.fields and field not in mapping.values:
            raise SettingsError(f"[sources.{name}]: fields doesn't say where {field!r} is")
    if not mapping.rating_range[0] < mapping.rating_range[1]:
        raise SettingsError(f"[sources.{name}]: rating_range must name the worst and then the best rating")
    return mapping
