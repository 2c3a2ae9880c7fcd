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
"""Rows that are believed less are left out: most of them are mistakes."""
_PLACES = (2, 3, 4, 6, 11)
"""Ranks 1, 2, 3, 4-5, 6-10 and beyond have an agreement of their own."""
_ENOUGH = 30
"""Clicks of a place from which its agreement is told; with fewer it is that of all places."""
_BLOCK = 512


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
    overall = agreed.sum() / weight.sum()
    agreement = np.where(
        count >= _ENOUGH, np.bincount(place, agreed, minlength=size) / np.maximum(count, 1e-9), overall
    )
    # Two right clicks agree with the square of one's chance to be right, at most: the best place stands for 1.
    prior = agreement / max(float(agreement.max()), 1e-9)
    belief = (prior[place] + confirming) / (1.0 + other_clicks)
    return np.asarray(belief.clip(0.0, 1.0), dtype=np.float32)


def believed(clicks: Clicks, asked: Vectors, documents: Vectors) -> Clicks:
    """The rows that are believed at least ``LEAST``, with how far they are as their evidence.

    Less than a click, which a synthetic pair or a distrusted click is, stays less.
    """
    belief = beliefs(clicks, asked, documents)
    kept = belief >= LEAST
    evidence = np.minimum(belief, clicks.evidence)
    share = np.divide(evidence, clicks.evidence, out=np.zeros_like(evidence), where=clicks.evidence > 0.0)
    return replace(
        clicks,
        query=clicks.query[kept],
        document=clicks.document[kept],
        weight=(clicks.weight * share)[kept],
        evidence=evidence[kept],
    )


def _ranks(clicks: Clicks, asked: Vectors, documents: Vectors) -> Indexes:
    """(rows,) the place of each row's document in its query's list, from 1."""
    ranks = np.zeros(len(clicks), dtype=np.int64)
    for start in range(0, len(clicks), _BLOCK):
        rows = slice(start, start + _BLOCK)
        scores = asked[clicks.query[rows]] @ documents.T
        own = scores[np.arange(len(scores)), clicks.document[rows]]
        ranks[rows] = (scores > own[:, None]).sum(axis=1) + 1
    return ranks
