"""How hard an example is for the model that served it: by how far it had the document ahead, or behind.

The margin of a result is its score less the best other one's, as a share of the distance from the best to the
worst score shown, so that cosines, BM25 and fused ranks are measured alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from clickloop.events import Difficulty

EASY = 0.1
"""The model had it on top, and ahead by this margin."""
HARD = -0.5
"""It was behind by this margin: in the lower half of what was shown, by its score."""
_NAMES: dict[str, Difficulty] = {"e": "easy", "m": "medium", "h": "hard"}


def difficulties(scores: Sequence[float]) -> str:
    """A letter for each result; empty where the scores say nothing.

    >>> difficulties([0.9, 0.7, 0.65, 0.2])
    'emmh'
    >>> difficulties([0.0, 0.0])
    ''
    """
    best, worst = max(scores, default=0.0), min(scores, default=0.0)
    spread = best - worst
    if not 0.0 < spread < float("inf"):
        return ""
    second = sorted(scores)[-2]
    behind = best + HARD * spread
    top = "e" if best - second >= EASY * spread else "m"
    return "".join([top if score == best else "h" if score <= behind else "m" for score in scores])


def difficulty(letters: str, number: int) -> Difficulty | None:
    """Of result ``number``, from 0."""
    return _NAMES.get(letters[number : number + 1])
