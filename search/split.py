"""Which arm answers a query: arm = hash(salt, split key). Pure, so that every node and every test agrees.

Arms take consecutive ranges of the buckets in their listed order. With the live arm listed first and the candidate
last, a growing candidate only ever takes keys from the live arm: who has seen it goes on seeing it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from clickloop.errors import InvalidMessageError
from clickloop.events import Arm, SplitChanged

BUCKETS = 10_000
INITIAL = "initial"
"""Id of the split before one is live: all traffic to the base version, or to the live one of a split whose others
are missing."""
LIVE = "live"


def bucket(salt: str, split_key: str) -> int:
    """0 to 9,999, evenly over keys."""
    digest = hashlib.blake2b(f"{salt}:{split_key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % BUCKETS


def choose(arms: Sequence[Arm], number: int) -> Arm:
    """The arm whose range holds bucket ``number``."""
    end = 0
    for arm in arms:
        end += arm.buckets
        if number < end:
            return arm
    raise ValueError(f"bucket {number} is beyond the arms' {end}")


def check(split: SplitChanged) -> None:
    """Raises InvalidMessageError unless the arms share out all the buckets and have names of their own."""
    total = sum(arm.buckets for arm in split.arms)
    if total != BUCKETS:
        raise InvalidMessageError(f"split {split.split_id}: the arms have {total} buckets, not {BUCKETS}")
    if len({arm.name for arm in split.arms}) != len(split.arms):
        raise InvalidMessageError(f"split {split.split_id}: two arms have one name")
