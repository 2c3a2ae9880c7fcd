"""What both towers are trained for on a batch of pairs: the losses that ``full_loss`` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from clickloop.errors import SettingsError
from trainer.dataset import Indexes
from trainer.methods import losses
from trainer.methods.pairs import Pairs
from trainer.methods.upper_layers import Layers
from trainer.rung_settings import FullLoss

MARGIN = 0.2
"""Cosine by which a wanted document must lead. Wider ones ask for more than near documents have between them."""


@dataclass(frozen=True)
class Batch:
    """Pairs of a query and its document, and what is known of each."""

    asked: Tensor
    """(n, dim), of length 1"""
    found: Tensor
    """(n, dim), of length 1"""
    same: Tensor
    """(n, n) bool: pairs that are no negatives for one another"""
    weight: Tensor
    """(n,) with a mean of 1 over an epoch: how much a pair counts"""
    strength: Tensor
    """(n,) in [0, 1]: how far the pair's document is wanted"""
    hard: Tensor | None = None
    """(n, count, dim) negatives of each query alone; rows of zeros are none"""


Objective = Callable[[Batch], Tensor]


def ranking(batch: Batch, scale: float, *, both_ways: bool) -> Tensor:
    return losses.ranking(
        batch.asked,
        batch.found,
        scale=scale,
        same=batch.same,
        weight=batch.weight,
        hard=batch.hard,
        both_ways=both_ways,
    )


def triplet(batch: Batch, _: float) -> Tensor:
    """Each query's document must lead its hardest negative by MARGIN (batch hard, Hermans et al. 2017). A query
    without any counts nothing."""
    other, there = losses.hardest(batch.asked, batch.found, same=batch.same, hard=batch.hard)
    return losses.triplet(batch.asked, batch.found, other, margin=MARGIN, weight=batch.weight * there)


def cosine_similarity(batch: Batch, _: float) -> Tensor:
    """Each pair's cosine is drawn to its strength, and, with as much say in all, those of queries with their
    negatives to 0.

    Sentence-BERT (Reimers and Gurevych 2019) takes scored pairs of all degrees. Clicks score wanted documents
    alone, and one vector for everything would please them; so the batch's others are the pairs that score 0. A
    pair's strength is its target and no weight beside it, else a weak pair would say little of being weak.
    """
    wanted = losses.cosine_similarity(batch.asked, batch.found, batch.strength)
    scores, there = losses.negatives(batch.asked, batch.found, same=batch.same, hard=batch.hard)
    return 0.5 * (wanted + (there * scores**2).sum() / there.sum().clamp(min=1))


LOSSES: Mapping[FullLoss, Callable[[Batch, float], Tensor]] = MappingProxyType(
    {
        "both_ways": partial(ranking, both_ways=True),
        "query_to_document": partial(ranking, both_ways=False),
        "triplet": triplet,
        "cosine_similarity": cosine_similarity,
    }
)
"""By the setting's words; each takes a batch and the scale of cosines in a softmax, where it has one."""


def objective(loss: FullLoss, *, scale: float, dimensions: Sequence[int] = ()) -> Objective:
    """The loss, or the sum of it over the vectors' first ``dimensions``."""

    def of_whole(batch: Batch) -> Tensor:
        return LOSSES[loss](batch, scale)

    if not dimensions:
        return of_whole

    def of_each(batch: Batch) -> Tensor:
        vectors = [batch.asked, batch.found, *([] if batch.hard is None else [batch.hard])]

        def of_cut(cut: Sequence[Tensor]) -> Tensor:
            return of_whole(replace(batch, asked=cut[0], found=cut[1], hard=cut[2] if len(cut) > 2 else None))

        return losses.matryoshka(of_cut, vectors, dimensions)

    return of_each


def distilled(batch: Batch, lead: Tensor, *, scale: float) -> Tensor:
    """``scale`` times the squared error of each document's lead over its query's first hard negative against the
    teacher's (n,), so that it has a say beside a ranking whose cosines are scaled so. Rows without a hard negative
    count nothing."""
    if batch.hard is None:
        return torch.zeros_like(lead).sum()
    first = batch.hard[:, 0]
    weight = batch.weight * first.any(dim=1)
    return scale * losses.margin_distillation(batch.asked, batch.found, first, lead, weight)


def batch_of(pairs: Pairs, rows: Indexes, vectors: Tensor) -> Batch:
    """``vectors`` are those of ``pairs.texts(rows)``."""
    size, device = len(rows), vectors.device
    hard = None
    if pairs.hard.size:
        there = torch.from_numpy(pairs.hard[rows] >= 0).to(device)
        hard = vectors[2 * size :].view(size, pairs.hard.shape[1], -1) * there[:, :, None]
    return Batch(
        vectors[:size],
        vectors[size : 2 * size],
        same=pairs.same(rows).to(device),
        weight=torch.from_numpy(pairs.weight[rows]).to(device),
        strength=torch.from_numpy(pairs.clicks.evidence[rows]).to(device).clamp(0.0, 1.0),
        hard=hard,
    )


def embedded(layers: Layers, rows: Indexes, loss_of: Callable[[Tensor], Tensor], *, at_once: int) -> Tensor:
    """``loss_of`` the vectors (n, dim) of ``rows``, with the graphs of at most ``at_once`` texts in memory (0: of
    all). In parts each text is embedded twice."""
    distinct, place = np.unique(rows, return_inverse=True)
    if not at_once or len(distinct) <= at_once:
        return loss_of(layers.embed(rows))
    of_row = torch.from_numpy(place)
    return losses.cached(
        lambda first, last: layers.embed(distinct[first:last]),
        len(distinct),
        lambda vectors: loss_of(vectors[of_row.to(vectors.device)]),
        at_once=at_once,
    )


def check_dimensions(dimensions: Sequence[int], encoder: SentenceTransformer) -> None:
    """Raises SettingsError where the encoder has fewer."""
    has = int(encoder.get_embedding_dimension() or 0)
    if dimensions and max(dimensions) > has:
        named = ",".join(map(str, dimensions))
        raise SettingsError(f"setting full_matryoshka: the model's vectors have {has} dimensions (got {named!r})")
