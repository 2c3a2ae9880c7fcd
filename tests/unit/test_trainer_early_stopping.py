"""Training ends where queries kept apart are found no better, and the best epoch's weights are what it gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from clickloop.commands import Reason, Retrain
from clickloop.events import TrainingProgressed
from tests.ranks_worker import small_job
from tests.unit.full_facts import SMALL, bits, job_of, killed_and_resumed, one_thread, tiny_encoder
from tests.unit.trainer_facts import START
from trainer.dataset import after_synthetic
from trainer.methods.base import Progress
from trainer.methods.early_stopping import EarlyStopping, Ranking, set_apart
from trainer.progress import RunReport
from trainer.recorded import Lines


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    return tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the rankings come out so, one after the other."""

    def come_out(*found: float) -> None:
        left = iter(found)
        monkeypatch.setattr(Ranking, "reciprocal", lambda *_: next(left))

    return come_out


def test_training_ends_where_it_gets_no_better_and_the_best_epochs_weights_are_kept(
    encoder: SentenceTransformer, figures: Callable[..., None]
):
    told: list[Progress] = []
    figures(0.5, 0.4, 0.3, 0.9)
    stopped = replace(SMALL, epochs=4, patience=2).train(job_of(encoder, told.append))
    assert stopped.steps == 3 * 5, "the fourth epoch of five batches is not begun"
    notes = {"queries_kept_apart": 4, "epochs_done": 3, "best_epoch": 1, "best_epoch_mrr": 0.5}
    assert stopped.notes | notes == stopped.notes
    messages = [p.message for p in told if p.message]
    assert messages[0] == "epoch 1: MRR 0.5000 on the queries kept apart; the best is epoch 1's, 0.5000"
    assert messages[-1].endswith("the best is epoch 1's, 0.5000; training ends early")
    figures(0.5, 0.4)
    sooner = replace(SMALL, epochs=4, patience=1).train(job_of(encoder))
    assert (sooner.steps, bits(sooner)) == (2 * 5, bits(stopped)), "both end with the first epoch's weights"
    figures(0.1, 0.2, 0.3, 0.4)
    whole = replace(SMALL, epochs=4, patience=2).train(job_of(encoder))
    assert whole.steps == 4 * 5
    assert bits(whole) != bits(stopped)


