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


def difficulty(scores: Sequence[float], number: int) -> Difficulty | None:
    """Of result ``number``, from 0; None where the scores say nothing.

    >>> [difficulty([0.9, 0.7, 0.65, 0.2], number) for number in range(4)]
    ['easy', 'medium', 'medium', 'hard']
    >>> difficulty([0.0, 0.0], 0) is None
    True
    """
    if len(scores) < 2:
        return None
    second, best = sorted(scores)[-2:]
    spread = best - min(scores)
    if not 0.0 < spread < float("inf"):
        return None
    score = scores[number]
    if score == best:
        return "easy" if best - second >= EASY * spread else "medium"
    return "hard" if score <= best + HARD * spread else "medium"
