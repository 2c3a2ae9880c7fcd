"""When two query texts are one."""

from __future__ import annotations

import pytest

from clickloop import text
from clickloop.text import masked, normal_text


@pytest.mark.parametrize("sign", map(chr, range(128)))
def test_plain_texts_fall_apart_as_all_others_do(sign: str) -> None:
    # Plain ASCII has a way of its own, which is quicker.
    assert normal_text(f"Le{sign}mot").replace("mot", "mót") == normal_text(f"Le{sign}mót")


def test_case_accents_encoding_and_punctuation_make_no_difference() -> None:
    assert normal_text("  Où est le CAFE\u0301?") == normal_text("où est le café")


@pytest.mark.parametrize(
    ("one", "other"),
    [("\uff33\uff30\uff21", "spa"), ("Stra\u00dfe", "STRASSE"), ("\u2460", "1")],
    ids=["wide letters", "sharp s", "circled"],
)
def test_letters_that_mean_the_same_are_the_same(one: str, other: str) -> None:
    assert normal_text(one) == normal_text(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u0e01\u0e34\u0e19", "\u0e01\u0e37\u0e19"),  # Thai: eat, return
        ("\u0926\u093f\u0928", "\u0926\u0940\u0928"),  # Hindi: day, poor
        ("\u0643\u064e\u062a\u064e\u0628", "\u0643\u064f\u062a\u0650\u0628"),  # Arabic: he wrote, was written
    ],
    ids=["Thai", "Hindi", "Arabic"],
)
def test_texts_whose_vowels_are_marks_are_told_apart_by_them(one: str, other: str) -> None:
    assert normal_text(one) == one
    assert normal_text(one) != normal_text(other)


def test_no_text_makes_the_tables_grow_without_end() -> None:
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert normal_text(every) == normal_text(every)
    assert len(masked(every)) == len(every)
    assert max(len(text._NORMAL), len(text._MASKED)) <= text.REMEMBERED


def test_joiners_and_variation_selectors_make_no_difference() -> None:
    assert (
        normal_text("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645")
        == "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"
    )
    assert normal_text("\u0915\u094d\u200d\u0937") == "\u0915\u094d\u0937"
    assert normal_text("shoes \u2764\ufe0f") == normal_text("shoes \u2764") == "shoes"
    assert normal_text("\u845b\U000e0100") == "\u845b"


def test_a_sign_parts_words_and_an_underscore_belongs_to_one() -> None:
    assert normal_text("low-cost/caf\u00e9") == "low cost caf\u00e9"
    assert normal_text("read_caf\u00e9") == "read_caf\u00e9" != normal_text("read caf\u00e9")


def test_a_masked_text_has_no_marks() -> None:
    assert masked("\u0e27\u0e34\u0e18\u0e35 cafe\u0301") == "\u0e27_\u0e18_ cafe_"


@pytest.mark.parametrize(
    "words", ["a_b c", "\u0e27\u0e34\u0e18\u0e35 a", "e\u0301\U000e0100\U0001f468\u200d\U0001f680"]
)
def test_a_masked_text_has_everything_in_its_place(words: str) -> None:
    assert len(masked(words)) == len(words)
    kept = [(new, old) for new, old in zip(masked(words), words, strict=True) if new != "_"]
    assert all(new == old for new, old in kept)


def test_words_that_signs_at_their_end_tell_apart_are_told_apart() -> None:
    asked = ["C strings", "C++ strings", "C# strings", "a+ strings", "a strings", "c++11 strings", "c11 strings"]
    assert len({normal_text(text) for text in asked}) == len(asked)
    assert normal_text("f\uff03") == normal_text("F#!") == "f#"
    assert normal_text("trail+shoes") == normal_text("trail + shoes") == normal_text("#trail ++shoes")
