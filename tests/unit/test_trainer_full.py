"""How both towers are trained by the settings of ``full``, seen on an encoder of four tiny layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from clickloop.base_model import base_model_folder
from clickloop.errors import SettingsError
from tests.precision import computing_in
from tests.ranks_worker import KilledError, small_job, write_tiny_encoder
from tests.unit.full_facts import SMALL, bits, job_of, killed_and_resumed, one_thread, tiny_encoder
from tests.unit.trainer_facts import in_slices
from trainer.dataset import Clicks
from trainer.methods import losses, methods_of
from trainer.methods.adapter import AdapterMethod, doubted
from trainer.methods.base import Job, Progress, Trained
from trainer.methods.batching import NO_DOMAIN, batch_count, domains_of
from trainer.methods.descent import add_gradients, grouped
from trainer.methods.full import FullMethod
from trainer.methods.objectives import Batch, distilled, embedded
from trainer.methods.pairs import Pairs
from trainer.methods.query_encoder import QueryEncoderMethod
from trainer.methods.teacher import leads, teacher_of
from trainer.methods.upper_layers import UpperLayers
from trainer.model import Adapter, load_encoder
from trainer.rung_settings import FullLoss, RungSettings


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    return tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


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


DOUBTED = [(True, False), (False, False), (True, True)]
"""Whether clicks are doubted, and whether they are pairs that a strategy brought along, which no one clicked."""


def contradicted(job: Job) -> Job:
    """Its first query was clicked for another document as well."""
    clicks = job.clicks
    rows = {"query": 0, "document": int(clicks.document[-1]), "weight": 1.0, "evidence": 1.0}
    return replace(
        job,
        clicks=replace(clicks, **{part: np.insert(getattr(clicks, part), 1, one) for part, one in rows.items()}),
    )


def shares(job: Job, clicks: Clicks) -> np.ndarray:
    """(rows,) what is left of each click's evidence."""
    return clicks.evidence[: len(job.clicks)] / job.clicks.evidence


@pytest.mark.parametrize(("doubts", "given"), DOUBTED)
def test_the_map_on_top_learns_from_clicks_as_they_were_believed_before_they_were_learnt(
    doubts: bool, given: bool, encoder: SentenceTransformer
):
    seen: list[tuple[bool, Clicks]] = []

    class Head(AdapterMethod):
        def train(self, job: Job) -> Trained:
            seen.append((self.doubts, job.clicks))
            return super().train(job)

    job = replace(contradicted(job_of(encoder)), given=given)
    replace(SMALL, epochs=1, head=Head(doubts=doubts)).train(job)
    [(again, clicks)] = seen
    assert not again
    assert np.array_equal(clicks.evidence, (doubted(job) if doubts else job.clicks).evidence)
    assert np.array_equal(clicks.evidence, job.clicks.evidence) == (given or not doubts)


@pytest.mark.parametrize(("doubts", "given"), DOUBTED)
def test_a_query_encoder_learns_less_from_clicks_that_others_on_their_query_contradict(
    doubts: bool, given: bool, encoder: SentenceTransformer
):
    seen: list[Clicks] = []

    class Learner(QueryEncoderMethod):
        def _descend(self, job: Job, start: Adapter, clicks: Clicks) -> Trained:
            seen.append(clicks)
            return replace(job.earlier, adapter=start)

    job = replace(contradicted(job_of(encoder)), given=given)
    Learner(doubts=doubts).train(job)
    share = shares(job, seen[0])
    if doubts and not given:
        assert share[:2].max() < 0.8 < share[2:].min()
    else:
        assert np.array_equal(share, np.ones(len(share)))


@pytest.mark.parametrize(("doubts", "given"), DOUBTED)
def test_both_towers_learn_from_clicks_as_far_as_others_on_their_query_agree(
    doubts: bool, given: bool, encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Clicks] = []

    def descend(*given: Any) -> None:
        seen.append(given[-1])
        raise KilledError

    monkeypatch.setattr(FullMethod, "_descend", descend)
    job = replace(contradicted(job_of(encoder)), given=given)
    with pytest.raises(KilledError):
        FullMethod(doubts=doubts).train(job)
    assert (seen[0].evidence.sum() < 0.9 * job.clicks.evidence.sum()) == (doubts and not given)
    assert (doubts and not given) or seen[0] is job.clicks


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
    slices = {query: {names[query], "difficulty easy"} for query in range(len(names))}
    labelled = replace(job_of(encoder), clicks=in_slices(clicks, slices))
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
    def clicks(query: list[int], document: list[int], slices: dict[int, set[str]]) -> Clicks:
        ones = np.ones(len(query), np.float32)
        texts = [f"query {i}" for i in range(max(query) + 1)]
        return in_slices(Clicks(texts, np.asarray(query), np.asarray(document), ones, ones), slices)

    named = {0: {"domain b", "domain a"}, 1: {"domain b"}, 3: {"domain b"}}
    own = clicks([0, 1, 2, 3], [5, 5, 6, 5], named)
    both = clicks([0, 1, 2, 3, 4, 5, 6], [5, 5, 6, 5, 5, 6, 7], {})
    assert domains_of(both, own).tolist() == [1, 2, NO_DOMAIN, 2, 2, NO_DOMAIN, NO_DOMAIN]
    assert batch_count(np.array([1, 1, 1, 2, 2, 4]), 2) == 2 + 1 + 1


# What speaks against a document


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
