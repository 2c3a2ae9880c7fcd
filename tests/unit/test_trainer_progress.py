"""What a run tells the world of itself."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from clickloop import topics
from clickloop.commands import Reason, Retrain
from clickloop.events import TrainingProgressed
from clickloop.kafka import Producer
from tests.unit.trainer_facts import START
from trainer.progress import CancelledError, RunReport


class Sent:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[TrainingProgressed] = []

    async def send(self, _: topics.Topic, event: TrainingProgressed) -> None:
        self.events.append(event)


def report(sent: Sent, **more: Any) -> RunReport:
    wish = Retrain(
        command_id="c1",
        index="default",
        issued_at=START,
        kinds=["adapter", "query_encoder"],
        ranges=[],
        reason=Reason(policies=["manual"], text="test"),
    )
    return RunReport(cast(Producer, sent), wish, threading.Event(), **more)


async def test_a_run_cancelled_between_two_rungs_leaves_the_rung_that_is_published_as_it_was() -> None:
    sent = Sent()
    run = report(sent)
    await run.stage("adapter", "done", version="adapter-1", verdict="pass")
    run.cancel()
    with pytest.raises(CancelledError):
        await run.stage("query_encoder", "encoding", version="query-encoder-1")
    await run.failed("cancelled")
    told = [(event.kind, event.stage, event.version) for event in sent.events]
    assert told == [("adapter", "done", "adapter-1"), ("query_encoder", "failed", "query-encoder-1")]
