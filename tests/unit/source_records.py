"""Records as apps send them, and how the tests read them."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from typing import Any

from clickloop import topics
from clickloop.errors import MessageError
from clickloop.sources import Sources, mappings_of

AT = datetime(2026, 3, 2, 9, 15, 4, tzinfo=UTC)
LOGGED = AT.timestamp() + 5
UBI_EVENT: dict[str, Any] = {
    "action_name": "click",
    "query_id": "q-1",
    "client_id": "browser-7",
    "timestamp": "2026-03-02T10:15:04+01:00",
    "event_attributes": {"object": {"object_id": "sku-17"}, "position": {"ordinal": 2}},
}
UBI_QUERY: dict[str, Any] = {
    "query_id": "q-1",
    "user_query": "trail shoes",
    "client_id": "browser-7",
    "timestamp": "2026-03-02T09:15:04Z",
    "query_response_hit_ids": ["sku-4", "sku-17"],
}
TOML = """
[sources.duels]
topic = "ratings"
when = { "event.kind" = "duel" }
fields = {query_id="search.id", preferred="won", alternative="lost", strength="by", time="at", user="who"}

[sources.shop-clicks]
topic = "clicks"
when = { "event.kind" = "product_click" }
time_format = "epoch_ms"
first_position = 0
fields = { query_id = "search.id", doc_id = "sku", time = "ts", position = "rank", user = "visitor" }
values = { index = "shop" }

[sources.stars]
topic = "ratings"
when = { "event.kind" = "stars" }
time_format = "epoch_s"
rating_range = [0, 10]
fields = { query_id = "search.id", doc_id = "sku", time = "ts", rating = "stars" }

[sources.searches]
topic = "queries"
fields = { query_id = "id", query = "q", time = "at", results = "hits", "results.doc_id" = "sku" }

[sources.catalogue]
topic = "documents"
fields = { doc_id = "sku", title = "name", text = "about", "attributes.brand" = "brand" }
"""


def mapped() -> Sources:
    return Sources("products", mappings_of(tomllib.loads(TOML)["sources"]))


def read(record: Any, topic: topics.Topic, *, headers: Any = (), sources: Sources | None = None) -> Any:
    raw = record if isinstance(record, bytes) else json.dumps(record).encode()
    return (sources or Sources("products")).read(raw, headers, topic, logged=LOGGED)


def readable(record: Any, topic: topics.Topic) -> bool:
    try:
        read(record, topic)
    except MessageError:
        return False
    return True


def row(record: Any, topic: topics.Topic | None = None) -> Any:
    return Sources("products").read_row(json.dumps(record).encode(), topic, now=AT)


def envelope(data: Any, **more: Any) -> dict[str, Any]:
    head = {
        "specversion": "1.0",
        "id": "e-9",
        "source": "/shop",
        "type": "com.shop.clicked",
        "time": AT.isoformat(),
    }
    return {**head, "data": data, **more}


def without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}
