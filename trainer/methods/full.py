"""Rung 3: both towers, a new space. Minutes on a CPU; the documents are encoded anew afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from clickloop.errors import TrainingError
from clickloop.events import VersionKind
from trainer.belief import believed
from trainer.dataset import Clicks, Corpus, Indexes, joined
from trainer.methods.adapter import AdapterMethod, doubted
from trainer.methods.base import Job, Notes, Parent, Progress, Trained
from trainer.methods.batching import batch_count, batches_by_domain, domains_of, neighbourly_batches
from trainer.methods.descent import Descended, descend
from trainer.methods.early_stopping import EarlyStopping, Ranking, set_apart
from trainer.methods.mining import mined
from trainer.methods.objectives import batch_of, check_dimensions, distilled, embedded, objective
from trainer.methods.pairs import Pairs, Texts
from trainer.methods.soup import mean_of_seeds
from trainer.methods.spread import layers_of
from trainer.methods.teacher import leads, teacher_of
from trainer.methods.towers import draw_back
from trainer.methods.upper_layers import trained_layers
from trainer.model import Vectors, encode
from trainer.rung_settings import FullLoss

HEAD_POWER = 0.25
"""Of the whitening on top: ranking against a batch has evened out the new space's directions already."""
HEADROOM = 1.25
"""Times the expected seconds that are kept for encoding what was trained, and for the map on top."""


