"""Rung 3: both towers, a new space. Minutes on a CPU; the documents are encoded anew afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from sentence_transformers import SentenceTransformer

from clickloop.events import VersionKind
from trainer.belief import believed
from trainer.dataset import Clicks, joined
from trainer.methods.base import Job, Progress, Trained
from trainer.methods.targets import Indexes
from trainer.methods.towers import Course, embed, set_rate
from trainer.model import Vectors


@dataclass(frozen=True)
class FullMethod:
    """Contrastive training, in both directions, on (query, clicked document) and (piece, its document).

    Both towers can learn anything by heart, mistaken clicks too, so only pairs that are believed take part.
    What a document must beat are the others of its batch; half of each batch are neighbours of one another under
    the parent, so that there are hard ones among them (Hofstätter et al. 2021, "Topic-aware sampling").
    """

    kind: VersionKind = "full"
    moments: int = 1
    epochs: int = 2
    batch: int = 32
    learning_rate: float = 5e-5
    scale: float = 20.0
    domain_share: float = 0.5
    most_tokens: int = 128
    """Of a document, in training only: its beginning tells it apart, at half the time."""

    def train(self, job: Job) -> Trained:
        torch.manual_seed(job.seed)
        encoder = copy.deepcopy(job.parent.document_encoder).eval().requires_grad_(True)
        longest = encoder.max_seq_length
        encoder.max_seq_length = min(longest or self.most_tokens, self.most_tokens)
        rng = np.random.default_rng(job.seed)
        count = len(job.domain.queries)
        pieces = job.domain.of_queries(rng.permutation(count)[: round(self.domain_share * count)])
        clicks = believed(job.clicks, job.parent.searched_with(job.clicks.vectors), job.corpus.vectors)
        steps = self._descend(job, encoder, joined(clicks, pieces), rng)
        encoder.max_seq_length = longest
        return Trained(encoder=encoder, new_space=True, steps=steps)

    def _descend(self, job: Job, encoder: SentenceTransformer, rows: Clicks, rng: np.random.Generator) -> int:
        texts = [document.text for document in job.corpus.documents]
        weight = torch.from_numpy(rows.evidence / max(float(rows.evidence.mean()), 1e-12)).to(encoder.device)
        parameters = list(encoder.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.01)
        course = Course(self.epochs * -(-len(rows) // self.batch), job.seconds_left)
        step = seen = 0
        while not course.over(step):
            for batch in neighbourly_batches(job.corpus.vectors[rows.document], self.batch, rng):
                set_rate(optimizer, self.learning_rate * course.factor(step))
                query, document = rows.query[batch], rows.document[batch]
                asked = embed(encoder, [rows.queries[i] for i in query])
                found = embed(encoder, [texts[i] for i in document])
                loss = self._loss(asked, found, query, document, weight[torch.from_numpy(batch).to(weight.device)])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                step, seen = step + 1, seen + len(batch)
                job.report(Progress("training", step, course.steps, loss.item(), seen))
                if course.over(step):
                    break
        return step

    def _loss(
        self, asked: torch.Tensor, found: torch.Tensor, query: Indexes, document: Indexes, weight: torch.Tensor
    ) -> torch.Tensor:
        """A pair that shares its query or its document with another is no negative for it."""
        same = (document[:, None] == document[None, :]) | (query[:, None] == query[None, :])
        np.fill_diagonal(same, False)
        scores = (self.scale * asked @ found.T).masked_fill(torch.from_numpy(same).to(asked.device), -1e4)
        truth = torch.arange(len(query), device=scores.device)
        both = F.cross_entropy(scores, truth, reduction="none") + F.cross_entropy(
            scores.T, truth, reduction="none"
        )
        return 0.5 * (both * weight).mean()


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
