"""How well versions answer queries whose right answers are known. No click plays a part in it.

Each document of the corpus may be found, by exact search. MRR and recall are of the first relevant document, as
the demo measures them; nDCG weighs all of them by grade (linear gains, as trec_eval has them).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clickloop.evaluation import NOT_FOUND, Floats, compare, per_query_metrics
from clickloop.events import Estimate
from clickloop.recorded import Judged, SliceTruth
from trainer.examples import Document
from trainer.model import Model, Vectors, encode

DEPTH = 10
_BLOCK = 256
_CELLS = 1 << 25
"""Queries times documents whose scores are in memory at once."""

Measured = dict[str, Floats]
"""Metric → (queries,)"""


class Truth:
    """Judged queries over one corpus. Every relevant document must be in it."""

    def __init__(self, judged: Sequence[Judged], documents: Sequence[Document]) -> None:
        place = {document.doc_id: number for number, document in enumerate(documents)}
        self._texts = [one.query for one in judged]
        self._grades = [{place[doc_id]: grade for doc_id, grade in one.relevant.items()} for one in judged]
        self._encoded: dict[str, Vectors] = {}
        self._slices = np.asarray([one.slice or "" for one in judged], dtype=object)

    def __len__(self) -> int:
        return len(self._texts)

    def measure(self, model: Model, documents: Vectors) -> Measured:
        """Each query's figures with this version; ``documents`` (documents, dim) are of its space."""
        # Versions that differ in their adapters alone see the same vectors before it.
        if model.encoder_version not in self._encoded:
            self._encoded = {model.encoder_version: encode(model.encoder, self._texts)}
        encoded = self._encoded[model.encoder_version]
        return self.of_top(top(model.adapter.apply(encoded) if model.adapter else encoded, documents, DEPTH))

    def of_top(self, found: NDArray[np.int64]) -> Measured:
        """Each query's figures where these documents (queries, up to DEPTH) are on top, best first."""
        ranks = np.full(len(self), NOT_FOUND, dtype=np.int64)
        gains = np.zeros(len(self))
        discounts = 1.0 / np.log2(np.arange(2, DEPTH + 2))
        for number, (grades, row) in enumerate(zip(self._grades, found.tolist(), strict=True)):
            got = np.asarray([grades.get(document, 0.0) for document in row])
            relevant = np.flatnonzero(got > 0.0)
            if len(relevant):
                ranks[number] = relevant[0] + 1
            ideal = np.sort(list(grades.values()))[::-1][:DEPTH]
            gains[number] = (got @ discounts[: len(got)]) / (ideal @ discounts[: len(ideal)])
        return {**per_query_metrics(ranks), "ndcg_at_10": gains}

    def slices(self, before: Measured, after: Measured) -> dict[str, SliceTruth]:
        """Each slice on its own; queries that name none are in none."""
        found = {}
        for name in sorted(set(self._slices) - {""}):
            rows = self._slices == name
            part = comparison(
                {metric: values[rows] for metric, values in before.items()},
                {metric: values[rows] for metric, values in after.items()},
            )
            found[str(name)] = SliceTruth(int(rows.sum()), part)
        return found


def comparison(before: Measured, after: Measured) -> dict[str, Estimate]:
    """Each metric before and after, on the same queries."""
    return {name: compare(before[name], after[name]) for name in before}


def top(queries: Vectors, documents: Vectors, depth: int) -> NDArray[np.int64]:
    """(queries, up to depth) numbers of the nearest documents, best first; of equally near ones the first."""
    depth = min(depth, len(documents))
    found = np.empty((len(queries), depth), dtype=np.int64)
    rows = max(1, min(_BLOCK, _CELLS // max(len(documents), 1)))
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ documents.T
        near = np.sort(np.argpartition(-scores, depth - 1, axis=1)[:, :depth], axis=1)
        last = np.take_along_axis(scores, near, 1).min(axis=1, keepdims=True)
        # Where more are as near as the last one, any of them may be among those.
        for row in np.flatnonzero((scores >= last).sum(axis=1) > depth):
            near[row] = np.sort(np.argsort(-scores[row], kind="stable")[:depth])
        order = np.argsort(-np.take_along_axis(scores, near, 1), axis=1, kind="stable")
        found[start : start + rows] = np.take_along_axis(near, order, 1)
    return found
