"""Losses, as functions of vectors and scores. Each is checked against sentence-transformers' in the tests.

Vectors are (n, dim), of length 1, so that a product is a cosine. ``weight`` (n,) says how much a row counts: trust
in the click, times the strength of a preference; the mean of the weights should be 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

Rows = Tensor | None
OUT = -1e4
"""Score of a document that must not be a negative."""


def ranking(
    asked: Tensor,
    found: Tensor,
    *,
    scale: float,
    same: Tensor | None = None,
    weight: Rows = None,
    hard: Tensor | None = None,
    both_ways: bool = True,
) -> Tensor:
    """Multiple negatives ranking (van den Oord et al. 2018; Henderson et al. 2017): each query must find its own
    document among the batch's, and with ``both_ways`` each document its query.

    ``same`` (n, n) marks pairs that are no negatives for one another. ``hard`` (n, count, dim) are negatives of
    each query alone; rows of zeros are none.
    """
    scores = scale * asked @ found.T
    if same is not None:
        scores = scores.masked_fill(same, OUT)
    truth = torch.arange(len(asked), device=scores.device)
    with_hard = scores
    if hard is not None:
        own = scale * torch.einsum("nd,ncd->nc", asked, hard)
        with_hard = torch.cat([scores, own.masked_fill(~hard.any(dim=2), OUT)], dim=1)
    rows = F.cross_entropy(with_hard, truth, reduction="none")
    if both_ways:
        rows = 0.5 * (rows + F.cross_entropy(scores.T, truth, reduction="none"))
    return mean(rows, weight)


def cosine_similarity(asked: Tensor, found: Tensor, wanted: Tensor, weight: Rows = None) -> Tensor:
    """Squared error of the cosine against ``wanted`` (n,), e.g. a rating as a share of the best one."""
    return mean(((asked * found).sum(dim=1) - wanted) ** 2, weight)


def triplet(asked: Tensor, preferred: Tensor, other: Tensor, *, margin: float, weight: Rows = None) -> Tensor:
    """The preferred document must be nearer than the other by ``margin``, in cosine distance."""
    lead = (asked * preferred).sum(dim=1) - (asked * other).sum(dim=1)
    return mean(F.relu(margin - lead), weight)


def negatives(asked: Tensor, found: Tensor, *, same: Tensor, hard: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines of each query with the pairs' documents and its own hard ones, (n, n + count), and which of them are
    negatives of it; ``same`` and ``hard`` as in ``ranking``."""
    scores = asked @ found.T
    there = ~(same | torch.eye(len(asked), dtype=torch.bool, device=same.device))
    if hard is None:
        return scores, there
    own = torch.einsum("nd,ncd->nc", asked, hard)
    return torch.cat([scores, own], dim=1), torch.cat([there, hard.any(dim=2)], dim=1)


def hardest(asked: Tensor, found: Tensor, *, same: Tensor, hard: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The negative (n, dim) that is nearest to each query, and whether it has one (n,)."""
    with torch.no_grad():
        scores, there = negatives(asked, found, same=same, hard=hard)
        best = scores.masked_fill(~there, OUT).argmax(dim=1)
    count = len(found)
    nearest = found[best.clamp(max=count - 1)]
    if hard is not None:
        own = hard[torch.arange(count, device=best.device), (best - count).clamp(min=0)]
        nearest = torch.where((best < count)[:, None], nearest, own)
    return nearest, there.any(dim=1)


def margin_distillation(
    asked: Tensor, positive: Tensor, negative: Tensor, lead: Tensor, weight: Rows = None
) -> Tensor:
    """Squared error of the lead of one document over another against the teacher's (n,) (MarginMSE, Hofstätter et
    al. 2020): the teacher may be a cross-encoder or a larger model."""
    return mean(((asked * positive).sum(dim=1) - (asked * negative).sum(dim=1) - lead) ** 2, weight)


def distillation(scores: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the teacher's distribution from the student's, both (n, documents) as
    log-probabilities; the mean over rows."""
    return F.kl_div(scores, teacher, reduction="batchmean", log_target=True)


def matryoshka(
    loss_of: Callable[[Sequence[Tensor]], Tensor], vectors: Sequence[Tensor], dimensions: Sequence[int]
) -> Tensor:
    """The sum of a loss over the vectors' first dimensions, for each of ``dimensions`` (Kusupati et al. 2022), so
    that a cut vector still finds."""
    return torch.stack(
        [loss_of([F.normalize(v[..., :size], dim=-1) for v in vectors]) for size in dimensions]
    ).sum()


def cached(
    embed: Callable[[int, int], Tensor], count: int, loss_of: Callable[[Tensor], Tensor], *, at_once: int
) -> Tensor:
    """A loss over more vectors than memory holds the graphs of (GradCache, Gao et al. 2021).

    ``embed`` gives the vectors from one row to before another; it is called twice for each part, once without
    gradients. The result has the value of ``loss_of`` all ``count`` at once, and ``backward`` its gradients.
    """
    parts = [(start, min(start + at_once, count)) for start in range(0, count, at_once)]
    with torch.no_grad():
        vectors = torch.cat([embed(*part) for part in parts])
    vectors = vectors.requires_grad_()
    with torch.enable_grad():
        loss = loss_of(vectors)
    (gradient,) = torch.autograd.grad(loss, vectors)

    def go_back(above: Tensor) -> None:
        with torch.enable_grad():
            for first, last in parts:
                (embed(first, last) * gradient[first:last]).sum().mul(above).backward()  # type: ignore[no-untyped-call]

    value = loss.detach().requires_grad_()
    value.register_hook(go_back)  # type: ignore[no-untyped-call]
    return value


def mean(rows: Tensor, weight: Rows) -> Tensor:
    return rows.mean() if weight is None else (rows * weight).mean()
