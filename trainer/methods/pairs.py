"""What both towers are trained on: the texts, each by a number, and one epoch's pairs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from trainer.dataset import Clicks, Corpus, Floats, Indexes


class Texts:
    """The documents that are clicked, or spoken ``against``, by their numbers in the corpus, and after them the
    queries. ``unwanted`` has those that are spoken against, by query."""

    def __init__(
        self, corpus: Corpus, clicks: Sequence[Clicks], *, against: Mapping[int, Mapping[int, float]]
    ) -> None:
        named = np.asarray([document for of_it in against.values() for document in of_it], dtype=np.int64)
        self.documents: Indexes = np.unique(np.concatenate([*(part.document for part in clicks), named]))
        """(documents,) numbers in the corpus, ascending"""
        self.unwanted = {query: np.searchsorted(self.documents, list(of_it)) for query, of_it in against.items()}
        queries = [query for part in clicks for query in part.queries]
        self.all = [corpus.documents[i].text for i in self.documents] + queries
        self._number = {text: len(self.documents) + i for i, text in enumerate(queries)}

    def asked(self, clicks: Clicks) -> Indexes:
        """(rows,) numbers of the rows' queries."""
        return np.asarray([self._number[query] for query in clicks.queries], dtype=np.int64)[clicks.query]

    def found(self, clicks: Clicks) -> Indexes:
        """(rows,) numbers of the rows' documents."""
        return np.searchsorted(self.documents, clicks.document)


@dataclass(frozen=True)
class Pairs:
    """One epoch's, by numbers of texts."""

    clicks: Clicks
    asked: Indexes
    """(rows,)"""
    found: Indexes
    """(rows,)"""
    hard: Indexes
    """(rows, count) negatives of each row alone, -1 where there are fewer"""

    @cached_property
    def weight(self) -> Floats:
        """(rows,) how much is made of each, with a mean of 1"""
        taught = self.clicks.taught
        return np.asarray(taught / max(float(taught.mean()), 1e-12))

    def texts(self, batch: Indexes) -> Indexes:
        """All that a batch of rows embeds: queries, documents, hard negatives."""
        own = np.maximum(self.hard[batch].ravel(), 0)
        return np.concatenate([self.asked[batch], self.found[batch], own])

    def same(self, batch: Indexes) -> torch.Tensor:
        """(n, n): a pair that shares its query or its document with another is no negative for it."""
        query, document = self.clicks.query[batch], self.clicks.document[batch]
        same = (document[:, None] == document[None, :]) | (query[:, None] == query[None, :])
        np.fill_diagonal(same, False)
        return torch.from_numpy(same)