@dataclass(frozen=True)
class FullMethod:
    """Contrastive training, in both directions, on (query, clicked document) and (piece, its document).

    Both towers can learn anything by heart, mistaken clicks too. So only pairs that are believed take part, every
    epoch has other pieces of documents, and the weights end between the parent's and the trained ones (Wortsman
    et al. 2022). The adapter rung then fits a map on the queries to the new space, with the whole corpus to beat.

    What a document must beat before that are the others of its batch; half of each batch are neighbours of one
    another under the parent, so that there are hard ones among them (Hofstätter et al. 2021, "Topic-aware
    sampling").
    """

    kind: VersionKind = "full"
    moments: int = 1
    epochs: int = 5
    batch: int = 32
    cached_batch: int = 0
    """Texts of a batch whose graphs are in memory at once (GradCache, Gao et al. 2021); 0 holds all."""
    domain_batches: bool = False
    """Each batch of one domain, as the clicks name them, so that the negatives are of it as well."""
    accumulate: int = 1
    """Batches whose gradients are added up before a step."""
    learning_rate: float = 1.2e-4
    scale: float = 20.0
    loss: FullLoss = "both_ways"
    matryoshka: tuple[int, ...] = ()
    """Dimensions that the loss is summed over, the vectors' first ones; empty takes the whole vectors."""
    domain_share: float = 0.15
    """Part of the documents' pieces that one epoch trains on: clicks that are seen more often teach more."""
    seeds: int = 1
    """Trainings, each from a seed of its own, whose weights' mean is taken (soup.py)."""
    patience: int = 0
    """Epochs without a better one after which training ends (early_stopping.py); 0 does them all."""
    share: float = 0.7
    """How far to go from the parent's weights to the trained ones."""
    depth: float = 2 / 3
    """Share of the encoder's layers that are trained, the upper ones. All learn no more, at half the pace."""
    most_tokens: int = 256
    """Of a document, in training only. With half of that a training takes less time and gains less."""
    doubts: bool = True
    """Learn only from clicks with which others on their query agree, as far as they do (trainer/belief.py)."""
    teacher: str = ""
    """A larger model whose leads of documents over hard negatives are learnt as well (teacher.py)."""
    hard_negatives: int = 0
    """Of each query, mined anew in each epoch; 0 is none, or one where there is a teacher."""
    head_domain_share: float = 0.5
    """Part of the pieces that the map on the queries learns from: there they cost next to nothing."""
    head: AdapterMethod | None = field(default_factory=AdapterMethod)
    """None leaves the queries without a map, as the documents are."""

    def train(self, job: Job) -> Trained:
        check_dimensions(self.matryoshka, job.parent.document_encoder)
        clicks = job.clicks
        if self.doubts and not job.given:
            clicks = believed(clicks, job.parent.searched_with(clicks.vectors), job.corpus.vectors)
        encoder, descended = mean_of_seeds(
            self._until_encoding(job), self.seeds, lambda one: self._of_one_seed(one, clicks)
        )
        draw_back(encoder, job.parent.document_encoder, self.share)
        documents = _encoded(job, encoder, [document.text for document in job.corpus.documents])
        head = self._fit_head(self.head, job, encoder, documents) if self.head else Trained()
        return Trained(
            encoder=encoder,
            adapter=head.adapter,
            new_space=True,
            documents=documents,
            steps=descended.steps,
            notes=head.notes | descended.notes,
        )

    def _of_one_seed(self, job: Job, clicks: Clicks) -> tuple[SentenceTransformer, Descended]:
        torch.manual_seed(job.seed)
        encoder = copy.deepcopy(job.parent.document_encoder).eval().requires_grad_(True)
        longest = encoder.max_seq_length
        encoder.max_seq_length = min(longest or self.most_tokens, self.most_tokens)
        descended = self._descend(job, encoder, clicks)
        encoder.max_seq_length = longest
        return encoder.requires_grad_(False), descended

    def _until_encoding(self, job: Job) -> Job:
        """The job without the time that encoding takes afterwards. Raises TrainingError where no more is left."""
        documents = [document.text for document in job.corpus.documents]
        pieces = _part(job.domain, self.head_domain_share, job.seed, 0).queries
        for_head = [*pieces, *job.clicks.queries] if self.head else []
        expected = job.seconds_to_encode([*documents, *for_head])
        left, kept = job.seconds_left(), HEADROOM * expected
        if left <= kept:
            raise TrainingError(
                f"{max(left, 0.0):.0f} s of the budget are left for {self.kind}, and to encode {len(documents):,} "
                f"documents anew afterwards takes about {expected:.0f} s: there is no time to train"
            )
        return replace(job, seconds_left=lambda: job.seconds_left() - kept)

    def _fit_head(
        self, head: AdapterMethod, job: Job, encoder: SentenceTransformer, documents: Vectors
    ) -> Trained:
        """The adapter rung, in the new space.

        How far clicks are believed is told in the parent's: this one has learnt them, mistaken ones too.
        """
        domain = _part(job.domain, self.head_domain_share, job.seed, 0)
        clicks = doubted(job) if head.doubts else job.clicks
        return replace(head, power=HEAD_POWER, doubts=False).train(
            replace(
                job,
                parent=Parent(job.parent.version, encoder, None, encoder),
                clicks=replace(clicks, vectors=_encoded(job, encoder, job.clicks.queries)),
                domain=replace(domain, vectors=_encoded(job, encoder, domain.queries)),
                corpus=Corpus(job.corpus.documents, documents),
                earlier=Trained(),
            )
        )

    def _descend(self, job: Job, encoder: SentenceTransformer, clicks: Clicks) -> Descended:
        clicks, apart = set_apart(clicks) if self.patience else (clicks, clicks.of_queries([]))
        mining = max(self.hard_negatives, 1 if self.teacher else 0)
        texts = Texts(job.corpus, [clicks, job.domain, apart], against=clicks.unwanted if mining else {})
        loss_of = objective(self.loss, scale=self.scale, dimensions=self.matryoshka)
        pairs: Pairs

        def rows_of(epoch: int) -> tuple[Clicks, Indexes]:
            """The epoch's rows, and the domain whose batches each belongs to."""
            rows = joined(clicks, _part(job.domain, self.domain_share, job.seed, epoch))
            return rows, domains_of(rows, clicks) if self.domain_batches else np.zeros(len(rows), np.int64)

        def batches(epoch: int) -> Iterator[Indexes]:
            nonlocal pairs
            rows, domain = rows_of(epoch)
            asked, found = texts.asked(rows), texts.found(rows)
            hard = np.zeros((len(rows), 0), dtype=np.int64)
            if mining:
                job.report(Progress("training"))
                vectors = upper.vectors()
                documents = vectors[: len(texts.documents)]
                hard = mined(vectors[asked], documents, rows.query, found, count=mining, unwanted=texts.unwanted)
            pairs = Pairs(rows, asked, found, hard)
            rng = np.random.default_rng([job.seed, epoch])
            vectors = job.corpus.vectors[rows.document]
            if self.domain_batches:
                return batches_by_domain(vectors, domain, self.batch, rng)
            return neighbourly_batches(vectors, self.batch, rng)

        def loss(batch: Indexes) -> torch.Tensor:
            lead = torch.from_numpy(leads(teacher, pairs, batch)) if teacher else None

            def of_vectors(vectors: torch.Tensor) -> torch.Tensor:
                given = batch_of(pairs, batch, vectors)
                taught = distilled(given, lead.to(vectors.device), scale=self.scale) if lead is not None else 0.0
                return loss_of(given) + taught

            return embedded(upper, pairs.texts(batch), of_vectors, at_once=self.cached_batch)

        counts = [batch_count(rows_of(epoch)[1], self.batch) for epoch in range(self.epochs)]
        teacher = None
        if self.teacher:
            teacher = teacher_of(self.teacher, texts.all, encoder.device, on_text=job.preparing)
        layers = trained_layers(encoder, self.depth)
        with layers_of(encoder, texts.all, layers, ranks=job.ranks, on_text=job.preparing) as upper:
            stopping = None
            if len(apart):
                asked, wanted = texts.asked(apart), texts.found(apart)
                ranking = Ranking.of(asked, wanted, apart.taught, documents=len(texts.documents), seed=job.seed)
                stopping = EarlyStopping(self.patience, lambda: ranking.reciprocal(upper))
            descended = descend(
                job,
                torch.optim.AdamW(upper.parameters, weight_decay=0.01, fused=True),
                batches,
                loss,
                steps=sum(-(-count // self.accumulate) for count in counts),
                learning_rate=self.learning_rate,
                layers=upper,
                identity=[self, *clicks.facts(), *job.domain.facts(), rows_of(0)[1].tobytes()],
                mining=mining > 0,
                accumulate=self.accumulate,
                stopping=stopping,
            )
        notes: Notes = {"queries_kept_apart": len(apart.queries)} if self.patience else {}
        return replace(descended, notes=descended.notes | notes)


def _part(pieces: Clicks, share: float, seed: int, epoch: int) -> Clicks:
    """The ``share`` of the pieces that is an epoch's turn; all have had theirs before one comes again."""
    order = np.random.default_rng(seed).permutation(len(pieces.queries))
    size = round(share * len(order))
    return pieces.of_queries(np.roll(order, -epoch * size)[:size])


def _encoded(job: Job, encoder: SentenceTransformer, texts: list[str]) -> Vectors:
    """(n, dim) float32, normalised."""
    job.report(Progress("encoding", 0, len(texts)))
    return encode(encoder, texts, on_batch=lambda done: job.report(Progress("encoding", done, len(texts))))
