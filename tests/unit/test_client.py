"""The app's view: what it sends is checked before it leaves, and what it hears comes once and in order."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

import clickloop
from clickloop import codec, topics
from clickloop.client import FeedbackProducer, ModelSubscriber, split_key
from clickloop.errors import BrokerError, InvalidMessageError
from clickloop.events import (
    DocumentChanged,
    GateResult,
    Message,
    ModelVersionPublished,
    QueryServed,
    Result,
    ResultClicked,
    ResultPreferred,
    ResultRated,
    Verdict,
)
from clickloop.kafka import Record

AT = datetime(2026, 3, 2, 9, 15, tzinfo=UTC)


class Log:
    """Stands at the edge to the broker and keeps what the client handed over.

    It acknowledges at once, or as ``answer`` says: an error, or, with None, not at all.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[topics.Topic, Message]] = []
        self.answer: Exception | str | None = "taken"
        self.stopped = False

    async def start(self) -> None: ...

    async def stop(self, **_: float) -> None:
        self.stopped = True

    async def send(self, topic: topics.Topic, message: Message) -> asyncio.Future[str]:
        self.sent.append((topic, message))
        delivery: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if isinstance(self.answer, Exception):
            delivery.set_exception(self.answer)
        elif self.answer is not None:
            delivery.set_result(self.answer)
        return delivery


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def feedback(log: Log) -> FeedbackProducer:
    producer = FeedbackProducer("nowhere:1", index="products")
    producer._producer = log  # type: ignore[assignment]
    return producer


async def test_click_goes_to_clicks_with_what_the_app_said(feedback: FeedbackProducer, log: Log) -> None:
    event_id = await feedback.click("q-1", "d-1", position=3, dwell_seconds=2.5, split_key="s", clicked_at=AT)
    wanted = ResultClicked(
        event_id=event_id,
        index="products",
        query_id="q-1",
        doc_id="d-1",
        clicked_at=AT,
        position=3,
        dwell_seconds=2.5,
        split_key="s",
    )
    assert log.sent == [(topics.CLICKS, wanted)]


async def test_own_event_id_is_kept_so_that_sending_twice_counts_once(
    feedback: FeedbackProducer, log: Log
) -> None:
    assert await feedback.click("q-1", "d-1", event_id="mine") == "mine"
    assert await feedback.rate("q-1", "d-1", 5, event_id="mine") == "mine"
    assert await feedback.click("q-1", "d-1") != await feedback.click("q-1", "d-1")
    assert [m.event_id for _, m in log.sent[:2]] == ["mine", "mine"]  # type: ignore[attr-defined]


async def test_rating_query_and_document_go_to_their_topics(feedback: FeedbackProducer, log: Log) -> None:
    await feedback.rate("q-1", "d-1", 4.5, rated_at=AT)
    query_id = await feedback.query("shoes", ["d-1", "d-2"], served_at=AT)
    await feedback.document("d-1", "A shoe.", title="Shoe", attributes={"size": 42})
    await feedback.document("d-1", deleted=True)
    (ratings, rating), (queries, query), (documents, new), (_, gone) = log.sent
    assert (ratings, queries, documents) == (topics.RATINGS, topics.QUERIES, topics.DOCUMENTS)
    assert isinstance(rating, ResultRated)
    assert rating.rating == 4.5
    assert isinstance(query, QueryServed)
    assert query.query_id == query_id
    assert query.results == [Result(doc_id="d-1", position=1), Result(doc_id="d-2", position=2)]
    assert isinstance(new, DocumentChanged)
    assert new.attributes == {"size": 42}
    assert isinstance(gone, DocumentChanged)
    assert gone.deleted


async def test_a_preference_goes_to_ratings_and_speaks_for_what_was_preferred(
    feedback: FeedbackProducer, log: Log
) -> None:
    event_id = await feedback.prefer("q-1", "good", "worse", strength=0.7, preferred_at=AT)
    [(topic, event)] = log.sent
    assert topic is topics.RATINGS
    assert event == ResultPreferred(
        event_id=event_id,
        index="products",
        query_id="q-1",
        preferred="good",
        alternative="worse",
        preferred_at=AT,
        strength=0.7,
    )
    assert isinstance(event, ResultPreferred)
    assert event.doc_id == "good"
    with pytest.raises(InvalidMessageError):
        await feedback.prefer("q-1", "good", "worse", strength=0.0)


