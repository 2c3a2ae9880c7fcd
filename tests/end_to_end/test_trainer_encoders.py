"""Encoders are trained from a few clicks: they learn, twice the same, and go on where they were stopped."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from clickloop.base_model import base_model_folder
from clickloop.errors import TrainingError
from tests.unit.trainer_facts import documents, job, mean_reciprocal_rank
from trainer.dataset import Clicks, Corpus
from trainer.methods import methods_of
from trainer.methods.adapter import ANEW_FROM
from trainer.methods.base import Job, Method, Parent, Progress, Trained
from trainer.methods.checkpoint import Checkpoint
from trainer.methods.query_encoder import encoded
from trainer.methods.towers import NOT_REPRODUCIBLE
from trainer.methods.upper_layers import UpperLayers
from trainer.model import Adapter, encode, load_encoder
from trainer.rung_settings import RungSettings

DEFAULTS = RungSettings.model_construct()
METHODS = methods_of(DEFAULTS)
LOW_RANK = "query_encoder of low rank"
OF_ENCODERS: dict[str, Method] = {
    "query_encoder": METHODS["query_encoder"],
    LOW_RANK: methods_of(DEFAULTS.model_copy(update={"query_encoder_rank": 4}))["query_encoder"],
    "full": METHODS["full"],
}


@pytest.fixture(scope="module")
def encoder() -> SentenceTransformer:
    return load_encoder(base_model_folder("all-MiniLM-L6-v2"), "cpu")


def small_world(encoder: SentenceTransformer) -> tuple[Clicks, Corpus]:
    """Twelve queries with a document each, and all that an encoder knows of them."""
    texts = [f"{color} {thing}" for color in ("red", "blue", "green", "old") for thing in ("car", "house", "boat")]
    words = [f"vehicle or building number {i}" for i in range(len(texts))]
    each = np.arange(len(texts))
    clicks = Clicks(
        queries=texts,
        query=each,
        document=each,
        weight=np.ones(len(texts), np.float32),
        evidence=np.ones(len(texts), np.float32),
        vectors=encode(encoder, texts),
    )
    return clicks, Corpus(documents(len(texts)), encode(encoder, words))


@pytest.fixture(scope="module", params=OF_ENCODERS)
def undisturbed(request: pytest.FixtureRequest, encoder: SentenceTransformer) -> tuple[Method, Trained]:
    """A method, and what a small job trains by it."""
    method = replace(OF_ENCODERS[request.param], epochs=2, batch=5)  # type: ignore[type-var]
    return method, method.train(job(*small_world(encoder), encoder))


def weights(trained: Trained) -> list[bytes]:
    assert trained.encoder is not None
    assert trained.adapter is not None
    tensors = [p.detach().numpy() for p in trained.encoder.parameters()]
    return [array.tobytes() for array in (*tensors, trained.adapter.weight, trained.adapter.bias)]


def clocked(given: Job, *, seconds: float) -> Job:
    """The job, with so many seconds, of which each step takes one."""
    steps: list[Progress] = []

    def report(progress: Progress) -> None:
        if progress.step and progress.stage == "training":
            steps.append(progress)

    return replace(given, report=report, seconds_left=lambda: seconds - len(steps))


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("name", ["query_encoder", LOW_RANK])
def test_a_query_encoder_learns_from_clicks_and_leaves_its_parent_as_it_was(
    name: str, encoder: SentenceTransformer
):
    clicks, corpus = small_world(encoder)
    method = replace(OF_ENCODERS[name], epochs=20, learning_rate=1e-3)  # type: ignore[type-var]
    trained = method.train(job(clicks, corpus, encoder))
    assert trained.encoder is not None
    after = encode(trained.encoder, clicks.queries)
    if trained.adapter is not None:
        after = trained.adapter.apply(after)
    assert mean_reciprocal_rank(after, corpus.vectors) > mean_reciprocal_rank(clicks.vectors, corpus.vectors)
    assert np.array_equal(encode(encoder, clicks.queries), clicks.vectors)


LIVE = replace(METHODS["query_encoder"], epochs=2, batch=5)  # type: ignore[type-var]


@pytest.fixture(scope="module")
def live(encoder: SentenceTransformer) -> Trained:
    """A query encoder that has learnt from five queries."""
    clicks, corpus = small_world(encoder)
    return LIVE.train(job(clicks.of_queries(range(5)), corpus, encoder))


def job_after(live: Trained, encoder: SentenceTransformer, *, replayed: float) -> Job:
    """All twelve queries, with the live version for a parent."""
    assert live.encoder is not None
    clicks, corpus = small_world(encoder)
    given = job(clicks, corpus, encoder)
    parent = Parent("query_encoder-1", live.encoder, live.adapter, encoder)
    return replace(given, parent=parent, clicks=encoded(given, live.encoder, clicks), replayed=replayed)


def test_with_older_examples_to_learn_again_a_query_encoder_is_learnt_anew_and_met_half_way(
    encoder: SentenceTransformer, live: Trained
):
    before = weights(live)
    anew = job(*small_world(encoder), encoder)
    jobs = (anew, job_after(live, encoder, replayed=ANEW_FROM), job_after(live, encoder, replayed=0.1))
    learnt, met, gone_on = (weights(LIVE.train(one)) for one in jobs)
    assert weights(live) == before, "the parent stays as it was"
    for now, old, new in zip(met, before, learnt, strict=True):
        halves = (np.frombuffer(old, np.float32) + np.frombuffer(new, np.float32)) / 2
        assert np.allclose(np.frombuffer(now, np.float32), halves, atol=1e-6)
    assert met != gone_on != learnt
    with pytest.raises(TrainingError, match="12 of 12 texts"):
        LIVE.train(replace(jobs[1], seconds_left=lambda: 0.0))


def test_what_is_learnt_anew_is_resumed_to_the_same_bits(
    encoder: SentenceTransformer, live: Trained, tmp_path: Path
):
    given = job_after(live, encoder, replayed=ANEW_FROM)
    steps: list[int] = []

    def checkpoint() -> Checkpoint:
        ticks = count(step=1000)  # always due
        return Checkpoint(tmp_path / "moment-1.safetensors", "this", now=lambda: float(next(ticks)))

    def killed(progress: Progress) -> None:
        if progress.steps == 6 and progress.step == 5:
            raise KilledError

    def seen(progress: Progress) -> None:
        if progress.steps == 6:
            steps.append(progress.step)

    with pytest.raises(KilledError):
        LIVE.train(replace(given, report=killed, checkpoint=checkpoint()))
    resumed = LIVE.train(replace(given, report=seen, checkpoint=checkpoint()))
    assert min(steps) > 1, "it goes on"
    assert weights(resumed) == weights(LIVE.train(given))


def test_contrastive_training_is_resumed_between_its_epochs(encoder: SentenceTransformer, tmp_path: Path):
    clicks, corpus = small_world(encoder)
    method = replace(METHODS["full"], epochs=2, batch=5, hard_negatives=2)  # type: ignore[type-var]

    def killed(progress: Progress) -> None:
        if progress.steps == 6 and progress.step == 5:
            raise KilledError

    path = tmp_path / "moment-1.safetensors"
    with pytest.raises(KilledError):
        method.train(replace(job(clicks, corpus, encoder, report=killed), checkpoint=Checkpoint(path, "this")))
    steps: list[int] = []
    resumed = job(clicks, corpus, encoder, report=lambda p: steps.append(p.step) if p.steps == 6 else None)
    trained = method.train(replace(resumed, checkpoint=Checkpoint(path, "this")))
    assert min(steps) == 4
    assert weights(trained) == weights(method.train(job(clicks, corpus, encoder)))


def test_the_map_on_a_new_space_is_whitened_less_for_it_is_more_even_already(encoder: SentenceTransformer):
    clicks, corpus = small_world(encoder)
    powers = {
        kind: replace(METHODS[kind], epochs=1, batch=5).train(job(clicks, corpus, encoder)).notes["power"]  # type: ignore[type-var]
        for kind in ("adapter", "full")
    }
    assert 0.0 < powers["full"] < powers["adapter"]


def test_the_same_job_trains_the_same_weights_to_the_last_bit(
    undisturbed: tuple[Method, Trained], encoder: SentenceTransformer
):
    method, first = undisturbed
    assert weights(first) == weights(method.train(job(*small_world(encoder), encoder)))
    assert NOT_REPRODUCIBLE not in first.notes


@pytest.mark.parametrize("name", ["adapter", *OF_ENCODERS])
def test_training_leaves_the_parent_as_it_is(name: str, encoder: SentenceTransformer):
    clicks, corpus = small_world(encoder)
    dimension = clicks.vectors.shape[1]
    adapter = Adapter(np.eye(dimension, dtype=np.float32), np.zeros(dimension, np.float32))

    def parts() -> list[bytes]:
        arrays = (p.detach().numpy() for p in encoder.parameters())
        return [a.tobytes() for a in (*arrays, adapter.weight, adapter.bias, clicks.vectors, corpus.vectors)]

    before = parts()
    method = replace((METHODS | OF_ENCODERS)[name], epochs=2, batch=5, learning_rate=1e-2)  # type: ignore[type-var]
    trained = method.train(job(clicks, corpus, encoder, adapter=adapter))
    assert trained.adapter is not None
    assert not np.array_equal(trained.adapter.weight, adapter.weight)
    assert parts() == before


def test_a_training_that_the_clock_cut_short_says_that_it_cannot_be_reproduced(encoder: SentenceTransformer):
    clicks, corpus = small_world(encoder)
    trained = METHODS["adapter"].train(job(clicks, corpus, encoder, seconds=0.0))
    assert "budget" in str(trained.notes[NOT_REPRODUCIBLE])
    method = replace(METHODS["query_encoder"], epochs=100_000)  # type: ignore[type-var]
    trained = method.train(clocked(job(clicks, corpus, encoder), seconds=15.0))
    assert trained.steps >= 1
    assert "budget" in str(trained.notes[NOT_REPRODUCIBLE])


@pytest.mark.parametrize("name", OF_ENCODERS)
def test_a_training_without_time_ends_before_its_first_step_and_says_so(name: str, encoder: SentenceTransformer):
    with pytest.raises(TrainingError, match="budget"):
        OF_ENCODERS[name].train(job(*small_world(encoder), encoder, seconds=0.0))


def test_a_new_space_is_not_begun_where_encoding_it_would_take_all_the_time_that_is_left(
    encoder: SentenceTransformer,
):
    clicks, corpus = small_world(encoder)
    told: list[Progress] = []
    given = replace(job(clicks, corpus, encoder, report=told.append), seconds_to_encode=len)
    expected = f"to encode 12 documents anew afterwards takes about {len(corpus) + len(clicks.queries)} s"
    with pytest.raises(TrainingError, match=f"29 s of the budget are left for full, and {expected}"):
        METHODS["full"].train(replace(given, seconds_left=lambda: 29.0))
    assert not told
    assert METHODS["full"].train(replace(given, seconds_left=lambda: 31.0)).steps > 0


def test_a_new_space_is_trained_until_there_is_just_time_to_encode_with_it(encoder: SentenceTransformer):
    clicks, corpus = small_world(encoder)
    given = clocked(job(clicks, corpus, encoder), seconds=20.0)
    left: list[float] = []

    def report(progress: Progress) -> None:
        given.report(progress)
        if progress.stage == "encoding" and not left:
            left.append(given.seconds_left())

    method = replace(METHODS["full"], epochs=100_000)  # type: ignore[type-var]
    trained = method.train(replace(given, report=report, seconds_to_encode=lambda _: 4.0))
    assert (trained.steps, left[0]) == (15, 5.0), "four, and a quarter more in case it takes longer"


@pytest.mark.parametrize("at", [2, 4])
def test_a_training_that_is_resumed_ends_at_the_same_bits(
    undisturbed: tuple[Method, Trained], at: int, encoder: SentenceTransformer, tmp_path: Path
):
    clicks, corpus = small_world(encoder)
    method, expected = undisturbed
    steps: list[int] = []

    def killed(progress: Progress) -> None:
        if progress.stage == "training" and progress.steps == 6 and progress.step == at:
            raise KilledError

    def checkpoint() -> Checkpoint:
        ticks = count(step=1000)  # always due
        return Checkpoint(tmp_path / "c" / "moment-1.safetensors", "this", now=lambda: float(next(ticks)))

    with pytest.raises(KilledError):
        method.train(replace(job(clicks, corpus, encoder, report=killed), checkpoint=checkpoint()))
    resumed = job(clicks, corpus, encoder, report=lambda p: steps.append(p.step) if p.steps == 6 else None)
    trained = method.train(replace(resumed, checkpoint=checkpoint()))
    assert min(steps) == at + 1
    assert weights(trained) == weights(expected)


def test_upper_layers_see_what_the_whole_encoder_sees(encoder: SentenceTransformer):
    texts = ["short", "a query of some more words than that", "and another one"]
    with UpperLayers(encoder, texts, 2) as upper:
        got = upper.embed([2, 0, 1]).detach().numpy()
    assert np.allclose(got, encode(encoder, [texts[2], texts[0], texts[1]]), atol=1e-5)
    assert np.allclose(encode(encoder, texts)[[2, 0, 1]], got, atol=1e-5)
