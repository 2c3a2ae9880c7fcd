"""How both towers are trained by the settings of ``full``, seen on an encoder of four tiny layers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from clickloop.commands import Reason, Retrain
from clickloop.errors import SettingsError
from clickloop.events import TrainingProgressed
from clickloop.model_store import base_model_folder
from tests.precision import computing_in
from tests.ranks_worker import KilledError, small_job, write_tiny_encoder
from tests.unit.trainer_facts import START
from trainer.dataset import Clicks
from trainer.methods import losses, methods_of
from trainer.methods.base import Job, Progress, Trained
from trainer.methods.batching import NO_DOMAIN, batch_count, domains_of
from trainer.methods.checkpoint import Checkpoint
from trainer.methods.descent import add_gradients, grouped
from trainer.methods.early_stopping import EarlyStopping, Ranking, set_apart
from trainer.methods.full import FullMethod
from trainer.methods.objectives import Batch, distilled, embedded
from trainer.methods.pairs import Pairs
from trainer.methods.teacher import leads, teacher_of
from trainer.methods.upper_layers import UpperLayers
from trainer.model import load_encoder, normalised
from trainer.progress import RunReport
from trainer.recorded import Lines
from trainer.rung_settings import FullLoss, RungSettings

Report = Callable[[Progress], None]
SMALL = FullMethod(epochs=3, batch=10)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_encoder(folder)
    return load_encoder(folder / "encoder", "cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job_of(encoder: SentenceTransformer, report: Report = lambda _: None, **changed: Any) -> Job:
    """The small world's; its queries are told apart, which the encoder's random weights do not do."""
    job = small_job(encoder, None, report)
    apart = normalised(np.random.default_rng(0).normal(size=job.clicks.vectors.shape))
    return replace(job, clicks=replace(job.clicks, vectors=apart), **changed)


def bits(trained: Trained) -> list[bytes]:
    assert trained.encoder is not None
    return [p.detach().numpy().tobytes() for p in trained.encoder.parameters()]


def killed_and_resumed(method: FullMethod, encoder: SentenceTransformer, path: Path, *, at: int) -> Trained:
    """The training, killed at the step of this number of the encoder's and resumed."""
    steps: list[int] = []

    def checkpoint() -> Checkpoint:
        ticks = count(step=1000)  # always due
        return Checkpoint(path, "this", now=lambda: float(next(ticks)))

    def killed(progress: Progress) -> None:
        if progress.stage == "training" and progress.step == at:
            raise KilledError

    with pytest.raises(KilledError):
        method.train(job_of(encoder, killed, checkpoint=checkpoint()))
    assert path.is_file()
    trained = method.train(job_of(encoder, lambda p: steps.append(p.step), checkpoint=checkpoint()))
    assert next(step for step in steps if step) > 1, "it goes on, and does not begin anew"
    return trained


# Losses


@pytest.mark.parametrize("loss", get_args(FullLoss))
@pytest.mark.parametrize("hard", [0, 2], ids=["in batch", "mined"])
def test_every_loss_that_can_be_set_is_learnt(loss: str, hard: int, encoder: SentenceTransformer):
    told: list[Progress] = []
    settings = RungSettings.model_construct(full_loss=loss, full_batch=15, full_learning_rate=2e-3, full_epochs=10)
    method = replace(methods_of(settings)["full"], hard_negatives=hard)  # type: ignore[type-var]
    assert method.train(job_of(encoder, told.append)).steps == 30
    found = [p.loss for p in told if p.steps == 30 and p.loss is not None]
    assert np.mean(found[-3:]) < 0.95 * np.mean(found[:3])


def first_loss(encoder: SentenceTransformer, method: FullMethod) -> float:
    told: list[Progress] = []

    def report(progress: Progress) -> None:
        if progress.loss is not None:
            told.append(progress)
            raise KilledError

    with pytest.raises(KilledError):
        method.train(job_of(encoder, report))
    assert told[0].loss is not None
    return told[0].loss


