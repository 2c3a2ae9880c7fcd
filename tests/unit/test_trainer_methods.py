"""What a method of training promises, as far as it takes no encoder to see it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.trainer_facts import job, mean_reciprocal_rank, world
from trainer.belief import weighed
from trainer.dataset import Clicks, Corpus, after_synthetic
from trainer.gate import Side, Trial, measure
from trainer.methods import methods_of
from trainer.methods.adapter import ANEW_FROM, FEWEST_TRIED, RECIPES, AdapterMethod, clearly_best, whitened
from trainer.methods.base import Progress, StoppedError, Trained
from trainer.methods.full import FullMethod
from trainer.methods.mining import mined
from trainer.methods.query_encoder import QueryEncoderMethod
from trainer.methods.targets import SCALE, Negatives, SampledNegatives, Targets
from trainer.methods.upper_layers import MOST_PADDING, groups
from trainer.model import Adapter, normalised
from trainer.rung_settings import OF_RUNGS, RungSettings

DEFAULTS = RungSettings.model_construct()
METHODS = methods_of(DEFAULTS)
TOLD_OTHERWISE: dict[str, tuple[object, object]] = {
    "full_loss": ("query_to_document", "query_to_document"),
    "full_domain_batches": (True, True),
    "full_teacher": ("larger", "larger"),
    "full_head": (False, None),
    "adapter_doubts": (False, False),
    "query_encoder_doubts": (False, False),
    "full_doubts": (False, False),
    "full_matryoshka": ("16, 8", (16, 8)),
}
"""Settings that are no figures: another value, and what the method makes of it."""


def test_every_rung_is_in_the_table_under_its_own_name():
    assert {kind: method.kind for kind, method in METHODS.items()} == {
        "adapter": "adapter",
        "query_encoder": "query_encoder",
        "full": "full",
    }


def test_untouched_settings_are_the_methods_own_figures():
    assert {"adapter": AdapterMethod(), "query_encoder": QueryEncoderMethod(), "full": FullMethod()} == METHODS


@pytest.mark.parametrize("name", OF_RUNGS)
def test_every_rung_setting_reaches_its_method(name: str):
    kind = next(kind for kind in METHODS if name.startswith(f"{kind}_"))
    usual = getattr(DEFAULTS, name)
    other, told = TOLD_OTHERWISE.get(name) or (2 * usual or 8,) * 2
    changed = methods_of(DEFAULTS.model_copy(update={name: other}))
    field = name.removeprefix(f"{kind}_")
    assert changed[kind] == replace(METHODS[kind], **{field: told})  # type: ignore[type-var]
    heads = {method.head for kind, method in changed.items() if kind != "adapter"}  # type: ignore[attr-defined]
    assert heads - {None} == {changed["adapter"]}, "the map on top of an encoder is the adapter's"
    assert (None in heads) == (name == "full_head")


def test_an_adapter_learns_from_noisy_clicks_to_find_what_it_never_saw_a_click_on():
    clicks, corpus = world(queries=1500, noise=0.8, skew=2.5)
    known = clicks.of_queries(range(1000))
    trained = AdapterMethod().train(job(known, corpus))
    assert trained.adapter is not None
    unseen = slice(1000, 1500)
    before = _unseen_rank(clicks.vectors, corpus, unseen)
    assert _unseen_rank(trained.adapter.apply(clicks.vectors), corpus, unseen) > before * 1.05


@pytest.mark.parametrize("mapped", [False, True], ids=["no map", "parent's map"])
def test_an_adapter_learns_less_from_clicks_that_others_on_their_query_contradict(mapped: bool):
    clicks, corpus = world(queries=300, wrong=2.0, asked=3)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))[0].astype(np.float32)
    parent = Adapter(turn, np.zeros(24, np.float32)) if mapped else None
    asked = clicks.vectors if parent is None else parent.apply(clicks.vectors)

    def learnt(given: Clicks, *, doubts: bool) -> np.ndarray:
        adapter = AdapterMethod(doubts=doubts).train(job(given, corpus, adapter=parent)).adapter
        assert adapter is not None
        return adapter.weight

    found = learnt(clicks, doubts=True)
    assert np.array_equal(found, learnt(weighed(clicks, asked, corpus.vectors), doubts=False))
    assert not np.allclose(found, learnt(clicks, doubts=False))


def _unseen_rank(queries: np.ndarray, corpus: Corpus, unseen: slice) -> float:
    scores = queries[unseen] @ corpus.vectors.T
    wanted = corpus.vectors[unseen]
    own = np.einsum("nd,nd->n", queries[unseen], wanted)
    return float((1.0 / ((scores > own[:, None] + 1e-6).sum(axis=1) + 1)).mean())


def test_an_adapter_from_five_clicks_changes_next_to_nothing():
    clicks, corpus = world()
    trained = AdapterMethod().train(job(clicks.of_queries(range(6)), corpus))
    assert trained.adapter is not None
    cosines = np.einsum("nd,nd->n", trained.adapter.apply(clicks.vectors), clicks.vectors)
    assert cosines.mean() > 0.97


def test_the_same_seed_trains_the_same_adapter():
    clicks, corpus = world(queries=200)
    first, second = (AdapterMethod().train(job(clicks, corpus)).adapter for _ in range(2))
    assert first is not None
    assert second is not None
    assert np.array_equal(first.weight, second.weight)


def test_an_adapter_starts_from_its_parents_map():
    clicks, corpus = world(queries=300)
    parent = Adapter(
        np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))[0].astype(np.float32),
        np.zeros(24, np.float32),
    )
    turned_back = replace(clicks, vectors=normalised(clicks.vectors @ parent.weight))
    trained = AdapterMethod().train(job(turned_back, corpus, adapter=parent))
    assert trained.adapter is not None
    assert mean_reciprocal_rank(trained.adapter.apply(turned_back.vectors), corpus.vectors) >= 0.95 * (
        mean_reciprocal_rank(clicks.vectors, corpus.vectors)
    )


def test_with_older_examples_to_learn_again_a_map_is_learnt_anew_and_met_half_way():
    clicks, corpus = world(queries=300, skew=2.5)
    earlier = AdapterMethod().train(job(clicks.of_queries(range(150)), corpus)).adapter
    assert earlier is not None
    anew = AdapterMethod().train(job(clicks, corpus)).adapter
    trained = [
        AdapterMethod().train(job(clicks, corpus, adapter=earlier, replayed=share))
        for share in (0.0, 0.5, ANEW_FROM)
    ]
    assert [one.notes["step"] for one in trained] == [1.0, 0.5, 0.5]
    gone_on, met, barely = (one.adapter for one in trained)
    assert anew is not None
    assert met is not None
    assert gone_on is not None
    assert barely is not None
    assert np.allclose(met.weight, (earlier.weight + anew.weight) / 2, atol=1e-6)
    assert np.array_equal(met.weight, barely.weight)
    assert np.linalg.norm(gone_on.weight - earlier.weight) < np.linalg.norm(gone_on.weight - anew.weight)


def test_recipes_are_tried_on_clicks_that_no_step_has_seen_whatever_stands_in_front(
    monkeypatch: pytest.MonkeyPatch,
):
    clicks, corpus = world(queries=300)
    made, _ = world(queries=150, seed=1)
    made = replace(made, queries=[f"made {n}" for n in range(150)])
    tried: list[list[str]] = []

    def measured(since: Clicks, *sides: Side) -> Trial:
        tried.append(since.queries)
        return measure(since, *sides)

    monkeypatch.setattr("trainer.methods.adapter.measure", measured)
    earlier = Trained()
    # At the second moment more was made up that may be learnt, and an older query is known that lies between.
    for asked, of_made in (([*range(100), 250], 50), ([*range(200), 250], 150)):
        known = after_synthetic(made.of_queries(range(of_made)), clicks.of_queries(asked))
        earlier = AdapterMethod(epochs=1).train(replace(job(known, corpus), earlier=earlier))
    assert tried == [clicks.queries[100:200]] * len(RECIPES)


def test_a_handful_of_queries_whitens_next_to_nothing_and_many_do():
    clicks, _ = world(queries=2000)
    skewed = normalised(clicks.vectors * np.linspace(3.0, 0.3, 24))
    start = Adapter.identity(24)
    few, many = whitened(start, skewed[:5], 0.5).weight, whitened(start, skewed, 0.5).weight
    assert np.abs(few - np.eye(24)).max() < 0.3 * np.abs(many - np.eye(24)).max()


def test_a_run_without_time_gives_back_a_usable_adapter():
    clicks, corpus = world(queries=200)
    trained = AdapterMethod().train(job(clicks, corpus, seconds=0.0))
    assert trained.adapter is not None
    assert np.isfinite(trained.adapter.weight).all()


def test_a_stop_ends_training_at_once():
    def stop(_: Progress) -> None:
        raise StoppedError("stop")

    clicks, corpus = world(queries=200)
    with pytest.raises(StoppedError):
        AdapterMethod().train(job(clicks, corpus, report=stop))


def test_progress_counts_up_to_its_total_with_a_finite_loss():
    seen: list[Progress] = []
    clicks, corpus = world(queries=300)
    trained = AdapterMethod().train(job(clicks, corpus, report=seen.append))
    assert seen[-1].step == seen[-1].steps > 0
    assert trained.steps == len(seen), "one descent here, for there are no pieces of documents"
    assert all(p.loss is not None and np.isfinite(p.loss) for p in seen)


def test_what_may_be_wanted_is_no_hard_negative():
    asked = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    documents = normalised(np.array([[1.0, 0.3], [1.0, 0.31], [0.5, 1.0], [0.3, 1.0], [-1.0, 0.1]]))
    query, document = np.array([0, 0, 1]), np.array([0, 2, 3])
    found = mined(asked[query], documents, query, document, count=2)
    assert found[0].tolist() == [3, 4], "neither its own two nor the near-copy"
    assert found[2].tolist() == [1, 0]
    assert mined(asked[query], documents, query, document, count=6)[0].tolist() == [3, 4, -1, -1, -1, -1]


def test_neither_a_near_copy_nor_a_twin_querys_click_is_a_hard_negative_and_what_was_rated_low_comes_first():
    at = np.deg2rad
    asked = np.array([[np.cos(at(a)), np.sin(at(a))] for a in (0.0, 3.0, 180.0)])
    documents = np.array([[np.cos(at(a)), np.sin(at(a))] for a in (40.0, 52.0, 65.0, 80.0, 100.0)])
    query, document = np.array([0, 1, 2]), np.array([0, 2, 4])
    found = mined(asked, documents, query, document, count=2)
    assert found[0].tolist() == [3, 4], "1 is like its own, and 2 was clicked for a query like it"
    against = {0: np.array([4])}
    assert mined(asked, documents, query, document, count=2, unwanted=against)[0].tolist() == [4, 3]
    alone = (asked[1:2], documents, np.array([0]), np.array([2]))
    assert mined(*alone, count=1)[0].tolist() == [4], "0 is found before its own"
    assert mined(*alone, count=1, unwanted={0: np.array([0])})[0].tolist() == [0]


def test_what_was_rated_low_is_looked_up_by_the_rows_query():
    asked = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    documents = normalised(np.array([[1.0, 0.2], [0.3, 1.0], [0.2, -1.0], [-1.0, 0.2]]))
    query, document = np.array([0, 0, 1]), np.array([0, 0, 3])
    found = mined(asked, documents, query, document, count=1, unwanted={1: np.array([1])})
    assert found.tolist() == [[1], [1], [1]]
    found = mined(asked, documents, query, document, count=1, unwanted={0: np.array([2])})
    assert found.tolist() == [[2], [2], [2]], "and 2 is what the last one finds"


def test_groups_of_texts_hold_each_once_and_little_padding():
    lengths = np.sort(np.random.default_rng(0).integers(3, 128, 200))
    found = list(groups(np.arange(200), lengths))
    assert np.concatenate(found).tolist() == list(range(200))
    for group in found:
        assert lengths[group].sum() >= (1.0 - MOST_PADDING) * lengths[group].max() * len(group)


def test_targets_share_a_querys_weight_among_its_documents():
    clicks = Clicks(
        queries=["a"],
        query=np.array([0, 0]),
        document=np.array([0, 2]),
        weight=np.ones(2, np.float32),
        evidence=np.array([3.0, 1.0], np.float32),
    )
    scores = torch.log_softmax(torch.tensor([[1.0, 0.0, -1.0]]), dim=1)
    loss = Targets(clicks).loss(scores, np.array([0]))
    assert float(loss) == pytest.approx(float(-(0.75 * scores[0, 0] + 0.25 * scores[0, 2])))


def test_what_was_rated_low_is_pushed_down_as_far_as_it_is_found():
    scores = torch.log_softmax(torch.tensor([[3.0, 2.0, 1.0]]), dim=1).requires_grad_()
    clicks = Clicks(["q"], np.array([0]), np.array([2]), np.ones(1), np.ones(1, dtype=np.float32))
    rated = replace(clicks, unwanted={0: {0: 2.0}})
    more = Targets(rated).loss(scores, np.array([0])) - Targets(clicks).loss(scores, np.array([0]))
    chance = scores[0, 0].exp().item()
    assert more.item() == pytest.approx(-2.0 * np.log(1.0 - chance), rel=1e-5)
    more.backward()
    assert scores.grad is not None
    sure = torch.tensor([[50.0, 0.0, 0.0]], requires_grad=True)
    Targets(rated).loss(torch.log_softmax(sure, dim=1), np.array([0])).backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()
    without = torch.tensor([[50.0, 0.0, 0.0]], requires_grad=True)
    Targets(clicks).loss(torch.log_softmax(without, dim=1), np.array([0])).backward()
    assert without.grad is not None
    assert bool(sure.grad[0, 0] >= without.grad[0, 0])
    assert scores.grad[0].tolist() == pytest.approx([2.0 * chance / (1.0 - chance), 0.0, 0.0], rel=1e-5)


def test_what_is_unwanted_counts_beside_what_is_wanted_and_a_loss_is_the_mean_over_queries():
    clicks = Clicks(["q", "r"], np.array([0, 1]), np.array([2, 1]), np.ones(2), np.array([3.0, 1.0], np.float32))
    unwanted = {1: {2: 4.0}, 0: {1: 1.0, 0: 2.0}}
    scores = torch.log_softmax(torch.tensor([[3.0, 2.0, 1.0], [0.0, 1.0, 0.5]]), dim=1)
    both, more = np.arange(2), replace(clicks, evidence=4 * clicks.evidence)
    targets = Targets(replace(clicks, unwanted=unwanted))
    loss = targets.loss(scores, both).item()
    fourfold = {query: {one: 4.0 * much for one, much in of_it.items()} for query, of_it in unwanted.items()}
    assert Targets(replace(more, unwanted=fourfold)).loss(scores, both).item() == pytest.approx(loss)
    assert Targets(replace(clicks, unwanted={0: unwanted[0], 1: unwanted[1]})).loss(scores, both).item() == loss
    alone = [targets.loss(scores[[q]], np.array([q])).item() for q in both]
    assert loss == pytest.approx(sum(alone) / 2)
    column = np.array([1, 2, 0])
    assert targets.loss(scores[:, np.argsort(column)], both, column).item() == pytest.approx(loss)


def test_what_was_rated_low_is_pushed_down_though_it_is_all_but_surely_found():
    clicks = Clicks(["q"], np.array([0]), np.array([2]), np.ones(1), np.ones(1, dtype=np.float32))
    slopes = []
    for unwanted in ({}, {0: {0: 2.0}}):
        sure = torch.tensor([[15.0, 0.0, 0.0]], requires_grad=True)
        Targets(replace(clicks, unwanted=unwanted)).loss(torch.log_softmax(sure, dim=1), np.array([0])).backward()
        assert sure.grad is not None
        slopes.append(sure.grad[0, 0].item())
    assert slopes[1] > slopes[0] + 1.0


@pytest.mark.parametrize("clicked_too", [True, False])
def test_an_adapter_lowers_what_was_rated_low_for_its_query(clicked_too: bool):
    clicks, corpus = world(queries=200)
    kept = (clicks.query > 0) | clicked_too
    parts = {name: getattr(clicks, name)[kept] for name in ("query", "document", "weight", "evidence")}
    clicks = replace(clicks, **parts)
    scores = corpus.vectors @ clicks.vectors[0]
    scores[clicks.document[clicks.query == 0]] = -1.0
    first = int(scores.argmax())

    def found(of_it: Clicks) -> float:
        adapter = AdapterMethod().train(job(of_it, corpus)).adapter
        assert adapter is not None
        now = torch.from_numpy(corpus.vectors @ adapter.apply(of_it.vectors[:1])[0])
        return float(torch.softmax(30.0 * now, dim=0)[first])

    assert found(replace(clicks, unwanted={0: {first: 30.0}})) < 0.95 * found(clicks)


def test_debiased_clicks_weigh_by_the_inverse_of_their_chance_to_be_seen():
    clicks = Clicks(
        ["q", "r"],
        np.array([0, 1]),
        np.array([0, 1]),
        np.array([0.1, 0.5]),
        np.array([1.0, 1.0], dtype=np.float32),
    )
    scores = torch.log_softmax(torch.tensor([[3.0, 2.0], [2.0, 1.0]]), dim=1)

    def losses(of_it: Clicks) -> list[float]:
        return [Targets(of_it).loss(scores, np.array([q])).item() for q in (0, 1)]

    (plain, other), (low, high) = losses(clicks), losses(replace(clicks, debiased=True))
    assert low / plain == pytest.approx(1 / 3)
    assert high / other == pytest.approx(5 / 3)


def test_of_a_very_large_corpus_the_clicked_documents_are_always_among_the_negatives(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("trainer.methods.targets.WHOLE_CORPUS", 120)
    clicks, corpus = world(queries=600)
    negatives = Negatives(corpus.vectors, clicks.of_queries(range(20)), clicks.vectors[:20], seed=0)
    assert negatives.column is not None
    assert len(negatives.vectors) < 600
    assert (negatives.column[clicks.of_queries(range(20)).document] >= 0).all()


def test_of_a_very_large_corpus_all_that_feedback_names_and_what_is_near_is_among_the_negatives(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("trainer.methods.targets.WHOLE_CORPUS", 120)
    monkeypatch.setattr("trainer.methods.targets.NEAREST", 3)
    clicks, corpus = world(queries=600)
    few = clicks.of_queries(range(20))
    order = np.argsort(-(few.vectors @ corpus.vectors.T), axis=1)
    far, refused = order[few.query, -1], order[:, -2]
    named = replace(few, document=far, unwanted={q: {int(refused[q]): 1.0} for q in range(20)})
    column = Negatives(corpus.vectors, named, few.vectors, seed=0).column
    assert column is not None
    for wanted in (far, refused, order[:, :3].ravel()):
        assert (column[wanted] >= 0).all()


def test_a_sampled_negatives_loss_is_low_where_each_query_finds_its_own_document():
    _, corpus = world(queries=100)
    wanted = np.array([7, 3, 50])
    queries = torch.from_numpy(corpus.vectors[wanted])
    expected = torch.nn.functional.cross_entropy(
        SCALE * queries @ torch.from_numpy(corpus.vectors).T, torch.from_numpy(wanted)
    )
    loss = SampledNegatives(corpus.vectors, seed=0).loss(queries, wanted)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_trained_adapter_is_read_back_from_its_folder(tmp_path: Path):
    from trainer.model import load_adapter

    clicks, corpus = world(queries=100)
    adapter = AdapterMethod().train(job(clicks, corpus)).adapter
    assert adapter is not None
    adapter.save(tmp_path)
    found = load_adapter(tmp_path)
    assert found is not None
    assert np.array_equal(found.weight, adapter.weight)


def test_queries_that_all_have_one_vector_have_nothing_to_even_out():
    start = Adapter.identity(24)
    same = np.tile(normalised(np.arange(1.0, 25.0)[None, :]), (40, 1)).astype(np.float32)
    assert np.array_equal(whitened(start, same, 0.5).weight, start.weight)


@pytest.mark.parametrize("tried", [1, 2, FEWEST_TRIED - 1, FEWEST_TRIED])
def test_a_handful_of_clicks_that_gained_alike_change_no_recipe(tried: int):
    def trial(gained: float) -> Trial:
        return Trial(
            np.ones(tried), {}, {"mrr_at_10": np.full(tried, 0.5 + gained)}, found_before=0, found_after=0
        )

    trials = {"usual": trial(0.0), "far": trial(0.1)}
    assert clearly_best(trials, usual="usual") == ("far" if tried >= FEWEST_TRIED else "usual")
