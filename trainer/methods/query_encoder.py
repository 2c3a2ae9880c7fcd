"""Rung 2: the query encoder's upper layers, against frozen document vectors. No re-index. A minute or so.

The clicks are few and partly wrong, so the pieces of documents (trainer/domain.py) are trained on with them, and
the parent's answers are distilled. The linear map is trained along as the encoder's last layer: the parent's, or,
where it has none, the one that the adapter rung would make.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from sentence_transformers import SentenceTransformer

from clickloop.events import VersionKind
from trainer.dataset import Clicks, joined
from trainer.methods import losses
from trainer.methods.adapter import AdapterMethod, between
from trainer.methods.base import Job, Trained
from trainer.methods.descent import Indexes, descend
from trainer.methods.spread import layers_of
from trainer.methods.targets import Negatives, Targets
from trainer.methods.towers import batches, draw_back
from trainer.model import Adapter


@dataclass(frozen=True)
class QueryEncoderMethod:
    kind: VersionKind = "query_encoder"
    moments: int = 2
    epochs: int = 2
    batch: int = 64
    learning_rate: float = 2e-4
    distillation: float = 0.1
    layers: int = 2
    domain_share: float = 0.2
    """Part of the documents' pieces that is trained on; all of them take more than twice the time for little."""
    share: float = 0.6
    """How far to go from the parent's weights to the trained ones."""
    head: AdapterMethod = field(default_factory=AdapterMethod)

    def train(self, job: Job) -> Trained:
        torch.manual_seed(job.seed)
        head = Trained(adapter=job.parent.adapter) if job.parent.adapter else self.head.train(job)
        start = head.adapter or Adapter.identity(job.clicks.vectors.shape[1])
        encoder = copy.deepcopy(job.parent.query_encoder).eval()
        trained = self._descend(job, encoder, start, joined(job.clicks, self._pieces(job)))
        # Each moment starts anew: to go on from an earlier one is to learn its clicks' mistakes by heart.
        draw_back(encoder, job.parent.query_encoder, self.share)
        end = trained.adapter or start
        return replace(trained, adapter=between(start, end, self.share), notes=head.notes | trained.notes)

    def _pieces(self, job: Job) -> Clicks:
        count = len(job.domain.queries)
        rng = np.random.default_rng(job.seed)
        return job.domain.of_queries(rng.permutation(count)[: round(self.domain_share * count)])

    def _descend(self, job: Job, encoder: SentenceTransformer, start: Adapter, clicks: Clicks) -> Trained:
        device = encoder.device
        weight = torch.from_numpy(start.weight).clone().to(device).requires_grad_()
        bias = torch.from_numpy(start.bias).clone().to(device).requires_grad_()
        targets = Targets(clicks)
        before = start.apply(clicks.vectors)
        negatives = Negatives(job.corpus.vectors, clicks, before, job.seed, device)
        expected = torch.from_numpy(before).to(device)

        def loss(rows: Indexes) -> torch.Tensor:
            scores = negatives.scores(F.normalize(upper.embed(rows) @ weight.T + bias, dim=1))
            with torch.no_grad():
                old = negatives.scores(expected[rows])
            kept = losses.distillation(scores, old)
            return targets.loss(scores, rows, negatives.column) + self.distillation * kept

        texts = clicks.queries
        with layers_of(encoder, texts, self.layers, ranks=job.ranks, on_text=job.preparing) as upper:
            optimizer = torch.optim.AdamW(upper.parameters, weight_decay=0.01)
            optimizer.add_param_group({"params": [weight, bias], "weight_decay": 0.0})
            descended = descend(
                job,
                optimizer,
                lambda epoch: batches(clicks.queries, self.batch, np.random.default_rng([job.seed, epoch])),
                loss,
                steps=self.epochs * -(-len(clicks.queries) // self.batch),
                learning_rate=self.learning_rate,
                layers=upper,
                identity=[self, start.weight.tobytes(), start.bias.tobytes(), *clicks.facts()],
            )
        adapter = Adapter(weight.detach().cpu().numpy(), bias.detach().cpu().numpy())
        return Trained(encoder=encoder, adapter=adapter, steps=descended.steps, notes=descended.notes)
