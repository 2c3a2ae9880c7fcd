"""BM25 as sparse vectors: term weights here, inverse document frequencies inside Qdrant.

Both implementations of the index use it, so that they rank alike (Robertson and Zaragoza 2009; k1 1.2, b 0.75).
"""

from __future__ import annotations

import qdrant_edge

Sparse = tuple[list[int], list[float]]

AVERAGE_LENGTH = 128.0
"""Tokens of a typical document. It only shapes the length normalisation, and must be the same everywhere."""

_model = qdrant_edge.Bm25(qdrant_edge.Bm25Config(avg_len=AVERAGE_LENGTH))


def document_terms(text: str) -> Sparse:
    """Indices and weights of a document's terms."""
    sparse = _model.embed_document(text)
    return list(sparse.indices), list(sparse.values)


def query_terms(text: str) -> Sparse:
    """Indices and weights (1.0) of a query's terms; empty where it has stop words only."""
    sparse = _model.embed_query(text)
    return list(sparse.indices), list(sparse.values)
