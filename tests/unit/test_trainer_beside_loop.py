"""What takes minutes of computing leaves the event loop free: it tells progress and answers the group."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.unit.test_trainer_rung import Climbs, climbs
from trainer.past import past_of

__all__ = ["climbs"]


async def test_the_past_is_looked_through_beside_the_event_loop(
    climbs: Climbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = list[threading.Thread]()

    def looked(*given: Any, **more: Any) -> Any:
        threads.append(threading.current_thread())
        return past_of(*given, **more)

    monkeypatch.setattr("trainer.rung.past_of", looked)
    await climbs.run("c1", ["adapter"])
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
