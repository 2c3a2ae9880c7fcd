"""Records of any source become the same messages: our own, UBI, CloudEvents, and an app's own JSON."""

from __future__ import annotations

import base64
import gc
import json
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from clickloop import codec, topics
from clickloop.errors import InvalidMessageError, MessageError, SettingsError, UnreadableMessageError
from clickloop.events import DocumentChanged, QueryServed, Result, ResultClicked, ResultPreferred, ResultRated
from clickloop.kafka import Record
from clickloop.settings import load_mappings
from clickloop.sources import Sources, mappings_of, time_of, topic_of
from tests.unit.golden_messages import GOLDEN
from tests.unit.test_schemas import strict_validator as ubi_validator

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


def without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


# Our own messages


@pytest.mark.parametrize("topic", topics.TOPICS, ids=lambda t: t.suffix)
def test_our_own_messages_of_every_topic_are_read_as_the_codec_reads_them(topic: topics.Topic) -> None:
    for kind in topic.types:
        message = GOLDEN[f"{kind.__name__}.v1"]
        assert read(codec.encode(message), topic) == message


def test_our_own_messages_never_leave_the_codecs_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("clickloop.sources._opened")
    message = GOLDEN["ResultClicked.v1"]
    assert read(codec.encode(message), topics.CLICKS, headers=codec.headers(message, source="app")) == message