async def test_times_are_now_where_the_app_gives_none(feedback: FeedbackProducer, log: Log) -> None:
    await feedback.click("q-1", "d-1")
    [(_, event)] = log.sent
    assert isinstance(event, ResultClicked)
    assert abs((event.clicked_at - datetime.now(UTC)).total_seconds()) < 60


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("click", {"query_id": "", "doc_id": "d"}),
        ("click", {"query_id": "q", "doc_id": "d", "position": 0}),
        ("click", {"query_id": "q", "doc_id": 17}),
        ("click", {"query_id": "q", "doc_id": object()}),
        ("click", {"query_id": "q", "doc_id": "\ud800"}),
        ("click", {"query_id": "q", "doc_id": "d", "clicked_at": AT.replace(tzinfo=None)}),
        ("rate", {"query_id": "q", "doc_id": "d", "rating": 6}),
        ("rate", {"query_id": "q", "doc_id": "d", "rating": float("nan")}),
        ("query", {"query": "x", "doc_ids": ["d"] * 1001}),
        ("document", {"doc_id": "d", "text": "x" * 1_000_001}),
        ("document", {"doc_id": "d", "attributes": {"size": {"eu": 42}}}),
    ],
)
async def test_invalid_values_are_refused_at_once_and_nothing_is_sent(
    call: str, arguments: dict[str, Any], feedback: FeedbackProducer, log: Log
) -> None:
    with pytest.raises(InvalidMessageError):
        await getattr(feedback, call)(**arguments)
    assert log.sent == []


async def test_index_that_is_no_name_is_refused(log: Log) -> None:
    producer = FeedbackProducer("nowhere:1", index="My Index")
    producer._producer = log  # type: ignore[assignment]
    with pytest.raises(InvalidMessageError, match="index"):
        await producer.click("q", "d")


async def test_sending_without_a_start_says_what_to_do() -> None:
    with pytest.raises(BrokerError, match="async with"):
        await FeedbackProducer("nowhere:1").click("q", "d")


async def test_broker_that_does_not_answer_is_a_broker_error_with_its_address() -> None:
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1"):
        async with FeedbackProducer("127.0.0.1:1"):
            pass


async def test_what_the_broker_refuses_is_told_of_once_with_the_first_reason(
    feedback: FeedbackProducer, log: Log
) -> None:
    await feedback.click("q-1", "d-1")
    await feedback.flush()
    log.answer = OSError("too large")
    await feedback.click("q-2", "d-1")
    await asyncio.sleep(0)
    log.answer = OSError("another")
    await feedback.click("q-3", "d-1")
    with pytest.raises(BrokerError, match=r"not acknowledge: 2; .*too large"):
        await feedback.flush()
    await feedback.flush()


async def test_leaving_the_block_tells_of_what_is_lost_and_closes_all_the_same(
    feedback: FeedbackProducer, log: Log
) -> None:
    log.answer = OSError("too large")
    with pytest.raises(BrokerError, match="not acknowledge: 1"):
        async with feedback:
            await feedback.click("q-1", "d-1")
    assert log.stopped


async def test_an_error_of_the_block_itself_is_not_hidden_by_what_is_lost(
    feedback: FeedbackProducer, log: Log
) -> None:
    async def clicks() -> None:
        async with feedback:
            await feedback.click("q-1", "d-1")
            await feedback.click("", "d-1")

    log.answer = OSError("too large")
    with pytest.raises(InvalidMessageError):
        await clicks()
    assert log.stopped


