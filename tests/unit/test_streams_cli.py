"""What the command line takes from the log for the trigger."""

from __future__ import annotations

import pytest

from clickloop import codec, topics
from clickloop.kafka import Record
from streams.cli import told_by
from tests.unit.streams_facts import NOON, progress


@pytest.mark.parametrize(("appended", "expected"), [(NOON + 7, NOON + 7), (0.0, NOON + 900)])
def test_a_message_was_told_when_the_broker_took_it(appended: float, expected: float) -> None:
    """Whoever sent it may have a wrong clock; the worker goes by the broker's, too."""
    message = progress("c1", "adapter", "done", when=900)
    record = Record("training-runs", 0, 3, b"run", codec.encode(message), (), appended)
    told = told_by(record, topics.TRAINING_RUNS, index="default")
    assert told is not None
    assert (told.at, told.offset, told.message) == (expected, 3, message)
    assert told_by(record, topics.TRAINING_RUNS, index="shoes") is None
