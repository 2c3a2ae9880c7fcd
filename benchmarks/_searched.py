"""A search node's own index over a world, asked as people ask it: dense alone, or fused with BM25."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks._recorded import World, judged_of, ladder_in
from clickloop.evaluation import Floats, compare
from clickloop.events import Estimate
from search.index import Document, Question
from search.index.edge import EdgeIndex
from search.settings import DENSE_WEIGHT
from trainer.examples import document_of
from trainer.model import Model, Vectors
from trainer.rung import Ladder
from trainer.truth import DEPTH, Truth

SearchedBy = Annotated[Literal["dense", "hybrid"], typer.Option("--search", help="What people are shown.")]
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


def hybrid_top(ladder: Ladder, version: str, world: World, texts: Sequence[str]) -> NDArray[np.int64]:
    """What a search node with this version shows for each text by default."""

    async def asked(folder: str) -> NDArray[np.int64]:
        async with Searched(world, model, vectors, Path(folder)) as searched:
            return await searched.top(texts, model.encode_queries(list(texts)))

    documents = [document_of(one) for one in world.documents]
    model, vectors = ladder.loader.searched(version, documents, on_text=lambda *_: None)
    with tempfile.TemporaryDirectory(prefix="clickloop-searched-") as folder:
        return asyncio.run(asked(folder))


class Fused:
    """Hybrid search over one world, with the versions of the store in ``work``."""

    def __init__(self, world: World, work: Path) -> None:
        self._world = world
        self._ladder = ladder_in(work)
        self._truth = Truth(judged_of(world), [document_of(one) for one in world.documents])
        self._measured: dict[str, dict[str, Floats]] = {}

    def answers(self, version: str = "") -> NDArray[np.int64]:
        """(clicking, 10) what search with a version shows; with none, the base model's."""
        texts = [one.text for one in self._world.clicking]
        return hybrid_top(self._ladder, version or self._ladder.base().version, self._world, texts)

    def change(self, before: str, after: str, metric: str = "mrr_at_10") -> Estimate:
        """What becomes of ``metric`` on the held-out truth from one version to the other."""
        return compare(self._metrics(before)[metric], self._metrics(after)[metric])

    def _metrics(self, version: str) -> dict[str, Floats]:
        if version not in self._measured:
            texts = [one.text for one in self._world.held_out]
            found = hybrid_top(self._ladder, version, self._world, texts)
            self._measured[version] = self._truth.of_top(found)
        return self._measured[version]
