"""Pieces of documents: words of every script, and for most texts the same as ever."""

from __future__ import annotations

import ast
import re
import sysconfig
from pathlib import Path

import pytest

from tests.unit.test_generating import ARABIC, HINDI, PERSIAN, THAI
from trainer.domain import pieces, words
from trainer.examples import Document

SINHALA = "\u0dc1\u0dca\u200d\u0dbb\u0dd3 \u0dbd\u0d82\u0d9a\u0dcf"


@pytest.mark.parametrize("text", [THAI, HINDI, ARABIC, SINHALA], ids=["Thai", "Hindi", "Arabic", "Sinhala"])
def test_words_whose_letters_carry_marks_stay_whole(text: str) -> None:
    assert words(f"{text}, {text}!") == [*text.split(), *text.split()]
    assert pieces(Document("d", text, b"1" * 32))[0] == text


def test_a_mark_without_a_letter_is_no_word_and_an_underscore_no_mark() -> None:
    assert words("\u2764\ufe0f red \u0301 caf\u0065\u0301_bar_7") == ["red", "cafe\u0301", "bar", "7"]


def test_without_marks_words_are_letters_and_digits_in_a_row() -> None:
    """What versions have learnt from stays the same: of the standard library's texts, and of joiners and signs."""
    camel, word = re.compile(r"(?<=[a-z0-9])(?=[A-Z])"), re.compile(r"[^\W_]{2,}|\d")
    texts = [PERSIAN, "Gr\u00f6\u00dfe 5 a 12_3 __x_1__ \u6f22\u5b57\u00b2 \u0130stanbul \u212b"]
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]:
        tree = ast.parse(path.read_bytes())
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, nodes)]
    assert len(texts) > 1000
    for text in texts:
        assert words(text) == [found.lower() for found in word.findall(camel.sub(" ", text))]
