"""Rung 2: the query encoder's upper layers, against frozen document vectors. No re-index. A minute or so.

The layers themselves learn, or, with a ``rank``, low-rank changes of them (LoRA, Hu et al. 2021): a version
then has less than 1 MB, and the next one goes on from its changes.

The clicks are few and partly wrong, so the pieces of documents (trainer/domain.py) are trained on with them, and
the parent's answers are distilled. The linear map is trained along as the encoder's last layer: the parent's, or,
where it has none, the one that the adapter rung would make.

As an adapter does (adapter.py), a run that learns a sample of older examples again does not go on from a parent of
this rung, and so does not drift: its layers learn anew from the space's encoder, and it goes half-way there.
Low-rank changes are gone on from, for the mean of two such is none.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from sentence_transformers import SentenceTransformer

from clickloop.events import VersionKind
from clickloop.lora import LoraConfig
from trainer.dataset import Clicks, joined
from trainer.methods import losses
from trainer.methods.adapter import ANEW_FROM, STEP, AdapterMethod, between, doubted
from trainer.methods.base import Job, Parent, Trained
from trainer.methods.descent import Indexes, descend
from trainer.methods.spread import layers_of
from trainer.methods.targets import Negatives, Targets
from trainer.methods.towers import batches, draw_back
from trainer.methods.upper_layers import Factors, low_rank_of
from trainer.model import Adapter, LowRank, encode

LOW_RANK_PACE = 5.0
"""Changes of layers learn at so many times the layers' own rate: a product of two small matrices moves less."""


@dataclass(frozen=True)
class QueryEncoderMethod:
    kind: VersionKind = "query_encoder"
    moments: int = 2
    epochs: int = 2
    batch: int = 64
    learning_rate: float = 2e-4
    distillation: float = 0.1
    layers: int = 2
    rank: int = 0
    """Of the changes; 0 trains the layers themselves."""
    domain_share: float = 0.2
    """Part of the documents' pieces that is trained on; all of them take more than twice the time for little."""
    share: float = 0.6
    """How far to go from the parent's weights to the trained ones."""
    doubts: bool = True
    """Weigh each click by how far the others on its query agree (trainer/belief.py)."""
    head: AdapterMethod = field(default_factory=AdapterMethod)

    def train(self, job: Job) -> Trained:
        torch.manual_seed(job.seed)
        parent = job.parent
        goes_on = self.rank or job.replayed < ANEW_FROM or parent.query_encoder is parent.document_encoder
        return self._learn(job) if goes_on else half_way(parent, self._learn_anew(job))

    def _learn_anew(self, job: Job) -> Trained:
        """As if the parent was the encoder of its space."""
        encoder, earlier = job.parent.document_encoder, job.earlier.carried
        domain = earlier if isinstance(earlier, Clicks) else encoded(job, encoder, job.domain)
        parent = Parent(job.parent.version, encoder, None, encoder)
        anew = replace(job, parent=parent, clicks=encoded(job, encoder, job.clicks), domain=domain)
        return replace(self._learn(anew), carried=domain)

    def _learn(self, job: Job) -> Trained:
        head = Trained(adapter=job.parent.adapter) if job.parent.adapter else self.head.train(job)
        start = head.adapter or Adapter.identity(job.clicks.vectors.shape[1])
        clicks = doubted(job) if self.doubts else job.clicks
        trained = self._descend(job, start, joined(clicks, self._pieces(job)))
        end = trained.adapter or start
        return replace(trained, adapter=between(start, end, self.share), notes=head.notes | trained.notes)

    def _pieces(self, job: Job) -> Clicks:
        count = len(job.domain.queries)
        rng = np.random.default_rng(job.seed)
        return job.domain.of_queries(rng.permutation(count)[: round(self.domain_share * count)])

    def _begin(self, parent: Parent) -> tuple[SentenceTransformer, LoraConfig | None, Factors | None]:
        """The encoder to begin with, and the changes to make to it and to begin with, if any.

        A parent of such changes is taken up where it was left: changes of changed weights would grow in number.
        """
        if not self.rank:
            return parent.query_encoder, None, None
        low_rank = low_rank_of(parent.query_encoder, self.layers, self.rank)
        if parent.low_rank is not None and parent.low_rank.config == low_rank:
            return parent.low_rank.base, low_rank, parent.low_rank.factors
        return parent.query_encoder, low_rank, None

    def _descend(self, job: Job, start: Adapter, clicks: Clicks) -> Trained:
        base, low_rank, factors = self._begin(job.parent)
        encoder = copy.deepcopy(base).eval()
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
        with layers_of(
            encoder,
            texts,
            self.layers,
            ranks=job.ranks,
            low_rank=low_rank,
            factors=factors,
            on_text=job.preparing,
        ) as upper:
            first = upper.factors()
            pace = LOW_RANK_PACE if low_rank else 1.0
            optimizer = torch.optim.AdamW([{"params": upper.parameters, "pace": pace}], weight_decay=0.01)
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
            last = upper.factors()
        trained = Trained(
            encoder=encoder,
            adapter=Adapter(weight.detach().cpu().numpy(), bias.detach().cpu().numpy()),
            steps=descended.steps,
            notes=descended.notes,
        )
        # Each moment starts anew: to go on from an earlier one is to learn its clicks' mistakes by heart.
        if low_rank is None:
            draw_back(encoder, base, self.share)
            return trained
        drawn = {name: first[name] + self.share * (last[name] - first[name]) for name in first}
        changed = LowRank(base, low_rank, {name: factor.cpu() for name, factor in drawn.items()})
        return replace(trained, encoder=changed.merged(), low_rank=changed)


def encoded(job: Job, encoder: SentenceTransformer, clicks: Clicks) -> Clicks:
    """With ``encoder``'s vectors of its queries. Raises TrainingError where the time is up before."""
    texts = clicks.queries
    return replace(clicks, vectors=encode(encoder, texts, on_batch=lambda done: job.preparing(done, len(texts))))


def half_way(parent: Parent, learnt: Trained) -> Trained:
    """Between the parent and what was learnt anew, in all weights."""
    if learnt.encoder is None or learnt.adapter is None:
        return learnt
    draw_back(learnt.encoder, parent.query_encoder, STEP)
    adapter = between(parent.adapter, learnt.adapter, STEP) if parent.adapter else learnt.adapter
    return replace(learnt, adapter=adapter, notes=learnt.notes | {"step": STEP})
