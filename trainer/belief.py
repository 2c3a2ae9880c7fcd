"""How far each clicked pair is believed, learnt from queries that were asked more than once.

People who ask the same and click agree where they are right; a mistaken click hits another document each time. So
how often other clicks on a query confirm one tells its chance to be right (co-clicks as a label's confidence; cf.
Northcutt et al. 2021, "Confident Learning", which estimates noise from disagreement too). It is told apart by how
far down the parent lists the document, for further down more clicks are mistakes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trainer.dataset import Clicks, Floats, Indexes
from trainer.model import Vectors

LEAST = 0.3
"""Rows that are believed less are left out where mistakes could be learnt by heart: most of them are some."""
_PLACES = (2, 3, 4, 6, 11)
"""Ranks 1, 2, 3, 4-5, 6-10 and beyond have an agreement of their own."""
_ENOUGH = 30
"""Clicks of a place that have as much say in its agreement as all places' has."""
_BLOCK = 512
_CELLS = 1 << 25
"""Of a block's table of rows and documents, at most: each takes some 10 bytes."""


def beliefs(clicks: Clicks, asked: Vectors, documents: Vectors) -> Floats:
    """(rows,) in [0, 1]: the chance that the row's document is what its query wants.

    ``asked`` (queries, dim) and ``documents`` (documents, dim) are the parent's vectors. Where no query was asked
    twice nothing can be said, and all is believed.
    """
    place = np.digitize(_ranks(clicks, asked, documents), _PLACES)
    of_query = np.bincount(clicks.query, clicks.evidence, minlength=len(clicks.queries))[clicks.query]
    other_clicks = np.maximum(of_query - 1.0, 0.0)
    confirming = np.maximum(clicks.evidence - 1.0, 0.0)
    repeated = other_clicks >= 0.5
    if not repeated.any():
        return np.ones(len(clicks), dtype=np.float32)
    weight = clicks.evidence * repeated
    agreed = weight * np.divide(confirming, other_clicks, out=np.zeros(len(clicks)), where=repeated)
    size = len(_PLACES) + 1
    count = np.bincount(place, weight, minlength=size)
    overall = (agreed.sum() + 1.0) / (weight.sum() + 2.0)
    agreement = (np.bincount(place, agreed, minlength=size) + _ENOUGH * overall) / (count + _ENOUGH)
    # Two right clicks agree with the square of one's chance to be right, at most: the best place stands for 1.
    prior = agreement / float(agreement.max())
    belief = (prior[place] + confirming) / (1.0 + other_clicks)
    return np.asarray(belief.clip(0.0, 1.0), dtype=np.float32)


def weighed(clicks: Clicks, asked: Vectors, documents: Vectors) -> Clicks:
    """All rows, each with as much less evidence and weight as it is believed less."""
    return _times(clicks, beliefs(clicks, asked, documents))


def believed(clicks: Clicks, asked: Vectors, documents: Vectors) -> Clicks:
    """The rows that are believed at least ``LEAST``, with how far they are as their evidence.

    Less than a click, which a synthetic pair or a distrusted click is, stays less.
    """
    belief = beliefs(clicks, asked, documents)
    evidence = np.minimum(belief, clicks.evidence)
    share = np.divide(evidence, clicks.evidence, out=np.zeros_like(evidence), where=clicks.evidence > 0.0)
    kept = _times(clicks, share)
    return replace(
        kept,
        looks=clicks.looks[:0],
        **{part: getattr(kept, part)[belief >= LEAST] for part in ("query", "document", "weight", "evidence")},
    )


def _times(clicks: Clicks, share: Floats) -> Clicks:
    return replace(clicks, weight=clicks.weight * share, evidence=clicks.evidence * share)


def _ranks(clicks: Clicks, asked: Vectors, documents: Vectors) -> Indexes:
    """(rows,) the place of each row's document in its query's list, from 1."""
    ranks = np.zeros(len(clicks), dtype=np.int64)
    block = max(1, min(_BLOCK, _CELLS // max(len(documents), 1)))
    for start in range(0, len(clicks), block):
        rows = slice(start, start + block)
        scores = asked[clicks.query[rows]] @ documents.T
        own = scores[np.arange(len(scores)), clicks.document[rows]]
        ranks[rows] = (scores > own[:, None]).sum(axis=1) + 1
    return ranks