def test_a_matryoshka_loss_is_the_sum_over_the_dimensions_that_are_set(encoder: SentenceTransformer):
    whole, short, both = (
        first_loss(encoder, replace(SMALL, matryoshka=sizes)) for sizes in ((32,), (8,), (32, 8))
    )
    assert whole == pytest.approx(first_loss(encoder, SMALL), rel=1e-5)
    assert both == pytest.approx(whole + short, rel=1e-5)
    assert short != pytest.approx(whole, rel=1e-2)


def test_more_dimensions_than_the_model_has_are_refused_in_a_line_before_training(encoder: SentenceTransformer):
    told: list[Progress] = []
    method = methods_of(RungSettings.load(full_matryoshka="64, 16"))["full"]
    with pytest.raises(SettingsError, match=r"^setting full_matryoshka: .* 32 dimensions \(got '64,16'\)$"):
        method.train(job_of(encoder, told.append))
    assert told == []
    with pytest.raises(SettingsError, match=r"setting full_matryoshka: .*got '0,many'"):
        RungSettings.load(full_matryoshka="0,many")


def test_without_a_head_the_encoder_is_the_same_and_all_that_a_version_has(encoder: SentenceTransformer):
    plain = replace(SMALL, head=None).train(job_of(encoder))
    with_map = SMALL.train(job_of(encoder))
    assert plain.adapter is None
    assert with_map.adapter is not None
    assert plain.new_space
    assert bits(plain) == bits(with_map)


# Teachers


def cross_encoder(folder: Path, *, scores: int) -> Path:
    """Two layers of 32 dimensions, random weights, for the words of the small world."""
    torch.manual_seed(3)
    write_tiny_encoder(folder)
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "bert" / "vocab.txt"))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=96,
        num_labels=scores,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    CrossEncoder(str(folder / "plain"), device="cpu").save_pretrained(str(folder / "cross"))
    return folder / "cross"


