"""What a version was made of, and so which may be live next. Rollout and search nodes go by the same rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Known(NamedTuple):
    """What must be known of a version, of which there may be very many."""

    published: float
    """Seconds since the epoch."""
    passed: bool
    """Its gate."""
    parent: str
    """Empty where it does not say of what it was made."""


def waiting(live: str, versions: Mapping[str, Known], *, after: float) -> dict[str, str]:
    """The versions that may be live next, each with the first of its line, as they were published.

    They passed, were published ``after`` an operator last chose, and were made of the live version, directly or
    through others of which this holds: a gate compares a version with its parent alone. One without a parent
    passes for made of the live one, if it is later. The order of ``versions`` is nothing to go by: a version that
    is announced again, as the base is by every node that starts, is the last of a compacted log.

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
        if known.parent == live or (not known.parent and known.published >= since):
            heads[name] = name
        elif known.parent in heads:
            heads[name] = heads[known.parent]
    return heads


def is_made_of(version: str, ancestor: str, versions: Mapping[str, Known]) -> bool:
    """``ancestor`` is the version, its parent, the parent of that, and so on."""
    seen = set[str]()
    while version and version != ancestor and version not in seen:
        seen.add(version)
        known = versions.get(version)
        version = known.parent if known is not None else ""
    return bool(version) and version == ancestor
