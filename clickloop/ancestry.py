"""What a version was compared with, and so which may be live next. Rollout and nodes go by the same rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from clickloop.events import ModelVersionPublished


class Known(NamedTuple):
    """What must be known of a version, of which there may be very many."""

    published: float
    """Seconds since the epoch."""
    passed: bool
    """Its gate."""
    against: str
    """The version that it was compared with last, and may follow: what was live, else what it was made of. Empty
    where it does not say."""

    @classmethod
    def of(cls, event: ModelVersionPublished, *, passed: bool) -> Known:
        live = event.gate.live if event.gate is not None else None
        return cls(event.published_at.timestamp(), passed, live.version if live else event.parent or "")


def waiting(live: str, versions: Mapping[str, Known], *, after: float) -> dict[str, str]:
    """The versions that may be live next, each with the first of its line, as they were published.

    They passed, were published ``after`` an operator last chose, and were compared with the live version, directly
    or through others of which this holds. One that does not say passes for compared with the live one, if it is
    later. The order of ``versions`` is nothing to go by: a version that is announced again, as the base is by
    every node that starts, is the last of a compacted log.

    >>> made = {"base": Known(0, False, ""), "a": Known(1, True, "base"), "b": Known(2, True, "a")}
    >>> waiting("base", made, after=0), waiting("a", made, after=0), waiting("base", made, after=1)
    ({'a': 'a', 'b': 'a'}, {'b': 'b'}, {})
    """
    since = versions[live].published if live in versions else 0.0
    heads: dict[str, str] = {}
    for name in sorted(versions, key=lambda name: versions[name].published):
        known = versions[name]
        if not known.passed or known.published <= after or name == live:
            continue
        if known.against == live or (not known.against and known.published >= since):
            heads[name] = name
        elif known.against in heads:
            heads[name] = heads[known.against]
    return heads


def follows(version: str, ancestor: str, versions: Mapping[str, Known]) -> bool:
    """``ancestor`` is the version, what it was compared with, what that was compared with, and so on."""
    seen = set[str]()
    while version and version != ancestor and version not in seen:
        seen.add(version)
        known = versions.get(version)
        version = known.against if known is not None else ""
    return bool(version) and version == ancestor
