"""A replay's part in the trainer, as far as it takes no encoder to see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clickloop.events import DocumentChanged
from clickloop.golden import GoldenSet, write_golden
from clickloop.model_store import ModelStore
from clickloop.recorded import Judged
from tests.unit.trainer_facts import START, example
from trainer.recorded import Recorded, recorded


def test_a_golden_set_that_is_new_asks_for_new_verdicts(tmp_path: Path) -> None:
    before = read(tmp_path, 100).digest("adapter")
    assert read(tmp_path, 100).digest("adapter") == before
    store = ModelStore(f"file://{tmp_path.resolve()}/store")
    write_golden(store, "default", GoldenSet([Judged("query 1", {"d0001": 1.0})]))
    assert read(tmp_path, 100).digest("adapter") != before


def read(work: Path, examples: int, said: list[str] | None = None) -> Recorded:
    documents = [
        DocumentChanged(
            event_id=f"d{n:04}", index="default", doc_id=f"d{n:04}", changed_at=START, text=f"text {n}"
        )
        for n in range(5)
    ]
    given = [example(f"query {n}", f"d{n % 5:04}", number=n) for n in range(examples)]
    say = (said if said is not None else []).append
    return recorded(documents, given, index="default", work=work, base_model=None, say=say)


def test_examples_that_had_no_room_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKLOOP_MAX_EXAMPLES", "200")
    said: list[str] = []
    run = read(tmp_path, 600, said)
    assert (len(run.examples), run.dropped) == (200, 400)
    assert said == ["the oldest 400 of 600 examples are left out (max_examples is 200)"]
    assert read(tmp_path, 200, said).dropped == 0
    assert len(said) == 1
