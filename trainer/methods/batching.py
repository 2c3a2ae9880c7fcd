"""How an epoch's pairs fall into batches: what is in one is a negative for the rest of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from trainer.dataset import Clicks, Indexes
from trainer.model import Vectors

NO_DOMAIN = 0


def neighbourly_batches(vectors: Vectors, size: int, rng: np.random.Generator) -> Iterator[Indexes]:
    """Every row of ``vectors`` (n, dim) once; half of each batch lies near its first row, the rest anywhere."""
    unused = rng.permutation(len(vectors))
    while len(unused):
        first, others = unused[0], unused[1:]
        wanted = min(size // 2, len(others))
        nearest = np.argsort(-(vectors[others] @ vectors[first]), kind="stable")[:wanted]
        rest = np.setdiff1d(np.arange(len(others)), nearest)[: size - 1 - wanted]
        taken = np.concatenate([nearest, rest])
        yield np.concatenate([[first], others[taken]]).astype(np.int64)
        unused = np.delete(others, taken)


def batches_by_domain(vectors: Vectors, domain: Indexes, size: int, rng: np.random.Generator) -> Iterator[Indexes]:
    """The same, each batch of one ``domain`` (n,), in random order: a domain comes as often as it is large."""
    found: list[Indexes] = []
    for number in np.unique(domain):
        rows = np.flatnonzero(domain == number)
        found += [rows[batch] for batch in neighbourly_batches(vectors[rows], size, rng)]
    for number in rng.permutation(len(found)):
        yield found[number]


def batch_count(domain: Indexes, size: int) -> int:
    """How many batches those are."""
    return int((-(-np.bincount(domain) // size)).sum())


def domains_of(rows: Clicks, clicks: Clicks) -> Indexes:
    """(rows,) numbers of the rows' domains, NO_DOMAIN for those of none.

    ``rows`` begin with the queries of ``clicks``, which have their own domains; of several the first by name. Any
    other row, such as a piece of a document, is of the domain that most clicks on its document are of.
    """
    domains = clicks.slices.domains()
    named = [domains.get(query, "") for query in range(len(clicks.queries))]
    number = {name: i for i, name in enumerate(sorted({"", *named}), start=NO_DOMAIN)}
    of_query = np.asarray([number[name] for name in named], dtype=np.int64)
    on_document: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for query, document in zip(clicks.query.tolist(), clicks.document.tolist(), strict=True):
        on_document[document][int(of_query[query])] += 1
    of_document = {document: max(sorted(count), key=count.__getitem__) for document, count in on_document.items()}
    found = np.asarray([of_document.get(document, NO_DOMAIN) for document in rows.document.tolist()], np.int64)
    own = rows.query < len(clicks.queries)
    found[own] = of_query[rows.query[own]]
    return found