async def test_a_flush_ends_though_the_broker_never_answers(
    feedback: FeedbackProducer, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clickloop.client.FLUSH_SECONDS", 0.05)
    log.answer = None
    await feedback.click("q-1", "d-1")
    with pytest.raises(BrokerError, match=r"not acknowledge: 1; .* no answer within"):
        await feedback.flush()


async def test_what_is_acknowledged_is_not_kept(feedback: FeedbackProducer) -> None:
    for number in range(100):
        await feedback.click(f"q-{number}", "d-1")
        await asyncio.sleep(0)
    assert not feedback._deliveries._open


def test_split_key_is_stable_hides_the_name_and_depends_on_the_salt() -> None:
    key = split_key("anna@example.com", salt="secret")
    assert key == split_key("anna@example.com", salt="secret")
    assert len(key) == 32
    assert "anna" not in key
    assert len({key, split_key("anna@example.com"), split_key("anna@example.com", salt="other")}) == 3
    assert len({split_key(f"user-{n}", salt="secret") for n in range(1000)}) == 1000


# The model-ready topic


class Replay:
    """A follower that hands out prepared records, ``together`` in a batch, then nothing."""

    def __init__(self, values: list[bytes | None], *, together: int = 1) -> None:
        records = [(topics.MODEL_VERSIONS, Record("t", 0, n, None, value)) for n, value in enumerate(values)]
        self._batches = [records[n : n + together] for n in range(0, len(records), together)]

    async def batch(self, **_: object) -> list[tuple[topics.Topic, Record]]:
        await asyncio.sleep(0)
        return self._batches.pop(0) if self._batches else []


def version(name: str, *, index: str = "products", verdict: Verdict | None = "pass") -> bytes:
    return codec.encode(
        ModelVersionPublished(
            event_id=f"e-{name}",
            index=index,
            version=name,
            kind="adapter",
            space="base",
            artifact_uri="file:///x",
            digest="0" * 64,
            published_at=AT,
            gate=None if verdict is None else GateResult(verdict=verdict, queries=10),
        )
    )


async def heard(values: list[bytes | None], count: int, **options: bool) -> list[str]:
    subscriber = ModelSubscriber("nowhere:1", index="products", **options)
    subscriber._follower = Replay(values)  # type: ignore[assignment]
    found: list[str] = []
    async with asyncio.timeout(5):
        async for model in subscriber:
            found.append(model.version)
            if len(found) == count:
                break
    return found


async def test_versions_come_once_in_order_and_of_this_index_only() -> None:
    values = [version("a"), version("x", index="other"), version("a"), version("b"), version("c")]
    assert await heard(values, 3) == ["a", "b", "c"]


async def test_versions_that_did_not_pass_are_left_out_but_the_base_comes() -> None:
    values = [
        version("base", verdict=None),
        version("a", verdict="fail"),
        version("b", verdict="inconclusive"),
        version("c"),
    ]
    assert await heard(values, 2) == ["base", "c"]
    assert await heard(values, 4, all_verdicts=True) == ["base", "a", "b", "c"]


async def test_unreadable_versions_and_tombstones_are_skipped() -> None:
    assert await heard([b"\xff", None, b"{}", version("a")], 1) == ["a"]


async def test_waiting_for_a_version_returns_it_or_times_out() -> None:
    subscriber = ModelSubscriber("nowhere:1", index="products")
    subscriber._follower = Replay([version("a"), version("b")])  # type: ignore[assignment]
    assert (await subscriber.wait_for("b", timeout_seconds=5)).version == "b"
    assert (await subscriber.wait_for("a", timeout_seconds=5)).version == "a"  # heard on the way to b
    with pytest.raises(TimeoutError):
        await subscriber.wait_for("c", timeout_seconds=0.05)


async def test_versions_of_one_batch_are_not_lost_with_the_loop_that_was_left() -> None:
    subscriber = ModelSubscriber("nowhere:1", index="products")
    values = [version(name) for name in "abcd"]
    subscriber._follower = Replay(values, together=4)  # type: ignore[assignment]
    async with asyncio.timeout(5):
        async for model in subscriber:
            assert model.version == "a"
            break
        assert (await subscriber.wait_for("b", timeout_seconds=1)).version == "b"
        async for model in subscriber:
            assert model.version == "c"
            break
        assert (await subscriber.wait_for("d", timeout_seconds=1)).version == "d"


def test_public_names_are_where_the_package_says() -> None:
    assert clickloop.FeedbackProducer is FeedbackProducer
    assert clickloop.ModelSubscriber is ModelSubscriber
    for name in clickloop.__all__:
        assert getattr(clickloop, name) is not None
    with pytest.raises(AttributeError, match="no_such"):
        clickloop.no_such  # noqa: B018
