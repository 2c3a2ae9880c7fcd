"""Trust counts that hold across partitions: through a real Redis, and without it."""

from __future__ import annotations

import asyncio

import pytest

from clickloop.errors import SettingsError
from demo.processes import free_port
from streams.caps import Caps
from streams.metrics import CAPS
from streams.tally import Tally


def tally(name: str = "rate", *, at: float = 10.0, **sums: float) -> Tally:
    made = Tally(name, seconds=60.0)
    made.turn(at)
    for key, amount in sums.items():
        made.add(key, amount)
    return made


def test_of_too_many_names_those_near_a_limit_stay() -> None:
    made = Tally("rate", seconds=60.0, most=10)
    made.turn(10.0)
    near = {f"busy{n}": 2.0 for n in range(3)}
    for name, amount in near.items():
        made.add(name, amount)
    for number in range(1000):
        made.add(f"seen once {number}", 1.0)
        assert {name: made.sum(name) for name in near} == near
    assert sum(made.sum(f"seen once {number}") > 0.0 for number in range(1000)) <= 10 - len(near)


def test_of_many_names_the_largest_are_told_first_and_the_others_later() -> None:
    made = tally(ann=5.0, bob=9.0, eve=3.0, few=1.0)
    assert made.untold(2) == {"bob": 9.0, "ann": 5.0}
    made.add("bob", 1.0)
    assert made.untold(1) == {"bob": 10.0}
    assert made.untold() == {"eve": 3.0}
    assert made.untold() == {}


async def test_what_an_absence_has_left_over_is_told_in_parts(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once it would take Redis longer than a batch may wait, again and again."""
    monkeypatch.setattr("streams.caps.MOST_TOLD", 3)
    shared, mine, other = caps(redis_url), tally(**{f"u{n}": 3.0 + n for n in range(5)}), tally(u0=4.0, u4=4.0)
    await shared.exchange(0, [mine])
    await shared.exchange(1, [other])
    assert (other.sum("u4"), other.sum("u0")) == (11.0, 4.0)
    await shared.exchange(0, [mine])
    other.add("u0", 1.0)
    await shared.exchange(1, [other])
    assert other.sum("u0") == 8.0
    await shared.close()


def caps(url: str) -> Caps:
    return Caps(url, prefix="test", index="default")


def outcome(held: str) -> float:
    return float(CAPS.labels(held)._value.get())


async def test_partitions_hear_of_one_another(redis_url: str) -> None:
    shared, one, two = caps(redis_url), tally(ann=5.0), tally(ann=4.0, bob=3.0)
    await shared.exchange(0, [one])
    await shared.exchange(1, [two])
    assert (two.sum("ann"), two.sum("bob")) == (9.0, 3.0)
    one.add("ann", 1.0)
    await shared.exchange(0, [one])
    assert one.sum("ann") == 10.0
    await shared.close()


async def test_what_is_told_again_after_a_crash_counts_once(redis_url: str) -> None:
    first, second = caps(redis_url), caps(redis_url)
    await first.exchange(0, [tally(ann=5.0)])
    await second.exchange(0, [tally(ann=3.0)])
    reader = tally(ann=3.0)
    await second.exchange(1, [reader])
    assert reader.sum("ann") == 8.0, "5 of partition 0, of which 3 were told twice, and 3 of its own"
    await first.close()
    await second.close()


async def test_small_sums_are_kept_to_oneself_and_other_windows_apart(redis_url: str) -> None:
    shared, other = caps(redis_url), tally(at=70.0, ann=4.0)
    await shared.exchange(0, [tally(ann=4.0, bob=1.0)])
    await shared.exchange(1, [other])
    assert other.sum("ann") == 4.0
    assert tally(bob=1.0).untold() == {}
    await shared.close()


async def test_without_redis_each_partition_counts_alone_and_it_comes_back_by_itself(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.caps.PAUSE_SECONDS", 0.05)
    local, away = outcome("local"), caps(f"redis://127.0.0.1:{free_port()}/0")
    mine = tally(ann=5.0)
    await away.exchange(0, [mine])
    await away.exchange(0, [mine])
    assert mine.sum("ann") == 5.0
    assert outcome("local") == local + 2, "once it failed, once it was not even tried"
    other = tally(ann=4.0)
    away._client, back = caps(redis_url)._client, caps(redis_url)
    await back.exchange(1, [other])
    await asyncio.sleep(0.06)
    await away.exchange(0, [mine])
    assert mine.sum("ann") == 9.0, "what could not be told then is told now"
    await away.close()
    await back.close()


async def test_a_worker_without_a_redis_url_shares_nothing() -> None:
    alone, mine = caps(""), tally(ann=5.0)
    await alone.exchange(0, [mine])
    assert mine.sum("ann") == 5.0
    assert mine.untold() == {"ann": 5.0}
    await alone.close()


def test_an_address_that_is_none_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(SettingsError, match="redis_url"):
        caps("nonsense://")
