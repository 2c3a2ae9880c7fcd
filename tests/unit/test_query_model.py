"""A sequence-to-sequence model asks what documents answer: a tiny one with random weights, in the real library."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from clickloop import data
from clickloop.errors import SettingsError
from clickloop.events import DocumentChanged
from clickloop.generating import generate
from trainer.query_model import model_queries

WORDS = ["grip", "wet", "rock", "trail", "shoe", "gel", "insole", "rain", "mud", "sole"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    folder = str(tmp_path_factory.mktemp("model"))
    vocabulary = {word: n for n, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - no password
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(vocabulary), decoder_start_token_id=0, **sizes)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_model_asks_as_often_as_it_is_told_and_the_same_for_the_same_seed(model: str) -> None:
    texts = [f"{word} shoe" for word in WORDS * 2]
    asked = model_queries(model, texts, per_document=2, seed=3)
    assert [len(queries) for queries in asked] == [2] * 20
    assert {word for queries in asked for query in queries for word in query.split()} <= set(WORDS)
    assert asked == model_queries(model, texts, per_document=2, seed=3)


def test_what_a_model_asks_is_sifted_like_any_other_query() -> None:
    documents = [
        DocumentChanged(event_id=d, index="i", doc_id=d, changed_at=datetime(2026, 3, 2, tzinfo=UTC), text="")
        for d in "ab"
    ]
    asked = {
        "a": ["which shoe grips wet rock?", "shoe"],
        "b": ["what dries overnight", "which shoe grips wet rock"],
    }
    pairs = generate(documents, per_document=3, seed=0, asked=asked)
    assert [(p.doc_id, p.query, p.kind) for p in pairs] == [("b", "what dries overnight", "model")]


def test_no_such_model_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no sequence-to-sequence model"):
        model_queries(str(tmp_path / "none"), ["text"], per_document=1, seed=0)


def test_without_the_trainer_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "entry_points", lambda **_: ())
    with pytest.raises(SettingsError, match="pip install"):
        data._asked("t5", [], 1, 0)
    gone = EntryPoint("seq2seq", "no_such_module:f", "clickloop.query_generators")
    monkeypatch.setattr(data, "entry_points", lambda **_: (gone,))
    with pytest.raises(
        SettingsError, match=r"'no_such_module' is not installed; pip install 'clickloop\[trainer\]'"
    ):
        data._asked("t5", [], 1, 0)


def test_the_command_finds_the_generator_where_the_package_names_it() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    name = project["project"]["entry-points"]["clickloop.query_generators"]["seq2seq"]
    assert EntryPoint("seq2seq", name, "clickloop.query_generators").load() is model_queries
