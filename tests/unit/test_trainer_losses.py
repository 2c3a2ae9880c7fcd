"""Each loss against sentence-transformers' implementation, on the same vectors: value and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from sentence_transformers.sentence_transformer import losses as stock
from sentence_transformers.sentence_transformer.losses.triplet import TripletDistanceMetric
from torch import Tensor

from trainer.methods import losses
from trainer.methods.objectives import MARGIN, Batch, distilled, objective

N, DIM, SCALE = 6, 16, 20.0


class Given(torch.nn.Module):
    """A model whose vectors are given."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self) -> int:
        return DIM


def vectors(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(N, DIM, generator=generator), dim=1).requires_grad_() for _ in range(count)]


def same(ours: Callable[..., Tensor], theirs: Any, columns: int, labels: Tensor | None = None) -> None:
    mine, yours = vectors(columns), vectors(columns)
    loss = ours(*mine)
    expected = theirs([{"vectors": v} for v in yours], labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for a, b in zip(mine, yours, strict=True):
        # Theirs normalise once more, so only the part of a gradient across the vector is the same.
        assert torch.allclose(across(a), across(b), atol=1e-5)


def across(vector: Tensor) -> Tensor:
    gradient = vector.grad
    assert gradient is not None
    along = (gradient * vector).sum(dim=1, keepdim=True)
    return (gradient - along * vector).detach()


def test_ranking_one_way_is_multiple_negatives_ranking():
    theirs = stock.MultipleNegativesRankingLoss(Given(), scale=SCALE)
    same(lambda q, d: losses.ranking(q, d, scale=SCALE, both_ways=False), theirs, 2)


def test_ranking_both_ways_is_the_symmetric_one():
    theirs = stock.MultipleNegativesSymmetricRankingLoss(Given(), scale=SCALE)
    same(lambda q, d: losses.ranking(q, d, scale=SCALE), theirs, 2)


def test_a_hard_negative_is_one_for_its_own_query_alone():
    asked, found, hard = vectors(3)
    loss = losses.ranking(asked, found, scale=SCALE, hard=hard[:, None], both_ways=False)
    scores = torch.cat([asked @ found.T, (asked * hard).sum(dim=1, keepdim=True)], dim=1)
    assert loss.item() == pytest.approx(F.cross_entropy(SCALE * scores, torch.arange(N)).item(), rel=1e-5)
    none = torch.zeros(N, 1, DIM)
    without = losses.ranking(asked, found, scale=SCALE, both_ways=False)
    assert losses.ranking(asked, found, scale=SCALE, hard=none, both_ways=False).item() == pytest.approx(
        without.item()
    )


def test_a_pair_that_is_the_same_is_no_negative():
    asked, found = vectors(2)
    known = torch.zeros(N, N, dtype=torch.bool)
    known[0, 1:] = True
    known[1:, 0] = True
    loss = losses.ranking(asked, found, scale=SCALE, same=known)
    rest = losses.ranking(asked[1:], found[1:], scale=SCALE)
    assert loss.item() == pytest.approx(rest.item() * (N - 1) / N, abs=1e-5)


def test_weights_weigh_the_rows():
    asked, found = vectors(2)
    weight = torch.tensor([0.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    rows = [
        F.cross_entropy(SCALE * (asked @ found.T)[i : i + 1], torch.tensor([i])).item() * weight[i].item()
        for i in range(N)
    ]
    loss = losses.ranking(asked, found, scale=SCALE, weight=weight, both_ways=False)
    assert loss.item() == pytest.approx(sum(rows) / N, rel=1e-5)


def test_cosine_similarity_is_theirs():
    wanted = torch.linspace(0.0, 1.0, N)
    same(lambda q, d: losses.cosine_similarity(q, d, wanted), stock.CosineSimilarityLoss(Given()), 2, wanted)


def test_triplet_is_theirs_with_cosine_distance():
    theirs = stock.TripletLoss(Given(), distance_metric=TripletDistanceMetric.COSINE, triplet_margin=0.3)
    same(lambda q, p, o: losses.triplet(q, p, o, margin=0.3), theirs, 3)


def no_pairs(n: int = N) -> Tensor:
    return torch.zeros(n, n, dtype=torch.bool)


def test_the_hardest_negative_is_the_nearest_that_is_allowed_whether_of_the_batch_or_its_own():
    asked = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), dim=1)
    found = F.normalize(torch.tensor([[1.0, 0.1, 0.0], [0.9, 1.0, 0.0], [0.8, 0.3, 1.0]]), dim=1)
    nearest, there = losses.hardest(asked, found, same=no_pairs(3))
    assert torch.equal(nearest, found[[1, 2, 0]])
    assert there.tolist() == [True] * 3
    same = no_pairs(3)
    same[0, 1] = same[2, 0] = same[2, 1] = True
    nearest, there = losses.hardest(asked, found, same=same)
    assert torch.equal(nearest[:2], found[[2, 2]])
    assert there.tolist() == [True, True, False]
    hard = torch.zeros(3, 2, 3)
    hard[0, 1] = torch.tensor([0.96, 0.28, 0.0])
    hard[2, 0] = torch.tensor([0.0, 1.0, 0.0])
    nearest, there = losses.hardest(asked, found, same=same, hard=hard)
    assert torch.equal(nearest, torch.stack([hard[0, 1], found[2], hard[2, 0]]))
    assert there.tolist() == [True] * 3


def batch(asked: Tensor, found: Tensor, **changed: Any) -> Batch:
    ones = torch.ones(len(asked))
    return replace(Batch(asked, found, same=no_pairs(len(asked)), weight=ones, strength=ones), **changed)


def test_the_triplet_objective_is_theirs_with_each_querys_hardest_negative():
    theirs = stock.TripletLoss(Given(), distance_metric=TripletDistanceMetric.COSINE, triplet_margin=MARGIN)
    asked, found = vectors(2)
    other = [int((asked[i] @ found.T).masked_fill(torch.arange(N) == i, -2.0).argmax()) for i in range(N)]
    expected = theirs([{"vectors": v} for v in (asked, found, found[other])], None)
    of = objective("triplet", scale=SCALE)
    assert of(batch(asked, found)).item() == pytest.approx(expected.item(), rel=1e-5)
    heavy = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    rows = [losses.triplet(asked[[i]], found[[i]], found[[other[i]]], margin=MARGIN).item() for i in range(N)]
    weighed = sum(w * row for w, row in zip(heavy.tolist(), rows, strict=True)) / N
    assert of(batch(asked, found, weight=heavy)).item() == pytest.approx(weighed, rel=1e-5)
    assert of(batch(asked, found, same=~torch.eye(N, dtype=torch.bool))).item() == 0.0


def test_the_triplet_objective_holds_a_querys_own_hard_negative_against_it():
    asked, found = vectors(2)
    loss = objective("triplet", scale=SCALE)(batch(asked, found, hard=asked.detach()[:, None]))
    expected = F.relu(MARGIN + 1.0 - (asked * found).sum(dim=1)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_cosine_objective_scores_pairs_by_their_strength_and_others_by_nothing():
    asked, found = vectors(2)
    strength, of = torch.linspace(0.0, 1.0, N), objective("cosine_similarity", scale=SCALE)
    cosines = (asked @ found.T).detach()
    others = cosines[~torch.eye(N, dtype=torch.bool)]
    expected = 0.5 * ((cosines.diagonal() - strength) ** 2).mean() + 0.5 * (others**2).mean()
    assert of(batch(asked, found, strength=strength)).item() == pytest.approx(expected.item(), rel=1e-5)
    hard = torch.zeros(N, 1, DIM)
    hard[0, 0] = asked[0].detach()
    more = 0.5 * ((others**2).sum() + 1.0) / (len(others) + 1)
    found_loss = of(batch(asked, found, strength=strength, hard=hard)).item()
    assert found_loss == pytest.approx(
        (0.5 * ((cosines.diagonal() - strength) ** 2).mean() + more).item(), rel=1e-5
    )
    one = F.normalize(torch.ones(N, DIM), dim=1)
    assert of(batch(one, one)).item() > 0.4, "one vector for everything is no solution"


def test_the_cosine_objective_goes_by_strength_alone_where_a_batch_has_no_negatives():
    asked, found = vectors(2)
    alone = batch(asked, found, same=~torch.eye(N, dtype=torch.bool), weight=torch.linspace(0.0, 2.0, N))
    expected = 0.5 * (((asked * found).sum(dim=1) - 1.0) ** 2).mean()
    assert objective("cosine_similarity", scale=SCALE)(alone).item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_objective_over_dimensions_is_the_sum_of_those_over_each():
    asked, found, hard = vectors(3)
    whole = objective("both_ways", scale=SCALE)

    def cut(size: int) -> float:
        parts = [F.normalize(v[:, :size], dim=1) for v in (asked, found, hard)]
        return whole(batch(parts[0], parts[1], hard=parts[2][:, None])).item()

    nested = objective("both_ways", scale=SCALE, dimensions=(DIM, 4))
    assert nested(batch(asked, found, hard=hard[:, None])).item() == pytest.approx(cut(DIM) + cut(4), rel=1e-5)


def test_margin_distillation_is_margin_mse():
    lead = torch.linspace(-0.5, 0.5, N)
    same(lambda q, p, o: losses.margin_distillation(q, p, o, lead), stock.MarginMSELoss(Given()), 3, lead)


def test_distillation_is_theirs():
    teacher = torch.tensor([[0.9, 0.1], [0.2, 0.4], [0.5, 0.5], [0.8, 0.3], [0.1, 0.2], [0.3, 0.3]])

    def ours(asked: Tensor, *documents: Tensor) -> Tensor:
        scores = torch.stack([(asked * d).sum(dim=1) for d in documents], dim=1)
        return losses.distillation(F.log_softmax(scores, dim=1), F.log_softmax(teacher, dim=1))

    same(ours, stock.DistillKLDivLoss(Given()), 3, teacher)


def test_matryoshka_is_theirs():
    sizes = [DIM, 8, 4]
    model = Given()
    theirs = stock.MatryoshkaLoss(model, stock.MultipleNegativesRankingLoss(model, scale=SCALE), sizes)
    same(
        lambda q, d: losses.matryoshka(
            lambda both: losses.ranking(both[0], both[1], scale=SCALE, both_ways=False), [q, d], sizes
        ),
        theirs,
        2,
    )


@pytest.mark.parametrize("at_once", [1, 4, 12, 50])
def test_a_cached_loss_has_the_value_and_the_gradients_of_the_whole(at_once: int):
    torch.manual_seed(0)
    inputs, layer = torch.randn(12, DIM), torch.nn.Linear(DIM, DIM)

    def embed(first: int, last: int) -> Tensor:
        return F.normalize(layer(inputs[first:last]), dim=1)

    def loss_of(both: Tensor) -> Tensor:
        return losses.ranking(both[:6], both[6:], scale=SCALE)

    whole = loss_of(embed(0, 12))
    whole.backward()
    expected = layer.weight.grad
    assert expected is not None
    layer.zero_grad()
    loss = losses.cached(embed, 12, loss_of, at_once=at_once)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    (2.0 * loss).backward()
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, 2.0 * expected, atol=1e-5)


def test_what_is_distilled_is_the_lead_over_the_first_hard_negative_where_there_is_one():
    asked, found, other = (v.detach() for v in vectors(3))
    lead = torch.linspace(-0.5, 0.5, N)
    hard = torch.stack([other, found.roll(1, 0)], dim=1)
    hard[0, 0] = 0.0
    error = ((asked * found).sum(dim=1) - (asked * other).sum(dim=1) - lead) ** 2
    loss = distilled(batch(asked, found, hard=hard), lead, scale=SCALE)
    assert loss.item() == pytest.approx(SCALE * error[1:].sum().item() / N, rel=1e-5)
    assert distilled(batch(asked, found), lead, scale=SCALE).item() == 0.0
