"""The choice of an arm: the same everywhere, sticky as a candidate grows, and shares that are kept."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickloop.errors import InvalidMessageError
from clickloop.events import Arm
from search.split import BUCKETS, bucket, check, choose
from tests.unit.search_fakes import split

KEYS = st.text(max_size=50)


def arms(candidate: int) -> list[Arm]:
    return [
        Arm(name="live", version="v1", buckets=BUCKETS - candidate),
        Arm(name="candidate", version="v2", buckets=candidate),
    ]


@given(salt=KEYS, key=KEYS)
def test_every_key_has_one_bucket_within_bounds(salt: str, key: str) -> None:
    assert 0 <= bucket(salt, key) < BUCKETS
    assert bucket(salt, key) == bucket(salt, key)


def test_the_formula_is_the_one_that_other_parts_and_languages_use() -> None:
    # blake2b("salt:user-1", 8 bytes), big-endian, modulo 10,000; computed outside of this code.
    assert (bucket("salt", "user-1"), bucket("", "")) == (2673, 8957)


@given(key=KEYS, shares=st.lists(st.integers(0, BUCKETS), min_size=2, max_size=6).map(sorted))
def test_a_growing_candidate_only_takes_keys_from_live(key: str, shares: list[int]) -> None:
    number = bucket("salt", key)
    chosen = [choose(arms(share), number).name for share in shares]
    assert "".join(name[0] for name in chosen).lstrip("l").strip("c") == ""


@given(weights=st.lists(st.integers(1, 100), min_size=1, max_size=8), number=st.integers(0, BUCKETS - 1))
def test_the_chosen_arm_is_the_one_whose_range_holds_the_bucket(weights: list[int], number: int) -> None:
    total = sum(weights)
    buckets = [w * BUCKETS // total for w in weights]
    buckets[-1] += BUCKETS - sum(buckets)
    made = [Arm(name=str(i), version=str(i), buckets=b) for i, b in enumerate(buckets)]
    arm = int(choose(made, number).name)
    assert sum(buckets[:arm]) <= number < sum(buckets[: arm + 1])


def test_every_bucket_is_dealt_and_each_arm_gets_exactly_its_own() -> None:
    made = [Arm(name=name, version=name, buckets=n) for name, n in (("a", 1), ("b", 0), ("c", 4321), ("d", 5678))]
    dealt = Counter(choose(made, number).name for number in range(BUCKETS))
    assert dealt == {"a": 1, "c": 4321, "d": 5678}


def test_traffic_follows_the_shares() -> None:
    made = arms(2500)
    counts = Counter(choose(made, bucket("s", f"user-{i}")).name for i in range(20_000))
    assert abs(counts["candidate"] / 20_000 - 0.25) < 0.02


def test_another_salt_deals_the_keys_anew() -> None:
    made = arms(5000)
    one = [choose(made, bucket("a", f"user-{i}")).name for i in range(2000)]
    two = [choose(made, bucket("b", f"user-{i}")).name for i in range(2000)]
    agreement = sum(x == y for x, y in zip(one, two, strict=True)) / 2000
    assert 0.45 < agreement < 0.55


def test_an_arm_without_buckets_is_never_chosen() -> None:
    made = arms(0)
    assert {choose(made, number).name for number in range(0, BUCKETS, 7)} == {"live"}


def test_arms_that_do_not_share_out_all_buckets_are_refused() -> None:
    with pytest.raises(InvalidMessageError, match="9000 buckets"):
        check(split(1, ("live", "v1", 9000)))
    with pytest.raises(InvalidMessageError, match="one name"):
        check(split(1, ("live", "v1", 5000), ("live", "v2", 5000)))
    check(split(1, ("live", "v1", 9999), ("candidate", "v2", 1)))
