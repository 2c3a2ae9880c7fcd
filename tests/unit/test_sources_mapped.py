"""An app's own records become messages by the names that its settings give."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from clickloop import codec, topics
from clickloop.errors import MessageError, SettingsError
from clickloop.events import DocumentChanged, ResultClicked, ResultPreferred, ResultRated
from clickloop.settings import load_mappings
from clickloop.sources import Sources, mappings_of
from tests.unit.source_records import AT, TOML, UBI_EVENT, mapped, read


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
