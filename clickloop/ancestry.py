"""What a version was made of."""

from __future__ import annotations

from collections.abc import Mapping


def line_of(version: str, parents: Mapping[str, str | None]) -> list[str]:
    """The version, its parent, the parent of that, and so on, as far as ``parents`` knows.

    >>> line_of("c", {"c": "b", "b": "a"})
    ['c', 'b', 'a']
    >>> line_of("a", {"a": "b", "b": "a"}), line_of("", {})
    (['a', 'b'], [])
    """
    line: dict[str, None] = {}
    while version and version not in line:
        line[version] = None
        version = parents.get(version) or ""
    return list(line)