@pytest.mark.parametrize("kind", ["bi-encoder", "cross-encoder"])
def test_a_teachers_leads_are_learnt(
    kind: str, encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = str(base_model_folder("all-MiniLM-L6-v2"))
    if kind == "cross-encoder":
        name = f"cross-encoder:{cross_encoder(tmp_path, scores=1)}"
    method = replace(SMALL, epochs=6, learning_rate=2e-3, teacher=name, head=None)

    def errors(share: float) -> list[float]:
        """Of the leads, batch by batch, where the teacher has this share in the loss."""
        found: list[float] = []

        def seen(batch: Batch, lead: torch.Tensor, *, scale: float) -> torch.Tensor:
            taught = distilled(batch, lead, scale=scale)
            found.append(taught.item())
            return share * taught

        monkeypatch.setattr("trainer.methods.full.distilled", seen)
        assert method.train(job_of(encoder)).steps == len(found) == 30
        return found

    taught, alone = errors(1.0), errors(0.0)
    assert taught[0] == alone[0] > 0.0
    assert np.mean(taught[-5:]) < 0.8 * np.mean(alone[-5:])


def test_a_teachers_scores_are_its_own_of_each_pair(tmp_path: Path):
    folder, texts = cross_encoder(tmp_path, scores=1), ["red car", "blue house", "old boat with tree"]
    queries, documents = np.array([0, 0, 1]), np.array([1, 2, 2])
    cpu = torch.device("cpu")
    both = teacher_of("all-MiniLM-L6-v2", texts, cpu, on_text=lambda *_: None)
    vectors = load_encoder(base_model_folder("all-MiniLM-L6-v2"), "cpu").encode(texts, normalize_embeddings=True)
    cosines = (vectors[queries] * vectors[documents]).sum(axis=1)
    assert both.scores(queries, documents) == pytest.approx(cosines, abs=0.02)
    read = teacher_of(f"cross-encoder:{folder}", texts, cpu, on_text=lambda *_: None)
    pairs = [(texts[q], texts[d]) for q, d in zip(queries, documents, strict=True)]
    logits = CrossEncoder(str(folder), device="cpu").predict(pairs, activation_fn=torch.nn.Identity())
    assert read.scores(queries, documents) == pytest.approx(1.0 / (1.0 + np.exp(-logits)), abs=1e-5)


def test_a_training_with_a_cross_encoder_for_a_teacher_is_resumed_to_the_same_bits(
    encoder: SentenceTransformer, tmp_path: Path
):
    method = replace(SMALL, teacher=f"cross-encoder:{cross_encoder(tmp_path, scores=1)}")
    trained = killed_and_resumed(method, encoder, tmp_path / "moment-1.safetensors", at=7)
    assert bits(trained) == bits(method.train(job_of(encoder)))


def test_a_row_without_a_hard_negative_has_no_lead():
    class Numbers:
        def scores(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
            return (10 * queries + documents).astype(np.float32)

    clicks: Any = None
    pairs = Pairs(clicks, np.array([7, 8, 9]), np.array([4, 5, 6]), np.array([[1, 2], [-1, -1], [3, -1]]))
    assert leads(Numbers(), pairs, np.arange(3)).tolist() == [3.0, 0.0, 3.0]


@pytest.mark.parametrize("name", ["{folder}/none", "cross-encoder:{folder}/none", "cross-encoder:{three}"])
def test_a_teacher_that_cannot_be_used_is_refused_in_a_line(
    name: str, encoder: SentenceTransformer, tmp_path: Path
):
    three = cross_encoder(tmp_path, scores=3) if "three" in name else ""
    method = replace(SMALL, teacher=name.format(folder=tmp_path, three=three))
    with pytest.raises(SettingsError, match=r"^setting full_teacher: .*(none|3 scores)") as caught:
        method.train(job_of(encoder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["2_Dense/pytorch_model.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl", "a.pickle"])
def test_a_teacher_with_weights_that_would_be_unpickled_is_refused(
    part: str, encoder: SentenceTransformer, tmp_path: Path
):
    folder = cross_encoder(tmp_path, scores=1)
    (folder / part).parent.mkdir(exist_ok=True)
    (folder / part).write_bytes(b"pickled")
    with pytest.raises(SettingsError, match="nothing is unpickled"):
        replace(SMALL, teacher=f"cross-encoder:{folder}").train(job_of(encoder))


# Gradients of several batches


def test_the_gradients_of_several_batches_are_those_of_all_their_rows():
    torch.manual_seed(0)
    inputs, layer = torch.randn(10, 4), torch.nn.Linear(4, 1)

    def loss_of(rows: np.ndarray) -> torch.Tensor:
        return (layer(inputs[torch.from_numpy(rows)]) ** 2).mean()

    whole = add_gradients([np.arange(10)], loss_of)
    expected = layer.weight.grad
    assert expected is not None
    layer.zero_grad()
    parts = add_gradients([np.arange(4), np.arange(4, 8), np.arange(8, 10)], loss_of)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, expected, atol=1e-6)
    assert [len(together) for together in grouped(iter([np.arange(1)] * 5), 2)] == [2, 2, 1]


def test_a_step_of_several_batches_is_one_of_fewer_and_the_course_counts_them(encoder: SentenceTransformer):
    told: list[Progress] = []
    method = replace(SMALL, accumulate=2)
    trained = method.train(job_of(encoder, told.append))
    # 45 pairs are five batches, and three steps of an epoch.
    assert trained.steps == 9
    steps = [p for p in told if p.steps == 9]
    assert [p.step for p in steps] == [*range(1, 10)]
    assert [p.examples for p in steps][:4] == [20, 40, 45, 65]
    assert bits(trained) != bits(SMALL.train(job_of(encoder)))


@pytest.mark.parametrize("at", [3, 7])
def test_a_training_of_several_batches_a_step_is_resumed_to_the_same_bits(
    at: int, encoder: SentenceTransformer, tmp_path: Path
):
    method = replace(SMALL, accumulate=2)
    trained = killed_and_resumed(method, encoder, tmp_path / "moment-1.safetensors", at=at)
    assert bits(trained) == bits(method.train(job_of(encoder)))


# A batch in parts


@pytest.mark.parametrize("changed", [{}, {"hard_negatives": 2}, {"accumulate": 2, "matryoshka": (32, 8)}])
def test_a_batch_in_parts_is_learnt_along_the_same_losses_with_few_graphs_at_a_time(
    changed: dict[str, Any], encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
):
    whole = replace(SMALL, **changed)
    usual, with_graphs = UpperLayers.embed, list[int]()

    def embed(layers: UpperLayers, rows: np.ndarray) -> torch.Tensor:
        if torch.is_grad_enabled():
            with_graphs.append(len(np.unique(rows)))
        return usual(layers, rows)

    def curve(method: FullMethod) -> list[float]:
        told: list[Progress] = []
        with computing_in("float32"):
            steps = method.train(job_of(encoder, told.append)).steps
        return [p.loss for p in told if p.steps == steps and p.loss is not None]

    expected = curve(whole)
    monkeypatch.setattr(UpperLayers, "embed", embed)
    assert curve(replace(whole, cached_batch=4)) == pytest.approx(expected, rel=1e-3)
    assert max(with_graphs) == 4


@pytest.mark.parametrize("at_once", [1, 4, 7])
def test_the_gradients_of_a_batch_in_parts_are_those_of_the_whole(at_once: int, encoder: SentenceTransformer):
    texts = small_job(encoder, None, lambda _: None).clicks.queries[:12]
    rows = np.array([3, 5, 1, 5, 0, 2, 11, 7, 8, 10, 5, 4])
    found: list[torch.Tensor] = []
    with computing_in("float32"), UpperLayers(copy.deepcopy(encoder).eval(), texts, 2) as upper:
        for size in (0, at_once):
            loss = embedded(upper, rows, lambda v: losses.ranking(v[:6], v[6:], scale=20.0), at_once=size)
            loss.backward()
            found.append(torch.cat([p.grad.flatten() for p in upper.parameters if p.grad is not None]))
            for parameter in upper.parameters:
                parameter.grad = None
    assert found[0].abs().max() > 0.1
    assert torch.allclose(found[0], found[1], atol=1e-4 * float(found[0].abs().max()))


# Batches of one domain


def test_a_batch_is_of_one_domain_and_each_has_its_share(encoder: SentenceTransformer, monkeypatch: Any):
    usual, seen = Pairs.texts, list[tuple[set[str], int]]()
    clicks = job_of(encoder).clicks
    names = ["domain shoes" if query < 12 else "domain tools" for query in range(len(clicks.queries))]
    labels = {query: frozenset({names[query], "difficulty easy"}) for query in range(len(names))}
    labelled = replace(job_of(encoder), clicks=replace(clicks, labels=labels))
    domain = dict(zip(clicks.queries, names, strict=True))

    def texts(pairs: Pairs, batch: np.ndarray) -> np.ndarray:
        asked = [pairs.clicks.queries[i] for i in pairs.clicks.query[batch]]
        seen.append(({domain[query] for query in asked}, len(asked)))
        return usual(pairs, batch)

    monkeypatch.setattr(Pairs, "texts", texts)
    assert replace(SMALL, domain_batches=True).train(labelled).steps == 18
    # 12 and 33 pairs are two and four batches.
    assert len(seen) == 18
    assert all(len(names) == 1 for names, _ in seen)
    first = [(*names, size) for names, size in seen[:6]]
    assert sum(size for name, size in first if name == "domain shoes") == 12
    assert sum(size for name, size in first if name == "domain tools") == 33
    assert [name for name, _ in first] != sorted(name for name, _ in first), "they are mixed"
    seen.clear()
    assert SMALL.train(labelled).steps == 15
    assert any(len(names) == 2 for names, _ in seen)


def test_a_piece_is_of_its_documents_domain_and_what_names_none_of_none():
    def clicks(query: list[int], document: list[int], labels: dict[int, frozenset[str]]) -> Clicks:
        ones = np.ones(len(query), np.float32)
        texts = [f"query {i}" for i in range(max(query) + 1)]
        return Clicks(texts, np.asarray(query), np.asarray(document), ones, ones, labels=labels)

    named = {0: frozenset({"domain b", "domain a"}), 1: frozenset({"domain b"}), 3: frozenset({"domain b"})}
    own = clicks([0, 1, 2, 3], [5, 5, 6, 5], named)
    both = clicks([0, 1, 2, 3, 4, 5, 6], [5, 5, 6, 5, 5, 6, 7], {})
    assert domains_of(both, own).tolist() == [1, 2, NO_DOMAIN, 2, 2, NO_DOMAIN, NO_DOMAIN]
    assert batch_count(np.array([1, 1, 1, 2, 2, 4]), 2) == 2 + 1 + 1


# Early stopping


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


def test_a_ranking_is_the_mean_reciprocal_rank_of_what_is_wanted():
    vectors = torch.eye(4)
    vectors[3] = torch.tensor([0.8, 0.6, 0.0, 0.0])

    class Fixed:
        def embed(self, rows: np.ndarray) -> torch.Tensor:
            return vectors[torch.from_numpy(rows)]

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
    vectors = torch.eye(4)
    vectors[3] = torch.tensor([0.8, 0.6, 0.0, 0.0])

    class Fixed:
        def embed(self, rows: np.ndarray) -> torch.Tensor:
            return vectors[torch.from_numpy(rows)]

    layers: Any = Fixed()
    ranking = Ranking.of(np.array([3]), np.array([2]), np.ones(1, np.float32), documents=3, seed=0)
    assert ranking.among.tolist() == [0, 1, 2]
    assert ranking.reciprocal(layers) == pytest.approx(1 / 3)
    vectors[:] = torch.nan
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
    replace(SMALL, epochs=1, patience=1).train(replace(given, clicks=replace(given.clicks, weight=weight)))
    (ranking,) = found
    assert ranking.weight.tolist() == [1.0] * 4, "clicks that are not debiased teach by their evidence"
    assert ranking.among.max() < ranking.asked.min(), "no query is ranked"


def test_what_was_rated_low_is_its_querys_hard_negative(
    encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
):
    given = job_of(encoder)
    unclicked = np.setdiff1d(np.arange(len(given.corpus)), given.clicks.document)
    alike = given.corpus.vectors[unclicked] @ given.corpus.vectors[given.clicks.document].T
    place, row = np.unravel_index(alike.argmin(), alike.shape)
    against, query = int(unclicked[place]), int(given.clicks.query[row])
    seen: list[tuple[str, str]] = []

    def texts(pairs: Pairs, batch: np.ndarray) -> np.ndarray:
        rows = usual(pairs, batch)
        asked = [pairs.clicks.queries[query] for query in pairs.clicks.query[batch]]
        seen.extend(zip(asked, pairs.hard[batch, 0].tolist(), strict=True))
        return rows

    usual = Pairs.texts
    monkeypatch.setattr(Pairs, "texts", texts)
    unwanted = {query: {against: 3.0}}
    method = replace(SMALL, epochs=1, hard_negatives=1, head=None)
    method.train(replace(given, clicks=replace(given.clicks, unwanted=unwanted)))
    number = int(np.searchsorted(np.unique([*given.clicks.document, against]), against))
    assert (given.clicks.queries[query], number) in seen


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
