"""Hard negatives: the documents that a query finds and must not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from trainer.dataset import NEAR_DUPLICATE, Indexes
from trainer.model import Vectors

PROTECTED = 0.95
"""A document with more than this share of the wanted one's score is no negative."""
BEFORE_ALL = 4.0
"""More than two cosines can differ by."""
NEAR_COPY = 0.95
"""Nor is one with at least this cosine to the wanted one."""


def mined(
    asked: Vectors,
    documents: Vectors,
    query: Indexes,
    document: Indexes,
    *,
    count: int,
    unwanted: Mapping[int, Indexes] = MappingProxyType({}),
) -> Indexes:
    """(rows, count): for each row the documents that its query finds first and must not, -1 where there are fewer.

    ``asked`` (rows, dim) are the rows' queries, ``query`` and ``document`` (rows,) their numbers. ``unwanted``, by
    query, are documents that feedback speaks against: they come before all that are merely found, however high
    they score. Another that scores nearly as high as the row's own document may be wanted too (positive-aware
    mining, Moreira et al. 2024, "NV-Retriever"), and so may a near-copy of that, and what was clicked for a query
    that all but coincides; what was clicked for the query itself is.
    """
    found = np.full((len(asked), count), -1, dtype=np.int64)
    wanted: dict[int, list[int]] = defaultdict(list)
    for q, d in zip(query.tolist(), document.tolist(), strict=True):
        wanted[q].append(d)
    for row in range(len(asked)):
        scores, own = documents @ asked[row], documents[document[row]]
        refused = unwanted.get(int(query[row]), np.zeros(0, dtype=np.int64))
        protected = scores > PROTECTED * scores[document[row]]
        protected[refused] = False
        scores[refused] += BEFORE_ALL
        scores[protected | (documents @ own >= NEAR_COPY)] = -np.inf
        for like in {int(query[row]), *query[asked @ asked[row] >= NEAR_DUPLICATE].tolist()}:
            scores[wanted[like]] = -np.inf
        first = np.argsort(-scores, kind="stable")[:count]
        first = first[np.isfinite(scores[first])]
        found[row, : len(first)] = first
    return found
