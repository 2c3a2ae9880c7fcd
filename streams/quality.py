"""What is good enough to learn from: a positive that its own rating contradicts is none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quality:
    """Least stars, 1 to 5, where they are given. 0 switches a filter off.

    >>> Quality().objection(rating=None, accuracy=5.0, relevance=3.0)
    'relevance'
    >>> Quality().objection(rating=4.0, accuracy=None, relevance=None)
    ''
    """

    min_rating: float = 4.0
    min_accuracy: float = 4.0
    min_relevance: float = 4.0

    def objection(self, *, rating: float | None, accuracy: float | None, relevance: float | None) -> str:
        """Name of the first filter that a positive does not pass; "" where it passes all."""
        for name, stars, least in (
            ("rating", rating, self.min_rating),
            ("accuracy", accuracy, self.min_accuracy),
            ("relevance", relevance, self.min_relevance),
        ):
            if stars is not None and stars < least:
                return name
        return ""
