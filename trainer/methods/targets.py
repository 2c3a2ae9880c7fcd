"""What a query should find: clicks as soft targets, and the softmax over documents that they are compared with."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray

from trainer.dataset import Clicks
from trainer.model import Vectors

Indexes = NDArray[np.int64]

SCALE = 30.0
"""Inverse temperature of the softmax over cosines."""
WHOLE_CORPUS = 20_000
"""Up to so many documents, every one is a negative for every query; of more, a sample and the nearest ones."""
SURE = -1e-6
"""Log-probability from which on a document is all that is found; an unwanted one's loss stays finite there."""
NEAREST = 100
_BLOCK, _CELLS = 256, 1 << 25
"""Queries whose scores are in memory at once, and at most so many times documents."""
SAMPLED = 1024


class Targets:
    """Per query text a distribution over the documents that were clicked for it, and how much is known of it; and
    the documents that it should not find."""

    def __init__(self, clicks: Clicks) -> None:
        count = len(clicks.queries)
        total = np.bincount(clicks.query, clicks.taught, minlength=count)
        mean = max(float(total.mean()), 1e-12)
        self._wanted = _Rows(clicks.query, clicks.document, clicks.taught / mean, count)
        against = [(q, d, much) for q, of_it in sorted(clicks.unwanted.items()) for d, much in of_it.items()]
        query, document = (np.asarray([one[n] for one in against], dtype=np.int64) for n in (0, 1))
        much = np.asarray([one[2] for one in against], dtype=np.float32)
        self._unwanted = _Rows(query, document, much / mean, count)

    def loss(self, scores: torch.Tensor, queries: Indexes, column: Indexes | None = None) -> torch.Tensor:
        """Mean over ``queries`` (n,) of the cross-entropy of ``scores`` (n, documents), their log-probabilities,
        and of the unlikelihood of what is unwanted (Welleck et al. 2020, "Neural Text Generation with Unlikelihood
        Training"): it is pushed down as far as it is found.

        ``column`` maps a document to its column where the columns are not the whole corpus.
        """
        found, weight = self._wanted.picked(scores, queries, column)
        loss = -(found * weight).sum()
        if len(self._unwanted):
            found, weight = self._unwanted.picked(scores, queries, column)
            loss = loss - (_log_of_the_rest(found) * weight).sum()
        return loss / len(queries)


def _log_of_the_rest(found: torch.Tensor) -> torch.Tensor:
    """log(1 - p) of log-probabilities, whose gradient stays that of a document at SURE beyond it."""
    within = found - (found - SURE).clamp(min=0.0).detach()
    return torch.log(-torch.expm1(within))


class _Rows:
    """Documents of queries, each with a weight; ordered by query."""

    def __init__(self, query: Indexes, document: Indexes, weight: NDArray[np.float32], queries: int) -> None:
        self._document, self._weight = document, weight
        self._first = np.searchsorted(query, np.arange(queries + 1))

    def __len__(self) -> int:
        return len(self._document)

    def picked(
        self, scores: torch.Tensor, queries: Indexes, column: Indexes | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows,) the scores of these queries' documents, and their weights."""
        counts = self._first[queries + 1] - self._first[queries]
        at = np.repeat(np.arange(len(queries)), counts)
        rows = np.concatenate([np.arange(self._first[q], self._first[q + 1]) for q in queries])
        document = self._document[rows] if column is None else column[self._document[rows]]
        picked = scores[torch.from_numpy(at), torch.from_numpy(document)]
        return picked, torch.from_numpy(self._weight[rows]).to(scores)


class Negatives:
    """The documents that a clicked one must beat: the whole corpus, or, of a large one, a part worth looking at.

    That part is all documents that feedback names, those nearest to the queries under the parent, and a random
    sample.
    """

    def __init__(
        self, documents: Vectors, clicks: Clicks, start: Vectors, seed: int, device: torch.device | None = None
    ) -> None:
        self.column: Indexes | None = None
        if len(documents) > WHOLE_CORPUS:
            chosen = _worth_looking_at(documents, clicks, start, seed)
            self.column = np.full(len(documents), -1, dtype=np.int64)
            self.column[chosen] = np.arange(len(chosen))
            documents = documents[chosen]
        self.vectors = torch.from_numpy(np.ascontiguousarray(documents)).to(device or "cpu")

    def scores(self, queries: torch.Tensor) -> torch.Tensor:
        """(n, negatives) log-probabilities."""
        return F.log_softmax(SCALE * queries @ self.vectors.T, dim=1)


class SampledNegatives:
    """A fresh random sample of documents for each step. Enough where what is wanted is known for certain."""

    def __init__(self, documents: Vectors, seed: int) -> None:
        self._documents = documents
        self._rng = np.random.default_rng(seed)

    def loss(self, queries: torch.Tensor, wanted: Indexes) -> torch.Tensor:
        """Mean cross-entropy where query i wants document ``wanted[i]``."""
        count = len(self._documents)
        others = self._rng.choice(count, size=min(SAMPLED, count), replace=False)
        chosen, column = np.unique(np.concatenate([wanted, others]), return_inverse=True)
        documents = torch.from_numpy(self._documents[chosen]).to(queries)
        scores = SCALE * queries @ documents.T
        return F.cross_entropy(scores, torch.from_numpy(column[: len(wanted)]).to(scores.device))


def _worth_looking_at(documents: Vectors, clicks: Clicks, start: Vectors, seed: int) -> Indexes:
    rng = np.random.default_rng(seed)
    near: set[int] = set()
    rows = max(1, min(_BLOCK, _CELLS // len(documents)))
    for block in range(0, len(start), rows):
        scores = start[block : block + rows] @ documents.T
        near.update(np.argpartition(-scores, NEAREST, axis=1)[:, :NEAREST].ravel().tolist())
        if len(near) > WHOLE_CORPUS // 2:
            break
    near.update(clicks.document.tolist())
    for documents_of in clicks.unwanted.values():
        near.update(documents_of)
    others = max(WHOLE_CORPUS - len(near), 0)
    near.update(rng.choice(len(documents), size=min(others, len(documents)), replace=False).tolist())
    return np.asarray(sorted(near), dtype=np.int64)