@pytest.mark.parametrize(("at", "hard"), [(7, 0), (15, 0), (12, 2)])
def test_what_is_resumed_stops_at_the_same_epoch_with_the_same_bits(
    at: int, hard: int, encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps = iter([0.5, 0.6, 0.3, 0.2] * 2)
    known: dict[bytes, float] = {}

    def by_weights(_: Ranking, layers: Any) -> float:
        weights = b"".join(p.detach().numpy().tobytes() for p in layers.parameters)
        return known.setdefault(weights, next(steps) if weights not in known else 0.0)

    monkeypatch.setattr(Ranking, "reciprocal", by_weights)
    method = replace(SMALL, epochs=5, patience=2, hard_negatives=hard)
    whole = method.train(job_of(encoder))
    resumed = killed_and_resumed(method, encoder, tmp_path / "moment-1.safetensors", at=at)
    assert (resumed.steps, bits(resumed), resumed.notes) == (whole.steps, bits(whole), whole.notes)
    assert resumed.notes["best_epoch"] == 2


def test_the_latest_tenth_of_the_queries_is_kept_apart_and_none_of_a_handful(encoder: SentenceTransformer):
    clicks = small_job(encoder, None, lambda _: None).clicks
    unlike = replace(clicks, vectors=np.eye(len(clicks.queries), dtype=np.float32))
    known, apart = set_apart(unlike)
    assert known.queries == clicks.queries[:-4]
    assert apart.queries == clicks.queries[-4:]
    alike = unlike.vectors.copy()
    alike[-1] = alike[0]
    assert set_apart(replace(unlike, vectors=alike))[1].queries == clicks.queries[-4:-1]
    known, apart = set_apart(unlike.of_queries(range(4)))
    assert (len(known), len(apart)) == (4, 0)


def test_what_was_made_up_is_never_kept_apart_and_pushes_no_click_out_of_training(encoder: SentenceTransformer):
    given = small_job(encoder, None, lambda _: None).clicks
    clicks = replace(given, vectors=np.eye(len(given.queries), 500, dtype=np.float32))
    made = replace(
        clicks.of_queries([0]),
        queries=[f"made {n}" for n in range(360)],
        query=np.arange(360),
        document=np.zeros(360, dtype=np.int64),
        weight=np.full(360, 0.1, dtype=np.float32),
        evidence=np.full(360, 0.1, dtype=np.float32),
        examples=np.ones(360, dtype=np.int64),
        vectors=np.eye(500, dtype=np.float32)[-360:],
    )
    known, apart = set_apart(after_synthetic(made, clicks))
    assert known.queries == [*made.queries, *clicks.queries[:-4]]
    assert apart.queries == clicks.queries[-4:]
    only = after_synthetic(made, clicks.of_queries([]))
    assert set_apart(only)[0].queries == made.queries, "nothing was clicked that could be kept apart"


class Fixed:
    """Layers whose fourth text is the query, between the first two of three documents."""

    def __init__(self) -> None:
        self.vectors = torch.eye(4)
        self.vectors[3] = torch.tensor([0.8, 0.6, 0.0, 0.0])

    def embed(self, rows: np.ndarray) -> torch.Tensor:
        return self.vectors[torch.from_numpy(rows)]


def test_a_ranking_is_the_mean_reciprocal_rank_of_what_is_wanted():
    layers: Any = Fixed()
    ranking = Ranking.of(np.array([3, 3]), np.array([0, 1]), np.ones(2, np.float32), documents=3, seed=0)
    assert ranking.reciprocal(layers) == pytest.approx((1.0 + 0.5) / 2)
    heavier = replace(ranking, weight=np.array([3.0, 1.0], np.float32))
    assert heavier.reciprocal(layers) == pytest.approx(0.875)


def test_queries_without_clicks_are_neither_kept_apart_nor_known_beside_those_that_are(
    encoder: SentenceTransformer,
):
    clicks = small_job(encoder, None, lambda _: None).clicks
    rows = clicks.query < 30
    parts = {name: getattr(clicks, name)[rows] for name in ("query", "document", "weight", "evidence")}
    vectors = np.eye(len(clicks.queries), dtype=np.float32)
    known, apart = set_apart(replace(clicks, vectors=vectors, **parts))
    assert (known.queries, apart.queries) == (clicks.queries[:27], clicks.queries[27:30])


def test_an_epoch_that_is_no_better_than_the_best_is_none():
    stopping, weights = EarlyStopping(1, lambda: 0.5), torch.ones(2)
    stopping.look(1, [weights])
    assert not stopping.over
    stopping.look(2, [torch.zeros(2)])
    assert (stopping.over, stopping.best_epoch) == (True, 1)


def test_what_is_wanted_is_ranked_among_other_documents_and_what_is_no_number_comes_last():
    layers: Any = Fixed()
    ranking = Ranking.of(np.array([3]), np.array([2]), np.ones(1, np.float32), documents=3, seed=0)
    assert ranking.among.tolist() == [0, 1, 2]
    assert ranking.reciprocal(layers) == pytest.approx(1 / 3)
    layers.vectors[:] = layers.vectors[0].clone()
    assert ranking.reciprocal(layers) == pytest.approx(1 / 2), "to whom all are alike, nothing is on top"
    layers.vectors[:] = torch.nan
    assert ranking.reciprocal(layers) == pytest.approx(1 / 4)


def test_what_is_kept_apart_is_ranked_among_documents_and_weighed_as_it_would_be_taught(
    encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
):
    usual, found = Ranking.of, list[Ranking]()

    def of(*given: Any, **more: Any) -> Ranking:
        found.append(usual(*given, **more))
        return found[0]

    monkeypatch.setattr(Ranking, "of", of)
    given = job_of(encoder)
    weight = np.arange(1.0, 1.0 + len(given.clicks), dtype=np.float32)
    plain = replace(SMALL, epochs=1, patience=1, doubts=False)
    plain.train(replace(given, clicks=replace(given.clicks, weight=weight)))
    (ranking,) = found
    assert ranking.weight.tolist() == [2.0] * 4, "clicks that are not debiased teach by their evidence"
    assert ranking.among.max() < ranking.asked.min(), "no query is ranked"


def test_with_a_handful_of_queries_training_does_all_its_epochs_and_says_why(encoder: SentenceTransformer):
    few = job_of(encoder)
    trained = replace(SMALL, patience=1).train(replace(few, clicks=few.clicks.of_queries(range(4))))
    assert trained.steps == 3
    assert trained.notes["queries_kept_apart"] == 0
    assert "best_epoch" not in trained.notes


async def test_what_an_epoch_gave_is_told_to_the_topic_until_the_next_one_and_in_a_replays_lines():
    sent, lines = [], list[str]()

    class Producer:
        async def send(self, _: str, event: TrainingProgressed) -> None:
            sent.append(event.message)

    reason = Reason(policies=["manual"], text="test")
    wish = Retrain(command_id="c", index="i", issued_at=START, kinds=["full"], ranges=[], reason=reason)
    producer: Any = Producer()
    report, replay = RunReport(producer, wish, threading.Event()), Lines(lines.append)
    await report.stage("full", "training", message="moment 1 of 1")
    for progress in (Progress("training", 5, 10, message="epoch 1: MRR 0.5"), Progress("training", 6, 10, 0.1)):
        report.from_thread(progress)
        replay.from_thread(progress)
    await report._send()
    assert sent == ["moment 1 of 1", "epoch 1: MRR 0.5"]
    assert lines == [": epoch 1: MRR 0.5"]


def test_where_nothing_was_measured_the_weights_stay():
    stopping, weights = EarlyStopping(1, lambda: float("nan")), torch.ones(2)
    stopping.look(1, [weights])
    stopping.go_back([weights])
    assert weights.tolist() == [1.0, 1.0]
