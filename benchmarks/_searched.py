"""A search node's own index over a world, asked as people ask it: dense alone, or fused with BM25."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks._recorded import World
from search.index import Document, Question
from search.index.edge import EdgeIndex
from search.settings import DENSE_WEIGHT
from trainer.examples import document_of
from trainer.model import Model, Vectors
from trainer.rung import Ladder
from trainer.truth import DEPTH

PART = 500
"""Documents that are put into the index at once."""


@dataclass
class Searched:
    """The world's documents with one version's ``vectors``, in ``folder`` while inside."""

    world: World
    model: Model
    vectors: Vectors
    folder: Path
    _index: EdgeIndex = field(init=False)

    async def __aenter__(self) -> Searched:
        documents = [Document(one.doc_id, one.title, one.text) for one in self.world.documents]
        self._index = EdgeIndex(self.folder)
        await self._index.open()
        await self._index.add_space(self.model.space, self.vectors.shape[1])
        for start in range(0, len(documents), PART):
            part = documents[start : start + PART]
            rows = {document.digest: self.vectors[start + number] for number, document in enumerate(part)}
            await self._index.upsert(part, {self.model.space: rows})
        await self._index.optimize()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._index.close()

    async def top(
        self,
        texts: Sequence[str],
        asked: Vectors,
        *,
        mode: Literal["dense", "hybrid"] = "hybrid",
        dense_weight: float = DENSE_WEIGHT,
    ) -> NDArray[np.int64]:
        """(texts, DEPTH) numbers of the documents that each of them finds, best first; -1 where there are fewer.

        ``asked`` (texts, dim) are its vectors.
        """
        place = {one.doc_id: number for number, one in enumerate(self.world.documents)}
        found = np.full((len(texts), DEPTH), -1, dtype=np.int64)
        for number, (text, vector) in enumerate(zip(texts, asked, strict=True)):
            question = Question(text, vector, self.model.space, DEPTH, mode, dense_weight=dense_weight)
            hits = [place[hit.doc_id] for hit in await self._index.search(question)]
            found[number, : len(hits)] = hits
        return found


def hybrid_top(
    ladder: Ladder, version: str, world: World, texts: Sequence[str], folder: Path
) -> NDArray[np.int64]:
    """What a search node with this version shows for each text by default."""

    async def asked() -> NDArray[np.int64]:
        async with Searched(world, model, vectors, folder) as searched:
            return await searched.top(texts, model.encode_queries(list(texts)))

    documents = [document_of(one) for one in world.documents]
    model, vectors = ladder.loader.searched(version, documents, on_text=lambda *_: None)
    return asyncio.run(asked())