class Sealed:
    """A record whose headers are not to be looked at."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    @property
    def headers(self) -> Any:
        raise AssertionError("its headers were read")


@pytest.mark.parametrize("topic", topics.TOPICS, ids=lambda t: t.suffix)
def test_a_topics_reader_needs_no_headers_of_our_own_messages(topic: topics.Topic) -> None:
    for kind in topic.types:
        message = GOLDEN[f"{kind.__name__}.v1"]
        assert Sources("products").reader(topic)(Sealed(codec.encode(message)), LOGGED) == message


def test_a_topics_reader_reads_everything_else_as_ever() -> None:
    read_click = Sources("products").reader(topics.CLICKS)
    record = Record("clicks", 0, 7, None, json.dumps(UBI_EVENT).encode(), ())
    assert read_click(record, LOGGED) == read(UBI_EVENT, topics.CLICKS)
    named = {"ce_specversion": b"1.0", "ce_id": b"e-1", "ce_source": b"/shop", "ce_type": b"click"}
    opened = Record("clicks", 0, 8, None, json.dumps(UBI_EVENT).encode(), tuple(named.items()))
    assert read_click(opened, LOGGED).event_id == read(UBI_EVENT, topics.CLICKS, headers=opened.headers).event_id
    timeless = Record("clicks", 0, 9, None, json.dumps(without(UBI_EVENT, "timestamp")).encode(), ())
    assert read_click(timeless, LOGGED).clicked_at.timestamp() == LOGGED
    with pytest.raises(UnreadableMessageError):
        read_click(Record("clicks", 0, 10, None, b"{", ()), LOGGED)


def test_foreign_records_leave_no_error_in_a_cycle() -> None:
    """A worker collects seldom: ten thousand such records a second would pile up between."""

    def errors() -> int:
        return sum(issubclass(type(one), MessageError) for one in gc.get_objects())

    read_click = Sources("products").reader(topics.CLICKS)
    record = Record("clicks", 0, 7, None, json.dumps(UBI_EVENT).encode(), ())
    gc.disable()
    try:
        before = errors()
        for _ in range(10):
            read_click(record, LOGGED)
        assert errors() == before
    finally:
        gc.enable()


def test_a_broken_message_of_ours_is_refused_with_the_codecs_reason() -> None:
    with pytest.raises(InvalidMessageError, match=r"not a valid ResultClicked: .*position"):
        read(codec.encode(GOLDEN["ResultClicked.v1"]).replace(b'"position":1', b'"position":0'), topics.CLICKS)


def test_topics_that_apps_do_not_write_take_no_foreign_records() -> None:
    with pytest.raises(InvalidMessageError, match="SplitChanged"):
        read(UBI_EVENT, topics.TRAFFIC_SPLITS)


# UBI


def test_a_ubi_click_is_a_click_and_its_client_a_pseudonym() -> None:
    message = read(UBI_EVENT, topics.CLICKS)
    assert isinstance(message, ResultClicked)
    assert (message.query_id, message.doc_id, message.position) == ("q-1", "sku-17", 2)
    assert message.clicked_at == AT
    assert message.index == "products"
    assert message.split_key == codec.split_key("browser-7")


def test_the_same_ubi_event_sent_twice_has_one_id_and_another_event_another() -> None:
    first, again = read(UBI_EVENT, topics.CLICKS), read(dict(reversed(UBI_EVENT.items())), topics.CLICKS)
    later = read({**UBI_EVENT, "timestamp": "2026-03-02T10:15:05+01:00"}, topics.CLICKS)
    assert first == again
    assert later.event_id != first.event_id


@pytest.mark.parametrize("name", ["rating", "value"])
def test_a_ubi_rating_is_a_rating_on_either_topic(name: str) -> None:
    attributes = {**UBI_EVENT["event_attributes"], name: 4}
    for topic in (topics.RATINGS, topics.CLICKS):
        message = read({**UBI_EVENT, "action_name": "rating", "event_attributes": attributes}, topic)
        assert isinstance(message, ResultRated)
        assert (message.rating, message.rated_at) == (4.0, AT)


def test_a_ubi_query_is_an_impression_with_its_hits_from_the_top_down() -> None:
    message = read(UBI_QUERY, topics.QUERIES)
    assert isinstance(message, QueryServed)
    assert message.results == [Result(doc_id="sku-4", position=1), Result(doc_id="sku-17", position=2)]
    assert (message.query, message.served_at, message.version, message.arm) == ("trail shoes", AT, "", "")


def test_a_ubi_query_without_a_time_was_asked_when_the_broker_got_it() -> None:
    message = read(without(UBI_QUERY, "timestamp"), topics.QUERIES)
    assert message.served_at.timestamp() == LOGGED


def test_numbered_documents_and_positions_from_zero_are_no_mistakes() -> None:
    attributes = {"object": {"object_id": 17}, "position": {"ordinal": 0}}
    message = read({**UBI_EVENT, "event_attributes": attributes}, topics.CLICKS)
    assert (message.doc_id, message.position) == ("17", None)


@pytest.mark.parametrize(
    ("change", "topic", "reason"),
    [
        ({"query_id": None}, topics.CLICKS, "without query_id can't be joined"),
        ({"action_name": ["click"]}, topics.CLICKS, "action a list"),
        ({"action_name": ""}, topics.CLICKS, "action '' is no name"),
        ({"action_name": "x" * 101}, topics.CLICKS, "no name of 1 to 100 characters"),
        ({"action_name": "impression", "event_attributes": []}, topics.CLICKS, "UBI event is a list"),
        (
            {"action_name": "impression", "event_attributes": {"object": 7}},
            topics.CLICKS,
            "object of a UBI event is 7",
        ),
        ({"action_name": "impression", "timestamp": "soon"}, topics.CLICKS, "'soon', no ISO 8601 time"),
        ({"action_name": "impression", "timestamp": 1772442904}, topics.CLICKS, "1772442904, no ISO 8601 time"),
        ({"action_name": "impression", "query_id": ["q"]}, topics.CLICKS, "query_id is a list"),
        ({"action_name": "impression"}, topics.QUERIES, "a UBI event on queries: its topic is clicks"),
        ({"event_attributes": {}}, topics.CLICKS, "without event_attributes.object.object_id"),
        ({"event_attributes": []}, topics.CLICKS, "event_attributes of a UBI event is a list"),
        ({"event_attributes": {"object": {"object_id": 1.5}}}, topics.CLICKS, "object_id is 1.5"),
        ({"timestamp": "2026-03-02T09:15:04"}, topics.CLICKS, "clicked_at"),
        ({"timestamp": 1772442904}, topics.CLICKS, "no RFC 3339 text"),
        ({"action_name": "rating"}, topics.RATINGS, r"without event_attributes\.rating"),
        ({}, topics.QUERIES, "a ResultClicked on queries: its topic is clicks"),
    ],
)
def test_a_ubi_event_that_cannot_be_used_says_why(
    change: dict[str, Any], topic: topics.Topic, reason: str
) -> None:
    with pytest.raises(InvalidMessageError, match=reason):
        read({**UBI_EVENT, **change}, topic)


NO_FEEDBACK: list[dict[str, Any]] = [
    {"action_name": "impression"},
    {"action_name": "view", "query_id": None, "event_attributes": None},
    {"action_name": "item_hover", "client_id": "", "timestamp": "2026-03-02T09:15:04"},
    {"action_name": "on_search", "timestamp": None, "event_attributes": {}},
    {"action_name": "page_exit", "event_attributes": {"object": {"currentPageName": "/"}, "position": {}}},
]


@pytest.mark.parametrize("change", NO_FEEDBACK, ids=lambda c: c["action_name"])
def test_a_ubi_event_whose_action_carries_no_feedback_is_no_mistake(change: dict[str, Any]) -> None:
    record = {**UBI_EVENT, **change}
    for topic in (topics.CLICKS, topics.RATINGS):
        assert read(record, topic) is None
        assert read(envelope(record), topic) is None
        assert row(record, topic) is None
    assert row(record) is None


def test_a_mapping_may_say_what_an_apps_own_action_is() -> None:
    fields = {"query_id": "query_id", "doc_id": "event_attributes.object.object_id", "time": "timestamp"}
    table = {"topic": "clicks", "when": {"action_name": "open"}, "fields": fields}
    own = {**UBI_EVENT, "action_name": "open"}
    assert read(own, topics.CLICKS) is None
    assert read(own, topics.CLICKS, sources=Sources("products", mappings_of({"opens": table}))).doc_id == "sku-17"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query_id": ""}, "without query_id"),
        ({"query_response_hit_ids": None}, "query_response_hit_ids is null"),
        ({"query_response_hit_ids": [["a"]]}, "a list"),
        ({"query_response_hit_ids": ["d"] * 1001}, "results"),
        ({"user_query": 7}, "query"),
    ],
)
def test_a_ubi_query_that_cannot_be_used_says_why(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidMessageError, match=reason):
        read({**UBI_QUERY, **change}, topics.QUERIES)


UBI_SCHEMAS = Path(__file__).parents[2] / "schemas" / "sources"
UBI_EXAMPLES = sorted((UBI_SCHEMAS / "examples").rglob("*.json"))


@pytest.mark.parametrize("path", UBI_EXAMPLES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_schema_and_reader_agree_with_the_name_of_every_ubi_example(path: Path) -> None:
    wanted = path.name.startswith("valid-")
    record = json.loads(path.read_bytes())
    schema = json.loads((UBI_SCHEMAS / f"{path.parent.name}.schema.json").read_bytes())
    assert ubi_validator(schema).is_valid(record) is wanted
    topic = topics.QUERIES if path.parent.name == "ubi-query" else topics.CLICKS
    assert readable(record, topic) is wanted


def test_each_ubi_record_has_examples_good_and_bad() -> None:
    for name in ("ubi-query", "ubi-event"):
        names = [p.name for p in UBI_EXAMPLES if p.parent.name == name]
        assert sum(n.startswith("valid-") for n in names) >= 2
        assert sum(n.startswith("invalid-") for n in names) >= 2


# CloudEvents


def envelope(data: Any, **more: Any) -> dict[str, Any]:
    head = {
        "specversion": "1.0",
        "id": "e-9",
        "source": "/shop",
        "type": "com.shop.clicked",
        "time": AT.isoformat(),
    }
    return {**head, "data": data, **more}


STRUCTURED = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
BINARY = [("ce_specversion", b"1.0"), ("ce_id", b"e-9"), ("ce_source", b"/shop"), ("ce_type", b"com.shop.clicked")]


@pytest.mark.parametrize("headers", [STRUCTURED, []], ids=["declared", "seen"])
def test_an_envelope_is_opened_and_names_the_event(headers: Any) -> None:
    message = read(envelope(UBI_EVENT), topics.CLICKS, headers=headers)
    assert (message.event_id, message.doc_id) == ("/shop#e-9", "sku-17")


def test_an_envelope_fills_in_what_its_data_leaves_out() -> None:
    data = {"type": "ResultClicked", "query_id": "q-1", "doc_id": "d"}
    assert read(envelope(data), topics.CLICKS) == ResultClicked(
        event_id="/shop#e-9", index="products", query_id="q-1", doc_id="d", clicked_at=AT
    )
    named = envelope(without(data, "type"), type="io.clickloop.ResultClicked.v1")
    assert read(named, topics.CLICKS).doc_id == "d"


def test_data_as_base64_is_data() -> None:
    packed = base64.b64encode(json.dumps(UBI_EVENT).encode()).decode()
    message = read(without(envelope(None, data_base64=packed), "data"), topics.CLICKS)
    assert message.doc_id == "sku-17"


def test_headers_in_binary_mode_name_a_foreign_event() -> None:
    message = read(UBI_EVENT, topics.CLICKS, headers=BINARY)
    assert message.event_id == "/shop#e-9"
    time = [*BINARY, ("ce_time", b"2026-03-02T09:15:04Z")]
    assert read(without(UBI_EVENT, "timestamp"), topics.CLICKS, headers=time).clicked_at == AT


@pytest.mark.parametrize(
    ("record", "headers", "reason"),
    [
        (envelope(UBI_EVENT, specversion="0.3"), (), "specversion '0.3'"),
        (envelope(UBI_EVENT, id=""), (), "whose id is ''"),
        (envelope(UBI_EVENT, source=None), (), "whose source is null"),
        (envelope(UBI_EVENT, time=5), (), "whose time is 5"),
        (envelope(UBI_EVENT, datacontenttype="application/xml"), (), "application/xml"),
        (envelope("text"), (), "'text' where an object was expected"),
        (envelope(None, data_base64="*"), (), "no base64"),
        (envelope(envelope(UBI_EVENT)), (), "not a valid ResultClicked"),
        (envelope(UBI_EVENT), [("content-type", b"application/cloudevents-batch+json")], "one application"),
        (envelope(UBI_EVENT), [("content-type", b"application/cloudevents+avro")], r"cloudevents\+avro"),
        (UBI_EVENT, [*BINARY[1:], ("ce_specversion", b"\xff")], "no UTF-8"),
        (UBI_EVENT, BINARY[:1], "whose id is null"),
    ],
)
def test_a_cloudevent_that_cannot_be_used_says_why(record: Any, headers: Any, reason: str) -> None:
    with pytest.raises(InvalidMessageError, match=reason):
        read(record, topics.CLICKS, headers=headers)


def test_headers_without_a_value_are_passed_over() -> None:
    assert read(UBI_EVENT, topics.CLICKS, headers=[("ce_id", None), ("content-type", None)]).doc_id == "sku-17"


# Mappings


def test_an_apps_own_names_are_mapped() -> None:
    click = {"event": {"kind": "product_click"}, "search": {"id": 9}, "sku": 17, "rank": 0, "visitor": "ann"}
    assert read({**click, "ts": AT.timestamp() * 1000}, topics.CLICKS, sources=mapped()) == ResultClicked(
        event_id=read({**click, "ts": AT.timestamp() * 1000}, topics.CLICKS, sources=mapped()).event_id,
        index="shop",
        query_id="9",
        doc_id="17",
        clicked_at=AT,
        position=1,
        split_key=codec.split_key("ann"),
    )


@pytest.mark.parametrize("visitor", ["", " \t", None])
def test_people_without_a_name_are_not_one_person(visitor: str | None) -> None:
    click = {"event": {"kind": "product_click"}, "search": {"id": 9}, "sku": 17, "visitor": visitor}
    assert read({**click, "ts": 0}, topics.CLICKS, sources=mapped()).split_key == ""
    assert read({**UBI_EVENT, "client_id": visitor}, topics.CLICKS).split_key == ""
    named = {**UBI_EVENT, "client_id": visitor, "user_id": "ann"}
    assert read(named, topics.CLICKS).split_key == codec.split_key("ann")


def test_one_stream_of_clicks_and_ratings_is_told_apart_by_when() -> None:
    stars = {"event": {"kind": "stars"}, "search": {"id": "q"}, "sku": "d", "stars": "5", "ts": AT.timestamp()}
    message = read(stars, topics.CLICKS, sources=mapped())
    assert isinstance(message, ResultRated)
    assert (message.rating, message.rated_at) == (3.0, AT)


@pytest.mark.parametrize(
    ("scale", "given", "stars"),
    [([0, 1], (1.0, 0.95, 0.5), (5.0, 4.8, 3.0)), ([0, 10], (10, 0, "5"), (5.0, 1.0, 3.0))],
)
def test_an_apps_scale_is_that_of_accuracy_and_relevance_too(
    scale: list[int], given: tuple[Any, ...], stars: tuple[float, ...]
) -> None:
    names = ("rating", "accuracy", "relevance")
    fields = {"query_id": "q", "doc_id": "d", "time": "at", **{name: name for name in names}}
    table = {"topic": "ratings", "rating_range": scale, "fields": fields}
    record = {"q": "q", "d": "d", "at": AT.isoformat(), **dict(zip(names, given, strict=True))}
    message = read(record, topics.RATINGS, sources=Sources("products", mappings_of({"stars": table})))
    assert (message.rating, message.accuracy, message.relevance) == pytest.approx(stars)


@pytest.mark.parametrize("topic", [topics.RATINGS, topics.CLICKS], ids=lambda t: t.suffix)
def test_an_apps_own_preferences_are_mapped(topic: topics.Topic) -> None:
    duel = {"event": {"kind": "duel"}, "search": {"id": 9}, "won": 17, "lost": "d", "by": "0.5", "who": "ann"}
    message = read({**duel, "at": AT.isoformat()}, topic, sources=mapped())
    assert message == ResultPreferred(
        event_id=message.event_id,
        index="products",
        query_id="9",
        preferred="17",
        alternative="d",
        preferred_at=AT,
        strength=0.5,
        split_key=codec.split_key("ann"),
    )
    assert (
        mapped().read_row(json.dumps({**duel, "at": AT.isoformat()}).encode(), topics.RATINGS, now=AT) == message
    )


@pytest.mark.parametrize("hits", [["a", "b"], [{"sku": "a"}, {"sku": "b"}]], ids=["ids", "objects"])
def test_shown_results_may_be_ids_or_objects(hits: Any) -> None:
    message = read({"id": "q", "q": "shoes", "at": AT.isoformat(), "hits": hits}, topics.QUERIES, sources=mapped())
    assert [(r.doc_id, r.position) for r in message.results] == [("a", 1), ("b", 2)]


def test_documents_are_mapped_too() -> None:
    message = read(
        {"sku": 4, "name": "Shoe", "about": "Grips.", "brand": "Aria"}, topics.DOCUMENTS, sources=mapped()
    )
    assert isinstance(message, DocumentChanged)
    assert (message.doc_id, message.title, message.text) == ("4", "Shoe", "Grips.")
    assert message.attributes == {"brand": "Aria"}


def test_an_attribute_may_be_the_same_for_every_document() -> None:
    table = {"topic": "documents", "fields": {"doc_id": "sku", "attributes.brand": "brand"}}
    sources = Sources("products", mappings_of({"shop": {**table, "values": {"attributes.shop": "north"}}}))
    document = read({"sku": 4, "brand": "Aria"}, topics.DOCUMENTS, sources=sources)
    assert document.attributes == {"shop": "north", "brand": "Aria"}


def test_a_record_that_no_mapping_takes_may_still_be_ubis() -> None:
    assert read(UBI_EVENT, topics.CLICKS, sources=mapped()).doc_id == "sku-17"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ts": "soon"}, "ts is 'soon', no number"),
        ({"ts": 1e300}, "not in the years"),
        ({"ts": 10**400}, "no number"),
        ({"rank": 1.5}, "no whole number"),
        ({"rank": True}, "no number"),
        ({"sku": None}, "doc_id"),
        ({"sku": {}}, "sku is an object"),
        ({"visitor": [1]}, "visitor is a list"),
    ],
)
def test_a_mapped_record_that_cannot_be_used_names_the_apps_field(change: dict[str, Any], reason: str) -> None:
    click = {"event": {"kind": "product_click"}, "search": {"id": 9}, "sku": 17, "ts": 1, **change}
    with pytest.raises(MessageError, match=reason):
        read(click, topics.CLICKS, sources=mapped())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('topic = "click"', "topic"),
        ('topic = "clicks"\nfields = { query_id = "q" }', "doesn't say where 'doc_id' is"),
        ('topic = "clicks"\nfields = { query_id = "q", doc_id = "d", colour = "c" }', "has no 'colour'"),
        ('topic = "clicks"\nfield = {}', "field"),
        ('topic = "ratings"\nfields = { query_id = "q", preferred = "w" }', "where 'alternative' is"),
        (
            'topic = "ratings"\nfields = {query_id="q", preferred="w", alternative="l", rating="r"}',
            "a ResultPreferred has no 'rating'",
        ),
        (
            'topic = "clicks"\nfields = { query_id = "q", doc_id = "d" }\nvalues = { user = "ann" }',
            "'user' can't be in values",
        ),
        (
            'topic = "clicks"\nfields = { query_id = "q", doc_id = "d" }\nvalues = { time = 0 }',
            "'time' can't be in values",
        ),
        (
            'topic = "queries"\nfields = {query_id="q", query="t", results="r"}\nvalues = {"results.doc_id"="d"}',
            "'results.doc_id' can't be in values",
        ),
        (
            'topic = "ratings"\nrating_range = [5, 1]\nfields = {query_id="q", doc_id="d", rating="r"}',
            "rating_range",
        ),
    ],
)
def test_a_mapping_with_a_mistake_is_refused_by_its_name(text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=rf"\[sources\.shop\]: .*{reason}"):
        mappings_of({"shop": tomllib.loads(text)})


def test_mappings_lie_in_the_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clickloop.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLICKLOOP_CONFIG", raising=False)
    assert list(load_mappings()) == ["duels", "shop-clicks", "stars", "searches", "catalogue"]
    (tmp_path / "clickloop.toml").write_text("sources = 3")
    with pytest.raises(SettingsError, match="sources is 3"):
        load_mappings()


# Rows of files


def row(record: Any, topic: topics.Topic | None = None) -> Any:
    return Sources("products").read_row(json.dumps(record).encode(), topic, now=AT)


def test_a_row_in_our_own_names_needs_neither_type_nor_id() -> None:
    click = {"query_id": "q", "doc_id": "d", "clicked_at": AT.isoformat(), "position": "3"}
    message = row(click)
    assert isinstance(message, ResultClicked)
    assert message.position == 3
    assert row(click).event_id == message.event_id
    assert row({"doc_id": "d", "text": "t", "changed_at": AT.isoformat()}, topics.DOCUMENTS).text == "t"


@pytest.mark.parametrize("typed", [{}, {"type": "ResultClicked"}], ids=["by its time", "by its type"])
def test_integers_are_ids_in_a_row_of_a_file_and_not_on_a_topic(typed: dict[str, str]) -> None:
    click = {**typed, "query_id": 81, "doc_id": 17, "event_id": 3, "split_key": 5, "clicked_at": AT.isoformat()}
    message = row(click)
    assert (message.query_id, message.doc_id, message.event_id, message.split_key) == ("81", "17", "3", "5")
    for wrong in (True, 1.5, [1]):
        with pytest.raises(InvalidMessageError, match="doc_id"):
            row({**click, "doc_id": wrong})
    on_topic = {"type": "ResultClicked", "index": "products", "event_id": "e", **click}
    with pytest.raises(InvalidMessageError, match="got `int`"):
        read(on_topic, topics.CLICKS)


def test_integers_are_ids_within_results_and_preferences_too() -> None:
    query = {"query_id": 81, "query": "shoes", "served_at": AT.isoformat()}
    results = row({**query, "results": [{"doc_id": 17, "position": 1}]}).results
    assert results == [Result(doc_id="17", position=1)]
    preference = row({"query_id": 81, "preferred": 17, "alternative": 4, "preferred_at": AT.isoformat()})
    assert (preference.preferred, preference.alternative) == ("17", "4")


def test_a_row_of_any_form_is_what_it_says() -> None:
    forms = [UBI_EVENT, UBI_QUERY, envelope(UBI_EVENT), json.loads(codec.encode(GOLDEN["ResultRated.v1"]))]
    assert [type(row(form)) for form in forms] == [ResultClicked, QueryServed, ResultClicked, ResultRated]


def test_a_row_that_is_nothing_says_what_it_might_have_been() -> None:
    with pytest.raises(InvalidMessageError, match="no form that is known"):
        row({"a": 1})
    with pytest.raises(InvalidMessageError, match="does not belong on queries"):
        row(UBI_EVENT, topics.QUERIES)
    with pytest.raises(UnreadableMessageError):
        Sources("products").read_row(b"{", None, now=AT)


# What the documentation shows

DOCS = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")


def shown_examples() -> list[tuple[str, str, str]]:
    """(kind, topic, text) of every fenced block that the page marks as an example."""
    return re.findall(r"<!-- (sends|ignored|refused|settings) ?(\w*) -->\n```\w*\n(.*?)```", DOCS, re.DOTALL)


def page_sources() -> Sources:
    settings = next(text for kind, _, text in shown_examples() if kind == "settings")
    return Sources("products", mappings_of(tomllib.loads(settings)["sources"]))


@pytest.mark.parametrize(("kind", "suffix", "text"), [e for e in shown_examples() if e[0] != "settings"])
def test_every_example_of_the_page_is_read_or_refused_as_it_says(kind: str, suffix: str, text: str) -> None:
    topic = next(t for t in topics.TOPICS if t.suffix == suffix)
    *head, body = text.strip().split("\n\n")
    headers = [(n, v.encode()) for n, v in (line.split(": ", 1) for line in "\n".join(head).splitlines())]
    if kind == "refused":
        with pytest.raises(MessageError):
            page_sources().read(body.encode(), headers, topic)
    elif kind == "ignored":
        assert page_sources().read(body.encode(), headers, topic) is None
    else:
        assert page_sources().read(body.encode(), headers, topic, logged=LOGGED).index in {"products", "shop"}


def test_the_page_shows_every_form() -> None:
    shown = [suffix for kind, suffix, _ in shown_examples() if kind == "sends"]
    assert len(shown) >= 9
    assert set(shown) == {"queries", "clicks", "ratings", "documents"}


def test_a_preference_is_read_from_ratings_and_from_a_file() -> None:
    event = ResultPreferred(
        event_id="p-1", index="default", query_id="q", preferred="a", alternative="b", preferred_at=AT
    )
    raw = codec.encode(event)
    assert Sources("default").read(raw, (), topics.RATINGS) == event
    assert Sources("default").read_row(raw, now=AT) == event
    assert topic_of(event) is topics.RATINGS
    assert time_of(event) == AT
